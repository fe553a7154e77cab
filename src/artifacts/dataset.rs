//! Datasets: questions with the prompts made of them, and completions by preference.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::table::{Table, TableError, TableWriter};

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
        let kept = self.examples.iter().flat_map(|row| row.kept.keys());
        rows_of(&self.title, &self.examples, &kept.cloned().collect()).write_data(folder)
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

/// Puts examples into a table, with their `kept` columns.
fn rows_of(title: &str, rows: &[Example], kept: &BTreeSet<String>) -> Table {
    let mut table = Table::new(title);
    let ids = rows.iter().map(|row| Some(row.question_id as f64));
    table.whole_column("question_id", ids);
    let questions = rows.iter().map(|row| Some(row.question.clone()));
    table.text_column("question", questions);
    table.text_column("prompt", rows.iter().map(|row| Some(row.prompt.clone())));
    table.text_column("chosen", rows.iter().map(|row| row.chosen.clone()));
    table.text_column("rejected", rows.iter().map(|row| row.rejected.clone()));
    for column in kept {
        let values: Vec<_> = rows
            .iter()
            .map(|row| row.kept.get(column).cloned())
            .collect();
        table.text_column(column, values);
    }
    table
}

/// Writes a dataset example by example, however many there are.
pub struct DatasetWriter {
    title: String,
    kept: BTreeSet<String>,
    table: TableWriter,
    /// What is not written yet.
    rows: Vec<Example>,
    bytes: usize,
    is_empty: bool,
}

/// Rows that are written together hold so much text.
const BATCH_BYTES: usize = 8 << 20;
/// And are no more than these.
const BATCH_ROWS: usize = 1 << 16;

impl DatasetWriter {
    /// Begins a dataset in a folder, with the columns that examples keep and what must be known to read it.
    pub fn create(
        folder: &Path,
        title: String,
        kept: BTreeSet<String>,
        notes: Vec<String>,
    ) -> Result<Self, TableError> {
        let mut table = rows_of(&title, &[], &kept);
        table.notes = notes;
        let table = TableWriter::create(folder, &table)?;
        Ok(Self {
            title,
            kept,
            table,
            rows: Vec::new(),
            bytes: 0,
            is_empty: true,
        })
    }

    /// Adds an example.
    pub fn write(&mut self, example: Example) -> Result<(), TableError> {
        let texts = [Some(&example.question), Some(&example.prompt)].into_iter();
        let texts = texts.chain([example.chosen.as_ref(), example.rejected.as_ref()]);
        let texts = texts.flatten().chain(example.kept.values());
        self.bytes += texts.map(String::len).sum::<usize>();
        self.rows.push(example);
        self.is_empty = false;
        if self.bytes >= BATCH_BYTES || self.rows.len() == BATCH_ROWS {
            self.flush()?;
        }
        Ok(())
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.is_empty
    }

    /// Ends the dataset.
    pub fn finish(mut self) -> Result<(), TableError> {
        self.flush()?;
        self.table.finish()
    }

    fn flush(&mut self) -> Result<(), TableError> {
        if !self.rows.is_empty() {
            let rows = rows_of(&self.title, &self.rows, &self.kept);
            self.table.write(&rows)?;
            self.rows.clear();
            self.bytes = 0;
        }
        Ok(())
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

    #[test]
    fn a_dataset_written_row_by_row_is_that_written_whole() {
        let example = |n: u64| Example {
            question_id: n,
            question: "q".repeat(100),
            prompt: format!("prompt {n}"),
            kept: BTreeMap::from([("key".to_owned(), n.to_string())]),
            ..Example::default()
        };
        let written = |count: u64| {
            let data = Dataset {
                title: "t".to_owned(),
                examples: (0..count).map(example).collect(),
            };
            let folder = tempfile::tempdir().unwrap();
            let kept = BTreeSet::from(["key".to_owned()]);
            let title = data.title.clone();
            let mut writer = DatasetWriter::create(folder.path(), title, kept, Vec::new()).unwrap();
            let rows = data.examples.iter().cloned();
            rows.for_each(|row| writer.write(row).unwrap());
            writer.finish().unwrap();
            (data, folder)
        };
        // Row groups of several batches, and the bytes of one.
        let (data, folder) = written(BATCH_ROWS as u64 + 3);
        assert_eq!(Dataset::read(folder.path()).unwrap(), data);
        let (data, folder) = written(3);
        let whole = tempfile::tempdir().unwrap();
        data.write(whole.path()).unwrap();
        for file in ["table.parquet", "table.json"] {
            let bytes = |folder: &Path| fs_err::read(folder.join(file)).unwrap();
            assert_eq!(bytes(folder.path()), bytes(whole.path()), "{file}");
        }
    }
}
