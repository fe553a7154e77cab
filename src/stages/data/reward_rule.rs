//! `reward_rule`: rewards that are computed, not learned.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::artifacts::dataset::{DATASET, Dataset, Example};
use crate::artifacts::reward_rule::{
    self as artifact, Asked, Exact, Extractor, Finding, REWARD_RULE, RightAnswers, Rule,
    RuleDescription, RuleError, Unfinished,
};
use crate::engine::context::RunContext;
use crate::engine::stage::{Kind, Output, Port, Problem, StageError};
use crate::excerpt::{NAME, excerpt};
use crate::hint::told;

/// Makes a reward of a rule: the answer is right, a regular expression matches, or a derivation adds up.
///
/// It goes wherever a reward model goes: into `score`, `judge` and the trainings that take rewards. `exact` needs the
/// right answers on the port `data`; the other rules check it if it is there: a rule that calls none of its preferred
/// completions right is an error. Only `arithmetic` values unfinished completions: from `wrong` to `right` by the share of
/// the steps of the shortest way to the target that are made, `wrong` where a step does not hold or no way is left; a step
/// counts as soon as a `;` follows it.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RewardRule {
    /// What makes a completion right.
    rule: Rule,
    /// The reward of a right completion.
    #[serde(default = "one")]
    right: f64,
    /// The reward of a wrong one.
    #[serde(default)]
    wrong: f64,
    /// The reward of one from which `exact` can take no answer, or which is no derivation for `arithmetic`; `wrong` if
    /// absent.
    #[serde(default)]
    malformed: Option<f64>,
    /// What a completion without an end token is; if absent `wrong` with `exact` and `arithmetic`, `as_is` with `regex`.
    #[serde(default)]
    unfinished: Option<Unfinished>,
}

fn one() -> f64 {
    1.0
}

impl Kind for RewardRule {
    const NAME: &'static str = "reward_rule";
    const VERSION: u32 = 2;
    const EXAMPLE: &'static str = r#"{ rule: { exact: { extract: "answer is (\\S+)", numbers: true } }, right: 1, wrong: 0 }"#;

    fn ports(&self) -> Vec<Port> {
        vec![match self.rule {
            Rule::Exact(_) => Port::one(
                "data",
                &[DATASET],
                "its preferred completions are the right answers to their prompts",
            ),
            Rule::Regex(_) | Rule::Arithmetic(_) => Port::optional(
                "data",
                &[DATASET],
                "preferred completions, some of which must be right by the rule",
            ),
        }]
    }

    fn outputs(&self) -> Vec<Output> {
        vec![Output::new("rule", REWARD_RULE)]
    }

    fn validate(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let malformed = self.malformed.unwrap_or(self.wrong);
        for (key, value) in [
            ("right", self.right),
            ("wrong", self.wrong),
            ("malformed", malformed),
        ] {
            // Rewards are `f32` where models learn from them.
            if !(value as f32).is_finite() {
                problems.push(Problem::new(
                    key,
                    format!("`{key}` is beyond all 32-bit numbers"),
                ));
            }
        }
        // Compared as they are used.
        let (right, wrong) = (self.right as f32, self.wrong as f32);
        if right <= wrong || right <= malformed as f32 {
            problems.push(
                Problem::new("right", "`right` must be above `wrong` and `malformed`")
                    .hint("the reward of right completions is the greatest"),
            );
        }
        if self.malformed.is_some() && matches!(self.rule, Rule::Regex(_)) {
            problems.push(
                Problem::new("malformed", "`malformed` has no effect with `regex`")
                    .hint("what it does not match is `wrong`: leave it out"),
            );
        }
        if let Err(error) = artifact::RewardRule::new(self.description(Vec::new())) {
            let path = match self.rule {
                Rule::Exact(_) => "rule.exact.extract",
                Rule::Regex(_) => "rule.regex.pattern",
                Rule::Arithmetic(_) => "rule.arithmetic",
            };
            let (message, hint) = told(&error);
            problems.push(Problem {
                hint,
                ..Problem::new(path, message)
            });
        }
        if let Rule::Arithmetic(arithmetic) = &self.rule
            && arithmetic.greatest < 2
        {
            problems.push(Problem::new(
                "rule.arithmetic.greatest",
                "`greatest` must be at least 2",
            ));
        }
        problems
    }

    fn run(&self, ctx: &mut RunContext) -> Result<(), StageError> {
        let data = ctx.optional_input("data");
        let data = data.map(|input| Dataset::read(&input.path)).transpose()?;
        let preferred = data.as_ref().map(preferred).unwrap_or_default();
        if data.is_some() && preferred.is_empty() {
            return Err(StageError::new("`data` has no preferred completions")
                .hint("it has prompts only: a rule needs right answers"));
        }
        let rule = match &self.rule {
            Rule::Exact(exact) => {
                let answers = right_answers(exact, &preferred, ctx)?;
                artifact::RewardRule::new(self.description(answers))?
            }
            Rule::Regex(_) | Rule::Arithmetic(_) => {
                let rule = artifact::RewardRule::new(self.description(Vec::new()))?;
                check(&rule, &preferred, ctx)?;
                rule
            }
        };
        Ok(rule.save(&ctx.output("rule")?)?)
    }
}

impl RewardRule {
    fn description(&self, answers: Vec<RightAnswers>) -> RuleDescription {
        RuleDescription {
            rule: self.rule.clone(),
            right: self.right,
            wrong: self.wrong,
            malformed: self.malformed.unwrap_or(self.wrong),
            unfinished: self.unfinished.unwrap_or(self.rule.usual_unfinished()),
            answers,
        }
    }
}

/// An example with its preferred completion.
type Preferred<'a> = (&'a Example, &'a str);

fn preferred(data: &Dataset) -> Vec<Preferred<'_>> {
    let examples = data.examples.iter();
    examples
        .filter_map(|example| Some((example, example.chosen.as_deref()?)))
        .collect()
}

/// Takes the right answers out of preferred completions, prompt by prompt.
fn right_answers(
    exact: &Exact,
    preferred: &[Preferred<'_>],
    ctx: &mut RunContext,
) -> Result<Vec<RightAnswers>, StageError> {
    let extractor = Extractor::new(exact)?;
    let mut found: Vec<RightAnswers> = Vec::new();
    let mut places: BTreeMap<&str, usize> = BTreeMap::new();
    let mut without = 0;
    for (example, completion) in preferred {
        let Some(answer) = extractor.answer(completion)? else {
            without += 1;
            continue;
        };
        let place = *places.entry(&example.prompt).or_insert_with(|| {
            found.push(RightAnswers {
                prompt: example.prompt.clone(),
                question: example.question.clone(),
                answers: BTreeSet::new(),
            });
            found.len() - 1
        });
        found[place].answers.insert(answer);
    }
    if found.is_empty() {
        let first = excerpt(preferred[0].1, NAME);
        let problem = format!(
            "no answer can be taken out of any of {} preferred completions, such as {first:?}",
            preferred.len()
        );
        return Err(StageError::new(problem).hint(
            "look at `extract` (and `numbers`): it must match the right answers as it does the completions",
        ));
    }
    if without > 0 {
        ctx.note(&format!(
            "no answer can be taken out of {without} of {} preferred completions; they were left out",
            preferred.len()
        ));
    }
    Ok(found)
}

/// Refuses a rule that calls no preferred completion right.
fn check(
    rule: &artifact::RewardRule,
    preferred: &[Preferred<'_>],
    ctx: &mut RunContext,
) -> Result<(), StageError> {
    if preferred.is_empty() {
        return Ok(());
    }
    let findings = preferred.iter().map(|(example, completion)| {
        let asked = Asked {
            prompt: &example.prompt,
            question: &example.question,
        };
        Ok(rule.judge(asked, completion, true)?.finding)
    });
    let findings = findings.collect::<Result<Vec<Finding>, RuleError>>()?;
    let right = findings.iter().filter(|found| **found == Finding::Right);
    let right = right.count();
    let of = preferred.len();
    if right == 0 {
        let first = excerpt(preferred[0].1, NAME);
        let problem = format!("none of {of} preferred completions is right, such as {first:?}");
        return Err(StageError::new(problem)
            .hint("the rule would reward nothing: look at it, or leave `data` out"));
    }
    if right < of {
        ctx.note(&format!("{right} of {of} preferred completions are right"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value as Json, json};

    use super::*;
    use crate::stages::tryout::{Tried, attempt};

    fn problems(params: Json) -> Vec<String> {
        let stage: RewardRule = serde_json::from_value(params).unwrap();
        let problems = stage.validate().into_iter();
        problems.map(|problem| problem.message).collect()
    }

    fn tried(params: Json, completions: &[Option<&str>]) -> (tempfile::TempDir, Tried) {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        fs_err::create_dir(&data).unwrap();
        let examples = completions.iter().enumerate().map(|(at, chosen)| Example {
            question_id: at as u64,
            question: format!("numbers 2 3 target {}", 5 + at % 2),
            prompt: format!("Q: numbers 2 3 target {} A:", 5 + at % 2),
            chosen: chosen.map(str::to_owned),
            ..Example::default()
        });
        let dataset = Dataset {
            title: "data".to_owned(),
            examples: examples.collect(),
        };
        dataset.write(&data).unwrap();
        let inputs = [("data", DATASET, data.as_path())];
        let tried = attempt::<RewardRule>(folder.path(), params, &inputs, None);
        (folder, tried)
    }

    #[test]
    fn right_answers_are_those_of_the_preferred_completions() {
        let params = json!({ "rule": { "exact": { "extract": "is (.+)" } } });
        let chosen = [
            Some("it is 4"),
            Some("it is 3"),
            Some("four"),
            Some("well, is 5"),
            None,
        ];
        let (_folder, tried) = tried(params, &chosen);
        tried.outcome.as_ref().unwrap();
        let rule = artifact::RewardRule::load(&tried.output("rule")).unwrap();
        let found: Vec<Vec<&str>> = rule
            .description
            .answers
            .iter()
            .map(|known| known.answers.iter().map(String::as_str).collect())
            .collect();
        // Two prompts; `four` holds no answer.
        assert_eq!(found, [vec!["4"], vec!["3", "5"]]);
        let note = "no answer can be taken out of 1 of 4 preferred completions; they were left out";
        assert_eq!(tried.told.notes, [note]);
    }

    #[test]
    fn a_rule_that_matches_no_right_answer_is_an_error() {
        let exact = json!({ "rule": { "exact": { "extract": "#### (.+)" } } });
        let regex = json!({ "rule": { "regex": { "pattern": "####" } } });
        let arithmetic = json!({ "rule": { "arithmetic": {} } });
        for (params, expected) in [
            (
                exact,
                "no answer can be taken out of any of 1 preferred completions",
            ),
            (
                regex,
                "none of 1 preferred completions is right, such as \"4\"",
            ),
            (arithmetic, "none of 1 preferred completions is right"),
        ] {
            let (_folder, failed) = tried(params.clone(), &[Some("4")]);
            assert!(
                failed.message().starts_with(expected),
                "{}",
                failed.message()
            );
            let (_folder, failed) = tried(params, &[None]);
            assert_eq!(failed.message(), "`data` has no preferred completions");
        }
        let params = json!({ "rule": { "arithmetic": {} }, "wrong": -1, "malformed": -2 });
        let (_folder, tried) = tried(params, &[Some("2 + 3 = 5"), Some("2 + 3 = 5")]);
        tried.outcome.as_ref().unwrap();
        assert_eq!(tried.told.notes, ["1 of 2 preferred completions are right"]);
        let rule = artifact::RewardRule::load(&tried.output("rule")).unwrap();
        let found = &rule.description;
        assert_eq!(
            (found.right, found.wrong, found.malformed),
            (1.0, -1.0, -2.0)
        );
        assert_eq!(found.unfinished, Unfinished::Wrong);
    }

    #[test]
    fn params_that_mean_nothing_are_refused() {
        let arithmetic = json!({ "arithmetic": {} });
        assert_eq!(
            problems(json!({ "rule": arithmetic })),
            Vec::<String>::new()
        );
        for (params, expected) in [
            (
                json!({ "rule": { "regex": { "pattern": "(" } } }),
                "`pattern` is no regular expression",
            ),
            (
                json!({ "rule": { "exact": { "extract": "(a)(b)" } } }),
                "`extract` has 2 groups, expected one at most",
            ),
            (
                json!({ "rule": { "regex": { "pattern": "a" } }, "malformed": -1 }),
                "`malformed` has no effect with `regex`",
            ),
            (
                json!({ "rule": arithmetic, "right": 0 }),
                "`right` must be above `wrong` and `malformed`",
            ),
            (
                json!({ "rule": arithmetic, "malformed": 2 }),
                "`right` must be above `wrong` and `malformed`",
            ),
            (
                json!({ "rule": arithmetic, "right": 1e39 }),
                "`right` is beyond all 32-bit numbers",
            ),
            (
                json!({ "rule": { "arithmetic": { "greatest": 1 } } }),
                "`greatest` must be at least 2",
            ),
        ] {
            let found = problems(params);
            assert!(
                found.len() == 1 && found[0].starts_with(expected),
                "{found:?}"
            );
        }
    }
}
