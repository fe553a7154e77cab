//! Embeddings: one vector for each text, in the order of the texts.

use std::path::Path;

use candle_core::{Device, Tensor};

use super::table::Table;
use crate::ml::formats::FormatError;
use crate::ml::formats::safetensors::{load_safetensors, save_safetensors};
use crate::ml::parameters::Weights;

/// The artifact kind.
pub const EMBEDDINGS: &str = "embeddings";
/// The file of an artifact.
pub const EMBEDDINGS_FILE: &str = "embeddings.safetensors";

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
        let path = folder.join(EMBEDDINGS_FILE);
        let rows = self.values.len().checked_div(self.dimension).unwrap_or(0);
        let tensor = Tensor::from_slice(&self.values, (rows, self.dimension), &Device::Cpu)
            .map_err(FormatError::tensor(&path))?;
        let weights: Weights = [("embeddings".to_owned(), tensor)].into();
        save_safetensors(&path, &weights)
    }

    /// Reads a matrix from a folder.
    pub fn read(folder: &Path) -> Result<Self, FormatError> {
        Self::read_file(&folder.join(EMBEDDINGS_FILE))
    }

    /// Reads a matrix from its file.
    pub fn read_file(path: &Path) -> Result<Self, FormatError> {
        let weights = load_safetensors(path)?;
        let Some(tensor) = weights.get("embeddings") else {
            return Err(FormatError::malformed(
                path,
                "it has no tensor `embeddings`".to_owned(),
            ));
        };
        let wrap = FormatError::tensor(path);
        let read = || -> candle_core::Result<Self> {
            let (_, dimension) = tensor.dims2()?;
            Ok(Self {
                values: tensor.flatten_all()?.to_vec1()?,
                dimension,
            })
        };
        read().map_err(wrap)
    }

    /// Returns the vectors as text, as JSON has them: a table has no column of vectors.
    pub fn to_table(&self) -> Table {
        let mut table = Table::new(format!("vectors of {} numbers", self.dimension));
        let rows = self.values.chunks(self.dimension.max(1));
        table.text_column("embedding", rows.map(|row| Some(format!("{row:?}"))));
        table
    }
}
