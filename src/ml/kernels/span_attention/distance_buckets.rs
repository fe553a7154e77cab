//! Distances between tokens in buckets.

use std::sync::Arc;

/// Which number of a table is added to the score of a query and a key, by how far the key is from the query.
#[derive(Debug, Clone)]
pub struct DistanceBuckets {
    /// For each distance from `1 - longest` to `longest - 1`.
    pub(super) buckets: Arc<[u32]>,
    pub(super) longest: usize,
}

impl DistanceBuckets {
    /// Notes the bucket of every distance (key - query) within spans of up to `longest` tokens.
    pub fn new(longest: usize, bucket: impl Fn(isize) -> u32) -> Self {
        let most = longest as isize;
        Self {
            buckets: (1 - most..most).map(bucket).collect(),
            longest,
        }
    }

    /// Returns the buckets of the keys 0, 1, .. of a span of `tokens` tokens, for its query number `query`.
    pub(super) fn of_query(&self, query: usize, tokens: usize) -> &[u32] {
        let start = self.longest - 1 - query;
        &self.buckets[start..start + tokens]
    }
}
