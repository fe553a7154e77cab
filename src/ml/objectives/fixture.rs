//! Four trajectories of two prompts with losses and gradients recorded from PyTorch.
//!
//! Python (the losses as loops over the definitions):
//! ```python
//! import torch
//! T = lambda x: torch.tensor(x, dtype=torch.float64)
//! n = [3, 2, 1, 3]; prompt = [0, 0, 1, 1]
//! lp = T([[-.5, -1.2, -.3], [-.9, -.4, 9.], [-2., 9., 9.], [-.7, -.1, -1.5]]).requires_grad_()
//! ref = T([[-.6, -.8, -.9], [-.2, -1.4, 9.], [-1.1, 9., 9.], [-.3, -.5, -1.]])
//! R = T([1., -.5, 2., .3])                                   # log R(x)
//! r = T([[.1, .4, -.2, 1.], [.3, -.6, -.5, 9.], [.8, 2., 9., 9.], [-.4, .5, .9, .3]])  # log R(s_t)
//! f = T([[.2, -.1, .6, 9.], [.4, .5, 9., 9.], [-.3, 9., 9., 9.], [.1, .7, -.8, 9.]]).requires_grad_()
//! z = T([.7, .7, -.2, -.2]).requires_grad_()
//! def steps(b, beta, post):
//!     return [lp[b, t] - post * ref[b, t] + beta * (lp[b, t] - ref[b, t]).detach() for t in range(n[b])]
//! def tb(beta=0, post=0):
//!     return sum((z[b] + sum(steps(b, beta, post)) - R[b]) ** 2 for b in range(4)) / 4
//! def vargrad():
//!     d = [sum(steps(b, 0, 0)) - R[b] for b in range(4)]
//!     return sum(torch.stack([d[b] for b in range(4) if prompt[b] == p]).var(unbiased=False) for p in (0, 1)) / 2
//! def fl(beta=0, post=0):
//!     total = 0
//!     for b in range(4):
//!         a = steps(b, beta, post)
//!         for t in range(n[b]):
//!             after = f[b, t + 1] if t + 1 < n[b] else 0.
//!             total = total + (f[b, t] + a[t] - after - r[b, t + 1] + r[b, t]) ** 2
//!     return total / 4
//! for loss, inputs in [(tb(), [lp, z]), (tb(post=1), [lp]), (tb(beta=.3), [lp]), (vargrad(), [lp]),
//!                      (fl(), [lp, f]), (fl(.3, 1), [lp, f])]:
//!     print(loss.item(), [g.tolist() for g in torch.autograd.grad(loss, inputs)])
//! ```

use candle_core::{Device, Tensor};

use super::Trajectories;

/// What stands in padding.
pub(super) const PADDING: f64 = 9.0;

pub(super) struct Fixture {
    pub(super) log_pf: Tensor,
    pub(super) reference: Tensor,
    pub(super) lengths: Vec<usize>,
    pub(super) prompt_of: Vec<usize>,
    /// Terminal `log R`, `(4)`.
    pub(super) log_r: Tensor,
    /// `log R` of all states, `(4, 4)`.
    pub(super) prefix_log_r: Tensor,
    /// `(4, 4)`.
    pub(super) log_flow: Tensor,
    /// `(4)`.
    pub(super) log_z: Tensor,
}

impl Fixture {
    pub(super) fn new() -> Self {
        const P: f64 = PADDING;
        let matrix = |rows: &[&[f64]]| {
            let columns = rows[0].len();
            Tensor::from_vec(rows.concat(), (rows.len(), columns), &Device::Cpu).unwrap()
        };
        let column = |values: &[f64; 4]| Tensor::new(values, &Device::Cpu).unwrap();
        Self {
            log_pf: matrix(&[
                &[-0.5, -1.2, -0.3],
                &[-0.9, -0.4, P],
                &[-2.0, P, P],
                &[-0.7, -0.1, -1.5],
            ]),
            reference: matrix(&[
                &[-0.6, -0.8, -0.9],
                &[-0.2, -1.4, P],
                &[-1.1, P, P],
                &[-0.3, -0.5, -1.0],
            ]),
            lengths: vec![3, 2, 1, 3],
            prompt_of: vec![0, 0, 1, 1],
            log_r: column(&[1.0, -0.5, 2.0, 0.3]),
            prefix_log_r: matrix(&[
                &[0.1, 0.4, -0.2, 1.0],
                &[0.3, -0.6, -0.5, P],
                &[0.8, 2.0, P, P],
                &[-0.4, 0.5, 0.9, 0.3],
            ]),
            log_flow: matrix(&[
                &[0.2, -0.1, 0.6, P],
                &[0.4, 0.5, P, P],
                &[-0.3, P, P, P],
                &[0.1, 0.7, -0.8, P],
            ]),
            log_z: column(&[0.7, 0.7, -0.2, -0.2]),
        }
    }

    pub(super) fn trajectories<'a>(&'a self, log_pf: &'a Tensor) -> Trajectories<'a> {
        Trajectories {
            log_pf,
            lengths: &self.lengths,
            reference: Some(&self.reference),
        }
    }

    /// Row `row` alone.
    pub(super) fn row(&self, row: usize) -> Self {
        let take = |tensor: &Tensor| tensor.narrow(0, row, 1).unwrap();
        Self {
            log_pf: take(&self.log_pf),
            reference: take(&self.reference),
            lengths: vec![self.lengths[row]],
            prompt_of: vec![self.prompt_of[row]],
            log_r: take(&self.log_r),
            prefix_log_r: take(&self.prefix_log_r),
            log_flow: take(&self.log_flow),
            log_z: take(&self.log_z),
        }
    }

    /// The same with `extra` more columns, and `junk` wherever padding was.
    pub(super) fn padded(&self, extra: usize, junk: f64) -> Self {
        let widen = |tensor: &Tensor| {
            let columns = tensor.dim(1).unwrap() + extra;
            let rows: Vec<Vec<f64>> = tensor.to_vec2().unwrap();
            let rows: Vec<f64> = rows
                .into_iter()
                .flat_map(|mut row| {
                    row.resize(columns, PADDING);
                    row.into_iter()
                        .map(|value| if value == PADDING { junk } else { value })
                })
                .collect();
            Tensor::from_vec(rows, (tensor.dim(0).unwrap(), columns), &Device::Cpu).unwrap()
        };
        Self {
            log_pf: widen(&self.log_pf),
            reference: widen(&self.reference),
            lengths: self.lengths.clone(),
            prompt_of: self.prompt_of.clone(),
            log_r: self.log_r.clone(),
            prefix_log_r: widen(&self.prefix_log_r),
            log_flow: widen(&self.log_flow),
            log_z: self.log_z.clone(),
        }
    }
}
