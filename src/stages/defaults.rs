//! Defaults of params that several kinds have.

/// The axis whose values are the rows of a table.
pub(super) fn policy() -> String {
    "policy".to_owned()
}

/// The axis whose values are the runs of a row.
pub(super) fn seed_axis() -> String {
    "seed".to_owned()
}

/// The column that holds the reward.
pub(super) fn reward() -> String {
    "reward".to_owned()
}

/// Coverage of an interval.
pub(super) fn level() -> f64 {
    0.95
}

/// Bootstrap replicates.
pub(super) fn replicates() -> usize {
    10_000
}

/// Significance.
pub(super) fn alpha() -> f64 {
    0.05
}

/// The paper's K.
pub(super) fn twenty() -> usize {
    20
}

/// Texts in a forward pass.
pub(super) fn batch_size() -> usize {
    64
}
