//! Params that every stage with a bootstrap has.

use crate::engine::stage::Problem;

/// Checks the params of a bootstrap.
pub(super) fn check_bootstrap(level: f64, replicates: usize, problems: &mut Vec<Problem>) {
    if !(level > 0.0 && level < 1.0) {
        problems.push(Problem::new(
            "level",
            "`level` must be between 0 and 1, such as 0.95",
        ));
    }
    if replicates < 100 {
        problems.push(Problem::new(
            "replicates",
            "`replicates` must be at least 100",
        ));
    }
}
