//! Embeddings: one vector for each text, in the order of the texts.

use std::path::Path;

use candle_core::{Device, Tensor};

use crate::ml::formats::FormatError;
use crate::ml::formats::safetensors::{load_safetensors, save_safetensors};
use crate::ml::parameters::Weights;

/// The artifact kind.
pub const EMBEDDINGS: &str = "embeddings";

/// Vectors, row by row.
#[derive(Debug, Clone, PartialEq)]
pub struct EmbeddingMatrix {
    /// All values, row by row.
    pub values: Vec<f32>,
    /// Length of a row.
    pub dimension: usize,
}

impl EmbeddingMatrix {
    /// Writes the matrix into a folder.
    pub fn write(&self, folder: &Path) -> Result<(), FormatError> {
        let path = folder.join("embeddings.safetensors");
        let rows = self.values.len().checked_div(self.dimension).unwrap_or(0);
        let tensor = Tensor::from_slice(&self.values, (rows, self.dimension), &Device::Cpu)
            .map_err(FormatError::tensor(&path))?;
        let weights: Weights = [("embeddings".to_owned(), tensor)].into();
        save_safetensors(&path, &weights)
    }

    /// Reads a matrix from a folder.
    pub fn read(folder: &Path) -> Result<Self, FormatError> {
        let path = folder.join("embeddings.safetensors");
        let weights = load_safetensors(&path)?;
        let Some(tensor) = weights.get("embeddings") else {
            return Err(FormatError::malformed(
                &path,
                "it has no tensor `embeddings`".to_owned(),
            ));
        };
        let wrap = FormatError::tensor(&path);
        let read = || -> candle_core::Result<Self> {
            let (_, dimension) = tensor.dims2()?;
            Ok(Self {
                values: tensor.flatten_all()?.to_vec1()?,
                dimension,
            })
        };
        read().map_err(wrap)
    }
}
