//! Says when a training has diverged, so that its outputs can be the last good parameters.
//!
//! A loss or gradient that is not finite is the obvious case. The telling one is silent: a loss that falls
//! while the policy turns to garbage, seen in the KL divergence to the reference, in `|log Z|`, or in a loss
//! far above where it started. Limits are watched over several observations in a row, because single ones are
//! noisy. The state can be stored in a checkpoint, so that a resumed training decides alike.

use serde::{Deserialize, Serialize};

/// Limits; one that is `None` is not watched.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DivergenceLimits {
    /// KL divergence of a completion to the reference in nats. Feed a robust estimate
    /// ([`super::kl_estimate::KlEstimate::trimmed`]): single completions of 50 nats are normal.
    pub kl: Option<f64>,
    /// `|log Z|` in nats.
    pub log_z: Option<f64>,
    /// Growth of the loss: its mean over `window` observations over that of the first `window`.
    pub loss_growth: Option<f64>,
    /// What the first mean counts as, if it is smaller: keeps a training that starts near 0 from "growing".
    pub loss_floor: f64,
    /// Observations in a mean of the loss.
    pub window: usize,
    /// Observations in a row beyond a limit of `kl` or `log_z` that make a divergence.
    pub patience: usize,
}

impl Default for DivergenceLimits {
    fn default() -> Self {
        Self {
            kl: None,
            log_z: None,
            loss_growth: None,
            loss_floor: 1.0,
            window: 10,
            patience: 3,
        }
    }
}

/// What one optimiser step shows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Observation {
    /// The step, from 0.
    pub step: u64,
    /// The loss.
    pub loss: f64,
    /// The norm of the gradient before clipping.
    pub gradient_norm: f64,
    /// The KL divergence to the reference in nats, where it was estimated at this step.
    pub kl: Option<f64>,
    /// `log Z`, where the objective has one.
    pub log_z: Option<f64>,
}

/// Which limit was passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Criterion {
    /// The loss is NaN or infinite.
    NonFiniteLoss,
    /// The gradient is NaN or infinite.
    NonFiniteGradient,
    /// The KL divergence to the reference is not finite or beyond its limit.
    Kl,
    /// `|log Z|` is not finite or beyond its limit.
    LogZ,
    /// The loss is beyond its allowed growth.
    LossGrowth,
}

/// A divergence: when, and by which number.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Divergence {
    /// The criterion.
    pub criterion: Criterion,
    /// The step at which it was met.
    pub step: u64,
    /// The value that met it.
    pub value: f64,
    /// The limit; of no meaning for values that are not finite.
    pub limit: f64,
}

impl std::fmt::Display for Divergence {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            step, value, limit, ..
        } = self;
        let what = match self.criterion {
            Criterion::NonFiniteLoss => {
                return write!(formatter, "the loss is {value} at step {step}");
            }
            Criterion::NonFiniteGradient => {
                return write!(formatter, "the gradient norm is {value} at step {step}");
            }
            Criterion::Kl => "KL to the reference",
            Criterion::LogZ => "|log Z|",
            Criterion::LossGrowth => "loss over its start",
        };
        write!(
            formatter,
            "{what} is {value:.4} at step {step}, limit {limit}"
        )
    }
}

/// The verdict on a training so far.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Health {
    /// No limit was passed.
    Healthy,
    /// A limit was passed; this is final.
    Diverged(Divergence),
}

/// Watches a training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DivergenceMonitor {
    limits: DivergenceLimits,
    first: Vec<f64>,
    recent: Vec<f64>,
    beyond_kl: usize,
    beyond_log_z: usize,
    /// Step, criterion, and the bits of value and limit: JSON has no NaN.
    verdict: Option<(u64, Criterion, u64, u64)>,
}

impl DivergenceMonitor {
    /// Starts watching.
    pub fn new(limits: DivergenceLimits) -> Self {
        Self {
            limits,
            first: Vec::new(),
            recent: Vec::new(),
            beyond_kl: 0,
            beyond_log_z: 0,
            verdict: None,
        }
    }

    /// Returns the verdict so far.
    pub fn health(&self) -> Health {
        match self.verdict {
            None => Health::Healthy,
            Some((step, criterion, value, limit)) => Health::Diverged(Divergence {
                criterion,
                step,
                value: f64::from_bits(value),
                limit: f64::from_bits(limit),
            }),
        }
    }

    /// Takes in one step and returns the verdict. After a divergence nothing changes any more.
    ///
    /// To keep the last good parameters, call this before the parameters are updated with the gradient that it
    /// is told of.
    pub fn observe(&mut self, seen: Observation) -> Health {
        if self.verdict.is_none()
            && let Some((criterion, value, limit)) = self.judge(seen)
        {
            self.verdict = Some((seen.step, criterion, value.to_bits(), limit.to_bits()));
        }
        self.health()
    }

    fn judge(&mut self, seen: Observation) -> Option<(Criterion, f64, f64)> {
        if !seen.loss.is_finite() {
            return Some((Criterion::NonFiniteLoss, seen.loss, 0.0));
        }
        if !seen.gradient_norm.is_finite() {
            return Some((Criterion::NonFiniteGradient, seen.gradient_norm, 0.0));
        }
        let patience = self.limits.patience.max(1);
        for (criterion, limit, value, beyond) in [
            (Criterion::Kl, self.limits.kl, seen.kl, &mut self.beyond_kl),
            (
                Criterion::LogZ,
                self.limits.log_z,
                seen.log_z.map(f64::abs),
                &mut self.beyond_log_z,
            ),
        ] {
            // A step without an estimate says nothing: the count neither grows nor ends.
            if let (Some(limit), Some(value)) = (limit, value) {
                // Written so that NaN is beyond.
                *beyond = if value <= limit { 0 } else { *beyond + 1 };
                if *beyond >= patience || !value.is_finite() {
                    return Some((criterion, value, limit));
                }
            }
        }
        self.judge_growth(seen.loss)
    }

    fn judge_growth(&mut self, loss: f64) -> Option<(Criterion, f64, f64)> {
        let limit = self.limits.loss_growth?;
        let window = self.limits.window.max(1);
        if self.first.len() < window {
            self.first.push(loss);
            return None;
        }
        if self.recent.len() == window {
            self.recent.remove(0);
        }
        self.recent.push(loss);
        if self.recent.len() < window {
            return None;
        }
        let start = super::residual::mean(&self.first).max(self.limits.loss_floor);
        let growth = super::residual::mean(&self.recent) / start;
        (growth > limit).then_some((Criterion::LossGrowth, growth, limit))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn healthy(step: u64) -> Observation {
        Observation {
            step,
            loss: 8.0,
            gradient_norm: 1.0,
            kl: Some(0.5),
            log_z: Some(-3.0),
        }
    }

    fn limits() -> DivergenceLimits {
        DivergenceLimits {
            kl: Some(4.0),
            log_z: Some(50.0),
            loss_growth: Some(10.0),
            window: 2,
            ..DivergenceLimits::default()
        }
    }

    fn criterion(health: Health) -> Option<Criterion> {
        match health {
            Health::Healthy => None,
            Health::Diverged(divergence) => Some(divergence.criterion),
        }
    }

    #[test]
    fn a_quiet_training_is_healthy() {
        let mut monitor = DivergenceMonitor::new(limits());
        for step in 0..100 {
            assert_eq!(monitor.observe(healthy(step)), Health::Healthy);
        }
    }

    #[test]
    fn what_is_not_finite_diverges_at_once_and_for_good() {
        let mut monitor = DivergenceMonitor::new(DivergenceLimits::default());
        let seen = Observation {
            gradient_norm: f64::NAN,
            ..healthy(3)
        };
        assert_eq!(
            criterion(monitor.observe(seen)),
            Some(Criterion::NonFiniteGradient)
        );
        let later = monitor.observe(healthy(4));
        assert!(matches!(
            later,
            Health::Diverged(Divergence { step: 3, .. })
        ));
        let mut monitor = DivergenceMonitor::new(DivergenceLimits::default());
        let seen = Observation {
            loss: f64::INFINITY,
            ..healthy(0)
        };
        assert_eq!(
            criterion(monitor.observe(seen)),
            Some(Criterion::NonFiniteLoss)
        );
    }

    #[test]
    fn one_spike_of_kl_is_not_a_divergence_and_three_in_a_row_are() {
        let mut monitor = DivergenceMonitor::new(limits());
        let spike = |step| Observation {
            kl: Some(9.0),
            ..healthy(step)
        };
        let unknown = |step| Observation {
            kl: None,
            ..healthy(step)
        };
        monitor.observe(spike(0));
        monitor.observe(spike(1));
        monitor.observe(healthy(2));
        monitor.observe(spike(3));
        monitor.observe(spike(4));
        assert_eq!(monitor.observe(unknown(5)), Health::Healthy);
        let verdict = monitor.observe(spike(6));
        let Health::Diverged(divergence) = verdict else {
            panic!("healthy")
        };
        assert_eq!(
            divergence.to_string(),
            "KL to the reference is 9.0000 at step 6, limit 4"
        );
    }

    #[test]
    fn log_z_counts_in_both_directions_and_nan_is_beyond() {
        for (log_z, steps) in [(51.0, 3), (-51.0, 3), (f64::NAN, 1)] {
            let mut monitor = DivergenceMonitor::new(limits());
            for step in 0..steps {
                assert_eq!(monitor.health(), Health::Healthy);
                monitor.observe(Observation {
                    log_z: Some(log_z),
                    ..healthy(step)
                });
            }
            assert_eq!(criterion(monitor.health()), Some(Criterion::LogZ));
        }
    }

    #[test]
    fn loss_may_grow_to_its_limit_and_no_further() {
        let grow = |factor: f64, floor: f64| {
            let mut monitor = DivergenceMonitor::new(DivergenceLimits {
                loss_floor: floor,
                ..limits()
            });
            for step in 0..8 {
                let loss = if step < 2 { 0.1 } else { 0.1 * factor };
                monitor.observe(Observation {
                    loss,
                    ..healthy(step)
                });
            }
            criterion(monitor.health())
        };
        assert_eq!(grow(9.9, 0.0), None);
        assert_eq!(grow(10.1, 0.0), Some(Criterion::LossGrowth));
        // Below the floor there is nothing to grow from.
        assert_eq!(grow(10.1, 1.0), None);
    }

    #[test]
    fn a_resumed_monitor_decides_alike() {
        let mut straight = DivergenceMonitor::new(limits());
        let mut resumed = straight.clone();
        for step in 0..20 {
            let seen = Observation {
                loss: 1.0 + 1.37_f64.powi(step),
                ..healthy(step as u64)
            };
            let json = serde_json::to_string(&resumed).unwrap();
            resumed = serde_json::from_str(&json).unwrap();
            assert_eq!(straight.observe(seen), resumed.observe(seen));
            assert_eq!(straight, resumed);
        }
        assert_eq!(criterion(resumed.health()), Some(Criterion::LossGrowth));
    }
}
