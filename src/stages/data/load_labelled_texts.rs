//! `load_labelled_texts`: texts with classes, and prompts made of them.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::path::Path;

use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::artifacts::dataset::{DATASET, Dataset, Example};
use crate::artifacts::labelled_texts::{LABELLED_TEXTS, LabelledText, write};
use crate::engine::context::RunContext;
use crate::engine::stage::{Kind, Output, Port, Problem, SourceParam, StageError};
use crate::excerpt::listed;
use crate::random::Stream;
use crate::sources::rows::{RowFiles, RowsError};
use crate::sources::{Sha256, Source};
use crate::stages::ranges::at_least_one;

/// How the rows of a file are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TextLayout {
    /// `t-davidson/hate-speech-and-offensive-language`: `tweet`, and `class` 0 `hate`, 1 `offensive`, 2 `neither`.
    Davidson,
    /// `paul-rottger/hatecheck-data`: `test_case`, and `label_gold`, `hateful` or `non-hateful`.
    Hatecheck,
}

impl TextLayout {
    fn columns(self) -> [&'static str; 2] {
        match self {
            Self::Davidson => ["tweet", "class"],
            Self::Hatecheck => ["test_case", "label_gold"],
        }
    }

    /// Classes as files spell them, and as we do.
    fn classes(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Davidson => &[("0", "hate"), ("1", "offensive"), ("2", "neither")],
            Self::Hatecheck => &[("hateful", "hateful"), ("non-hateful", "non-hateful")],
        }
    }
}

/// Loads texts with classes: a training and a held-out part, and prompts from the beginnings of held-out texts.
///
/// A text's part follows from the seed and the text alone, so that copies of a text are never in both parts. Rows with an
/// empty cell are left out; the log says how many.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LoadLabelledTexts {
    /// A file, packed with gzip or not, or a local folder of part files.
    source: Source,
    /// Which files of a folder: those of this split by their names, as in `train-00000-of-00002.parquet`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    split: Option<String>,
    /// The SHA-256 of the file.
    #[serde(default)]
    sha256: Option<Sha256>,
    /// How rows are laid out.
    layout: TextLayout,
    /// Other names for all classes; classes of one name become one.
    #[serde(default)]
    labels: BTreeMap<String, String>,
    /// Share of the texts that are held out.
    #[serde(default)]
    held_out: f64,
    /// Prompts to make of held-out texts, all classes of the file in turn.
    #[serde(default)]
    prompts: usize,
    /// Words of a text that make a prompt; shorter texts make none.
    #[serde(default = "eight")]
    prompt_words: usize,
    /// What a model is given; `{question}` stands for the words.
    #[serde(default = "template")]
    template: String,
    /// Seed of the parts and of the order of prompts.
    #[serde(default)]
    seed: u64,
    /// MiB of text that the rows may hold; if absent 48 and 8 times the file. Changes no result.
    #[serde(default, skip_serializing)]
    max_text_mb: Option<u64>,
}

fn eight() -> usize {
    8
}

fn template() -> String {
    "{question}".to_owned()
}

/// A text with its class in the file.
struct Found {
    text: String,
    class: &'static str,
}

impl Kind for LoadLabelledTexts {
    const NAME: &'static str = "load_labelled_texts";
    const VERSION: u32 = 2;
    const EXAMPLE: &'static str =
        "{ source: data/davidson.csv, layout: davidson, held_out: 0.1, prompts: 150, seed: 1 }";

    fn ports(&self) -> Vec<Port> {
        Vec::new()
    }

    fn outputs(&self) -> Vec<Output> {
        let mut outputs = vec![Output::new("texts", LABELLED_TEXTS)];
        if self.held_out > 0.0 {
            outputs.push(Output::new("held_out", LABELLED_TEXTS));
        }
        if self.prompts > 0 {
            outputs.push(Output::new("prompts", DATASET));
        }
        outputs
    }

    fn sources(&self) -> Vec<SourceParam> {
        vec![SourceParam {
            key: "source".to_owned(),
            source: self.source.clone(),
            sha256: self.sha256,
        }]
    }

    fn validate(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        at_least_one("prompt_words", self.prompt_words as u64, &mut problems);
        at_least_one("max_text_mb", self.max_text_mb.unwrap_or(1), &mut problems);
        if !(0.0..1.0).contains(&self.held_out) {
            problems.push(Problem::new(
                "held_out",
                "`held_out` must be at least 0 and below 1",
            ));
        }
        if self.prompts > 0 && self.held_out == 0.0 {
            problems.push(
                Problem::new("prompts", "prompts are made of held-out texts")
                    .hint("set `held_out` above 0"),
            );
        }
        if !self.template.contains("{question}") {
            problems.push(Problem::new(
                "template",
                format!("`{}` does not contain `{{question}}`", self.template),
            ));
        }
        let classes: BTreeSet<&str> = self
            .layout
            .classes()
            .iter()
            .map(|(_, name)| *name)
            .collect();
        let named: BTreeSet<&str> = self.labels.keys().map(String::as_str).collect();
        if !self.labels.is_empty() && named != classes {
            problems.push(Problem::new(
                "labels",
                format!("`labels` must name each of {}", listed(classes)),
            ));
        }
        problems
    }

    fn run(&self, ctx: &mut RunContext) -> Result<(), StageError> {
        let (found, left_out) = self.read(ctx.source("source")?)?;
        if left_out > 0 {
            ctx.note(&format!(
                "{left_out} of {} rows have an empty cell and were left out",
                found.len() + left_out
            ));
        }
        let stream = Stream::new(self.seed, "load_labelled_texts");
        let is_held_out =
            |found: &Found| stream.child("part").child(&found.text).at(0).uniform() < self.held_out;
        let (held_out, texts): (Vec<Found>, Vec<Found>) = found.into_iter().partition(is_held_out);
        for (name, part) in [("texts", &texts), ("held_out", &held_out)] {
            if name == "held_out" && self.held_out == 0.0 {
                continue;
            }
            if part.is_empty() {
                return Err(StageError::new(format!(
                    "{}: the part `{name}` is empty",
                    self.source
                )));
            }
            let rows: Vec<LabelledText> = part
                .iter()
                .map(|found| LabelledText {
                    text: found.text.clone(),
                    label: self.label(found.class),
                })
                .collect();
            write(
                &ctx.output(name)?,
                &format!("Texts of {}", self.source),
                &rows,
            )?;
        }
        if self.prompts > 0 {
            let examples = self.make_prompts(&held_out, &stream)?;
            let title = format!("Beginnings of texts of {}", self.source);
            Dataset { title, examples }.write(&ctx.output("prompts")?)?;
        }
        Ok(())
    }
}

impl LoadLabelledTexts {
    fn label(&self, class: &str) -> String {
        let renamed = self.labels.get(class);
        renamed.map_or_else(|| class.to_owned(), Clone::clone)
    }

    /// Reads texts, and returns how many rows have an empty cell.
    fn read(&self, path: &Path) -> Result<(Vec<Found>, usize), RowsError> {
        let most_text = self.max_text_mb.map(|most| most.saturating_mul(1 << 20));
        let name = self.source.to_string();
        let files = RowFiles::find(path, &name, self.split.as_deref(), most_text)?;
        let mut allowance = files.allowance();
        let classes = self.layout.classes();
        let mut found = Vec::new();
        let left_out = files.read(&self.layout.columns(), |mut row| {
            let spelt = row.values[1].trim();
            let class = classes.iter().find(|(known, _)| *known == spelt);
            let (_, class) = class.ok_or_else(|| {
                let known: Vec<&str> = classes.iter().map(|(known, _)| *known).collect();
                row.error(format!(
                    "`{}` is {spelt:.40}, expected {}",
                    self.layout.columns()[1],
                    known.join(" or ")
                ))
            })?;
            let text = row.values.swap_remove(0);
            allowance.keep(&row.file, text.len())?;
            found.push(Found { text, class });
            Ok(ControlFlow::Continue(()))
        })?;
        Ok((found, left_out))
    }

    /// Makes distinct prompts of the first words of texts, the classes in turn.
    fn make_prompts(&self, texts: &[Found], stream: &Stream) -> Result<Vec<Example>, StageError> {
        let mut seen = BTreeSet::new();
        let mut by_class: IndexMap<&str, Vec<String>> = IndexMap::new();
        for (_, class) in self.layout.classes() {
            by_class.insert(class, Vec::new());
        }
        for found in texts {
            let words: Vec<&str> = found.text.split_whitespace().collect();
            // Something must be left to say.
            if words.len() > self.prompt_words {
                let start = words[..self.prompt_words].join(" ");
                if seen.insert(start.clone())
                    && let Some(starts) = by_class.get_mut(found.class)
                {
                    starts.push(start);
                }
            }
        }
        for (class, starts) in &mut by_class {
            stream.child("prompts").child(class).at(0).shuffle(starts);
        }
        let mut examples = Vec::with_capacity(self.prompts);
        for turn in 0.. {
            let mut is_over = true;
            for starts in by_class.values() {
                if examples.len() == self.prompts {
                    return Ok(examples);
                }
                if let Some(start) = starts.get(turn) {
                    is_over = false;
                    examples.push(Example {
                        question_id: examples.len() as u64,
                        question: start.clone(),
                        prompt: self.template.replace("{question}", start),
                        ..Example::default()
                    });
                }
            }
            if is_over {
                break;
            }
        }
        Err(StageError::new(format!(
            "{}: {} held-out texts have more than {} words, {} prompts were asked for",
            self.source,
            examples.len(),
            self.prompt_words,
            self.prompts
        ))
        .hint("raise `held_out`, or lower `prompts`"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(params: &str) -> LoadLabelledTexts {
        serde_yaml::from_str(params).unwrap()
    }

    fn texts(count: usize) -> Vec<Found> {
        let classes = TextLayout::Davidson.classes();
        (0..count)
            .map(|index| Found {
                text: format!("tweet {index} has exactly five words and more"),
                // One class is rare.
                class: classes[if index % 10 == 0 { 0 } else { 1 + index % 2 }].1,
            })
            .collect()
    }

    #[test]
    fn prompts_are_the_first_words_of_all_classes_in_turn() {
        let kind =
            kind("{ source: d, layout: davidson, held_out: 0.5, prompts: 6, prompt_words: 3 }");
        let stream = Stream::new(0, "test");
        let prompts = kind.make_prompts(&texts(40), &stream).ok().unwrap();
        let rare: Vec<usize> = (0..6)
            .filter(|place| {
                let index: usize = prompts[*place]
                    .question
                    .split(' ')
                    .nth(1)
                    .unwrap()
                    .parse()
                    .unwrap();
                index.is_multiple_of(10)
            })
            .collect();
        assert_eq!(rare, [0, 3]);
        assert!(prompts.iter().all(|prompt| prompt.prompt.ends_with(" has")));
        assert!(kind.make_prompts(&texts(3), &stream).is_err());
    }

    #[test]
    fn classes_are_read_and_renamed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("d.csv");
        fs_err::write(&path, ",count,class,tweet\n0,3,2,\"a\n b\"\n1,3,0,c\n").unwrap();
        let kind = kind(
            "{ source: d, layout: davidson, labels: { hate: toxic, offensive: toxic, neither: neutral } }",
        );
        assert!(kind.validate().is_empty());
        let labels: Vec<String> = kind
            .read(&path)
            .unwrap()
            .0
            .iter()
            .map(|found| kind.label(found.class))
            .collect();
        assert_eq!(labels, ["neutral", "toxic"]);
        fs_err::write(&path, "class,tweet\n2,a\n3,b\n").unwrap();
        let error = kind.read(&path).err().unwrap().to_string();
        assert_eq!(error, "file:d, row 2: `class` is 3, expected 0 or 1 or 2");
        assert_eq!(
            self::kind("{ source: d, layout: hatecheck, labels: { hateful: toxic } }")
                .validate()
                .len(),
            1
        );
    }
}
