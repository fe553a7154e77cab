//! Forward-looking GFlowNet objective: per-transition credit from rewards of prefixes.
//!
//! Pan et al. 2023; FlowHF, equation 3. The flow of a state is written `F(s) = F~(s) R(s)` with the
//! reward of the prefix, and the head learns `log F~`. With the energy `E(s -> s') = log R(s) - log R(s')`,
//!
//! ```text
//! delta_t = log F~(s_t) + a_t - log F~(s_{t+1}) + E(s_t -> s_{t+1}),      L = mean_b sum_t delta_{b,t}^2
//! ```
//!
//! which is detailed balance under the shaped flow ([`transition_residuals`]); with zero energies it *is*
//! detailed balance. Then `log F~(s_0) = log Z - log R(s_0)` at the optimum.
//!
//! # The boundary condition
//!
//! `F~(x) = 1` at a terminal (FlowHF, equation 4), so `log F~` of the terminal is the constant 0 and the head's
//! output there is ignored. With a free terminal flow *every* policy reaches zero loss on a tree. The terminal
//! is the state after the last action, whether that is EOS or the token that reaches the horizon, where the
//! stop is forced with probability 1 (see [`super::residual`]).
//!
//! # One completion of a prompt is not enough
//!
//! Off policy even the pinned loss can be driven to zero by the flows alone when a prompt has a single
//! completion; see [`super::branching`]. The function therefore asks for the [`Branching`] of the whole batch
//! (or data set) and refuses fewer than [`ForwardLookingOptions::least_completions`].

use candle_core::Tensor;

use super::residual::{ResidualSummary, mean, pin_terminal, transition_residuals};
use super::{
    Branching, Normaliser, ObjectiveError, ReferenceTerms, Steps, Trajectories, Windows,
    expect_shape, keep, matrix, prefix_mask, vector,
};

/// Choices of the forward-looking objective and its relatives.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ForwardLookingOptions {
    /// The reference model's part; a KL penalty counts per transition (FlowHF's row FL+KL).
    pub reference: ReferenceTerms,
    /// Whether flows are shaped by the rewards of prefixes; without, the head learns whole flows: detailed balance
    /// and sub-trajectory balance.
    pub energies: bool,
    /// Which sums of residuals are squared.
    pub windows: Windows,
    /// Completions that every prompt must have; 1 allows what the paper did with single answers.
    pub least_completions: usize,
}

impl Default for ForwardLookingOptions {
    fn default() -> Self {
        Self {
            reference: ReferenceTerms::default(),
            energies: true,
            windows: Windows::Transitions,
            least_completions: 2,
        }
    }
}

/// Flows and rewards of the visited states, `(batch, time + 1)`; column `lengths[b]` is the terminal's.
#[derive(Debug, Clone, Copy)]
pub struct StateFlows<'a> {
    /// `log F~(s_t)` from the flow head; entries from the terminal on are ignored.
    pub log_flow: &'a Tensor,
    /// `log R` of every prefix, the terminal's being `log R(x)`; not differentiated, padding ignored.
    pub log_r: &'a Tensor,
}

/// The forward-looking loss of a batch.
#[derive(Debug, Clone)]
pub struct ForwardLooking {
    /// Mean over trajectories of the sum of squared residuals in nats squared, a scalar; see [`Windows`] for others.
    pub loss: Tensor,
    /// Units of the mean; see [`Windows::units`].
    pub count: f64,
    /// Transitions of this call.
    pub transitions: f64,
    /// Mean of `log F~(s_0) + log R(s_0)`, the head's estimate of `log Z`.
    pub log_z: f64,
    /// Mean of the summed `log pi`.
    pub log_pf: f64,
    /// Mean of the terminals' `log R`.
    pub log_r: f64,
    /// Residuals of transitions.
    pub residual: ResidualSummary,
    /// Mean summed `log pi - log pi_ref`, with a reference.
    pub log_ratio: Option<f64>,
    /// Completions per prompt, as given.
    pub branching: Branching,
}

/// Computes the forward-looking loss.
pub fn forward_looking(
    trajectories: &Trajectories<'_>,
    states: StateFlows<'_>,
    options: ForwardLookingOptions,
    branching: Branching,
    normaliser: Normaliser,
) -> Result<ForwardLooking, ObjectiveError> {
    branching.require(options.least_completions, "the forward-looking objective")?;
    let steps = Steps::new(trajectories, options.reference)?;
    let (batch, time) = steps.terms.dims2()?;
    let lengths = trajectories.lengths;
    expect_shape("log_flow", states.log_flow, &[batch, time + 1])?;
    expect_shape("log_r", states.log_r, &[batch, time + 1])?;
    // Inner states only: a reward in padding may be anything.
    let dtype = steps.terms.dtype();
    let mut log_flow = states.log_flow.to_dtype(dtype)?;
    if options.energies {
        let inner = prefix_mask(lengths, time + 1, steps.terms.device())?;
        log_flow = (log_flow + keep(&states.log_r.detach().to_dtype(dtype)?, &inner)?)?;
    }
    let log_state_flow = pin_terminal(&log_flow, states.log_r, lengths)?;
    let residuals = transition_residuals(&steps, &log_state_flow)?;
    let terminals: Vec<f64> = matrix(states.log_r)?
        .iter()
        .zip(lengths)
        .map(|(row, length)| row[*length])
        .collect();
    let values = matrix(&residuals)?;
    Ok(ForwardLooking {
        loss: options.windows.loss(&residuals, lengths, normaliser)?,
        count: options.windows.units(lengths),
        transitions: lengths.iter().sum::<usize>() as f64,
        log_z: mean(&vector(&log_state_flow.narrow(1, 0, 1)?.squeeze(1)?)?),
        log_pf: mean(&steps.log_pf),
        log_r: mean(&terminals),
        residual: ResidualSummary::of(
            values
                .iter()
                .zip(lengths)
                .flat_map(|(row, length)| row[..*length].iter().copied()),
        ),
        log_ratio: steps.mean_log_ratio(),
        branching,
    })
}

#[cfg(test)]
mod tests {
    use super::super::fixture::Fixture;
    use super::super::gradient_check::{assert_gradients, assert_recorded, close};
    use super::super::residual::sequence_residuals;
    use super::super::scalar;
    use super::*;

    const PLAIN: ReferenceTerms = ReferenceTerms {
        kl_beta: 0.0,
        in_target: false,
    };
    const BOTH: ReferenceTerms = ReferenceTerms {
        kl_beta: 0.3,
        in_target: true,
    };

    fn loss_of(
        fixture: &Fixture,
        log_pf: &Tensor,
        log_flow: &Tensor,
        log_r: &Tensor,
        terms: ReferenceTerms,
        normaliser: Normaliser,
    ) -> ForwardLooking {
        let options = ForwardLookingOptions {
            reference: terms,
            least_completions: 1,
            ..ForwardLookingOptions::default()
        };
        let states = StateFlows { log_flow, log_r };
        let branching = Branching::of_rows(&fixture.prompt_of);
        let trajectories = fixture.trajectories(log_pf);
        forward_looking(&trajectories, states, options, branching, normaliser).unwrap()
    }

    fn fl(
        fixture: &Fixture,
        log_pf: &Tensor,
        log_flow: &Tensor,
        terms: ReferenceTerms,
    ) -> ForwardLooking {
        let log_r = &fixture.prefix_log_r;
        loss_of(fixture, log_pf, log_flow, log_r, terms, Normaliser::Own)
    }

    /// Detailed balance from its definition, row by row: flows of inner states, `log R(x)` at the terminal.
    fn detailed_balance(fixture: &Fixture, log_flow: &[Vec<f64>], log_r: &[Vec<f64>]) -> f64 {
        let log_pf = fixture.log_pf.to_vec2::<f64>().unwrap();
        let mut total = 0.0;
        for (row, length) in fixture.lengths.iter().enumerate() {
            for t in 0..*length {
                let after = if t + 1 == *length {
                    log_r[row][*length]
                } else {
                    log_flow[row][t + 1]
                };
                total += (log_flow[row][t] + log_pf[row][t] - after).powi(2);
            }
        }
        total / fixture.lengths.len() as f64
    }

    #[test]
    fn losses_and_gradients_match_pytorch() {
        let fixture = Fixture::new();
        let found =
            |terms| scalar(&fl(&fixture, &fixture.log_pf, &fixture.log_flow, terms).loss).unwrap();
        close(found(PLAIN), 5.935, 1e-9);
        close(found(BOTH), 4.473, 1e-9);
        let inputs = [&fixture.log_pf, &fixture.log_flow];
        assert_recorded(
            &inputs,
            &[
                &[
                    -0.25, -0.65, -0.45, -0.05, 0.0, 0.0, -1.75, 0.0, 0.0, -1.1, 0.5, -0.85,
                ],
                &[
                    -0.25, -0.4, 0.2, 0.0, -0.05, 0.05, 0.0, 0.0, -1.75, 0.0, 0.0, 0.0, -1.1, 1.6,
                    -1.35, 0.0,
                ],
            ],
            |inputs| fl(&fixture, &inputs[0], &inputs[1], PLAIN).loss,
        );
        assert_recorded(
            &inputs,
            &[
                &[
                    0.065, -0.31, 0.09, -0.055, 0.85, 0.0, -1.335, 0.0, 0.0, -1.01, 0.81, -0.425,
                ],
                &[
                    0.065, -0.375, 0.4, 0.0, -0.055, 0.905, 0.0, 0.0, -1.335, 0.0, 0.0, 0.0, -1.01,
                    1.82, -1.235, 0.0,
                ],
            ],
            |inputs| fl(&fixture, &inputs[0], &inputs[1], BOTH).loss,
        );
    }

    #[test]
    fn gradients_match_finite_differences() {
        let fixture = Fixture::new();
        let inputs = [fixture.log_pf.clone(), fixture.log_flow.clone()];
        let posterior = ReferenceTerms {
            in_target: true,
            ..PLAIN
        };
        for terms in [PLAIN, posterior] {
            assert_gradients(&inputs, 1.0, |inputs| {
                fl(&fixture, &inputs[0], &inputs[1], terms).loss
            });
        }
        // The difference moves the detached penalty too, by beta times what it moves `log pi`.
        assert_gradients(&inputs[..1], 1.3, |inputs| {
            fl(&fixture, &inputs[0], &fixture.log_flow, BOTH).loss
        });
    }

    #[test]
    fn zero_energies_give_detailed_balance() {
        let fixture = Fixture::new();
        let zeros = fixture.prefix_log_r.zeros_like().unwrap();
        let own = Normaliser::Own;
        let (log_pf, log_flow) = (&fixture.log_pf, &fixture.log_flow);
        let found = loss_of(&fixture, log_pf, log_flow, &zeros, PLAIN, own);
        let of = |log_r: &Tensor| {
            let (log_flow, log_r) = (log_flow.to_vec2().unwrap(), log_r.to_vec2().unwrap());
            detailed_balance(&fixture, &log_flow, &log_r)
        };
        close(scalar(&found.loss).unwrap(), of(&zeros), 1e-12);
        // The same without energies, whatever the rewards of prefixes are.
        let states = StateFlows {
            log_flow,
            log_r: &fixture.prefix_log_r,
        };
        let options = ForwardLookingOptions {
            energies: false,
            ..ForwardLookingOptions::default()
        };
        let branching = Branching::of_rows(&fixture.prompt_of);
        let trajectories = fixture.trajectories(log_pf);
        let found = forward_looking(&trajectories, states, options, branching, own).unwrap();
        close(
            scalar(&found.loss).unwrap(),
            of(&fixture.prefix_log_r),
            1e-12,
        );
    }

    #[test]
    fn shaped_flows_give_detailed_balance() {
        let fixture = Fixture::new();
        let shaped = (&fixture.log_flow + &fixture.prefix_log_r).unwrap();
        let expected = detailed_balance(
            &fixture,
            &shaped.to_vec2().unwrap(),
            &fixture.prefix_log_r.to_vec2().unwrap(),
        );
        let found = fl(&fixture, &fixture.log_pf, &fixture.log_flow, PLAIN);
        close(scalar(&found.loss).unwrap(), expected, 1e-12);
    }

    #[test]
    fn residuals_of_a_trajectory_add_up_to_trajectory_balance() {
        let fixture = Fixture::new();
        let steps = Steps::new(&fixture.trajectories(&fixture.log_pf), BOTH).unwrap();
        let shaped = (&fixture.log_flow + &fixture.prefix_log_r).unwrap();
        let flow = pin_terminal(&shaped, &fixture.prefix_log_r, &fixture.lengths).unwrap();
        let sums = transition_residuals(&steps, &flow).unwrap().sum(1).unwrap();
        let source = flow.narrow(1, 0, 1).unwrap().squeeze(1).unwrap();
        let whole = sequence_residuals(&steps, &source, &fixture.log_r).unwrap();
        for (sum, whole) in vector(&sums).unwrap().iter().zip(vector(&whole).unwrap()) {
            close(*sum, whole, 1e-12);
        }
    }

    #[test]
    fn padding_and_terminal_outputs_change_nothing() {
        let fixture = Fixture::new();
        let wide = fixture.padded(2, f64::NAN);
        for terms in [PLAIN, BOTH] {
            let narrow = fl(&fixture, &fixture.log_pf, &fixture.log_flow, terms);
            let flow = candle_core::Var::from_tensor(&wide.log_flow).unwrap();
            let result = fl(&wide, &wide.log_pf, &flow, terms);
            close(
                scalar(&result.loss).unwrap(),
                scalar(&narrow.loss).unwrap(),
                1e-12,
            );
            close(
                result.residual.root_mean_square,
                narrow.residual.root_mean_square,
                1e-12,
            );
            close(result.log_r, 0.7, 1e-12);
            close(result.transitions, 9.0, 0.0);
            let gradient = result.loss.backward().unwrap();
            let gradient = gradient.get(&flow).unwrap().to_vec2::<f64>().unwrap();
            for (row, length) in gradient.iter().zip(&wide.lengths) {
                assert!(row[*length..].iter().all(|g| *g == 0.0), "{row:?}");
            }
        }
    }

    #[test]
    fn micro_batches_add_up_to_the_batch() {
        let fixture = Fixture::new();
        let whole = fl(&fixture, &fixture.log_pf, &fixture.log_flow, BOTH);
        let sum: f64 = (0..4)
            .map(|row| {
                let row = fixture.row(row);
                let total = Normaliser::Total(4.0);
                let part = loss_of(
                    &row,
                    &row.log_pf,
                    &row.log_flow,
                    &row.prefix_log_r,
                    BOTH,
                    total,
                );
                scalar(&part.loss).unwrap()
            })
            .sum();
        close(sum, scalar(&whole.loss).unwrap(), 1e-12);
    }
}
