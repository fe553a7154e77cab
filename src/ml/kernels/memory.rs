//! The allocator's settings.

/// Keeps freed tensors in the process instead of returning them to the kernel.
///
/// With glibc's defaults every tensor above 128 KiB is mapped, zeroed by page faults and unmapped again:
/// 11 to 26 % of a training step. Call it once, at the start of a process that trains or samples. It does
/// nothing where the allocator is not glibc's.
pub fn tune_allocator() {
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
