//! `load_labelled_texts`: texts with classes, and prompts made of them.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::path::Path;

use indexmap::{IndexMap, IndexSet};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::artifacts::dataset::{DATASET, Dataset, Example};
use crate::artifacts::labelled_texts::{LABELLED_TEXTS, LabelledText, write};
use crate::engine::context::RunContext;
use crate::engine::stage::{Kind, Output, Port, Problem, SourceParam, StageError};
use crate::excerpt::listed;
use crate::random::Stream;
use crate::sources::rows::Lacking;
use crate::sources::{Sha256, Source};
use crate::stages::ranges::at_least_one;

use super::left_out::LeftOut;
use super::origin::{
    LOOKED_AT, check_columns, check_found, check_sha256, named, row_files, source_name,
    source_or_port, source_params, source_path,
};

/// How the rows of a file are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TextLayout {
    /// `t-davidson/hate-speech-and-offensive-language`: `tweet`, and `class` 0 `hate`, 1 `offensive`, 2 `neither`; or on
    /// the hub, as `tdavidson/hate_speech_offensive`, `hate speech`, `offensive language` and `neither`.
    Davidson,
    /// `paul-rottger/hatecheck-data`: `test_case`, and `label_gold`, `hateful` or `non-hateful`.
    Hatecheck,
    /// `text` and `label`, whatever labels there are.
    TextLabel,
}

impl TextLayout {
    const ALL: [Self; 3] = [Self::TextLabel, Self::Davidson, Self::Hatecheck];

    fn columns(self) -> [&'static str; 2] {
        match self {
            Self::Davidson => ["tweet", "class"],
            Self::Hatecheck => ["test_case", "label_gold"],
            Self::TextLabel => ["text", "label"],
        }
    }

    /// Classes as files spell them, and as we do, where the layout knows them.
    fn classes(self) -> Option<&'static [(&'static str, &'static str)]> {
        match self {
            // On the hub the numbers have names.
            Self::Davidson => Some(&[
                ("0", "hate"),
                ("1", "offensive"),
                ("2", "neither"),
                ("hate speech", "hate"),
                ("offensive language", "offensive"),
                ("neither", "neither"),
            ]),
            Self::Hatecheck => Some(&[("hateful", "hateful"), ("non-hateful", "non-hateful")]),
            Self::TextLabel => None,
        }
    }

    /// Tells a layout by the columns of a file.
    fn of(found: &[String], columns: &BTreeMap<String, String>) -> Option<Self> {
        let has = |name: &&str| found.iter().any(|found| found == named(columns, name));
        let has_named = |known: &[&str]| columns.keys().all(|name| known.contains(&name.as_str()));
        let mut fits = Self::ALL.into_iter().filter(|layout| {
            let known = layout.columns();
            has_named(&known) && known.iter().all(&has)
        });
        let first = fits.next();
        if fits.next().is_some() { None } else { first }
    }
}

/// Loads texts with classes: a training and a held-out part, and prompts from the beginnings of held-out texts.
///
/// What is read is the `source`, or without one what a stage made, on the port `data`; without `layout` the names of the
/// columns decide.
///
/// A text's part follows from the seed and the text alone, so that copies of a text are never in both parts. Numbers of
/// classes become their names, where `datasets` of Hugging Face says them. Rows with an empty cell or one that cannot be
/// read are left out; the log says how many, and what is wrong with the first. What is no JSON at all is an error.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LoadLabelledTexts {
    /// A file, packed with gzip or not, or a local folder of part files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    source: Option<Source>,
    /// Which files of a folder: those of this split by their names, as in `train-00000-of-00002.parquet`, or as
    /// `save_to_disk` wrote them down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    split: Option<String>,
    /// The SHA-256 of the file.
    #[serde(default)]
    sha256: Option<Sha256>,
    /// How rows are laid out; if absent, the columns decide.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    layout: Option<TextLayout>,
    /// What the file calls the columns of a layout, as in `{ text: tweet }`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    columns: BTreeMap<String, String>,
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
    class: String,
}

impl Kind for LoadLabelledTexts {
    const NAME: &'static str = "load_labelled_texts";
    const VERSION: u32 = 4;
    const EXAMPLE: &'static str =
        "{ source: data/davidson.csv, layout: davidson, held_out: 0.1, prompts: 150, seed: 1 }";

    fn ports(&self) -> Vec<Port> {
        source_or_port(self.source.as_ref())
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
        source_params(self.source.as_ref(), self.sha256)
    }

    fn validate(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        check_sha256(self.source.as_ref(), self.sha256, &mut problems);
        at_least_one("prompt_words", self.prompt_words as u64, &mut problems);
        at_least_one("max_text_mb", self.max_text_mb.unwrap_or(1), &mut problems);
        let known: Vec<&str> = match self.layout {
            Some(layout) => layout.columns().to_vec(),
            None => TextLayout::ALL
                .iter()
                .flat_map(|layout| layout.columns())
                .collect(),
        };
        let owner = if self.layout.is_some() {
            "the layout has"
        } else {
            "layouts have"
        };
        check_columns(&self.columns, &known, owner, &mut problems);
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
        let known = self.layout.and_then(TextLayout::classes);
        let classes: BTreeSet<&str> = known
            .iter()
            .flat_map(|known| known.iter())
            .map(|(_, name)| *name)
            .collect();
        let named: BTreeSet<&str> = self.labels.keys().map(String::as_str).collect();
        if !self.labels.is_empty() && known.is_some() && named != classes {
            problems.push(Problem::new(
                "labels",
                format!("`labels` must name each of {}", listed(classes)),
            ));
        }
        problems
    }

    fn run(&self, ctx: &mut RunContext) -> Result<(), StageError> {
        let origin = source_name(self.source.as_ref());
        let path = source_path(self.source.as_ref(), ctx)?;
        let (found, left_out) = self.read(&path)?;
        if found.is_empty() {
            return Err(left_out.nothing_left(&origin));
        }
        if let Some(note) = left_out.note() {
            ctx.note(&note);
        }
        let classes = self.known_classes(&found)?;
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
                    source_name(self.source.as_ref())
                )));
            }
            let rows: Vec<LabelledText> = part
                .iter()
                .map(|found| LabelledText {
                    text: found.text.clone(),
                    label: self.label(&found.class),
                })
                .collect();
            write(&ctx.output(name)?, &format!("Texts of {origin}"), &rows)?;
        }
        if self.prompts > 0 {
            let examples = self.make_prompts(&held_out, &classes, &stream)?;
            let title = format!("Beginnings of texts of {origin}");
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

    /// Reads texts, and returns what was left out.
    fn read(&self, path: &Path) -> Result<(Vec<Found>, LeftOut), StageError> {
        let name = source_name(self.source.as_ref());
        let split = self.split.as_deref();
        let files = row_files(path, &name, split, self.sha256, self.max_text_mb)?;
        let mut allowance = files.allowance();
        let layout = match self.layout {
            Some(layout) if self.columns.is_empty() => layout,
            stated => {
                let columns = files.columns_of_first(LOOKED_AT)?;
                check_found(&self.columns, &columns, &name)?;
                stated.or_else(|| TextLayout::of(&columns, &self.columns)).ok_or_else(|| {
                    let found = listed(columns.iter().map(String::as_str));
                    StageError::new(format!(
                        "{name}: the columns {found} are those of no layout, or of several"
                    ))
                    .hint("say which one with `layout`, or name them: `columns: { text: NAME, label: NAME }`")
                })?
            }
        };
        let classes = layout.classes();
        let wanted = layout.columns();
        let columns = [0, 1].map(|place| named(&self.columns, wanted[place]));
        let mut found = Vec::new();
        let mut unknown = None;
        let mut left_out = LeftOut::default();
        files.read(&columns, |mut row| {
            left_out.rows += 1;
            let [text, class] = match row.whole(columns) {
                Ok(values) => values,
                Err(Lacking::Empty(fault) | Lacking::Faulty(fault)) => {
                    left_out.add(&row.error(fault));
                    return Ok(ControlFlow::Continue(()));
                }
            };
            let spelt = class.trim();
            if let Some(column) = [(text.trim(), 0), (spelt, 1)]
                .into_iter()
                .find_map(|(value, place)| value.is_empty().then_some(columns[place]))
            {
                left_out.add(&row.error(format!("`{column}` is blank")));
                return Ok(ControlFlow::Continue(()));
            }
            let class = match classes {
                Some(known) => known
                    .iter()
                    .find(|(known, _)| *known == spelt)
                    .map(|(_, class)| *class),
                None => Some(spelt),
            };
            let Some(class) = class.map(str::to_owned) else {
                // No fault of one row: all texts of the class would be missing.
                let known = classes.unwrap_or_default().iter();
                let known: Vec<&str> = known.map(|(known, _)| *known).collect();
                unknown = Some(row.error(format!(
                    "`{}` is {spelt:.40}, expected {}",
                    columns[1],
                    known.join(" or ")
                )));
                return Ok(ControlFlow::Break(()));
            };
            allowance.keep(&row.file, text.len())?;
            found.push(Found { text, class });
            Ok(ControlFlow::Continue(()))
        })?;
        unknown.map_or(Ok((found, left_out)), |fault| Err(fault.into()))
    }

    /// The classes in order: those of the layout, or those that there are.
    fn known_classes(&self, found: &[Found]) -> Result<Vec<String>, StageError> {
        let known = self.layout.and_then(TextLayout::classes);
        let there: BTreeSet<&str> = found.iter().map(|found| found.class.as_str()).collect();
        if let Some(known) = known {
            let known: IndexSet<&str> = known.iter().map(|(_, name)| *name).collect();
            return Ok(known.into_iter().map(str::to_owned).collect());
        }
        let mut named = self.labels.keys();
        if let Some(absent) = named.find(|name| !there.contains(name.as_str())) {
            return Err(StageError::new(format!(
                "{}: no text has the class `{absent}`, which `labels` names; found: {}",
                source_name(self.source.as_ref()),
                listed(there.iter().copied())
            )));
        }
        Ok(there.into_iter().map(str::to_owned).collect())
    }

    /// Makes distinct prompts of the first words of texts, the classes in turn.
    fn make_prompts(
        &self,
        texts: &[Found],
        classes: &[String],
        stream: &Stream,
    ) -> Result<Vec<Example>, StageError> {
        let mut seen = BTreeSet::new();
        let mut by_class: IndexMap<&str, Vec<String>> = IndexMap::new();
        for class in classes {
            by_class.insert(class, Vec::new());
        }
        for found in texts {
            let words: Vec<&str> = found.text.split_whitespace().collect();
            // Something must be left to say.
            if words.len() > self.prompt_words {
                let start = words[..self.prompt_words].join(" ");
                if seen.insert(start.clone())
                    && let Some(starts) = by_class.get_mut(found.class.as_str())
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
            source_name(self.source.as_ref()),
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
        let classes = TextLayout::Davidson.classes().unwrap();
        (0..count)
            .map(|index| Found {
                text: format!("tweet {index} has exactly five words and more"),
                // One class is rare.
                class: classes[if index % 10 == 0 { 0 } else { 1 + index % 2 }]
                    .1
                    .to_owned(),
            })
            .collect()
    }

    #[test]
    fn classes_that_have_names_on_the_hub_are_those_of_numbers() {
        let folder = tempfile::tempdir().unwrap();
        let names = ["hate speech", "offensive language", "neither"];
        let feature = serde_json::json!({ "names": names, "_type": "ClassLabel" });
        let info = serde_json::json!({ "features": { "class": feature } });
        let read = |kind: &LoadLabelledTexts| -> Vec<(String, String)> {
            let (found, _) = kind.read(folder.path()).ok().unwrap();
            let found = found.into_iter();
            found.map(|row| (row.text, row.class)).collect()
        };
        let rows = "tweet,class\na,0\nb,1\nc,2\n";
        fs_err::write(folder.path().join("data.csv"), rows).unwrap();
        let davidson = kind("{ source: d, layout: davidson }");
        let numbered = read(&davidson);
        assert_eq!(numbered[0], ("a".to_owned(), "hate".to_owned()));
        let any = kind("{ source: d, layout: text_label, columns: { text: tweet, label: class } }");
        assert_eq!(read(&any)[0].1, "0");
        fs_err::write(folder.path().join("dataset_info.json"), info.to_string()).unwrap();
        assert_eq!(read(&davidson), numbered);
        assert_eq!(read(&any)[0].1, "hate speech");
        assert_eq!(
            davidson.known_classes(&[]).ok().unwrap(),
            ["hate", "offensive", "neither"]
        );
    }

    #[test]
    fn prompts_are_the_first_words_of_all_classes_in_turn() {
        let kind =
            kind("{ source: d, layout: davidson, held_out: 0.5, prompts: 6, prompt_words: 3 }");
        let stream = Stream::new(0, "test");
        let classes = kind.known_classes(&[]).ok().unwrap();
        let prompts = kind
            .make_prompts(&texts(40), &classes, &stream)
            .ok()
            .unwrap();
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
        assert!(kind.make_prompts(&texts(3), &classes, &stream).is_err());
    }

    #[test]
    fn any_labels_are_read_where_the_columns_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("d.jsonl");
        fs_err::write(&path, "{\"words\": \"a\", \"label\": 1}\n{\"words\": \"b\", \"label\": \"x\"}\n{\"words\": null, \"label\": 2}\n{\"words\": \" \", \"label\": 2}\n{\"words\": \"c\", \"label\": [3]}\n{\"words\": \"c\"}\n")
            .unwrap();
        let read = |params: &str| {
            let kind = kind(params);
            let (found, left_out) = kind.read(&path).map_err(|error| match error {
                StageError::Failed { message, .. } => message,
                StageError::Interrupted => unreachable!(),
            })?;
            let classes = kind
                .known_classes(&found)
                .map_err(|_| "classes".to_owned())?;
            Ok::<_, String>((classes, left_out.note(), kind.label(&found[1].class)))
        };
        let named = "{ source: d, columns: { text: words }, labels: { x: y } }";
        let classes = vec!["1".to_owned(), "x".to_owned()];
        let note = "4 of 6 rows were left out: file:d, row 3: `words` is empty, and others";
        let expected = (classes, Some(note.to_owned()), "y".to_owned());
        assert_eq!(read(named).unwrap(), expected);
        assert_eq!(read(&named.replace("x: y", "z: y")).unwrap_err(), "classes");
        assert_eq!(
            read(&named.replace("text: words", "text: word")).unwrap_err(),
            "file:d: `columns` names the column `word`, which it has not; found: words, label"
        );
        let problems = self::kind("{ source: d, columns: { txt: words } }").validate();
        assert_eq!(problems.len(), 1);
        assert_eq!(problems[0].hint.as_deref(), Some("did you mean `text`?"));
        assert_eq!(
            read("{ source: d }").unwrap_err(),
            "file:d: the columns words, label are those of no layout, or of several"
        );
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
            .map(|found| kind.label(&found.class))
            .collect();
        assert_eq!(labels, ["neutral", "toxic"]);
        fs_err::write(&path, "class,tweet\n2,a\n3,b\n").unwrap();
        let Some(StageError::Failed { message: error, .. }) = kind.read(&path).err() else {
            panic!("read")
        };
        assert_eq!(
            error,
            "file:d, row 2: `class` is 3, expected 0 or 1 or 2 or hate speech or offensive language or neither"
        );
        assert_eq!(
            self::kind("{ source: d, layout: hatecheck, labels: { hateful: toxic } }")
                .validate()
                .len(),
            1
        );
    }

    #[test]
    fn a_folder_has_no_sha256() {
        let folder = tempfile::tempdir().unwrap();
        fs_err::write(folder.path().join("d.csv"), "text,label\na,b\n").unwrap();
        assert!(kind("{ source: d }").read(folder.path()).is_ok());
        let sha256 = "0".repeat(64);
        let read = kind(&format!("{{ source: d, sha256: '{sha256}' }}")).read(folder.path());
        let Some(StageError::Failed { message, .. }) = read.err() else {
            panic!("read")
        };
        assert!(message.ends_with("a folder has no SHA-256"), "{message}");
    }
}
