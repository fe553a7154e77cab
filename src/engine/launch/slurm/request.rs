//! What is asked of a cluster for a stage, and what it offers.

use super::ClusterSettings;
use super::client::{self, ClusterError};
use crate::engine::stage::Resources;

pub use super::client::Partition;

/// What a cluster says where no node has what is asked for.
pub(super) const NO_NODE: &str = "node configuration is not available";

/// What a job is to be given.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// Cores and memory; of GPUs, see `gpus`.
    pub resources: Resources,
    /// GPUs that its kind can use of those it asks for.
    pub gpus: usize,
    /// Seconds that it may take.
    pub limit: Option<f64>,
}

impl Request {
    /// Returns the options of `sbatch` that stand for it.
    pub(super) fn for_sbatch(&self, settings: &ClusterSettings) -> Vec<String> {
        let mut options = self.of_node(settings);
        options.push(format!("--signal=B:TERM@{}", settings.notice()));
        if self.resources.memory > 0 {
            options.push(format!("--mem={}M", self.megabytes()));
        }
        match (self.limit, &settings.time) {
            (Some(seconds), _) => {
                // Until it has its lock and its inputs, no time of the stage has passed.
                const SLACK: f64 = 120.0;
                let minutes = (seconds + f64::from(settings.notice()) + SLACK) / 60.0;
                options.push(format!("--time={}", minutes.ceil()));
            }
            (None, Some(time)) => options.push(format!("--time={time}")),
            (None, None) => {}
        }
        options.extend(settings.for_sbatch());
        options
    }

    /// Returns the options of `srun` that stand for it within an allocation.
    pub(super) fn for_srun(&self, settings: &ClusterSettings) -> Vec<String> {
        let mut options = self.of_node(settings);
        // Zero takes none from the others.
        options.push(format!("--mem={}M", self.megabytes()));
        if self.gpus == 0 {
            options.push("--gres=none".to_owned());
        }
        options
    }

    fn of_node(&self, settings: &ClusterSettings) -> Vec<String> {
        let mut options = vec![
            "--ntasks=1".to_owned(),
            format!("--cpus-per-task={}", self.resources.cpus),
        ];
        if self.gpus > 0 {
            let gres = settings.gres.as_deref().unwrap_or("gpu");
            options.push(format!("--gres={gres}:{}", self.gpus));
        }
        options
    }

    fn megabytes(&self) -> u64 {
        self.resources.memory.div_ceil(1 << 20)
    }

    /// Asks the cluster whether it would take such a job.
    ///
    /// # Errors
    /// Its words, if it would not: [`ClusterError::Refused`] if it never would, [`ClusterError::Full`] if not now.
    pub fn check(&self, settings: &ClusterSettings) -> Result<(), ClusterError> {
        match client::test(&self.for_sbatch(settings)) {
            // So it says, too, where the nodes are only away.
            Err(ClusterError::Refused(program, why)) if why.contains(NO_NODE) && self.fits()? => {
                Err(ClusterError::Full(program, why))
            }
            answer => answer,
        }
    }

    /// Whether any node has what is asked for.
    fn fits(&self) -> Result<bool, ClusterError> {
        let fits = |node: &client::Node| {
            node.cores >= self.resources.cpus
                && node.megabytes >= self.megabytes()
                && node.gpus >= self.gpus
        };
        Ok(client::nodes()?.iter().any(fits))
    }
}

/// Lists what the cluster offers.
///
/// # Errors
/// If there is none, or it does not answer.
pub fn partitions() -> Result<Vec<Partition>, ClusterError> {
    client::partitions()
}
