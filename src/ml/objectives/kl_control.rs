//! Coefficient of the KL penalty in the reward: fixed, or steered to a target.

use serde::{Deserialize, Serialize};

use super::ObjectiveError;

/// A coefficient that never moves.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FixedKl {
    /// The coefficient `beta`.
    pub beta: f64,
}

/// A proportional controller in log space (Ziegler et al. 2019; TRL 0.4.7):
///
/// ```text
/// beta <- beta (1 + clip(KL / target - 1, -0.2, 0.2) n / horizon)
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdaptiveKl {
    /// The present coefficient `beta`.
    pub beta: f64,
    /// The KL divergence of a completion to steer to, in nats.
    pub target: f64,
    /// Completions over which the coefficient moves by its own size times the clipped error.
    pub horizon: f64,
}

/// Either controller, as a training checkpoint stores it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KlController {
    /// See [`FixedKl`].
    Fixed(FixedKl),
    /// See [`AdaptiveKl`].
    Adaptive(AdaptiveKl),
}

impl AdaptiveKl {
    /// Makes a controller; `beta` must not be negative, `target` and `horizon` positive.
    pub fn new(beta: f64, target: f64, horizon: f64) -> Result<Self, ObjectiveError> {
        let in_range = |what, value: f64, least_open: bool| {
            let fine = value.is_finite() && (value > 0.0 || (!least_open && value == 0.0));
            if fine {
                Ok(())
            } else {
                Err(ObjectiveError::Range {
                    what,
                    value,
                    expected: if least_open {
                        "a positive number"
                    } else {
                        "a number not below 0"
                    },
                })
            }
        };
        in_range("initial KL coefficient", beta, false)?;
        in_range("target KL", target, true)?;
        in_range("KL horizon", horizon, true)?;
        Ok(Self {
            beta,
            target,
            horizon,
        })
    }

    /// Moves the coefficient after `completions` completions whose mean KL estimate is `kl`.
    ///
    /// TRL feeds the plain mean of summed log-ratios. It is heavy-tailed; a trimmed mean
    /// ([`super::kl_estimate`]) steadies the controller. An estimate that is not a number moves nothing.
    pub fn update(&mut self, kl: f64, completions: usize) {
        let error = (kl / self.target - 1.0).clamp(-0.2, 0.2);
        if !error.is_nan() {
            self.beta *= 1.0 + error * completions as f64 / self.horizon;
        }
    }
}

impl KlController {
    /// Returns the present coefficient.
    pub fn beta(&self) -> f64 {
        match self {
            Self::Fixed(FixedKl { beta }) | Self::Adaptive(AdaptiveKl { beta, .. }) => *beta,
        }
    }

    /// Takes in the KL estimate of `completions` completions; a fixed controller ignores it.
    pub fn update(&mut self, kl: f64, completions: usize) {
        if let Self::Adaptive(controller) = self {
            controller.update(kl, completions);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::gradient_check::close;
    use super::*;

    /// Python:
    /// ```python
    /// b = .2
    /// for kl in [3., 12., -1., 6.6]: b *= 1 + min(max(kl / 6 - 1, -.2), .2) * 64 / 10000
    /// print(b)
    /// ```
    #[test]
    fn adaptive_coefficient_follows_the_recorded_path() {
        let mut controller = KlController::Adaptive(AdaptiveKl::new(0.2, 6.0, 10_000.0).unwrap());
        for kl in [3.0, 12.0, -1.0, 6.6] {
            controller.update(kl, 64);
        }
        close(controller.beta(), RECORDED, 1e-15);
        controller.update(f64::NAN, 64);
        close(controller.beta(), RECORDED, 1e-15);
    }

    const RECORDED: f64 = 0.199_871_508_689_983_66;

    #[test]
    fn fixed_coefficient_stays() {
        let mut controller = KlController::Fixed(FixedKl { beta: 0.05 });
        controller.update(1e9, 1000);
        assert_eq!(controller.beta(), 0.05);
    }

    #[test]
    fn state_survives_a_checkpoint_bit_by_bit() {
        let mut adaptive = AdaptiveKl::new(0.2, 6.0, 10_000.0).unwrap();
        adaptive.update(7.77, 3);
        let controller = KlController::Adaptive(adaptive);
        let json = serde_json::to_string(&controller).unwrap();
        let back: KlController = serde_json::from_str(&json).unwrap();
        assert_eq!(back.beta().to_bits(), controller.beta().to_bits());
        assert_eq!(back, controller);
    }

    #[test]
    fn senseless_settings_are_refused() {
        let error = AdaptiveKl::new(0.2, 0.0, 1.0).unwrap_err();
        assert_eq!(
            error.to_string(),
            "`target KL` is 0, expected a positive number"
        );
        assert!(AdaptiveKl::new(f64::NAN, 6.0, 1.0).is_err());
        assert!(AdaptiveKl::new(0.0, 6.0, f64::INFINITY).is_err());
    }
}
