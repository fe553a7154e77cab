//! Operations until a training reaches what another one ends with.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::artifacts::curve::Curve;

/// What of a curve tells how good its policy is.
///
/// Both what is reached and where a training ends are means of `window` values in a row, so that one lucky step is not
/// an end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Reach {
    /// The metric; greater is better.
    #[serde(default = "sampled_reward")]
    metric: String,
    /// The metric taken of curves without it.
    #[serde(default = "reward", skip_serializing_if = "Option::is_none")]
    fallback: Option<String>,
    /// Values in a mean.
    #[serde(default = "three")]
    pub(super) window: usize,
}

fn sampled_reward() -> String {
    "sampled_reward".to_owned()
}

#[expect(clippy::unnecessary_wraps, reason = "the default of an optional param")]
fn reward() -> Option<String> {
    Some("reward".to_owned())
}

fn three() -> usize {
    3
}

impl Reach {
    /// Returns the means of values in a row, with the step that ends each; none if the curve has neither metric.
    fn means(&self, curve: &Curve) -> Vec<(u64, f64)> {
        let Some(values) = curve.metric(&self.metric, self.fallback.as_deref()) else {
            return Vec::new();
        };
        let known = curve.steps.iter().zip(values);
        let known: Vec<(u64, f64)> = known
            .filter_map(|(step, value)| Some((*step, (*value)?)))
            .collect();
        let means = known.windows(self.window.max(1)).map(|window| {
            let sum: f64 = window.iter().map(|(_, value)| value).sum();
            (window[window.len() - 1].0, sum / window.len() as f64)
        });
        means.collect()
    }

    /// Returns what a training ends with.
    pub(super) fn end(&self, curve: &Curve) -> Option<f64> {
        Some(self.means(curve).last()?.1)
    }

    /// Returns the operations of a training until it first has at least `value`.
    pub(super) fn flops(&self, curve: &Curve, value: f64) -> Option<f64> {
        let means = self.means(curve);
        let (step, _) = means.into_iter().find(|(_, mean)| *mean >= value)?;
        Some(curve.flops_to(step))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifacts::curve::Status;
    use crate::stages::report::fixture::curve;

    #[test]
    fn a_value_is_reached_where_the_mean_of_a_window_is() {
        let (_, mut curve) = curve("ppo", 1, Status::Completed, 8.0);
        let values = [Some(0.0), Some(9.0), None, Some(3.0)];
        curve.metrics.insert("reward".to_owned(), values.to_vec());
        let reach = |window: usize| -> Reach {
            serde_json::from_value(serde_json::json!({ "window": window })).unwrap()
        };
        // Of four steps with 2 operations each.
        assert_eq!(reach(1).flops(&curve, 5.0), Some(4.0));
        assert_eq!(reach(2).flops(&curve, 5.0), Some(8.0));
        assert_eq!(reach(2).flops(&curve, 6.5), None);
        assert_eq!(
            (reach(1).end(&curve), reach(2).end(&curve)),
            (Some(3.0), Some(6.0))
        );
        assert_eq!(reach(4).end(&curve), None);
        curve
            .metrics
            .insert("sampled_reward".to_owned(), vec![Some(1.0); 4]);
        assert_eq!(reach(3).end(&curve), Some(1.0));
    }
}
