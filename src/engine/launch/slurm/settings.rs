//! What a cluster wants to be told with each job. None of it changes a result.

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

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
    #[serde(deserialize_with = "text_or_number")]
    #[schemars(with = "Option<TextOrNumber>")]
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

/// A time limit: minutes as a number, or in the words of Slurm.
#[derive(Deserialize, JsonSchema)]
#[serde(untagged)]
enum TextOrNumber {
    Number(u64),
    Text(String),
}

fn text_or_number<'de, D: Deserializer<'de>>(source: D) -> Result<Option<String>, D::Error> {
    let read = Option::<TextOrNumber>::deserialize(source)?;
    Ok(read.map(|read| match read {
        TextOrNumber::Number(minutes) => minutes.to_string(),
        TextOrNumber::Text(text) => text,
    }))
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

    /// Refuses options by which a job would no longer be found, or be another.
    pub(super) fn check(&self) -> Result<(), StageError> {
        const OURS: [&str; 12] = [
            "-M",
            "--clusters",
            "--comment",
            "-o",
            "--output",
            "-e",
            "--error",
            "-a",
            "--array",
            "--wrap",
            "--parsable",
            "--test-only",
        ];
        let is_ours = |option: &&String| {
            let name = option.split(['=', ' ']).next().unwrap_or_default();
            let is_short = |own: &str| own.len() == 2 && option.starts_with(own);
            OURS.contains(&name) || OURS.iter().any(|own| is_short(own))
        };
        match self.options.iter().chain(&self.run_options).find(is_ours) {
            None => Ok(()),
            Some(option) => Err(StageError::new(format!(
                "`{option}` is no option for `cluster:`: by it a job would be another, or not be found again"
            ))
            .hint("of other clusters, `SLURM_CONF` or `SLURM_CLUSTERS` says which is meant for all of Slurm's programs")),
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
    fn options_by_which_a_job_would_be_lost_are_refused() {
        let with = |option: &str| ClusterSettings {
            options: vec![option.to_owned()],
            ..ClusterSettings::default()
        };
        for ours in [
            "--comment=mine",
            "-o x",
            "-ox",
            "--array=0-2",
            "-M other",
            "--clusters=other",
        ] {
            assert!(with(ours).check().is_err(), "{ours}");
        }
        for fine in [
            "--exclude=n3",
            "--cluster-constraint=x",
            "--nice",
            "--nodelist=n1",
        ] {
            assert!(with(fine).check().is_ok(), "{fine}");
        }
    }

    #[test]
    fn a_time_is_a_number_or_text() {
        let of = |text: &str| serde_json::from_str::<ClusterSettings>(text).unwrap().time;
        assert_eq!(of(r#"{"time": 90}"#).as_deref(), Some("90"));
        assert_eq!(of(r#"{"time": "1-12"}"#).as_deref(), Some("1-12"));
        assert_eq!(of("{}"), None);
    }

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
