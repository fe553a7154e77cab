//! Datasets: questions with the prompts made of them, and completions by preference.

use std::collections::{BTreeMap, BTreeSet};
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
    /// What else the row holds, such as an answer key, by column; what is no text is JSON.
    pub kept: BTreeMap<String, String>,
}

/// The columns that every dataset has.
pub const COLUMNS: [&str; 5] = ["question_id", "question", "prompt", "chosen", "rejected"];

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
        let kept: BTreeSet<&String> = rows.iter().flat_map(|row| row.kept.keys()).collect();
        for column in kept {
            table.text_column(column, rows.iter().map(|row| row.kept.get(column).cloned()));
        }
        table.write_data(folder)
    }

    /// Reads a dataset from a folder.
    pub fn read(folder: &Path) -> Result<Self, TableError> {
        let table = Table::read(folder)?;
        let ids = table.all_numbers("question_id")?;
        let (questions, prompts) = (table.all_texts("question")?, table.all_texts("prompt")?);
        let texts = |name: &str| -> Result<Vec<Option<String>>, TableError> {
            if table.has(name) {
                table.texts(name)
            } else {
                Ok(vec![None; table.height()])
            }
        };
        let (chosen, rejected) = (texts("chosen")?, texts("rejected")?);
        let mut examples: Vec<Example> = ids
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
                kept: BTreeMap::new(),
            })
            .collect();
        let names = table.columns.iter().map(|column| &column.name);
        for name in names.filter(|name| !COLUMNS.contains(&name.as_str())) {
            for (example, value) in examples.iter_mut().zip(table.texts(name)?) {
                example
                    .kept
                    .extend(value.map(|value| (name.clone(), value)));
            }
        }
        Ok(Self {
            title: table.title,
            examples,
        })
    }

    /// Returns the first example of each distinct prompt, in order, with its row.
    pub fn distinct_prompts(&self) -> Vec<(usize, &Example)> {
        let mut seen = BTreeSet::new();
        let rows = self.examples.iter().enumerate();
        rows.filter(|(_, example)| seen.insert(example.prompt.as_str()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn further_columns_stay_with_their_rows() {
        let kept = |value: &str| BTreeMap::from([("key".to_owned(), value.to_owned())]);
        let mut examples = vec![Example::default(); 3];
        examples[0].kept = kept("4");
        examples[2].kept = kept("[1, 2]");
        examples[2].chosen = Some("a".to_owned());
        let data = Dataset {
            title: "t".to_owned(),
            examples,
        };
        let folder = tempfile::tempdir().unwrap();
        data.write(folder.path()).unwrap();
        assert_eq!(Dataset::read(folder.path()).unwrap(), data);
    }
}
