//! Giving inputs to a reader, and watching what it does with them.

#![expect(
    clippy::print_stderr,
    reason = "a long search tells what it found as it goes"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, Once};
use std::time::{Duration, Instant};

use flowgraph::engine::artifact::Digest;
use flowgraph::random::Stream;

use crate::mutate::mutate;

/// A reader of files that others made.
pub(crate) struct Reader {
    pub(crate) name: &'static str,
    /// Good files.
    pub(crate) corpus: Vec<Vec<u8>>,
    /// What the format is made of.
    pub(crate) words: &'static [&'static str],
    /// Inputs of the short test.
    pub(crate) short: u64,
    /// Whether the bytes were taken; an error says what is wrong with how they were refused.
    pub(crate) read: Box<dyn Fn(&[u8]) -> Result<bool, String>>,
}

/// No input may take longer, if the processor worked as long; on a busy machine it may have to wait.
const LONGEST: Duration = Duration::from_secs(10);
const LONGEST_WAIT: Duration = Duration::from_mins(2);
/// No input may need more.
const MOST_BYTES: i64 = 1 << 30;
/// Beyond this the process ends at once, so that the machine does not.
const CEILING: i64 = 4 << 30;

static LIVE: AtomicI64 = AtomicI64::new(0);
static PEAK: AtomicI64 = AtomicI64::new(0);

/// The system's allocator, counting.
struct Counting;

fn grow(by: usize) -> bool {
    let live = LIVE.fetch_add(by as i64, Ordering::Relaxed) + by as i64;
    PEAK.fetch_max(live, Ordering::Relaxed);
    let fits = live < CEILING;
    if !fits {
        shrink(by);
    }
    fits
}

fn shrink(by: usize) {
    LIVE.fetch_sub(by as i64, Ordering::Relaxed);
}

#[expect(unsafe_code, reason = "an allocator that counts, in tests")]
// SAFETY: every call is passed on to the system's allocator unchanged, or refused with null.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if !grow(layout.size()) {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller keeps the contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if !grow(layout.size()) {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller keeps the contract.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        shrink(layout.size());
        // SAFETY: the caller keeps the contract.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if !grow(size) {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller keeps the contract.
        let moved = unsafe { System.realloc(pointer, layout, size) };
        shrink(if moved.is_null() { size } else { layout.size() });
        moved
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

thread_local! {
    /// Whether this thread is at an input, whose panics are caught and told later.
    static AT_INPUT: Cell<bool> = const { Cell::new(false) };
}

static LAST_PANIC: Mutex<String> = Mutex::new(String::new());

fn catch_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            // Threads of a reader's own pool have no test's name; what they meet comes back to the test.
            let is_test = std::thread::current()
                .name()
                .is_some_and(|name| name.contains("::"));
            if AT_INPUT.get() {
                *LAST_PANIC.lock().unwrap() = panic.to_string();
            } else if is_test {
                usual(panic);
            }
        }));
    });
}

/// How long processors worked for this process.
fn processor_time() -> Duration {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    let ticks = fields.split(' ').skip(11).take(2);
    let ticks: u64 = ticks.map(|field| field.parse::<u64>().unwrap()).sum();
    Duration::from_millis(10 * ticks)
}

/// One reader, its inputs so far and what was found.
struct Session<'a> {
    reader: &'a Reader,
    folder: PathBuf,
    /// Milliseconds since `start` when the current input began; 0 between inputs.
    began: Arc<AtomicU64>,
    start: Instant,
    findings: BTreeMap<String, PathBuf>,
}

impl<'a> Session<'a> {
    fn new(reader: &'a Reader) -> Self {
        catch_panics();
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("fuzz");
        fs::create_dir_all(&folder).unwrap();
        Self {
            reader,
            folder,
            began: Arc::default(),
            start: Instant::now(),
            findings: BTreeMap::new(),
        }
    }

    /// Where the current input lies: whatever ends the process, it can be looked at.
    fn current(&self) -> PathBuf {
        self.folder.join(format!("{}-current", self.reader.name))
    }

    /// Gives an input to the reader; returns whether it was taken.
    fn attempt(&mut self, bytes: &[u8]) -> bool {
        fs::write(self.current(), bytes).unwrap();
        let before = LIVE.load(Ordering::Relaxed);
        PEAK.store(before, Ordering::Relaxed);
        let now = self.start.elapsed().as_millis() as u64;
        self.began.store(now.max(1), Ordering::Relaxed);
        AT_INPUT.set(true);
        let outcome = catch_unwind(AssertUnwindSafe(|| (self.reader.read)(bytes)));
        AT_INPUT.set(false);
        self.began.store(0, Ordering::Relaxed);
        let needed = PEAK.load(Ordering::Relaxed) - before;
        let problem = match outcome {
            Err(panic) => {
                let message = panic
                    .downcast_ref::<String>()
                    .cloned()
                    .or_else(|| Some((*panic.downcast_ref::<&str>()?).to_owned()));
                let told = std::mem::take(&mut *LAST_PANIC.lock().unwrap());
                Some(if told.is_empty() {
                    format!("panicked elsewhere: {}", message.unwrap_or_default())
                } else {
                    told
                })
            }
            Ok(Err(complaint)) => Some(complaint),
            Ok(Ok(_)) if needed > MOST_BYTES => Some(format!("needed {} MiB", needed >> 20)),
            Ok(Ok(taken)) => return taken,
        };
        if let Some(problem) = problem {
            self.note(problem, bytes);
        }
        false
    }

    /// Keeps the first input of each kind of problem: those with the same first line but for its numbers.
    fn note(&mut self, problem: String, bytes: &[u8]) {
        let kind: String = problem
            .lines()
            .next()
            .unwrap_or_default()
            .chars()
            .take(60)
            .collect();
        if !self.findings.keys().any(|known| known.starts_with(&kind)) {
            let name = format!("{}-{}", self.reader.name, Digest::of(bytes).short());
            let path = self.folder.join(name);
            fs::write(&path, bytes).unwrap();
            eprintln!("{}: {problem}", path.display());
            self.findings.insert(problem, path);
        }
    }

    /// The good files and everything that was ever found.
    fn begin(&mut self) {
        for file in &self.reader.corpus {
            assert!(
                self.attempt(file),
                "{}: a good file was refused: {:?}",
                self.reader.name,
                self.findings
            );
        }
        let kept = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
            .join("tests/fuzz/findings")
            .join(self.reader.name);
        for entry in fs::read_dir(kept).into_iter().flatten() {
            let bytes = fs::read(entry.unwrap().path()).unwrap();
            self.attempt(&bytes);
        }
    }

    /// Mutates until `done`; what is taken becomes a seed, as it leads deeper.
    fn search(&mut self, seed: u64, done: impl Fn(u64) -> bool) -> u64 {
        let (sender, receiver) = channel::<()>();
        let (began, start, name) = (Arc::clone(&self.began), self.start, self.reader.name);
        let current = self.current();
        let watch = std::thread::spawn(move || {
            let (mut watched, mut worked) = (0, Duration::ZERO);
            while receiver.recv_timeout(Duration::from_millis(200))
                == Err(RecvTimeoutError::Timeout)
            {
                let now = began.load(Ordering::Relaxed);
                if now != watched {
                    (watched, worked) = (now, processor_time());
                }
                let waited = start.elapsed().saturating_sub(Duration::from_millis(now));
                let is_hanging = waited > LONGEST && processor_time() > worked + LONGEST;
                if now > 0 && (is_hanging || waited > LONGEST_WAIT) {
                    eprintln!("{name}: an input takes too long: {}", current.display());
                    std::process::abort();
                }
            }
        });
        self.begin();
        let stream = Stream::new(seed, self.reader.name);
        let mut seeds = self.reader.corpus.clone();
        let good = seeds.len();
        let mut count = 0;
        while !done(count) && self.findings.len() < 20 {
            let mut draws = stream.at(count);
            let input = mutate(&mut draws, &seeds, self.reader.words);
            if self.attempt(&input) && input.len() < 64 << 10 {
                if seeds.len() < good + 64 {
                    seeds.push(input);
                } else {
                    seeds[good + draws.below(64)] = input;
                }
            }
            count += 1;
        }
        drop(sender);
        watch.join().unwrap();
        let _ = fs::remove_file(self.current());
        count
    }

    fn end(self, count: u64) {
        let name = self.reader.name;
        assert!(
            self.findings.is_empty(),
            "{name}: {} findings in {count} inputs:\n{:#?}",
            self.findings.len(),
            self.findings
        );
    }
}

/// The same inputs every time.
pub(crate) fn short(reader: &Reader) {
    let mut session = Session::new(reader);
    let count = session.search(1, |count| count >= reader.short);
    session.end(count);
}

/// Inputs for `FLOWGRAPH_FUZZ_SECONDS` (600), from `FLOWGRAPH_FUZZ_SEED` (2).
pub(crate) fn long(reader: &Reader) {
    let number = |name: &str, default: u64| match std::env::var(name) {
        Ok(text) => text.parse().unwrap(),
        Err(_) => default,
    };
    let limit = Duration::from_secs(number("FLOWGRAPH_FUZZ_SECONDS", 600));
    let mut session = Session::new(reader);
    let start = Instant::now();
    let seed = number("FLOWGRAPH_FUZZ_SEED", 2);
    let count = session.search(seed, |_| start.elapsed() >= limit);
    eprintln!("{}: {count} inputs in {:?}", reader.name, start.elapsed());
    session.end(count);
}
