//! The files of a table.

use std::fs::File;
use std::path::{Path, PathBuf};

use polars::io::parquet::write::BatchedWriter;
use polars::prelude::{
    Column as PolarsColumn, DataFrame, ParquetReader, ParquetWriter, PolarsError, SerReader,
};
use serde::{Deserialize, Serialize};

use super::column::{Column, Place, values_of};
use super::{Table, TableError};
use crate::engine::artifact::Artifact;
use crate::engine::store::Store;

#[derive(Serialize, Deserialize)]
struct Description {
    title: String,
    notes: Vec<String>,
    decimals: Vec<Option<usize>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    places: Vec<Place>,
}

impl Table {
    /// Writes a table for people into a folder, with its Markdown.
    pub fn write(&self, folder: &Path) -> Result<(), TableError> {
        self.write_data(folder)?;
        fs_err::write(folder.join("table.md"), self.markdown())?;
        Ok(())
    }

    /// Writes the table into a folder, for stages that read it.
    pub fn write_data(&self, folder: &Path) -> Result<(), TableError> {
        let path = folder.join("table.parquet");
        let wrap = |source| TableError::Parquet {
            path: path.clone(),
            source,
        };
        let mut frame = self.frame().map_err(wrap)?;
        let file = fs_err::File::create(&path)?;
        ParquetWriter::new(file).finish(&mut frame).map_err(wrap)?;
        self.write_description(folder)
    }

    fn frame(&self) -> Result<DataFrame, PolarsError> {
        let columns = self.columns.iter().map(|column| column.to_series().into());
        DataFrame::new(self.height(), columns.collect::<Vec<PolarsColumn>>())
    }

    fn write_description(&self, folder: &Path) -> Result<(), TableError> {
        let description = Description {
            title: self.title.clone(),
            notes: self.notes.clone(),
            decimals: self.columns.iter().map(|column| column.decimals).collect(),
            places: if self.columns.iter().all(|column| column.place == Place::Own) {
                Vec::new()
            } else {
                self.columns.iter().map(|column| column.place).collect()
            },
        };
        let text = serde_json::to_string_pretty(&description).map_err(std::io::Error::from)?;
        fs_err::write(folder.join("table.json"), text)?;
        Ok(())
    }

    /// Reads a table from a folder.
    pub fn read(folder: &Path) -> Result<Self, TableError> {
        Self::read_parts(folder.join("table.json"), folder.join("table.parquet"))
    }

    /// Reads the table whose artifact lies in a store.
    pub fn of_artifact(store: &Store, artifact: &Artifact) -> Result<Self, TableError> {
        let part = |name: &str| {
            let file = artifact.files.iter().find(|file| file.path == name);
            let found = file.map(|file| store.object_path(&file.digest));
            found.ok_or_else(|| std::io::Error::other(format!("the table has no file {name}")))
        };
        Self::read_parts(part("table.json")?, part("table.parquet")?)
    }

    fn read_parts(description: PathBuf, columns: PathBuf) -> Result<Self, TableError> {
        let path = description;
        let text = fs_err::read_to_string(&path)?;
        let description: Description = serde_json::from_str(&text)
            .map_err(|source| TableError::Description { path, source })?;
        let path = columns;
        let wrap = |source| TableError::Parquet {
            path: path.clone(),
            source,
        };
        let file = std::fs::File::open(&path)?;
        let frame = ParquetReader::new(file).finish().map_err(wrap)?;
        let mut columns = Vec::new();
        for (at, column) in frame.columns().iter().enumerate() {
            let (values, stored) = values_of(column).map_err(wrap)?;
            columns.push(Column {
                name: column.name().to_string(),
                values,
                decimals: description.decimals.get(at).copied().unwrap_or(Some(3)),
                stored,
                place: description.places.get(at).copied().unwrap_or_default(),
            });
        }
        Ok(Self {
            title: description.title,
            notes: description.notes,
            columns,
        })
    }
}

/// Writes a table for stages that read it, some rows at a time.
pub struct TableWriter {
    path: PathBuf,
    writer: BatchedWriter<File>,
}

impl TableWriter {
    /// Begins a table with the columns, title and notes of `empty`, which has no rows.
    pub fn create(folder: &Path, empty: &Table) -> Result<Self, TableError> {
        let path = folder.join("table.parquet");
        let wrap = |source| TableError::Parquet {
            path: path.clone(),
            source,
        };
        empty.write_description(folder)?;
        let frame = empty.frame().map_err(wrap)?;
        let file: File = fs_err::File::create(&path)?.into();
        let writer = ParquetWriter::new(file).batched(frame.schema());
        let writer = writer.map_err(wrap)?;
        Ok(Self { path, writer })
    }

    /// Adds rows, which have the columns that it began with.
    pub fn write(&mut self, rows: &Table) -> Result<(), TableError> {
        let written = rows
            .frame()
            .and_then(|frame| self.writer.write_batch(&frame));
        written.map_err(|source| self.wrap(source))
    }

    /// Ends the file.
    pub fn finish(self) -> Result<(), TableError> {
        self.writer.finish().map_err(|source| self.wrap(source))?;
        Ok(())
    }

    fn wrap(&self, source: PolarsError) -> TableError {
        let path = self.path.clone();
        TableError::Parquet { path, source }
    }
}

#[cfg(test)]
mod tests {
    use polars::prelude::DataType;

    use super::*;

    fn table() -> Table {
        let mut table = Table::new("Table 1");
        table.notes.push("a note".to_owned());
        table.text_column("policy", ["ppo", "sft"].map(|text| Some(text.to_owned())));
        table.number_column("mean", 3, [Some(0.12345), None]);
        table
    }

    #[test]
    fn columns_keep_their_types_in_the_file() {
        let mut table = Table::new("types");
        let words = |words: [&str; 2]| words.map(|word| Some(word.to_owned()));
        table.label_column("seed", words(["1", "2"]));
        table.label_column("temperature", words(["0.7", "0.25"]));
        table.label_column("policy", words(["1", "ppo"]));
        table.label_column("version", words(["1.0", "2.0"]));
        table.whole_column("n", [Some(3.0), None]);
        table.truth_column("truncated", [true, false]);
        table.ids_column("token_ids", [Some(vec![3, 70_000]), None]);
        table.number_column("nan", 3, [Some(-f64::NAN), Some(1.0)]);
        let folder = tempfile::tempdir().unwrap();
        table.write_data(folder.path()).unwrap();
        let file = std::fs::File::open(folder.path().join("table.parquet")).unwrap();
        let frame = ParquetReader::new(file).finish().unwrap();
        let types = frame.columns().iter().map(|column| column.dtype().clone());
        let list = DataType::List(Box::new(DataType::UInt32));
        assert_eq!(
            types.collect::<Vec<_>>(),
            [
                DataType::Int64,
                DataType::Float64,
                DataType::String,
                DataType::String,
                DataType::Int64,
                DataType::Boolean,
                list,
                DataType::Float64,
            ]
        );
        let read = Table::read(folder.path()).unwrap();
        assert_eq!(read.texts("temperature").unwrap(), words(["0.7", "0.25"]));
        assert_eq!(read.texts("seed").unwrap(), words(["1", "2"]));
        assert!(read.texts("n").is_err());
        assert_eq!(
            read.ids("token_ids").unwrap()[0].as_deref(),
            Some(&[3, 70_000][..])
        );
        assert_eq!(read.columns[..7], table.columns[..7]);
        let rows = read.rows_json();
        assert_eq!(rows[0]["n"], 3);
        assert_eq!(rows[1]["truncated"], false);
        let nan = read.numbers("nan").unwrap()[0].unwrap();
        assert_eq!(nan.to_bits(), f64::NAN.to_bits());
    }

    #[test]
    fn tables_round_trip_and_have_the_same_bytes_each_time() {
        let folder = tempfile::tempdir().unwrap();
        table().write(folder.path()).unwrap();
        assert_eq!(Table::read(folder.path()).unwrap(), table());
        let first = fs_err::read(folder.path().join("table.parquet")).unwrap();
        table().write(folder.path()).unwrap();
        assert_eq!(
            fs_err::read(folder.path().join("table.parquet")).unwrap(),
            first
        );
    }
}
