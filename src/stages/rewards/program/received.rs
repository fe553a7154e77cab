//! What a program was asked and what it answered, in memory and, where it need not answer the same again, in a file.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::engine::context::RECEIVED;
use crate::engine::stage::StageError;

/// A text that is rewarded.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Question {
    pub(super) prompt: String,
    pub(super) completion: String,
    /// Whether the completion's end token came.
    pub(super) finished: bool,
    /// Whether it is the beginning of a completion that goes on.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) prefix: bool,
    /// What the program is told with the prompt, column by column.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) columns: Vec<Option<String>>,
}

#[derive(Serialize, Deserialize)]
struct Line {
    #[serde(flatten)]
    question: Question,
    reward: f64,
}

/// Rewards by what they were given for.
#[derive(Default)]
pub(super) struct Received {
    rewards: HashMap<Question, f64>,
    /// Where they are kept as they come.
    log: Option<fs_err::File>,
}

impl Received {
    /// Keeps rewards in a log, which an earlier try may have begun; `recorded` are those of a result that is computed
    /// again.
    pub(super) fn logged(log: &Path, recorded: Option<&Path>) -> Result<Self, StageError> {
        let mut found = Self::default();
        if let Some(recorded) = recorded {
            found.read(recorded)?;
        }
        let whole = if log.exists() { found.read(log)? } else { 0 };
        let file = fs_err::OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)?;
        // The last line may have been cut.
        file.file().set_len(whole)?;
        found.log = Some(file);
        Ok(found)
    }

    /// Reads lines; returns the bytes of those that are whole.
    fn read(&mut self, path: &Path) -> Result<u64, StageError> {
        let bytes = fs_err::read(path)?;
        let mut whole = 0;
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            if !line.ends_with(b"\n") {
                break;
            }
            let Line { question, reward } = serde_json::from_slice(line).map_err(|error| {
                StageError::new(format!("{}: {error}", path.display()))
                    .hint("it holds the rewards that a program gave")
            })?;
            self.rewards.entry(question).or_insert(reward);
            whole += line.len() as u64;
        }
        Ok(whole)
    }

    pub(super) fn get(&self, question: &Question) -> Option<f64> {
        self.rewards.get(question).copied()
    }

    /// Adds rewards; what is known already stays.
    pub(super) fn add(&mut self, answered: Vec<(Question, f64)>) -> std::io::Result<()> {
        let mut lines = Vec::new();
        for (question, reward) in answered {
            if let Entry::Vacant(new) = self.rewards.entry(question) {
                if self.log.is_some() {
                    write_line(new.key(), reward, &mut lines)?;
                }
                new.insert(reward);
            }
        }
        if let Some(log) = self.log.as_mut().filter(|_| !lines.is_empty()) {
            // Before any of them is used.
            log.write_all(&lines)?;
            log.sync_data()?;
        }
        Ok(())
    }

    /// Writes all rewards into a folder, if they are kept: the same ones make the same file, whatever their order.
    pub(super) fn write(&self, folder: &Path) -> std::io::Result<()> {
        if self.log.is_none() {
            return Ok(());
        }
        let mut lines = Vec::new();
        for (question, reward) in self.rewards.iter().collect::<BTreeMap<_, _>>() {
            write_line(question, *reward, &mut lines)?;
        }
        fs_err::write(folder.join(RECEIVED), lines)
    }
}

fn write_line(question: &Question, reward: f64, lines: &mut Vec<u8>) -> std::io::Result<()> {
    let question = question.clone();
    serde_json::to_writer(&mut *lines, &Line { question, reward })?;
    lines.push(b'\n');
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(completion: &str) -> Question {
        Question {
            prompt: "p".to_owned(),
            completion: completion.to_owned(),
            finished: true,
            prefix: false,
            columns: Vec::new(),
        }
    }

    #[test]
    fn rewards_outlive_a_try_and_the_first_answer_counts() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let mut first = Received::logged(&log, None).unwrap();
        first
            .add(vec![(question("b"), 0.1), (question("a"), 2.0)])
            .unwrap();
        first.add(vec![(question("b"), 7.0)]).unwrap();
        assert_eq!(first.get(&question("b")), Some(0.1));
        // Killed while it wrote.
        let bytes = fs_err::read(&log).unwrap();
        fs_err::write(&log, [&bytes[..], b"{\"prompt\":\"p"].concat()).unwrap();
        let mut second = Received::logged(&log, None).unwrap();
        assert_eq!(fs_err::read(&log).unwrap(), bytes);
        assert_eq!(second.get(&question("b")), Some(0.1));
        assert_eq!(second.get(&question("c")), None);
        second.add(vec![(question("c"), -1.5)]).unwrap();
        second.write(folder.path()).unwrap();
        // In order of questions, and what is recorded is known from the beginning.
        let recorded = folder.path().join(RECEIVED);
        let lines = fs_err::read_to_string(&recorded).unwrap();
        let rewards: Vec<&str> = lines
            .lines()
            .map(|line| line.rsplit_once(':').unwrap().1)
            .collect();
        assert_eq!(rewards, ["2.0}", "0.1}", "-1.5}"]);
        let again = Received::logged(&folder.path().join("other"), Some(&recorded)).unwrap();
        again.write(folder.path()).unwrap();
        assert_eq!(fs_err::read_to_string(&recorded).unwrap(), lines);
        fs_err::write(&log, "{}\n").unwrap();
        assert!(Received::logged(&log, None).is_err());
    }
}
