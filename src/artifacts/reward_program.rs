//! Reward programs: rewards that a program of the user's gives, which speaks lines of JSON.
//!
//! The artifact holds what the program is (`program.json`), the code that it needs (`code/`) and, where it is told columns
//! of a data set, these by prompt (`data/`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::dataset::{Dataset, Example};
use super::reward_rule::Asked;
use crate::engine::artifact::Digest;
use crate::excerpt::{NAME, excerpt};
use crate::hint::Hint;

/// The artifact kind.
pub const REWARD_PROGRAM: &str = "reward_program";

/// The columns that every dataset has, of which a program can be told.
pub const OWN_COLUMNS: [&str; 3] = ["question", "chosen", "rejected"];

const FILE: &str = "program.json";

const MUTE: Hint = Hint::new(
    "with `prefixes: true` in `reward_command` it is asked for them: requests whose `prefixes` is true hold completions that go on",
);
const UNKNOWN_COLUMNS: Hint =
    Hint::new("`data` of `reward_command` must have all prompts, with what its `columns` name");

/// Why a program cannot be used.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum RewardProgramError {
    /// The file is not what it should be.
    #[error("{file}: {reason}")]
    Malformed {
        /// The file.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// It does not value prefixes.
    #[error(
        "the objective needs rewards of unfinished completions, of which the reward program says nothing"
    )]
    Mute {
        /// What to do.
        #[source]
        hint: Hint,
    },
    /// It has no columns of a prompt.
    #[error("the reward program knows no columns of the prompt {prompt:?}")]
    UnknownColumns {
        /// The prompt.
        prompt: String,
        /// What to do.
        #[source]
        hint: Hint,
    },
}

/// What a program is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProgramDescription {
    /// Shell text.
    pub run: String,
    /// Environment variables that it is given, with digests of their values; `None` for those that are not set.
    pub environment: BTreeMap<String, Option<Digest>>,
    /// Environment variables that it is given whatever their values, which are written nowhere.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<String>,
    /// Columns of the data set that it is told with each prompt.
    pub columns: Vec<String>,
    /// Whether it values completions that go on.
    pub prefixes: bool,
    /// Whether it gives the same reward whenever it is asked the same.
    pub deterministic: bool,
    /// Completions in a request.
    pub batch_size: usize,
}

/// How a program is run. It changes no reward, and is no part of the artifact.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Running {
    /// Whether several copies of it may run at once.
    pub parallel: bool,
    /// Seconds that it has for a request.
    pub timeout: f64,
}

impl Default for Running {
    fn default() -> Self {
        Self {
            parallel: false,
            timeout: 300.0,
        }
    }
}

/// A program that is ready to be started.
#[derive(Debug, Clone)]
pub struct RewardProgram {
    /// What it is.
    pub description: ProgramDescription,
    /// How it is run.
    pub running: Running,
    /// The artifact's folder.
    folder: PathBuf,
    data: Dataset,
    by_prompt: BTreeMap<String, usize>,
    /// None where rows of a question have other columns than each other.
    by_question: BTreeMap<String, Option<usize>>,
}

impl RewardProgram {
    /// Reads a program from a folder; it is run in the usual way.
    pub fn load(folder: &Path) -> Result<Self, RewardProgramError> {
        let path = folder.join(FILE);
        let malformed = |reason: String| RewardProgramError::Malformed {
            file: path.display().to_string(),
            reason,
        };
        let bytes = fs_err::read(&path).map_err(|error| malformed(error.to_string()))?;
        let description: ProgramDescription =
            serde_json::from_slice(&bytes).map_err(|error| malformed(error.to_string()))?;
        let data = if description.columns.is_empty() {
            Dataset::default()
        } else {
            let data = Dataset::read(&folder.join("data"));
            data.map_err(|error| malformed(error.to_string()))?
        };
        let places = data.examples.iter().enumerate();
        let by_prompt = places.clone().map(|(at, row)| (row.prompt.clone(), at));
        let mut by_question: BTreeMap<String, Option<usize>> = BTreeMap::new();
        for (at, row) in places.filter(|(_, row)| !row.question.is_empty()) {
            let told = |at: usize| told(&description.columns, &data.examples[at]);
            by_question
                .entry(row.question.clone())
                .and_modify(|first| *first = first.filter(|first| told(*first) == told(at)))
                .or_insert(Some(at));
        }
        Ok(Self {
            by_prompt: by_prompt.collect(),
            by_question,
            description,
            running: Running::default(),
            folder: folder.to_owned(),
            data,
        })
    }

    /// Writes what a program is, and the columns that it is told, into a folder.
    pub fn save(
        description: &ProgramDescription,
        data: &Dataset,
        folder: &Path,
    ) -> Result<(), super::table::TableError> {
        let mut text = serde_json::to_string_pretty(description).map_err(std::io::Error::from)?;
        text.push('\n');
        fs_err::write(folder.join(FILE), text)?;
        if !description.columns.is_empty() {
            let data_folder = folder.join("data");
            fs_err::create_dir_all(&data_folder)?;
            data.write(&data_folder)?;
        }
        Ok(())
    }

    /// Says why it does not value completions that go on, if it does not.
    pub fn lacks_prefix_values(&self) -> Option<RewardProgramError> {
        (!self.description.prefixes).then_some(RewardProgramError::Mute { hint: MUTE })
    }

    /// Returns where the code lies, in an artifact's folder.
    pub fn code_in(folder: &Path) -> PathBuf {
        folder.join("code")
    }

    /// Returns where this program's code lies.
    pub fn code(&self) -> PathBuf {
        Self::code_in(&self.folder)
    }

    /// Returns the columns that it is told with a prompt, in the order of the description.
    pub fn columns(&self, asked: Asked<'_>) -> Result<Vec<Option<&str>>, RewardProgramError> {
        if self.description.columns.is_empty() {
            return Ok(Vec::new());
        }
        let found = self.by_prompt.get(asked.prompt).copied();
        let found = found.or_else(|| *self.by_question.get(asked.question)?);
        let place = found.ok_or_else(|| RewardProgramError::UnknownColumns {
            prompt: excerpt(asked.prompt, NAME).into_owned(),
            hint: UNKNOWN_COLUMNS,
        })?;
        Ok(told(&self.description.columns, &self.data.examples[place]))
    }
}

/// Returns what a program is told with the prompt of a row.
pub fn told<'a>(columns: &[String], row: &'a Example) -> Vec<Option<&'a str>> {
    let value = |column: &String| match row.kept.get(column) {
        Some(value) => Some(value.as_str()),
        None => match column.as_str() {
            "question" => Some(row.question.as_str()),
            "chosen" => row.chosen.as_deref(),
            "rejected" => row.rejected.as_deref(),
            _ => None,
        },
    };
    columns.iter().map(value).collect()
}
