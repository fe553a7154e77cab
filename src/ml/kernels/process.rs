//! Settings of a process that computes.

/// Sets up the process: call it once, at the start of one that trains or samples, on the thread that does.
pub fn prepare() {
    tune_allocator();
    build_pool();
}

/// Builds the pool of threads for parallel loops, of which the calling thread is one.
///
/// A thread outside the pool sleeps through each loop and has to be woken after it: for the short loops of generation
/// that costs more than they do. Where the pool is to have every processor, each of its threads gets one: the kernel
/// wakes a thread where it ran last, so that two that were once on one processor may stay there for seconds.
fn build_pool() {
    let own = processors();
    let pool = rayon::ThreadPoolBuilder::new().use_current_thread();
    let asked = std::env::var("RAYON_NUM_THREADS").ok();
    let threads: Option<usize> = asked.and_then(|threads| threads.parse().ok());
    // With 0 and without a number the pool has a thread for each.
    let pool = match threads {
        Some(threads) if threads != 0 && threads != own.len() => pool,
        _ => {
            if let Some(first) = own.first() {
                bind(&[*first]);
                // It stays there as long as nobody else needs it, and what it starts may run anywhere.
                bind(&own);
            }
            pool.start_handler(move |index| {
                if let Some(processor) = own.get(index) {
                    bind(&[*processor]);
                }
            })
        }
    };
    // A pool that was built before stays.
    let _ = pool.build_global();
}

/// Returns the processors that this thread may run on; none where that is not known.
fn processors() -> Vec<usize> {
    #[cfg(target_os = "linux")]
    #[expect(unsafe_code, reason = "the set of processors is a plain array of bits")]
    // SAFETY: the call writes at most the size that it is given.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        if libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set) == 0 {
            let most = libc::CPU_SETSIZE as usize;
            return (0..most)
                .filter(|cpu| libc::CPU_ISSET(*cpu, &set))
                .collect();
        }
    }
    Vec::new()
}

/// Keeps this thread to some processors.
fn bind(processors: &[usize]) {
    #[cfg(target_os = "linux")]
    #[expect(unsafe_code, reason = "the set of processors is a plain array of bits")]
    // SAFETY: the call reads the size that it is given; the numbers came from such a set.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        for cpu in processors {
            libc::CPU_SET(*cpu, &mut set);
        }
        // It is a wish: without it everything is the same, only slower.
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set);
    }
    #[cfg(not(target_os = "linux"))]
    let _ = processors;
}

/// Keeps freed tensors in the process instead of returning them to the kernel.
///
/// With glibc's defaults every tensor above 128 KiB is mapped, zeroed by page faults and unmapped again:
/// 11 to 26 % of a training step. It does nothing where the allocator is not glibc's.
fn tune_allocator() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        const ONE_GIB: libc::c_int = 1 << 30;
        #[expect(
            unsafe_code,
            reason = "mallopt only sets two thresholds of the allocator"
        )]
        // SAFETY: mallopt takes two integers and has no precondition.
        unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, ONE_GIB);
            libc::mallopt(libc::M_TRIM_THRESHOLD, libc::c_int::MAX);
        }
    }
}
