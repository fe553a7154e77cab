//! `load_texts`: somebody's own plain texts.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::left_out::LeftOut;
use super::origin::{
    check_columns, check_sha256, files_by, named, source_name, source_or_port, source_params,
    source_path,
};
use crate::artifacts::dataset::{DATASET, Dataset, Example};
use crate::engine::context::RunContext;
use crate::engine::stage::{Kind, Output, Port, Problem, SourceParam, StageError};
use crate::sources::rows::{Lacking, RowFiles};
use crate::sources::{Sha256, Source};
use crate::stages::ranges::at_least_one;

const TEXT: &str = "text";

/// What a file of texts is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TextFormat {
    /// Parquet, Arrow, CSV or JSON, with a column of texts.
    Rows,
    /// Plain text: each line is a text, of a folder those of its files that end in .txt, in the order of their names.
    /// Blank lines are passed over.
    Lines,
}

/// Loads plain texts from the column `text` of parquet, Arrow, CSV or JSON files (an object a line, or an array), or from
/// the lines of plain text.
///
/// They become a data set of completions: the whole text, behind an empty prompt. So they can be given to
/// `train_tokenizer`, to `metric_table` and others as `reference_texts`, and to `embed_sentences` and `embed_hidden`.
/// `train_sft` needs something before the first token that it learns: the begin token, if the model's tokenizer puts
/// one, or a prompt of `prompt_words: 1`; with `learn_prompts: true` it learns that word too. Texts stand as they are;
/// blank ones are left out, as are rows that cannot be read: the log says how many, and what is wrong with the first. What
/// is no JSON at all, or not UTF-8 from the beginning, is an error.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LoadTexts {
    /// A file, packed with gzip or not, or a folder of part files; left out where the port `data` has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    source: Option<Source>,
    /// Which files of a folder: those of this split by their names, as in `train-00000-of-00002.parquet`, or as
    /// `save_to_disk` wrote them down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    split: Option<String>,
    /// The SHA-256 of the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sha256: Option<Sha256>,
    /// What the file is; if absent, `lines` for a source whose name ends in `.txt` or `.txt.gz`, and `rows` else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    format: Option<TextFormat>,
    /// The name of the column, if it has another one: `{ text: body }`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    columns: BTreeMap<String, String>,
    /// So many words of each text are its prompt, and the rest its completion; texts without a rest are left out.
    #[serde(default, skip_serializing_if = "is_zero")]
    prompt_words: usize,
    /// At most so many rows of the file, which is read no further.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max_rows: Option<usize>,
    /// MiB of text that the rows may hold; if absent 48 and 8 times the file. Changes no result.
    #[serde(default, skip_serializing)]
    max_text_mb: Option<u64>,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a reference"
)]
fn is_zero(number: &usize) -> bool {
    *number == 0
}

impl Kind for LoadTexts {
    const NAME: &'static str = "load_texts";
    const VERSION: u32 = 1;
    const EXAMPLE: &'static str = "{ source: corpus.jsonl, columns: { text: body } }";

    fn ports(&self) -> Vec<Port> {
        source_or_port(self.source.as_ref())
    }

    fn outputs(&self) -> Vec<Output> {
        vec![Output::new("texts", DATASET)]
    }

    fn sources(&self) -> Vec<SourceParam> {
        source_params(self.source.as_ref(), self.sha256)
    }

    fn validate(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        at_least_one("max_rows", self.max_rows.unwrap_or(1) as u64, &mut problems);
        at_least_one("max_text_mb", self.max_text_mb.unwrap_or(1), &mut problems);
        check_sha256(self.source.as_ref(), self.sha256, &mut problems);
        check_columns(&self.columns, &[TEXT], "texts have", &mut problems);
        if self.is_lines() && !self.columns.is_empty() {
            problems.push(
                Problem::new("columns", "lines of plain text have no columns")
                    .hint("leave it out, or say `format: rows`"),
            );
        }
        problems
    }

    fn run(&self, ctx: &mut RunContext) -> Result<(), StageError> {
        let path = source_path(self.source.as_ref(), ctx)?;
        let name = source_name(self.source.as_ref());
        let split = self.split.as_deref();
        let find = if self.is_lines() {
            RowFiles::find_lines
        } else {
            RowFiles::find
        };
        let files = files_by(find, &path, &name, split, self.sha256, self.max_text_mb)?;
        let mut allowance = files.allowance();
        let (mut examples, mut left_out) = (Vec::new(), LeftOut::default());
        let columns = [named(&self.columns, TEXT)];
        files.read(&columns, |mut row| {
            left_out.rows += 1;
            let text = row.whole(columns);
            let parts = match &text {
                Ok([text]) => parts(text, self.prompt_words),
                Err(Lacking::Empty(fault) | Lacking::Faulty(fault)) => Err(fault.clone()),
            };
            match parts {
                Ok((prompt, rest)) => {
                    allowance.keep(&row.file, prompt.len() + rest.len())?;
                    examples.push(Example {
                        question_id: examples.len() as u64,
                        question: prompt.to_owned(),
                        prompt: prompt.to_owned(),
                        chosen: Some(rest.to_owned()),
                        ..Example::default()
                    });
                }
                Err(fault) => left_out.add(&row.error(fault)),
            }
            Ok(if self.max_rows == Some(left_out.rows) {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            })
        })?;
        if examples.is_empty() {
            return Err(left_out.nothing_left(&name));
        }
        if let Some(note) = left_out.note() {
            ctx.note(&note);
        }
        let title = format!("Texts of {name}");
        Ok(Dataset { title, examples }.write(&ctx.output("texts")?)?)
    }
}

impl LoadTexts {
    fn is_lines(&self) -> bool {
        let is_text = || {
            let name = source_name(self.source.as_ref()).to_lowercase();
            let name = name.strip_suffix(".gz").unwrap_or(&name);
            name.rsplit_once('.')
                .is_some_and(|(_, ending)| ending == "txt")
        };
        self.format
            .map_or_else(is_text, |format| format == TextFormat::Lines)
    }
}

/// Parts a text behind so many words, or says why it cannot be used.
fn parts(text: &str, words: usize) -> Result<(&str, &str), String> {
    let mut end = 0;
    for _ in 0..words {
        let rest = &text[end..];
        let start = rest.find(|letter: char| !letter.is_whitespace());
        let word = &rest[start.unwrap_or(rest.len())..];
        let length = word.find(char::is_whitespace).unwrap_or(word.len());
        end = text.len() - word.len() + length;
    }
    let (prompt, rest) = text.split_at(end);
    match (text.trim(), rest.trim()) {
        ("", _) => Err("the text is blank".to_owned()),
        (_, "") => Err(format!("nothing is left of the text behind {words} words")),
        _ => Ok((prompt, rest)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::stages::tryout::{Tried, attempt};

    fn tried(params: &serde_json::Value, file: &str, data: &[u8]) -> (tempfile::TempDir, Tried) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(file);
        fs_err::write(&path, data).unwrap();
        let tried = attempt::<LoadTexts>(
            folder.path(),
            params.clone(),
            &[("data", "file", &path)],
            None,
        );
        (folder, tried)
    }

    /// Prompts and completions, and the notes.
    fn loaded(params: &serde_json::Value, data: &[u8]) -> (Vec<(String, String)>, Vec<String>) {
        let (_folder, tried) = tried(params, "data", data);
        tried.outcome.as_ref().unwrap();
        let examples = Dataset::read(&tried.output("texts")).unwrap().examples;
        let ids: Vec<u64> = examples.iter().map(|example| example.question_id).collect();
        assert_eq!(ids, (0..examples.len() as u64).collect::<Vec<_>>());
        let texts = examples
            .into_iter()
            .map(|example| (example.prompt, example.chosen.unwrap()));
        (texts.collect(), tried.told.notes)
    }

    fn whole(texts: &[&str]) -> Vec<(String, String)> {
        let texts = texts.iter();
        texts
            .map(|text| (String::new(), (*text).to_owned()))
            .collect()
    }

    #[test]
    fn texts_of_a_column_are_completions_and_what_is_none_is_counted() {
        let lines = b"{\"body\": \" one two\\n\"}\n{\"body\": null}\n{\"body\": \" \"}\n{\"body\": [1]}\n{}\n{\"body\": 3}\n";
        let (texts, notes) = loaded(&json!({ "columns": { "text": "body" } }), lines);
        assert_eq!(texts, whole(&[" one two\n", "3"]));
        let note = "4 of 6 rows were left out: input `data`, row 2: `body` is empty, and others";
        assert_eq!(notes, [note]);
        let (texts, notes) = loaded(&json!({ "max_rows": 1 }), b"text\none\n\"a\n");
        assert_eq!((texts, notes.len()), (whole(&["one"]), 0));
    }

    #[test]
    fn lines_of_plain_text_are_texts() {
        let text = b"\xef\xbb\xbf{one, two\r\n\r\n \n three\ncaf\xe9\nfour";
        let (texts, notes) = loaded(&json!({ "format": "lines" }), text);
        assert_eq!(texts, whole(&["{one, two", " three", "four"]));
        assert_eq!(
            notes,
            ["1 of 4 rows were left out: input `data`, row 5: `text` is not UTF-8"]
        );
        let of = |source: &str| {
            let kind: LoadTexts = serde_json::from_value(json!({ "source": source })).unwrap();
            kind.is_lines()
        };
        assert_eq!(
            ["a.TXT", "a.txt.gz", "a.jsonl", "txt"].map(of),
            [true, true, false, false]
        );
    }

    #[test]
    fn a_folder_of_plain_text_is_read_in_the_order_of_names() {
        let folder = tempfile::tempdir().unwrap();
        let texts = folder.path().join("texts");
        fs_err::create_dir(&texts).unwrap();
        let load = |params: serde_json::Value| {
            let inputs = [("data", "file", texts.as_path())];
            attempt::<LoadTexts>(folder.path(), params, &inputs, None)
        };
        for (file, text) in [("b.txt", "three\n"), ("a.txt", "one\ntwo"), ("c.txt", "")] {
            fs_err::write(texts.join(file), text).unwrap();
        }
        fs_err::write(texts.join("about.json"), "{\"text\": \"no text\"}").unwrap();
        let tried = load(json!({ "format": "lines" }));
        tried.outcome.as_ref().unwrap();
        let rows = Dataset::read(&tried.output("texts")).unwrap().examples;
        let found: Vec<_> = rows.into_iter().filter_map(|row| row.chosen).collect();
        assert_eq!(found, ["one", "two", "three"]);
        fs_err::remove_file(texts.join("about.json")).unwrap();
        let tried = load(json!({}));
        let Err(StageError::Failed { hint, .. }) = &tried.outcome else {
            panic!("{:?}", tried.outcome);
        };
        assert!(
            hint.as_ref().unwrap().contains("`format: lines`"),
            "{hint:?}"
        );
        for (file, part) in [("train.txt", "1"), ("test.txt", "2")] {
            fs_err::write(texts.join(file), part).unwrap();
        }
        let tried = load(json!({ "format": "lines" }));
        assert!(
            tried.message().contains("several splits"),
            "{}",
            tried.message()
        );
        fs_err::write(texts.join("a.txt"), b"\xfe\xff\0a").unwrap();
        let tried = load(json!({ "format": "lines", "split": "train" }));
        tried.outcome.as_ref().unwrap();
        fs_err::write(texts.join("train.txt"), b"\xfe\xff\0a").unwrap();
        let tried = load(json!({ "format": "lines", "split": "train" }));
        assert!(
            tried.message().contains("it is UTF-16"),
            "{}",
            tried.message()
        );
    }

    #[test]
    fn the_first_words_are_a_prompt_if_asked_for() {
        let params = json!({ "format": "lines", "prompt_words": 2 });
        let (texts, notes) = loaded(&params, b"  one two three \nfour five  \n");
        let text = |prompt: &str, rest: &str| (prompt.to_owned(), rest.to_owned());
        assert_eq!(texts, [text("  one two", " three ")]);
        assert!(
            notes[0].ends_with("row 2: nothing is left of the text behind 2 words"),
            "{notes:?}"
        );
    }

    #[test]
    fn a_file_without_a_text_is_an_error() {
        let (_folder, tried) = tried(&json!({}), "data", b"text\n\" \"\n");
        assert_eq!(
            tried.message(),
            "input `data`: no row can be used; 1 of 1 rows were left out: input `data`, row 1: the text is blank"
        );
        let (_folder, tried) = self::tried(&json!({}), "data", b"body\na\n");
        assert_eq!(
            tried.message(),
            "input `data`: no column `text`; found: body"
        );
        let refused = |params| {
            let kind: LoadTexts = serde_json::from_value(params).unwrap();
            kind.validate().len()
        };
        assert_eq!(
            refused(json!({ "source": "a.txt", "columns": { "text": "b" } })),
            1
        );
        assert_eq!(refused(json!({ "columns": { "body": "text" } })), 1);
        assert_eq!(refused(json!({ "max_rows": 0 })), 1);
    }
}
