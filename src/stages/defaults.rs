//! Defaults of params that several kinds have.

/// The axis whose values are the rows of a table.
pub(crate) fn policy() -> String {
    "policy".to_owned()
}

/// The axis whose values are the runs of a row.
pub(crate) fn seed_axis() -> String {
    "seed".to_owned()
}

/// The column that holds the reward.
pub(crate) fn reward() -> String {
    "reward".to_owned()
}

/// Coverage of an interval.
pub(crate) fn level() -> f64 {
    0.95
}

/// Bootstrap replicates.
pub(crate) fn replicates() -> usize {
    10_000
}

/// Significance.
pub(crate) fn alpha() -> f64 {
    0.05
}

/// The paper's K.
pub(crate) fn twenty() -> usize {
    20
}

/// Texts in a forward pass.
pub(crate) fn batch_size() -> usize {
    64
}
