//! The composed form: the logits of few rows at once, computed again for the gradient.

use candle_core::{D, Result, Tensor};

use super::{Head, IGNORED, LOGITS, TokenLogProbs};
use crate::ml::kernels::given::with_gradient;
use crate::ml::kernels::linear::composed_linear;
use crate::ml::kernels::product::product;

/// Computes log-probabilities without keeping the logits; see [`token_log_probs`](super::token_log_probs).
pub(super) fn apply(head: &Head, hidden: &Tensor, weight: &Tensor) -> Result<TokenLogProbs> {
    let rows_at_once = (LOGITS / weight.dim(0)?).max(1);
    in_parts(head, hidden, weight, rows_at_once)
}

/// The same, with so many rows at once.
pub(super) fn in_parts(
    head: &Head,
    hidden: &Tensor,
    weight: &Tensor,
    rows_at_once: usize,
) -> Result<TokenLogProbs> {
    let per_row = head.per_row;
    let asked = Asked::new(head, hidden, rows_at_once)?;
    let both = if asked.active == 0 {
        Tensor::zeros(
            (hidden.dim(0)?, per_row + 1),
            hidden.dtype(),
            hidden.device(),
        )?
    } else {
        let both = asked.forward(&hidden.detach(), &weight.detach())?;
        let backward = move |hidden: &Tensor, weight: &Tensor, gradient: &Tensor| {
            asked.backward(hidden, weight, gradient)
        };
        with_gradient("token_log_probs", both, (hidden, weight), backward)?
    };
    Ok(TokenLogProbs {
        log_probs: both.narrow(1, 0, per_row)?,
        log_sum_exp: both.narrow(1, per_row, 1)?.squeeze(1)?,
    })
}

/// What is asked for, on the device of the hidden states.
struct Asked {
    /// Rows with a target, and how many there are.
    rows: Tensor,
    active: usize,
    /// For each of all rows, its place among those; one behind the last where it has no target.
    places: Tensor,
    rows_at_once: usize,
    /// Targets of these rows, another token where one is ignored: (active rows, targets per row).
    ids: Tensor,
    /// 1 where a target is asked for, 0 where it is ignored.
    wanted: Tensor,
    inverse_temperature: f64,
}

#[expect(clippy::disallowed_methods, reason = "the composed form")]
impl Asked {
    fn new(head: &Head, hidden: &Tensor, rows_at_once: usize) -> Result<Self> {
        let (device, per_row) = (hidden.device(), head.per_row);
        let active = head.active.len();
        let targets = || {
            let rows = head.active.iter();
            rows.flat_map(|row| &head.targets[row * per_row..(row + 1) * per_row])
        };
        let ids: Vec<u32> = targets()
            .map(|id| if *id == IGNORED { 0 } else { *id })
            .collect();
        let wanted: Vec<f32> = targets()
            .map(|id| f32::from(u8::from(*id != IGNORED)))
            .collect();
        let rows: Vec<u32> = head.active.iter().map(|row| *row as u32).collect();
        let mut places = vec![active as u32; hidden.dim(0)?];
        for (place, row) in head.active.iter().enumerate() {
            places[*row] = place as u32;
        }
        Ok(Self {
            rows: Tensor::from_vec(rows, active, device)?,
            active,
            places: Tensor::new(places, device)?,
            rows_at_once,
            ids: Tensor::from_vec(ids, (active, per_row), device)?,
            wanted: Tensor::from_vec(wanted, (active, per_row), device)?
                .to_dtype(hidden.dtype())?,
            inverse_temperature: head.inverse_temperature,
        })
    }

    /// The parts that are computed one after the other: first row and number of rows.
    fn parts(&self) -> impl Iterator<Item = (usize, usize)> {
        let (all, most) = (self.active, self.rows_at_once);
        (0..all)
            .step_by(most)
            .map(move |first| (first, most.min(all - first)))
    }

    fn logits(&self, hidden: &Tensor, weight: &Tensor) -> Result<Tensor> {
        composed_linear(hidden, weight)?.affine(self.inverse_temperature, 0.0)
    }

    /// Returns (rows, targets per row + 1): the log-probabilities, then the normaliser.
    fn forward(&self, hidden: &Tensor, weight: &Tensor) -> Result<Tensor> {
        let hidden = hidden.contiguous()?.index_select(&self.rows, 0)?;
        let mut found = Vec::new();
        for (first, count) in self.parts() {
            let logits = self.logits(&hidden.narrow(0, first, count)?, weight)?;
            let normaliser = logits.log_sum_exp(D::Minus1)?.unsqueeze(1)?;
            let log_probs = logits
                .gather(&self.ids.narrow(0, first, count)?.contiguous()?, 1)?
                .broadcast_sub(&normaliser)?
                .mul(&self.wanted.narrow(0, first, count)?)?;
            found.push(Tensor::cat(&[log_probs, normaliser], 1)?);
        }
        self.to_all_rows(found)
    }

    /// Puts what was found of the rows with a target where they lie among all, and zeros elsewhere.
    fn to_all_rows(&self, mut found: Vec<Tensor>) -> Result<Tensor> {
        let last = found[found.len() - 1].narrow(0, 0, 1)?;
        found.push(last.zeros_like()?);
        Tensor::cat(&found, 0)?.index_select(&self.places, 0)
    }

    /// `d log softmax(z)[t] / dz = onehot(t) - p`, and `d logsumexp / dz = p`.
    fn backward(
        &self,
        hidden: &Tensor,
        weight: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let states = hidden.detach().contiguous()?.index_select(&self.rows, 0)?;
        let gradient = gradient.contiguous()?.index_select(&self.rows, 0)?;
        let per_row = self.wanted.dim(1)?;
        let to_targets = gradient.narrow(1, 0, per_row)?.mul(&self.wanted)?;
        let to_normaliser = gradient.narrow(1, per_row, 1)?;
        let common = (to_normaliser - to_targets.sum_keepdim(1)?)?;
        let frozen = weight.detach();
        let mut to_states = Vec::new();
        let mut to_weight: Option<Tensor> = None;
        for (first, count) in self.parts() {
            let part = |x: &Tensor| x.narrow(0, first, count)?.contiguous();
            let inputs = part(&states)?;
            let logits = self.logits(&inputs, &frozen)?;
            let to_logits = candle_nn::ops::softmax(&logits, D::Minus1)?
                .broadcast_mul(&part(&common)?)?
                .scatter_add(&part(&self.ids)?, &part(&to_targets)?, 1)?
                .affine(self.inverse_temperature, 0.0)?
                .to_dtype(frozen.dtype())?;
            if hidden.track_op() {
                to_states.push(product(&to_logits, &frozen)?.to_dtype(hidden.dtype())?);
            }
            if weight.track_op() {
                let own = product(&to_logits.t()?, &inputs.to_dtype(frozen.dtype())?)?;
                to_weight = Some(match to_weight {
                    Some(sum) => (sum + own)?,
                    None => own,
                });
            }
        }
        let to_hidden = hidden.track_op().then(|| self.to_all_rows(to_states));
        let to_hidden = to_hidden.transpose()?;
        Ok((to_hidden, to_weight))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Var};

    use super::*;
    use crate::random::Stream;

    fn values(name: &str, shape: (usize, usize)) -> Var {
        let mut draws = Stream::new(1, name).at(0);
        let values: Vec<f64> = (0..shape.0 * shape.1).map(|_| draws.normal()).collect();
        Var::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    /// Log-probabilities, and the gradients of a sum of them.
    fn found(rows_at_once: usize) -> Vec<Vec<f64>> {
        let (hidden, weight) = (values("hidden", (5, 4)), values("weight", (7, 4)));
        let targets = [0, 6, IGNORED, IGNORED, 3, IGNORED, 2, 2, 5, 1];
        let head = Head::new(hidden.shape(), weight.shape(), &targets, 0.7).unwrap();
        let found = in_parts(&head, hidden.as_tensor(), weight.as_tensor(), rows_at_once).unwrap();
        let factors = values("factors", (5, 2));
        let loss = (found
            .log_probs
            .mul(factors.as_tensor())
            .unwrap()
            .sum_all()
            .unwrap()
            + found.log_sum_exp.sqr().unwrap().sum_all().unwrap())
        .unwrap();
        let gradients = loss.backward().unwrap();
        let numbers = |x: &Tensor| {
            let x = x.to_dtype(DType::F64).unwrap();
            x.flatten_all().unwrap().to_vec1::<f64>().unwrap()
        };
        vec![
            numbers(&found.log_probs),
            numbers(&found.log_sum_exp),
            numbers(gradients.get(&hidden).unwrap()),
            numbers(gradients.get(&weight).unwrap()),
        ]
    }

    #[test]
    fn parts_are_as_good_as_the_whole() {
        let whole = found(100);
        for rows_at_once in [1, 2, 3] {
            for (part, whole) in found(rows_at_once)
                .iter()
                .flatten()
                .zip(whole.iter().flatten())
            {
                assert!((part - whole).abs() < 1e-12, "{part} {whole}");
            }
        }
        // The second row asks for nothing.
        assert!(
            whole[0][2..4]
                .iter()
                .chain(&whole[2][4..8])
                .all(|value| *value == 0.0)
        );
    }
}
