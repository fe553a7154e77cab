//! What a cluster wants to be told with each job. None of it changes a result.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::engine::stage::StageError;

/// How jobs are submitted: `cluster:` of a pipeline, over that of the user's `cluster.yaml`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ClusterSettings {
    /// The partition.
    pub partition: Option<String>,
    /// The account that is charged.
    pub account: Option<String>,
    /// The quality of service.
    pub qos: Option<String>,
    /// Features that a node must have.
    pub constraint: Option<String>,
    /// The time limit of stages without a `timeout`, as Slurm writes it: `90` minutes, `2:00:00`, `1-12`.
    pub time: Option<String>,
    /// The generic resource that GPUs are, such as `gpu` or `gpu:h100`; a count is put behind it.
    pub gres: Option<String>,
    /// Further options of `sbatch`, each as one word, such as `--exclude=n3`.
    pub options: Vec<String>,
    /// Lines of shell before the worker, such as `module load cuda/13.0`.
    pub before: Vec<String>,
    /// What the program is started through, such as `apptainer exec --nv image.sif`.
    pub through: Option<String>,
    /// Where this program lies on the nodes, if that is elsewhere.
    pub program: Option<String>,
    /// Seconds ahead of the time limit at which a stage is told to checkpoint and stop (default: 60).
    pub notice: Option<u32>,
    /// Further options of `sbatch` for the job that submits the others, of `run --detach`, such as `--time=7-0`.
    pub run_options: Vec<String>,
}

impl ClusterSettings {
    /// Fills in what `others` say and these do not.
    #[must_use]
    pub fn or(self, others: Self) -> Self {
        let either =
            |own: Vec<String>, other: Vec<String>| if own.is_empty() { other } else { own };
        Self {
            partition: self.partition.or(others.partition),
            account: self.account.or(others.account),
            qos: self.qos.or(others.qos),
            constraint: self.constraint.or(others.constraint),
            time: self.time.or(others.time),
            gres: self.gres.or(others.gres),
            options: either(self.options, others.options),
            before: either(self.before, others.before),
            through: self.through.or(others.through),
            program: self.program.or(others.program),
            notice: self.notice.or(others.notice),
            run_options: either(self.run_options, others.run_options),
        }
    }

    /// Refuses options that what is done later does not know of.
    pub(super) fn check(&self) -> Result<(), StageError> {
        let is_other = |option: &&String| {
            option.starts_with("-M")
                || option.starts_with("--cluster") && !option.starts_with("--cluster-constraint")
        };
        match self.options.iter().find(is_other) {
            None => Ok(()),
            Some(option) => Err(StageError::new(format!(
                "`cluster.options`: `{option}` would submit to another cluster than that which is asked about its jobs"
            ))
            .hint("`SLURM_CONF` or `SLURM_CLUSTERS` says for all of Slurm's programs which cluster is meant")),
        }
    }

    /// Returns the options of `sbatch` that these settings stand for.
    pub(super) fn for_sbatch(&self) -> Vec<String> {
        let named = [
            ("partition", &self.partition),
            ("account", &self.account),
            ("qos", &self.qos),
            ("constraint", &self.constraint),
        ];
        let named = named.into_iter().filter_map(|(name, value)| {
            let value = value.as_ref()?;
            Some(format!("--{name}={value}"))
        });
        named.chain(self.options.iter().cloned()).collect()
    }

    /// Seconds ahead of the time limit at which a stage is told.
    pub(super) fn notice(&self) -> u32 {
        const USUAL: u32 = 60;
        self.notice.unwrap_or(USUAL)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipeline_s_settings_go_before_the_user_s() {
        let own = ClusterSettings {
            partition: Some("gpu".to_owned()),
            options: vec!["--exclude=n3".to_owned()],
            ..ClusterSettings::default()
        };
        let user = ClusterSettings {
            partition: Some("main".to_owned()),
            account: Some("lab".to_owned()),
            options: vec!["--nice".to_owned()],
            ..ClusterSettings::default()
        };
        assert_eq!(
            own.or(user).for_sbatch(),
            ["--partition=gpu", "--account=lab", "--exclude=n3"]
        );
    }
}
