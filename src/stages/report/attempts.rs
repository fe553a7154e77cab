//! Several completions of each question: how often one of them, or the most frequent answer, is right.

use std::collections::{BTreeMap, BTreeSet};

use super::measure::{Metric, Rightness};
use super::scored::Scored;
use crate::engine::stage::StageError;
use crate::random::Stream;
use crate::stats::{Votes, majority_at_k, max_at_k, pass_at_k};

/// The column in which `score` writes what a rule takes for the answer.
const ANSWER: &str = "answer";

impl Scored {
    /// Returns a metric of right answers for each question, in order of appearance.
    pub(super) fn attempts(
        &self,
        metric: Metric,
        column: &str,
        rightness: Rightness<'_>,
    ) -> Result<Vec<f64>, StageError> {
        let rewards = self.column(column)?;
        let is_right = |at: usize| rewards[at] >= rightness.least;
        let answers = match metric {
            Metric::MajorityAt(_) | Metric::DistinctRight => self.answers(rightness.answer)?,
            _ => Vec::new(),
        };
        let stream = Stream::new(0, "majority_at_k");
        let mut values = Vec::with_capacity(self.questions.len());
        for places in &self.questions {
            values.push(match metric {
                Metric::MaxAt(k) => {
                    let of_question: Vec<f64> = places.iter().map(|at| rewards[*at]).collect();
                    max_at_k(&of_question, k)?
                }
                Metric::MajorityAt(k) => {
                    let mut votes: BTreeMap<&str, Votes> = BTreeMap::new();
                    let mut silent = 0;
                    for at in places {
                        let Some(answer) = &answers[*at] else {
                            silent += 1;
                            continue;
                        };
                        let none = Votes { count: 0, right: 0 };
                        let votes = votes.entry(answer).or_insert(none);
                        votes.count += 1;
                        votes.right += usize::from(is_right(*at));
                    }
                    let votes: Vec<Votes> = votes.into_values().collect();
                    let (question, _) = self.identities[places[0]];
                    let stream = stream.child(&question.to_string());
                    majority_at_k(&votes, silent, k, &stream)?.0
                }
                Metric::DistinctRight => {
                    let right = places.iter().filter(|at| is_right(**at));
                    let distinct: BTreeSet<&String> =
                        right.filter_map(|at| answers[*at].as_ref()).collect();
                    distinct.len() as f64
                }
                _ => {
                    let k = metric.drawn().unwrap_or(1);
                    let right = places.iter().filter(|at| is_right(**at)).count();
                    pass_at_k(places.len(), right, k)?
                }
            });
        }
        Ok(values)
    }

    /// Returns the answer of each completion; white space does not count where it is the text itself.
    fn answers(&self, column: Option<&str>) -> Result<Vec<Option<String>>, StageError> {
        let column = column.or_else(|| self.table.has(ANSWER).then_some(ANSWER));
        if let Some(column) = column {
            return Ok(self.table.texts(column)?.clone());
        }
        let completions = self.table.all_texts("completion")?.into_iter();
        let words = completions.map(|text| {
            let words: Vec<&str> = text.split_whitespace().collect();
            Some(words.join(" "))
        });
        Ok(words.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifacts::completions::{CompletionRow, to_table};

    /// Two questions with four completions each, in turn.
    fn scored(with_answers: bool) -> Scored {
        let texts = ["a", "x", " a ", "y", "b", "x", "c", "x"];
        let rewards = [1.0, 0.0, 1.0, 0.2, 0.0, 0.5, 2.0, 0.0].map(Some);
        let rows = texts.iter().enumerate().map(|(at, text)| CompletionRow {
            question_id: at as u64 % 2,
            sample: at as u64 / 2,
            completion: (*text).to_owned(),
            ..CompletionRow::default()
        });
        let mut table = to_table("scores", &rows.collect::<Vec<_>>());
        table.number_column("reward", 3, rewards);
        if with_answers {
            let answers = [
                Some("1"),
                None,
                Some("2"),
                None,
                Some("1"),
                None,
                Some("2"),
                None,
            ];
            table.text_column("answer", answers.map(|text| text.map(str::to_owned)));
        }
        Scored::new(table).unwrap()
    }

    fn of(metric: Metric, least: f64, with_answers: bool) -> Vec<f64> {
        let rightness = Rightness {
            least,
            answer: None,
        };
        let found = scored(with_answers).attempts(metric, "reward", rightness);
        found.unwrap()
    }

    #[test]
    fn each_question_is_measured_on_its_own() {
        // Of question 0 three of four are right, of question 1 none, or one with a lower threshold.
        assert_eq!(of(Metric::PassAt(1), 1.0, false), [0.75, 0.0]);
        assert_eq!(of(Metric::PassAt(1), 0.5, false), [0.75, 0.25]);
        assert_eq!(of(Metric::PassAt(2), 1.0, false), [1.0, 0.0]);
        // The greatest of two of 1, 1, 0, 2: three times 2, three times 1.
        assert_eq!(of(Metric::MaxAt(2), 1.0, false)[0], 1.5);
        // ` a ` and `a` are the same answer.
        assert_eq!(of(Metric::DistinctRight, 1.0, false), [2.0, 0.0]);
        // a, a, b, c: two of four, and c, are right; b ties with them.
        let found = of(Metric::MajorityAt(4), 1.0, false);
        assert_eq!(found, [1.0, 0.0]);
        assert_eq!(of(Metric::MajorityAt(1), 1.0, false)[0], 0.75);
    }

    #[test]
    fn answers_are_those_of_the_column_if_there_is_one() {
        // 1, 2, 1, 2: the first is right once, the second twice; nobody answers question 1.
        assert_eq!(of(Metric::DistinctRight, 1.0, true), [2.0, 0.0]);
        assert_eq!(of(Metric::MajorityAt(4), 1.0, true), [0.75, 0.0]);
        let rightness = Rightness {
            least: 1.0,
            answer: Some("completion"),
        };
        let found = scored(true).attempts(Metric::MajorityAt(4), "reward", rightness);
        // The texts themselves: ` a ` is another than `a`, and four tie.
        assert_eq!(found.unwrap(), [0.75, 0.0]);
        let rightness = Rightness {
            answer: Some("nothing"),
            ..rightness
        };
        let found = scored(true).attempts(Metric::DistinctRight, "reward", rightness);
        assert!(found.is_err());
    }

    #[test]
    fn more_than_there_are_is_an_error() {
        let rightness = Rightness {
            least: 1.0,
            answer: None,
        };
        for metric in [Metric::PassAt(5), Metric::MaxAt(5), Metric::MajorityAt(5)] {
            let error = scored(false).attempts(metric, "reward", rightness);
            let StageError::Failed { message, hint } = error.unwrap_err() else {
                panic!("not failed");
            };
            assert!(message.ends_with("needs 5 completions of each question, there are 4"));
            assert!(hint.unwrap().contains("samples_per_prompt"));
        }
    }
}
