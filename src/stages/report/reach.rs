//! Operations until a training reaches what another one ends with.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::artifacts::curve::{Curve, Status};
use crate::engine::stage::StageError;
use crate::excerpt::listed;

/// What of a curve tells how good its policy is.
///
/// Both what is reached and where a training ends are means of `window` values in a row, so that one lucky step is not
/// an end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Reach {
    /// The metric; greater is better.
    #[serde(default = "metric")]
    pub(super) metric: String,
    /// The metric taken of curves without it; null for none.
    #[serde(default = "fallback")]
    pub(super) fallback: Option<String>,
    /// Values in a mean.
    #[serde(default = "window")]
    pub(super) window: usize,
}

pub(super) fn metric() -> String {
    "sampled_reward".to_owned()
}

#[expect(clippy::unnecessary_wraps, reason = "the default of an optional param")]
pub(super) fn fallback() -> Option<String> {
    Some("reward".to_owned())
}

pub(super) fn window() -> usize {
    3
}

impl Reach {
    /// Returns the means of values in a row, with the step that ends each; an error if the curve has neither metric.
    fn means(&self, curve: &Curve) -> Result<Vec<(u64, f64)>, StageError> {
        let values = curve.metric(&self.metric, self.fallback.as_deref());
        let values = values.ok_or_else(|| {
            let names = [Some(&self.metric), self.fallback.as_ref()];
            let names = names.into_iter().flatten().map(|name| format!("`{name}`"));
            StageError::new(format!(
                "the curve has no metric {}",
                names.collect::<Vec<_>>().join(" or ")
            ))
            .hint(format!("its metrics are: {}", listed(curve.metrics.keys())))
        })?;
        let known = curve.steps.iter().zip(values);
        let known: Vec<(u64, f64)> = known
            .filter_map(|(step, value)| Some((*step, (*value)?)))
            .collect();
        let means = known.windows(self.window.max(1)).map(|window| {
            let sum: f64 = window.iter().map(|(_, value)| value).sum();
            (window[window.len() - 1].0, sum / window.len() as f64)
        });
        Ok(means.collect())
    }

    /// Says for which curves of a row the fallback stands in.
    pub(super) fn stand_in<'a>(
        &self,
        row: &str,
        curves: impl IntoIterator<Item = &'a Curve>,
    ) -> Option<String> {
        let fallback = self.fallback.as_deref()?;
        let lacks = |curve: &Curve| curve.metric(&self.metric, None).is_none();
        let some = curves.into_iter().any(lacks);
        some.then(|| {
            format!(
                "the curves of {row} have no `{}`: their `{fallback}` stands in.",
                self.metric
            )
        })
    }

    /// Says that a curve is shorter than a window.
    fn too_short(&self) -> StageError {
        StageError::new(format!(
            "the curve has fewer values than `window`, {}, and so no mean of them",
            self.window
        ))
        .hint("lower `window`, or record the metric more often")
    }

    /// Returns what a training ends with; an error if its curve does not tell.
    pub(super) fn end(&self, curve: &Curve) -> Result<f64, StageError> {
        let means = self.means(curve)?;
        let (_, end) = means.last().ok_or_else(|| self.too_short())?;
        Ok(*end)
    }

    /// Returns the operations of a training until it first has at least `value`, nothing if it never does; an error if its
    /// curve does not tell.
    pub(super) fn flops(&self, curve: &Curve, value: f64) -> Result<Option<f64>, StageError> {
        let means = self.means(curve)?;
        if means.is_empty() && curve.summary.status == Status::Completed {
            return Err(self.too_short());
        }
        let first = means.into_iter().find(|(_, mean)| *mean >= value);
        Ok(first.map(|(step, _)| curve.flops_to(step)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stages::report::fixture::curve;

    fn reach(params: serde_json::Value) -> Reach {
        serde_json::from_value(params).unwrap()
    }

    #[test]
    fn a_value_is_reached_where_the_mean_of_a_window_is() {
        let (_, mut curve) = curve("ppo", 1, Status::Completed, 8.0);
        let values = [Some(0.0), Some(9.0), None, Some(3.0)];
        curve.metrics.insert("reward".to_owned(), values.to_vec());
        let of = |window: usize| reach(serde_json::json!({ "window": window }));
        // Of four steps with 2 operations each.
        assert_eq!(of(1).flops(&curve, 5.0).unwrap(), Some(4.0));
        assert_eq!(of(2).flops(&curve, 5.0).unwrap(), Some(8.0));
        assert_eq!(of(2).flops(&curve, 6.5).unwrap(), None);
        assert_eq!(
            (of(1).end(&curve).unwrap(), of(2).end(&curve).unwrap()),
            (3.0, 6.0)
        );
        let Err(StageError::Failed { message, .. }) = of(4).end(&curve) else {
            panic!("an end of three values");
        };
        assert_eq!(
            message,
            "the curve has fewer values than `window`, 4, and so no mean of them"
        );
        assert!(of(4).flops(&curve, 0.0).is_err());
        // One that diverged got nowhere.
        curve.summary.status = Status::Diverged;
        assert_eq!(of(4).flops(&curve, 0.0).unwrap(), None);
        curve
            .metrics
            .insert("sampled_reward".to_owned(), vec![Some(1.0); 4]);
        assert_eq!(of(3).end(&curve).unwrap(), 1.0);
    }

    #[test]
    fn no_fallback_is_none() {
        let (_, mut curve) = curve("ppo", 1, Status::Completed, 8.0);
        let values = vec![Some(1.0); 4];
        curve.metrics.insert("reward".to_owned(), values);
        let none = reach(serde_json::json!({ "fallback": null }));
        // As the manifest has it, and as a worker reads it.
        let again = reach(serde_json::to_value(&none).unwrap());
        assert_eq!(again, none);
        let Err(StageError::Failed { message, hint }) = again.end(&curve) else {
            panic!("an end of another metric");
        };
        assert_eq!(message, "the curve has no metric `sampled_reward`");
        assert_eq!(hint.unwrap(), "its metrics are: loss, reward");
    }
}
