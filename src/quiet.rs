//! Panics of other people's code, which is given damaged files: caught, and told in words instead of a backtrace.

use std::cell::Cell;
use std::panic::{UnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

thread_local! {
    static IS_QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Calls a function; `None` if it panics, of which nothing is printed.
pub(crate) fn catch_quietly<T>(call: impl FnOnce() -> T + UnwindSafe) -> Option<T> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let told = take_hook();
        set_hook(Box::new(move |panic| {
            if !IS_QUIET.get() {
                told(panic);
            }
        }));
    });
    let before = IS_QUIET.replace(true);
    let called = catch_unwind(call);
    IS_QUIET.set(before);
    called.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_nothing_and_later_ones_are_told_again() {
        assert_eq!(catch_quietly(|| 1), Some(1));
        let nothing: Option<()> = catch_quietly(|| panic!("of a library"));
        assert_eq!(nothing, None);
        assert!(!IS_QUIET.get());
    }
}
