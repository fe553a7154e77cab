//! Loops over the threads of the pool, as long as they help.
//!
//! Which thread does what changes no bit of a result: every task has a part of it of its own.
//!
//! A loop waits for the slowest of its tasks. Where another process keeps a processor busy, the thread there is held up
//! for milliseconds in the midst of one, and two threads are slower than one that is left alone. So the time that each
//! loop won or lost is added up, and after some loss loops run on the calling thread for a while.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::Instant;

use rustix::time::{ClockId, clock_gettime};

/// In how many shares each thread takes its part of the tasks.
const SHARES: usize = 8;

/// Runs `body` for each task, on all threads of the pool if they help.
pub(in crate::ml) fn each<I>(tasks: I, body: impl Fn(I::Item) + Sync)
where
    I: ExactSizeIterator + Send,
    I::Item: Send,
{
    let count = tasks.len();
    let threads = rayon::current_num_threads().min(count);
    // Tests of several threads want them even where they are slow.
    if threads < 2 || (!cfg!(test) && HELP.is_away(now())) {
        tasks.for_each(body);
        return;
    }
    let share = (count / (SHARES * threads)).max(1);
    let tasks = Mutex::new(tasks);
    let run = || {
        let mut taken = Vec::with_capacity(share);
        loop {
            let mut tasks = tasks.lock().unwrap_or_else(PoisonError::into_inner);
            taken.extend(tasks.by_ref().take(share));
            drop(tasks);
            if taken.is_empty() {
                return;
            }
            taken.drain(..).for_each(&body);
        }
    };
    let start = now();
    let (own, helped) = (AtomicU64::new(0), AtomicU64::new(0));
    let caller = || {
        run();
        own.store(now() - start, Ordering::Relaxed);
    };
    let helper = || {
        let start = processor_time();
        run();
        helped.fetch_add(processor_time() - start, Ordering::Relaxed);
    };
    rayon::join(caller, || fan_out(threads - 1, &helper));
    let end = now();
    // The calling thread would have needed as much time for what others did as they had a processor for.
    let alone = own.into_inner() + helped.into_inner();
    HELP.judge(alone as i64 - (end - start) as i64, end);
}

/// Returns what `body` makes of each task, in order.
pub(in crate::ml) fn map<I, R: Send>(tasks: I, body: impl Fn(I::Item) -> R + Sync) -> Vec<R>
where
    I: ExactSizeIterator + Send,
    I::Item: Send,
{
    let mut results: Vec<Option<R>> = (0..tasks.len()).map(|_| None).collect();
    each(tasks.zip(results.iter_mut()), |(task, result)| {
        *result = Some(body(task));
    });
    results.into_iter().flatten().collect()
}

fn fan_out(threads: usize, run: &(impl Fn() + Sync)) {
    if threads < 2 {
        run();
    } else {
        rayon::join(run, || fan_out(threads - 1, run));
    }
}

/// Nanoseconds since the first loop.
fn now() -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    START.elapsed().as_nanos() as u64
}

/// Nanoseconds that this thread has had a processor for.
fn processor_time() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

static HELP: Help = Help::new();

/// Whether other threads help. All times are nanoseconds.
struct Help {
    /// What loops have won, the last ones above all.
    won: AtomicI64,
    /// Until when loops run on the calling thread.
    away_until: AtomicU64,
    /// How long the next pause is.
    pause: AtomicU64,
}

impl Help {
    /// Bounds of what is remembered, on either side.
    const ENOUGH: i64 = 4_000_000;
    const SHORTEST: u64 = 50_000_000;
    const LONGEST: u64 = 1_600_000_000;

    const fn new() -> Self {
        Self {
            won: AtomicI64::new(0),
            away_until: AtomicU64::new(0),
            pause: AtomicU64::new(Self::SHORTEST),
        }
    }

    fn is_away(&self, now: u64) -> bool {
        now < self.away_until.load(Ordering::Relaxed)
    }

    /// Takes into account what a loop has won by help. Threads that do so at once may overwrite each other's: it is a
    /// matter of speed alone.
    fn judge(&self, won: i64, now: u64) {
        let sum = self.won.load(Ordering::Relaxed);
        let sum = sum - sum / 16 + won;
        if sum < -Self::ENOUGH {
            let pause = self.pause.load(Ordering::Relaxed);
            self.away_until.store(now + pause, Ordering::Relaxed);
            self.pause
                .store((2 * pause).min(Self::LONGEST), Ordering::Relaxed);
            self.won.store(0, Ordering::Relaxed);
            return;
        }
        if sum > Self::ENOUGH {
            self.pause.store(Self::SHORTEST, Ordering::Relaxed);
        }
        self.won.store(sum.min(2 * Self::ENOUGH), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_task_runs_once_and_results_come_in_order() {
        for threads in [1, 2, 5] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
            let pool = pool.build().unwrap();
            for count in [0, 1, 2, 3, 100] {
                let mut times = vec![0; count];
                pool.install(|| each(times.iter_mut(), |times| *times += 1));
                assert!(times.iter().all(|times| *times == 1));
                let squares = pool.install(|| map(0..count, |task| task * task));
                assert!(squares.into_iter().eq((0..count).map(|task| task * task)));
            }
        }
    }

    #[test]
    fn threads_that_lose_time_are_sent_away_for_longer_and_longer() {
        const MILLISECOND: i64 = 1_000_000;
        let (help, mut now) = (Help::new(), 0);
        let mut pauses = Vec::new();
        for _ in 0..8 {
            while !help.is_away(now) {
                help.judge(-2 * MILLISECOND, now);
            }
            let start = now;
            while help.is_away(now) {
                now += 10 * MILLISECOND as u64;
            }
            pauses.push((now - start) / MILLISECOND as u64);
        }
        assert_eq!(pauses, [50, 100, 200, 400, 800, 1600, 1600, 1600]);
        // Loops that win pay for some that do not, and help that has proved itself starts afresh.
        for turn in 0..1000 {
            help.judge([3, -2][turn % 2] * MILLISECOND, now);
        }
        assert!(!help.is_away(now));
        while !help.is_away(now) {
            help.judge(-2 * MILLISECOND, now);
        }
        assert!(!help.is_away(now + Help::SHORTEST));
    }
}
