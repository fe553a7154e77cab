//! Damaging of small valid files: whatever is cut off or flipped, loading gives a model or an error that
//! names the file, without a panic and without a large allocation.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::path::Path;

use super::FormatError;
use crate::random::Stream;

/// Single allocations above this are called large; the damaged files have a few thousand bytes.
const LARGE: usize = 4 << 20;

thread_local! {
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

/// The system's allocator, remembering the largest request of each thread.
struct Watched;

#[expect(
    unsafe_code,
    reason = "an allocator that watches forged lengths in tests"
)]
// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.set(LARGEST.get().max(layout.size()));
        // SAFETY: the caller keeps the contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        LARGEST.set(LARGEST.get().max(layout.size()));
        // SAFETY: the caller keeps the contract.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        LARGEST.set(LARGEST.get().max(size));
        // SAFETY: the caller keeps the contract.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static WATCHED: Watched = Watched;

/// Parses every proper prefix of `valid` (each must fail), damaged bytes at every position, and `flips` random
/// damages of up to eight bytes.
pub(super) fn survives<T>(
    valid: &[u8],
    flips: u64,
    parse: impl Fn(&Path, &[u8]) -> Result<T, FormatError> + Sync,
) {
    // Parallel loops run on the one thread of this pool, where allocations are watched.
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(1)
        .build()
        .unwrap();
    let path = Path::new("folder/damaged.file");
    let attempt = |bytes: &[u8], what: &str| -> bool {
        LARGEST.set(0);
        let loaded = parse(path, bytes);
        let largest = LARGEST.get();
        assert!(largest < LARGE, "{what}: {largest} bytes in one allocation");
        if let Err(error) = &loaded {
            assert!(
                error.to_string().contains("damaged.file"),
                "{what}: {error}"
            );
        }
        loaded.is_ok()
    };
    pool.install(|| {
        assert!(attempt(valid, "undamaged"));
        for length in 0..valid.len() {
            let what = format!("cut to {length} bytes");
            assert!(!attempt(&valid[..length], &what), "{what}: loaded");
        }
        let mut bytes = valid.to_vec();
        for position in 0..valid.len() {
            for mask in [0x01, 0xff] {
                bytes[position] ^= mask;
                attempt(&bytes, &format!("byte {position} ^ {mask:#x}"));
                bytes[position] ^= mask;
            }
        }
        let stream = Stream::new(1, "damage");
        for flip in 0..flips {
            let mut draws = stream.at(flip);
            let mut bytes = valid.to_vec();
            for _ in 0..=draws.below(8) {
                let position = draws.below(bytes.len());
                bytes[position] = draws.below(256) as u8;
            }
            attempt(&bytes, &format!("random damage {flip}"));
        }
    });
}

#[test]
fn the_watch_sees_allocations() {
    LARGEST.set(0);
    let large = vec![1u8; LARGE];
    assert!(LARGEST.get() >= large.len());
}
