//! What is measured of one run.

use super::MetricTable;
use super::shown::Shown;
use crate::engine::stage::StageError;
use crate::stages::report::measure::{Metric, Rightness};
use crate::stages::report::scored::{QuestionKey, Scored};
use crate::stats::{interquartile_mean, mean};

/// The metrics of one run, in the order of the columns.
#[derive(Debug)]
pub(super) struct Measured {
    pub(super) n: usize,
    /// What the questions are.
    pub(super) keys: Vec<QuestionKey>,
    pub(super) values: Vec<f64>,
    /// For each column that has an interval its value for each question.
    pub(super) questions: Vec<Option<Vec<f64>>>,
}

impl MetricTable {
    pub(super) fn measure(&self, scored: &Scored, shown: &[Shown]) -> Result<Measured, StageError> {
        let once = vec![1; scored.table.height()];
        let rightness = Rightness {
            least: self.right,
            answer: self.answer.as_deref(),
        };
        let mut values = Vec::with_capacity(shown.len());
        let mut questions = Vec::with_capacity(shown.len());
        for column in shown {
            let of_questions = match column {
                Shown::Metric(Metric::Mean) | Shown::MiddleHalf => {
                    Some(scored.question_means(&self.column)?)
                }
                Shown::Metric(metric) if metric.is_of_attempts() => {
                    Some(scored.attempts(*metric, &self.column, rightness)?)
                }
                _ => None,
            };
            let measurement = match (column, &of_questions) {
                (Shown::Metric(metric), Some(of_questions)) if metric.is_of_attempts() => {
                    values.push(mean(of_questions)?);
                    questions.push(Some(of_questions.clone()));
                    continue;
                }
                (Shown::MiddleHalf, of_questions) => {
                    values.push(interquartile_mean(
                        of_questions.as_deref().unwrap_or_default(),
                    )?);
                    questions.push(of_questions.clone());
                    continue;
                }
                (Shown::Metric(metric), _) => {
                    scored.measure(*metric, &self.column, self.top_k, rightness)?
                }
                (Shown::MeanOf(column), _) => scored.mean_of(column)?,
                (Shown::EntropyOf(column), _) => scored.entropy_of(column)?,
            };
            values.push(measurement.of(&once));
            questions.push(of_questions);
        }
        Ok(Measured {
            n: scored.table.height(),
            keys: scored.question_keys()?,
            values,
            questions,
        })
    }
}
