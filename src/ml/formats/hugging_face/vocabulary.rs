//! Models whose tokenizer has more tokens than their embedding has rows.

use std::path::Path;

use candle_core::{Device, Tensor};
use serde_json::Value;

use super::super::FormatError;
use crate::ml::models::causal::Architecture;
use crate::ml::parameters::Weights;

/// Numbers that new rows may have beside as many as the old ones have: a gibibyte of them.
const MOST_NUMBERS: usize = 1 << 28;

/// Gives a model a row for every id of its tokenizer, and returns how many are new.
///
/// They are the mean of the old ones, in the output head too: what `resize_token_embeddings` of `transformers` 4.57 draws
/// its new rows around (`mean_resizing`; Hewitt 2021), without the draw. `path` is the tokenizer's, for messages.
pub(super) fn make_room(
    path: &Path,
    architecture: &mut Architecture,
    weights: &mut Weights,
    ids: usize,
) -> Result<usize, FormatError> {
    let rows = architecture.vocab_size;
    let added = ids.saturating_sub(rows);
    if added == 0 {
        return Ok(0);
    }
    let numbers = added.saturating_mul(architecture.embedding_size);
    if added > rows && numbers > MOST_NUMBERS {
        return Err(FormatError::malformed(
            path,
            format!(
                "it has {ids} ids, but the `vocab_size` of `config.json` is {rows}: expected the model's own tokenizer, \
                 with at most as many added tokens"
            ),
        ));
    }
    for name in [architecture.embedding_name(), architecture.head_name()] {
        if let Some(weight) = weights.get_mut(&name) {
            *weight = longer(weight, added).map_err(FormatError::tensor(path))?;
        }
    }
    architecture.vocab_size = ids;
    let key = "vocab_size".to_owned();
    architecture.document.insert(key, Value::from(ids));
    Ok(added)
}

/// Puts the mean of a matrix's rows beneath it, so many times.
fn longer(weight: &Tensor, times: usize) -> candle_core::Result<Tensor> {
    let (rows, width) = weight.dims2()?;
    let mut values: Vec<f32> = weight.flatten_all()?.to_vec1()?;
    let mut mean = vec![0f64; width];
    for row in values.chunks_exact(width) {
        for (sum, value) in mean.iter_mut().zip(row) {
            *sum += f64::from(*value);
        }
    }
    let mean: Vec<f32> = mean.iter().map(|sum| (sum / rows as f64) as f32).collect();
    values.reserve_exact(times * width);
    for _ in 0..times {
        values.extend(&mean);
    }
    Tensor::from_vec(values, (rows + times, width), &Device::Cpu)
}

#[cfg(test)]
mod tests {
    use super::super::super::fixture;
    use super::*;

    #[test]
    fn the_tokenizer_of_another_model_is_refused() {
        let mut architecture = Architecture::from(&fixture::config());
        let error = make_room(
            Path::new("DIR/tokenizer.json"),
            &mut architecture,
            &mut Weights::new(),
            24 + (1 << 27),
        );
        assert_eq!(
            error.unwrap_err().to_string(),
            "DIR/tokenizer.json: it has 134217752 ids, but the `vocab_size` of `config.json` is 24: expected the model's \
             own tokenizer, with at most as many added tokens"
        );
        assert_eq!(architecture.vocab_size, 24);
    }
}
