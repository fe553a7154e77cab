//! Datasets: questions with the prompts made of them, and completions by preference.

use std::path::Path;

use super::table::{Table, TableError};

/// The artifact kind.
pub const DATASET: &str = "dataset";

/// What a dataset has a known number of.
pub const PROMPTS: &str = "distinct prompts";

/// One row of a dataset.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Example {
    /// Which question it is about; rows of one question share it.
    pub question_id: u64,
    /// The question as it was asked.
    pub question: String,
    /// What a model is given: the question in its template.
    pub prompt: String,
    /// The completion, or the preferred one of two.
    pub chosen: Option<String>,
    /// The other completion.
    pub rejected: Option<String>,
}

/// A dataset: examples in order.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Dataset {
    /// What it holds and where it comes from.
    pub title: String,
    /// The rows.
    pub examples: Vec<Example>,
}

impl Dataset {
    /// Writes the dataset into a folder.
    pub fn write(&self, folder: &Path) -> Result<(), TableError> {
        let mut table = Table::new(&self.title);
        let rows = &self.examples;
        table.whole_column(
            "question_id",
            rows.iter().map(|row| Some(row.question_id as f64)),
        );
        table.text_column(
            "question",
            rows.iter().map(|row| Some(row.question.clone())),
        );
        table.text_column("prompt", rows.iter().map(|row| Some(row.prompt.clone())));
        table.text_column("chosen", rows.iter().map(|row| row.chosen.clone()));
        table.text_column("rejected", rows.iter().map(|row| row.rejected.clone()));
        table.write_data(folder)
    }

    /// Reads a dataset from a folder.
    pub fn read(folder: &Path) -> Result<Self, TableError> {
        let table = Table::read(folder)?;
        let ids = table.all_numbers("question_id")?;
        let (questions, prompts) = (table.all_texts("question")?, table.all_texts("prompt")?);
        let (chosen, rejected) = (table.texts("chosen")?, table.texts("rejected")?);
        let examples = ids
            .into_iter()
            .zip(questions)
            .zip(prompts)
            .enumerate()
            .map(|(row, ((id, question), prompt))| Example {
                question_id: id as u64,
                question,
                prompt,
                chosen: chosen[row].clone(),
                rejected: rejected[row].clone(),
            })
            .collect();
        Ok(Self {
            title: table.title,
            examples,
        })
    }

    /// Returns the first example of each distinct prompt, in order, with its row.
    pub fn distinct_prompts(&self) -> Vec<(usize, &Example)> {
        let mut seen = std::collections::BTreeSet::new();
        let rows = self.examples.iter().enumerate();
        rows.filter(|(_, example)| seen.insert(example.prompt.as_str()))
            .collect()
    }
}
