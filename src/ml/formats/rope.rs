//! From interleaved to half-split rotary pairs.

use std::path::Path;

use candle_core::Tensor;

use super::FormatError;
use crate::ml::kernels::rope::RopeLayout;
use crate::ml::models::causal::Architecture;
use crate::ml::parameters::Weights;

/// Reorders the rows of the query and key projections of an interleaved model so that it becomes the same
/// function with Hugging Face's half-split pairs.
///
/// Row `2i` of a head (first of pair `i`) moves to row `i`, row `2i + 1` to row `i + head_size / 2`; the
/// dot product of a query and a key does not see an order that both share. A model that is half-split
/// already is returned as it is. Adapters trained on one order do not fit the other: convert before training.
pub fn to_half_split(
    config: &Architecture,
    weights: &Weights,
) -> Result<(Architecture, Weights), FormatError> {
    let mut weights = weights.clone();
    let layout = config.rotary().map(|rotary| rotary.layout);
    if layout != Some(RopeLayout::Interleaved) {
        return Ok((config.clone(), weights));
    }
    let config = config.clone().with_layout(RopeLayout::HalfSplit);
    for (name, weight) in &mut weights {
        let module = name.rsplit_once('.').map_or("", |(module, _)| module);
        let heads = if module.ends_with("self_attn.q_proj") {
            config.num_heads
        } else if module.ends_with("self_attn.k_proj") {
            config.num_kv_heads
        } else {
            continue;
        };
        *weight = split_pairs(weight, heads).map_err(FormatError::tensor(Path::new(name)))?;
    }
    Ok((config, weights))
}

/// Moves the even rows of each head before its odd rows, of a weight or a bias.
fn split_pairs(weight: &Tensor, heads: usize) -> candle_core::Result<Tensor> {
    let (rows, columns) = (weight.dim(0)?, weight.elem_count() / weight.dim(0)?.max(1));
    weight
        .reshape((heads, rows / heads / 2, 2, columns))?
        .transpose(1, 2)?
        .contiguous()?
        .reshape(weight.shape())
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn even_rows_of_a_head_come_before_its_odd_rows() {
        let rows = Tensor::arange(0f32, 8.0, &Device::Cpu)
            .and_then(|rows| rows.reshape((8, 1)))
            .unwrap();
        let split = split_pairs(&rows, 2).unwrap();
        assert_eq!(
            split.flatten_all().unwrap().to_vec1::<f32>().unwrap(),
            [0., 2., 1., 3., 4., 6., 5., 7.]
        );
    }
}
