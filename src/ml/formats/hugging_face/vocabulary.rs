//! Models whose tokenizer has more tokens than their embedding has rows.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
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
    let host = weight.to_dtype(DType::F32)?.to_device(&Device::Cpu)?;
    let mut values: Vec<f32> = host.flatten_all()?.to_vec1()?;
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
    Tensor::from_vec(values, (rows + times, width), &Device::Cpu)?
        .to_dtype(weight.dtype())?
        .to_device(weight.device())
}

#[cfg(test)]
mod tests {
    use super::super::super::{Checkpoint, fixture};
    use super::super::{SequenceClassifier, load_sequence_classifier, save_sequence_classifier};
    use super::*;
    use crate::ml::placement::Placement;
    use crate::ml::tokenizer::{TokenizerAlgorithm, train_tokenizer};

    #[test]
    fn a_reward_model_is_given_rows_too() {
        let config = Architecture::from(&fixture::config());
        let mut weights = fixture::weights(&fixture::config());
        let embedding = weights[&config.embedding_name()].clone();
        weights.remove(&config.head_name());
        let words = ["a b c d e f g h i j k l m n o p q r s t u v w x y z"];
        let tokenizer = train_tokenizer(TokenizerAlgorithm::WordLevel, words, 28, &[]).unwrap();
        assert_eq!((tokenizer.vocab_size(), config.vocab_size), (28, 24));
        let classifier = SequenceClassifier {
            score: embedding.narrow(0, 0, 1).unwrap(),
            trunk: Checkpoint {
                config,
                weights,
                tokenizer: Some(tokenizer),
                eos_ids: vec![2],
                added_rows: 0,
            },
            labels: Vec::new(),
        };
        let folder = tempfile::tempdir().unwrap();
        save_sequence_classifier(folder.path(), &classifier).unwrap();
        let read = load_sequence_classifier(folder.path(), &[], &Placement::HOST)
            .unwrap()
            .trunk;
        assert_eq!((read.added_rows, read.config.vocab_size), (4, 28));
        let rows = &read.weights[&read.config.embedding_name()];
        let new = rows.narrow(0, 27, 1).unwrap();
        let mean = embedding.mean_keepdim(0).unwrap();
        let off = (new - mean).unwrap().abs().unwrap().max_all().unwrap();
        assert!(off.to_scalar::<f32>().unwrap() < 1e-6);
    }

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
