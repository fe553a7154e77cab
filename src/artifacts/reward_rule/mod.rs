//! Reward rules: rewards that are computed from a completion's text, exactly.
//!
//! An `exact` rule compares a completion with the right answers of its prompt, a `regex` rule matches it, an `arithmetic`
//! rule checks a derivation ([`crate::world::arithmetic`]). The artifact is one file, `rule.json`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use fancy_regex::Regex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::excerpt::{NAME, excerpt};
use crate::hint::Hint;
use crate::world::arithmetic::{Derivation, Fault, GREATEST, MOST_NUMBERS, Problem};

/// The artifact kind.
pub const REWARD_RULE: &str = "reward_rule";

const FILE: &str = "rule.json";

/// Steps back that a regular expression may take in one text.
const BACKTRACKING: usize = 1_000_000;

/// Bytes that a compiled regular expression may have.
const COMPILED: usize = 1 << 20;

/// What makes a completion right.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Rule {
    /// It gives an answer that the port `data` has for its prompt: that of one of the preferred completions.
    Exact(Exact),
    /// It matches a regular expression.
    Regex(Pattern),
    /// It is a right derivation of the problem that its prompt states, as in `numbers 2 3 6 target 18`: steps such as
    /// `2 * 3 = 6 ; 6 * 3 = 18`, with ` ; ` between them, each of two numbers that are there.
    Arithmetic(Arithmetic),
}

/// How answers are taken out of completions and compared.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Exact {
    /// A regular expression with a group at most: what the group matches is the answer, or the whole match without one;
    /// the last one that is not empty counts. The same is taken out of the right completions. The whole text if absent.
    #[serde(default)]
    pub extract: Option<String>,
    /// Whether capital and small letters are the same.
    #[serde(default)]
    pub ignore_case: bool,
    /// Whether answers are decimal numbers, compared by value: `1,000.50` is `1000.5`.
    #[serde(default)]
    pub numbers: bool,
}

/// A regular expression.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Pattern {
    /// The expression.
    pub pattern: String,
    /// Whether it must match all of the completion, not a part of it.
    #[serde(default)]
    pub full_match: bool,
}

/// Which problems and derivations there are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Arithmetic {
    /// No number may be greater, neither of the problem nor made by a step.
    #[serde(default = "greatest")]
    pub greatest: u32,
}

fn greatest() -> u32 {
    GREATEST
}

/// What a completion without an end token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Unfinished {
    /// Wrong, whatever it says.
    Wrong,
    /// What its text is.
    AsIs,
}

/// A rule, its values and what it knows of prompts: what the artifact holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuleDescription {
    /// What makes a completion right.
    pub rule: Rule,
    /// The reward of a right completion.
    pub right: f64,
    /// That of a wrong one.
    pub wrong: f64,
    /// That of one in which there is no answer or no step at all.
    pub malformed: f64,
    /// What a completion without an end token is.
    pub unfinished: Unfinished,
    /// The right answers of an `exact` rule.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub answers: Vec<RightAnswers>,
}

/// The right answers to a prompt, as they are compared.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RightAnswers {
    /// What a model is given.
    pub prompt: String,
    /// The question in it.
    pub question: String,
    /// The answers.
    pub answers: BTreeSet<String>,
}

const GROUPS: Hint = Hint::new("`(?:...)` is a group that does not count");
const GAVE_UP: Hint = Hint::new("nested repetitions such as `(a+)+` take very long");
const UNKNOWN_PROMPT: Hint =
    Hint::new("`data` of `reward_rule` must have all prompts, with preferred completions");
const NO_PROBLEM: Hint = Hint::new("`generate_world` with `form: arithmetic` has such prompts");
const NO_PREFIX_VALUES: Hint = Hint::new(
    "objectives that read rewards of prefixes, such as `forward_looking`, need an `arithmetic` rule or a reward model",
);

/// Why a rule cannot be used.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum RuleError {
    /// The file is not what it should be.
    #[error("{file}: {reason}")]
    Malformed {
        /// The file.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A regular expression is none.
    #[error("`{key}` is no regular expression: {reason}")]
    NoPattern {
        /// The param.
        key: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A regular expression has too many groups.
    #[error("`extract` has {groups} groups, expected one at most")]
    Groups {
        /// How many it has.
        groups: usize,
        /// What to do.
        #[source]
        hint: Hint,
    },
    /// A regular expression takes too long on a text.
    #[error("the regular expression gave up on {text:?}: {reason}")]
    GaveUp {
        /// The text.
        text: String,
        /// Why.
        reason: String,
        /// What to do.
        #[source]
        hint: Hint,
    },
    /// An exact rule has no answers to a prompt.
    #[error("the reward rule knows no right answer to the prompt {prompt:?}")]
    UnknownPrompt {
        /// The prompt.
        prompt: String,
        /// What to do.
        #[source]
        hint: Hint,
    },
    /// An arithmetic rule is asked about something else.
    #[error(
        "the prompt {prompt:?} states no problem such as `numbers 2 3 6 target 18`, with 2 to {MOST_NUMBERS} numbers from 1 to {greatest}"
    )]
    NoProblem {
        /// The prompt.
        prompt: String,
        /// The greatest number.
        greatest: u32,
        /// What to do.
        #[source]
        hint: Hint,
    },
    /// The rule has no values of prefixes.
    #[error("`{rule}` rules say nothing of unfinished completions")]
    NoPrefixValues {
        /// The rule.
        rule: &'static str,
        /// What to do.
        #[source]
        hint: Hint,
    },
}

impl Rule {
    /// The name in a pipeline.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Exact(_) => "exact",
            Self::Regex(_) => "regex",
            Self::Arithmetic(_) => "arithmetic",
        }
    }

    /// Whether it says something of unfinished completions.
    pub fn has_prefix_values(&self) -> bool {
        matches!(self, Self::Arithmetic(_))
    }

    /// What a completion without an end token is, unless somebody says otherwise.
    pub fn usual_unfinished(&self) -> Unfinished {
        match self {
            Self::Exact(_) | Self::Arithmetic(_) => Unfinished::Wrong,
            Self::Regex(_) => Unfinished::AsIs,
        }
    }
}

/// What a completion was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked<'a> {
    /// What the policy was given.
    pub prompt: &'a str,
    /// The question in it; it is whole where a prompt was cut. May be empty.
    pub question: &'a str,
}

/// What a completion is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finding {
    /// Right.
    Right,
    /// Wrong.
    Wrong,
    /// Without an answer or a step.
    Malformed,
    /// Not ended, which counts as wrong.
    Unfinished,
}

/// What a rule says of a completion.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    /// What it is.
    pub finding: Finding,
    /// The reward.
    pub reward: f64,
    /// The answer that it gives, as answers are compared: equal texts are the same answer. `None` if there is none.
    pub answer: Option<String>,
}

/// A rule that is ready to judge.
#[derive(Debug, Clone)]
pub struct RewardRule {
    /// What it is made of.
    pub description: RuleDescription,
    judging: Judging,
}

#[derive(Debug, Clone)]
enum Judging {
    Exact {
        extractor: Extractor,
        by_prompt: BTreeMap<String, usize>,
        by_question: BTreeMap<String, usize>,
    },
    Regex(Regex),
    Arithmetic {
        greatest: u32,
    },
}

fn compile(key: &'static str, pattern: &str) -> Result<Regex, RuleError> {
    let built = fancy_regex::RegexBuilder::new(pattern)
        .backtrack_limit(BACKTRACKING)
        .delegate_size_limit(COMPILED)
        .delegate_dfa_size_limit(COMPILED)
        .build();
    built.map_err(|error| {
        use fancy_regex::{CompileError, Error};
        let is_too_large = match &error {
            Error::CompileError(error) => {
                matches!(&**error, CompileError::InnerError(inner) if inner.size_limit().is_some())
            }
            _ => false,
        };
        RuleError::NoPattern {
            key,
            reason: if is_too_large {
                format!("it takes more than {COMPILED} bytes; repetitions such as `a{{1000000}}` take many")
            } else {
                error.to_string()
            },
        }
    })
}

fn gave_up(text: &str, error: &fancy_regex::Error) -> RuleError {
    RuleError::GaveUp {
        hint: GAVE_UP,
        text: excerpt(text, NAME).into_owned(),
        reason: error.to_string(),
    }
}

/// Takes answers out of texts.
#[derive(Debug, Clone)]
pub struct Extractor {
    regex: Option<Regex>,
    ignore_case: bool,
    numbers: bool,
}

impl Extractor {
    /// Prepares what `exact` says.
    pub fn new(exact: &Exact) -> Result<Self, RuleError> {
        let regex = exact.extract.as_deref();
        let regex = regex.map(|pattern| compile("extract", pattern));
        let regex = regex.transpose()?;
        let groups = regex.as_ref().map_or(0, |regex| regex.captures_len() - 1);
        if groups > 1 {
            return Err(RuleError::Groups {
                groups,
                hint: GROUPS,
            });
        }
        Ok(Self {
            regex,
            ignore_case: exact.ignore_case,
            numbers: exact.numbers,
        })
    }

    /// Takes the answer out of a text, as answers are compared: white space does not count.
    pub fn answer(&self, text: &str) -> Result<Option<String>, RuleError> {
        let Some(found) = self.matched(text)? else {
            return Ok(None);
        };
        let words: Vec<&str> = found.split_whitespace().collect();
        let mut answer = words.join(" ");
        if self.ignore_case {
            answer = answer.to_lowercase();
        }
        if self.numbers {
            return Ok(decimal(&answer));
        }
        Ok((!answer.is_empty()).then_some(answer))
    }

    fn matched<'t>(&self, text: &'t str) -> Result<Option<&'t str>, RuleError> {
        let Some(regex) = &self.regex else {
            return Ok(Some(text));
        };
        let mut last = None;
        for captures in regex.captures_iter(text) {
            let captures = captures.map_err(|error| gave_up(text, &error))?;
            let group = regex.captures_len() - 1;
            // A group that took no part in the match holds no answer, nor does one that matched nothing.
            let found = captures.get(group).map(|found| found.as_str());
            last = found.filter(|found| !found.trim().is_empty()).or(last);
        }
        Ok(last)
    }
}

/// Returns a decimal number as it is compared; `None` for anything else.
fn decimal(text: &str) -> Option<String> {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => ("-", digits),
        None => ("", text.strip_prefix('+').unwrap_or(text)),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let mut groups = whole.split(',');
    let first = groups.next()?;
    let rest: Vec<&str> = groups.collect();
    let are_thousands = rest.iter().all(|group| group.len() == 3)
        && (rest.is_empty() || (1..=3).contains(&first.len()));
    let all: String = std::iter::once(first).chain(rest).collect();
    let are_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if !are_thousands
        || all.len() + fraction.len() == 0
        || !are_digits(&all)
        || !are_digits(fraction)
    {
        return None;
    }
    let whole = match all.trim_start_matches('0') {
        "" => "0",
        digits => digits,
    };
    let fraction = fraction.trim_end_matches('0');
    let point = if fraction.is_empty() { "" } else { "." };
    let sign = if whole == "0" && fraction.is_empty() {
        ""
    } else {
        sign
    };
    Some(format!("{sign}{whole}{point}{fraction}"))
}

impl RewardRule {
    /// Prepares a rule.
    pub fn new(description: RuleDescription) -> Result<Self, RuleError> {
        let judging = match &description.rule {
            Rule::Exact(exact) => {
                // The first of equal texts counts.
                let index = |text: fn(&RightAnswers) -> &String| {
                    let known = description.answers.iter().enumerate().rev();
                    known.map(|(at, known)| (text(known).clone(), at)).collect()
                };
                Judging::Exact {
                    extractor: Extractor::new(exact)?,
                    by_prompt: index(|known| &known.prompt),
                    by_question: index(|known| &known.question),
                }
            }
            Rule::Regex(pattern) if pattern.full_match => {
                // Compiled alone as well: a bracket must not close the group around it.
                compile("pattern", &pattern.pattern)?;
                Judging::Regex(compile(
                    "pattern",
                    &format!(r"\A(?:{})\z", pattern.pattern),
                )?)
            }
            Rule::Regex(pattern) => Judging::Regex(compile("pattern", &pattern.pattern)?),
            Rule::Arithmetic(arithmetic) => Judging::Arithmetic {
                greatest: arithmetic.greatest,
            },
        };
        Ok(Self {
            description,
            judging,
        })
    }

    /// Reads a rule from a folder.
    pub fn load(folder: &Path) -> Result<Self, RuleError> {
        let path = folder.join(FILE);
        let malformed = |reason: String| RuleError::Malformed {
            file: path.display().to_string(),
            reason,
        };
        let bytes = fs_err::read(&path).map_err(|error| malformed(error.to_string()))?;
        let description = serde_json::from_slice(&bytes);
        Self::new(description.map_err(|error| malformed(error.to_string()))?)
    }

    /// Writes the rule into a folder.
    pub fn save(&self, folder: &Path) -> std::io::Result<()> {
        let text = serde_json::to_string_pretty(&self.description)?;
        fs_err::write(folder.join(FILE), text + "\n")
    }

    /// Judges a completion; `ended` says whether its end token came.
    pub fn judge(
        &self,
        asked: Asked<'_>,
        completion: &str,
        ended: bool,
    ) -> Result<Verdict, RuleError> {
        let (mut finding, answer) = match &self.judging {
            Judging::Exact {
                extractor,
                by_prompt,
                by_question,
            } => {
                let known = by_prompt
                    .get(asked.prompt)
                    .or_else(|| by_question.get(asked.question));
                let known = known.ok_or_else(|| RuleError::UnknownPrompt {
                    hint: UNKNOWN_PROMPT,
                    prompt: excerpt(asked.prompt, NAME).into_owned(),
                })?;
                let answer = extractor.answer(completion)?;
                let right = &self.description.answers[*known].answers;
                let finding = match &answer {
                    Some(answer) if right.contains(answer) => Finding::Right,
                    Some(_) => Finding::Wrong,
                    None => Finding::Malformed,
                };
                (finding, answer)
            }
            Judging::Regex(regex) => {
                let found = regex.find(completion);
                let found = found.map_err(|error| gave_up(completion, &error))?;
                let finding = found.map_or(Finding::Wrong, |_| Finding::Right);
                (finding, found.map(|found| found.as_str().to_owned()))
            }
            Judging::Arithmetic { greatest } => {
                let problem = find_problem(asked, *greatest)?;
                let reading = problem.read(completion, true);
                let finding = match reading.fault {
                    None if problem.is_right(&reading) => Finding::Right,
                    Some(Fault::Malformed) => Finding::Malformed,
                    _ => Finding::Wrong,
                };
                // Whether its steps hold or not: a vote is not checked.
                let answer = Derivation::parse(completion);
                let answer = answer.map(|derivation| derivation.canonical().to_string());
                (finding, answer)
            }
        };
        if !ended && self.description.unfinished == Unfinished::Wrong {
            finding = Finding::Unfinished;
        }
        Ok(Verdict {
            finding,
            reward: self.value(finding),
            answer,
        })
    }

    /// Values a completion that goes on after `text`.
    ///
    /// With `arithmetic`, from the value of wrong completions to that of right ones by how far the steps have come
    /// ([`Problem::progress`]); a step counts as soon as a `;` follows it. The value of a completion that ended is its
    /// reward, see [`Self::judge`].
    pub fn prefix_value(&self, asked: Asked<'_>, text: &str) -> Result<f64, RuleError> {
        let Judging::Arithmetic { greatest } = &self.judging else {
            return Err(self.no_prefix_values());
        };
        let problem = find_problem(asked, *greatest)?;
        let reading = problem.read(text, false);
        if reading.fault == Some(Fault::Malformed) {
            return Ok(self.description.malformed);
        }
        let (right, wrong) = (self.description.right, self.description.wrong);
        Ok(wrong + (right - wrong) * problem.progress(&reading))
    }

    /// The error of a rule that says nothing of unfinished completions.
    pub fn no_prefix_values(&self) -> RuleError {
        RuleError::NoPrefixValues {
            hint: NO_PREFIX_VALUES,
            rule: self.description.rule.name(),
        }
    }

    fn value(&self, finding: Finding) -> f64 {
        match finding {
            Finding::Right => self.description.right,
            Finding::Wrong | Finding::Unfinished => self.description.wrong,
            Finding::Malformed => self.description.malformed,
        }
    }
}

/// Finds the problem of a prompt, or of the question where the prompt was cut.
fn find_problem(asked: Asked<'_>, greatest: u32) -> Result<Problem, RuleError> {
    Problem::find(asked.prompt, greatest)
        .or_else(|| Problem::find(asked.question, greatest))
        .ok_or_else(|| RuleError::NoProblem {
            hint: NO_PROBLEM,
            prompt: excerpt(asked.prompt, NAME).into_owned(),
            greatest,
        })
}

#[cfg(test)]
mod tests;
