//! `load_preferences`: preference pairs from files in public layouts.

use std::collections::BTreeMap;

use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::training::at_least_one;
use crate::artifacts::dataset::{DATASET, Dataset, Example};
use crate::engine::context::RunContext;
use crate::engine::stage::{Kind, Output, Port, Problem, SourceParam, StageError};
use crate::ml::tokenizer::PromptTemplate;
use crate::random::Stream;
use crate::sources::dialogue::{Speaker, split_pair, turns};
use crate::sources::rows::{Row, read_rows};
use crate::sources::{Sha256, Source};

/// How the rows of a file are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    /// `lvwerra/stack-exchange-paired`: `qid`, `question`, `response_j` (preferred) and `response_k`.
    StackExchangePaired,
    /// `Anthropic/hh-rlhf`: `chosen` and `rejected`, whole dialogues that differ from one answer on.
    AnthropicHh,
}

/// What becomes of a question that is too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LongQuestions {
    /// Its pairs are left out.
    #[default]
    LeaveOut,
    /// It is cut at a white space: the end of a question, the oldest turns of a dialogue.
    Cut,
}

/// Loads preference pairs from parquet, CSV or JSON-lines files in a public layout.
///
/// Texts are taken as they are, markup and entities included. Pairs with an empty or the same answer on both sides
/// teach nothing and are left out; the log says how many.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LoadPreferences {
    /// A file, or a local folder of part files.
    source: Source,
    /// The SHA-256 of the file.
    #[serde(default)]
    sha256: Option<Sha256>,
    /// How rows are laid out.
    layout: Layout,
    /// What a model is given: a text with `{question}`, or `stack_llama`, `chatml`, `smollm2` or `plain`.
    #[serde(default = "plain")]
    template: String,
    /// At most so many pairs.
    #[serde(default)]
    max_rows: Option<usize>,
    /// At most so many questions.
    #[serde(default)]
    max_questions: Option<usize>,
    /// At most so many pairs of each question, the first ones.
    #[serde(default)]
    max_pairs_per_question: Option<usize>,
    /// Longer questions are left out or cut.
    #[serde(default)]
    max_question_chars: Option<usize>,
    /// What becomes of longer questions.
    #[serde(default)]
    long_questions: LongQuestions,
    /// Longer answers are cut at a white space.
    #[serde(default)]
    max_answer_chars: Option<usize>,
    /// Puts questions into a random order before they are counted; the file's order if absent.
    #[serde(default)]
    seed: Option<u64>,
}

fn plain() -> String {
    "plain".to_owned()
}

/// How a question becomes a prompt.
enum Template {
    /// As it stands.
    Plain,
    /// ChatML with what comes before the first turn.
    Chat(&'static str),
    Text(PromptTemplate),
}

impl Template {
    fn parse(text: &str) -> Result<Self, String> {
        const SMOLLM2_SYSTEM: &str = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by \
            Hugging Face<|im_end|>\n";
        let text = match text {
            "plain" => return Ok(Self::Plain),
            "chatml" => return Ok(Self::Chat("")),
            "smollm2" => return Ok(Self::Chat(SMOLLM2_SYSTEM)),
            "stack_llama" => PromptTemplate::STACK_LLAMA.to_owned(),
            text if text.contains("{answer}") => text.to_owned(),
            text => format!("{text}{{answer}}"),
        };
        let template = PromptTemplate::parse(&text).map_err(|error| error.to_string())?;
        Ok(Self::Text(template))
    }

    fn prompt(&self, question: &Question) -> String {
        match (self, question) {
            (Self::Plain, Question::Text(text) | Question::Dialogue(text)) => text.clone(),
            (Self::Chat(system), Question::Text(text)) => {
                format!("{system}<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n")
            }
            (Self::Chat(system), Question::Dialogue(context)) => {
                let mut prompt = (*system).to_owned();
                for (speaker, text) in turns(context) {
                    let role = match speaker {
                        Speaker::Human => "user",
                        Speaker::Assistant => "assistant",
                    };
                    prompt.push_str(&format!("<|im_start|>{role}\n{text}<|im_end|>\n"));
                }
                prompt + "<|im_start|>assistant\n"
            }
            (Self::Text(template), Question::Text(_) | Question::Dialogue(_)) => {
                template.prompt(&question.shown())
            }
        }
    }
}

/// What is asked.
enum Question {
    Text(String),
    /// A context that ends with an open turn of the assistant.
    Dialogue(String),
}

impl Question {
    /// The question for people and for text templates.
    fn shown(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Dialogue(context) => {
                let end = context.rfind("\n\nAssistant:").unwrap_or(context.len());
                context[..end].trim().to_owned()
            }
        }
    }

    /// Shortens to at most `limit` characters; `false` if that is impossible.
    fn cut(&mut self, limit: usize) -> bool {
        match self {
            Self::Text(text) => *text = cut_end(text, limit).to_owned(),
            Self::Dialogue(context) => {
                // The oldest turns go first; a dialogue still starts with the user.
                while context.chars().count() > limit {
                    let next = context.match_indices("\n\nHuman:").nth(1);
                    let Some((start, _)) = next else { return false };
                    context.drain(..start);
                }
            }
        }
        true
    }
}

/// Cuts a text to at most `limit` characters, at the last white space if there is one.
fn cut_end(text: &str, limit: usize) -> &str {
    let Some((end, _)) = text.char_indices().nth(limit) else {
        return text;
    };
    let whole = text[end..].starts_with(char::is_whitespace);
    let end = if whole {
        end
    } else {
        text[..end].rfind(char::is_whitespace).unwrap_or(end)
    };
    text[..end].trim_end()
}

/// A row taken apart.
struct Pair {
    id: u64,
    question: Question,
    chosen: String,
    rejected: String,
}

impl Kind for LoadPreferences {
    const NAME: &'static str = "load_preferences";
    const VERSION: u32 = 1;
    const EXAMPLE: &'static str = "{ source: data/rl, layout: stack_exchange_paired, template: stack_llama, max_pairs_per_question: 4 }";

    fn ports(&self) -> Vec<Port> {
        Vec::new()
    }

    fn outputs(&self) -> Vec<Output> {
        vec![Output::new("pairs", DATASET)]
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
        for (key, value) in [
            ("max_rows", self.max_rows),
            ("max_questions", self.max_questions),
            ("max_pairs_per_question", self.max_pairs_per_question),
            ("max_question_chars", self.max_question_chars),
            ("max_answer_chars", self.max_answer_chars),
        ] {
            at_least_one(key, value.unwrap_or(1) as u64, &mut problems);
        }
        if let Err(reason) = Template::parse(&self.template) {
            problems.push(Problem::new("template", reason));
        }
        problems
    }

    fn run(&self, ctx: &mut RunContext) -> Result<(), StageError> {
        let path = ctx.source("source")?;
        if path.is_dir() && self.sha256.is_some() {
            return Err(
                StageError::new(format!("{}: a folder has no SHA-256", path.display()))
                    .hint("give a file, or leave `sha256` out"),
            );
        }
        let pairs = self.read(path)?;
        let found = pairs.len();
        let (pairs, dropped) = self.usable(pairs);
        let examples = self.select(pairs)?;
        if dropped > 0 {
            ctx.note(&format!(
                "{dropped} of {found} pairs were left out: an empty answer, twice the same answer, or a question that \
                 is too long"
            ));
        }
        if examples.is_empty() {
            return Err(
                StageError::new(format!("{}: no pair is left of {found}", self.source))
                    .hint("raise `max_question_chars`, or set `long_questions: cut`"),
            );
        }
        let title = format!("Preference pairs of {}", self.source);
        Ok(Dataset { title, examples }.write(&ctx.output("pairs")?)?)
    }
}

impl LoadPreferences {
    fn read(&self, path: &std::path::Path) -> Result<Vec<Pair>, StageError> {
        let name = self.source.to_string();
        let values = |row: &Row, at: usize| row.values[at].clone();
        match self.layout {
            Layout::StackExchangePaired => {
                let columns = ["qid", "question", "response_j", "response_k"];
                let rows = read_rows(path, &name, &columns)?;
                // Sites number their questions each for itself.
                let mut ids = BTreeMap::new();
                let pair = |row: Row| {
                    let qid: u64 = row.values[0].parse().map_err(|_| {
                        row.error(format!(
                            "`qid` is {}, expected a whole number",
                            row.values[0]
                        ))
                    })?;
                    let next = ids.len() as u64;
                    Ok(Pair {
                        id: *ids.entry((qid, values(&row, 1))).or_insert(next),
                        question: Question::Text(values(&row, 1)),
                        chosen: values(&row, 2),
                        rejected: values(&row, 3),
                    })
                };
                rows.into_iter().map(pair).collect()
            }
            Layout::AnthropicHh => {
                let rows = read_rows(path, &name, &["chosen", "rejected"])?;
                let mut ids = BTreeMap::new();
                let pair = |row: Row| {
                    let split = split_pair(&row.values[0], &row.values[1]).ok_or_else(|| {
                        row.error("`chosen` and `rejected` share no beginning that ends in `\\n\\nAssistant:`")
                    })?;
                    let next = ids.len() as u64;
                    Ok(Pair {
                        id: *ids.entry(split.context.to_owned()).or_insert(next),
                        question: Question::Dialogue(split.context.to_owned()),
                        chosen: split.chosen.to_owned(),
                        rejected: split.rejected.to_owned(),
                    })
                };
                rows.into_iter().map(pair).collect()
            }
        }
    }

    /// Leaves out what cannot be used, and counts it.
    fn usable(&self, pairs: Vec<Pair>) -> (Vec<Pair>, usize) {
        let found = pairs.len();
        let mut kept = Vec::with_capacity(found);
        for mut pair in pairs {
            if let Some(limit) = self.max_answer_chars {
                pair.chosen = cut_end(&pair.chosen, limit).to_owned();
                pair.rejected = cut_end(&pair.rejected, limit).to_owned();
            }
            let is_empty = |text: &str| text.trim().is_empty();
            let fits = self.max_question_chars.is_none_or(|limit| {
                let (Question::Text(text) | Question::Dialogue(text)) = &pair.question;
                text.chars().count() <= limit
                    || (self.long_questions == LongQuestions::Cut && pair.question.cut(limit))
            });
            if fits
                && !is_empty(&pair.chosen)
                && !is_empty(&pair.rejected)
                && pair.chosen != pair.rejected
            {
                kept.push(pair);
            }
        }
        let dropped = found - kept.len();
        (kept, dropped)
    }

    /// Takes questions in order, with their pairs, up to the limits.
    fn select(&self, pairs: Vec<Pair>) -> Result<Vec<Example>, StageError> {
        let template = Template::parse(&self.template).map_err(StageError::new)?;
        let mut questions: IndexMap<u64, Vec<Pair>> = IndexMap::new();
        for pair in pairs {
            questions.entry(pair.id).or_default().push(pair);
        }
        let mut questions: Vec<Vec<Pair>> = questions.into_values().collect();
        if let Some(seed) = self.seed {
            Stream::new(seed, "load_preferences")
                .at(0)
                .shuffle(&mut questions);
        }
        questions.truncate(self.max_questions.unwrap_or(usize::MAX));
        let most = self.max_pairs_per_question.unwrap_or(usize::MAX);
        let pairs = questions
            .into_iter()
            .flat_map(|pairs| pairs.into_iter().take(most));
        Ok(pairs
            .take(self.max_rows.unwrap_or(usize::MAX))
            .map(|pair| Example {
                question_id: pair.id,
                prompt: template.prompt(&pair.question),
                question: pair.question.shown(),
                chosen: Some(pair.chosen),
                rejected: Some(pair.rejected),
            })
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(params: &str) -> LoadPreferences {
        serde_yaml::from_str(params).unwrap()
    }

    fn examples(kind: &LoadPreferences, data: &str) -> Vec<Example> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data");
        fs_err::write(&path, data).unwrap();
        let pairs = kind
            .read(&path)
            .map_err(|error| format!("{error:?}"))
            .unwrap();
        kind.select(kind.usable(pairs).0)
            .map_err(|error| format!("{error:?}"))
            .unwrap()
    }

    const PAIRS: &str = "qid,question,response_j,response_k\n\
        7,why so,because,no idea\n\
        7,why so,because,dunno\n\
        7,why so,same,same\n\
        9,how come,thus,\"a, b\"\n\
        7,what a long question,x,y\n";

    #[test]
    fn stack_exchange_pairs_become_prompts() {
        let kind = kind(
            "{ source: d, layout: stack_exchange_paired, template: stack_llama, max_question_chars: 9 }",
        );
        let found = examples(&kind, PAIRS);
        let ids: Vec<u64> = found.iter().map(|example| example.question_id).collect();
        assert_eq!(ids, [0, 0, 1]);
        assert_eq!(found[2].prompt, "Question: how come\n\nAnswer: ");
        assert_eq!(found[2].rejected.as_deref(), Some("a, b"));
        assert_eq!(found[0].chosen.as_deref(), Some("because"));
    }

    #[test]
    fn questions_are_limited_whole_and_shuffled_by_seed() {
        let text = "{ source: d, layout: stack_exchange_paired, max_pairs_per_question: 1, max_rows: 2, seed: 1 }";
        let first = examples(&kind(text), PAIRS);
        assert_eq!(first.len(), 2);
        assert_ne!(first[0].question_id, first[1].question_id);
        assert_eq!(examples(&kind(text), PAIRS), first);
        let orders: std::collections::BTreeSet<Vec<u64>> = (0..20)
            .map(|seed| {
                let kind = kind(&text.replace("seed: 1", &format!("seed: {seed}")));
                examples(&kind, PAIRS)
                    .iter()
                    .map(|example| example.question_id)
                    .collect()
            })
            .collect();
        assert!(orders.len() > 2, "{orders:?}");
    }

    #[test]
    fn long_questions_are_cut_at_white_space() {
        let text = "{ source: d, layout: stack_exchange_paired, max_question_chars: 13, long_questions: cut, \
                    max_answer_chars: 3, template: 'Q {question} A ' }";
        let found = examples(&kind(text), PAIRS);
        assert_eq!(found.last().unwrap().prompt, "Q what a long A ");
        assert_eq!(found[0].chosen.as_deref(), Some("bec"));
        assert_eq!(found[0].rejected.as_deref(), Some("no"));
    }

    const DIALOGUES: &str = concat!(
        r#"{"chosen": "\n\nHuman: Hi?\n\nAssistant: Hello.\n\nHuman: Why?\n\nAssistant: So.", "rejected": "\n\nHuman: Hi?\n\nAssistant: Hello.\n\nHuman: Why?\n\nAssistant: Sorry."}"#,
        "\n",
        r#"{"chosen": "\n\nHuman: Hi?\n\nAssistant: Hello.\n\nHuman: Why?\n\nAssistant: A", "rejected": "\n\nHuman: Hi?\n\nAssistant: Hello.\n\nHuman: Why?\n\nAssistant:"}"#,
        "\n"
    );

    #[test]
    fn dialogues_keep_their_turns() {
        let plain = examples(&kind("{ source: d, layout: anthropic_hh }"), DIALOGUES);
        // The second pair has an empty answer.
        assert_eq!(plain.len(), 1);
        assert_eq!(
            plain[0].prompt,
            "\n\nHuman: Hi?\n\nAssistant: Hello.\n\nHuman: Why?\n\nAssistant:"
        );
        assert_eq!(plain[0].chosen.as_deref(), Some("So."));
        assert_eq!(
            plain[0].question,
            "Human: Hi?\n\nAssistant: Hello.\n\nHuman: Why?"
        );
        let chat = examples(
            &kind("{ source: d, layout: anthropic_hh, template: chatml }"),
            DIALOGUES,
        );
        assert_eq!(
            chat[0].prompt,
            "<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n\
             <|im_start|>assistant\n"
        );
        let cut =
            "{ source: d, layout: anthropic_hh, max_question_chars: 40, long_questions: cut }";
        assert_eq!(
            examples(&kind(cut), DIALOGUES)[0].prompt,
            "\n\nHuman: Why?\n\nAssistant:"
        );
    }

    #[test]
    fn faulty_rows_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data");
        for (layout, data, message) in [
            (
                "stack_exchange_paired",
                "qid,question,response_j,response_k\nx,a,b,c\n",
                "file:d, row 1: `qid` is x",
            ),
            (
                "anthropic_hh",
                r#"{"chosen": "a", "rejected": "b"}"#,
                "file:d, row 1: `chosen` and `rejected` share",
            ),
        ] {
            fs_err::write(&path, data).unwrap();
            let kind = kind(&format!("{{ source: d, layout: {layout} }}"));
            let error = format!("{:?}", kind.read(&path).err().unwrap());
            assert!(error.contains(message), "{error}");
        }
        let kind = kind("{ source: d, layout: anthropic_hh, template: 'no placeholder' }");
        assert_eq!(kind.validate().len(), 1);
    }
}
