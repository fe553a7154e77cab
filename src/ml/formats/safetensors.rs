//! Named tensors in safetensors files, one file or several shards.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufWriter, Write};
use std::ops::Range;
use std::path::{Component, Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};
use memmap2::{Mmap, UncheckedAdvice};
use rayon::prelude::*;
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};

use super::FormatError;
use super::bytes::map_file;
use super::tensors::TensorSource;
use crate::ml::documents::read_configuration;
use crate::ml::parameters::Weights;
use crate::ml::placement::Placement;

/// Elements decoded by one task.
const CHUNK: usize = 1 << 16;

/// Opened safetensors files.
pub(super) struct SafetensorsFiles {
    path: PathBuf,
    files: Vec<(PathBuf, Mmap)>,
    entries: BTreeMap<String, Entry>,
}

struct Entry {
    file: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    range: Range<usize>,
}

/// The part of `model.safetensors.index.json` that is used.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, PathBuf>,
}

impl SafetensorsFiles {
    /// Opens one file.
    pub(super) fn open(path: &Path) -> Result<Self, FormatError> {
        refuse_pickle(path)?;
        let mut files = Self {
            path: path.to_owned(),
            files: Vec::new(),
            entries: BTreeMap::new(),
        };
        files.add(path)?;
        Ok(files)
    }

    /// Opens `model.safetensors` of a folder, or the shards that `model.safetensors.index.json` lists.
    pub(super) fn open_model(folder: &Path) -> Result<Self, FormatError> {
        let single = folder.join("model.safetensors");
        let index_path = folder.join("model.safetensors.index.json");
        if single.exists() || !index_path.exists() {
            return Self::open(&single);
        }
        let index: Index = serde_json::from_slice(&read_configuration(&index_path)?)
            .map_err(|error| FormatError::malformed(&index_path, error.to_string()))?;
        let mut files = Self {
            path: folder.to_owned(),
            files: Vec::new(),
            entries: BTreeMap::new(),
        };
        let shards: BTreeSet<_> = index.weight_map.values().collect();
        for shard in shards {
            let mut parts = shard.components();
            if !matches!(
                (parts.next(), parts.next()),
                (Some(Component::Normal(_)), None)
            ) {
                return Err(FormatError::malformed(
                    &index_path,
                    format!("shard `{}` is not a plain file name", shard.display()),
                ));
            }
            files.add(&folder.join(shard))?;
        }
        for (name, shard) in &index.weight_map {
            let found = files.entries.get(name);
            if found.is_none_or(|entry| files.files[entry.file].0 != folder.join(shard)) {
                return Err(FormatError::malformed(
                    &index_path,
                    format!("tensor `{name}` is not in `{}`", shard.display()),
                ));
            }
        }
        Ok(files)
    }

    fn add(&mut self, path: &Path) -> Result<(), FormatError> {
        let map = map_file(path)?;
        for (name, entry) in parse_header(path, self.files.len(), &map)? {
            if let Some(previous) = self.entries.insert(name.clone(), entry) {
                let other = self.files[previous.file].0.display();
                return Err(FormatError::malformed(
                    path,
                    format!("tensor `{name}` is also in `{other}`"),
                ));
            }
        }
        self.files.push((path.to_owned(), map));
        Ok(())
    }
}

impl TensorSource for SafetensorsFiles {
    fn path(&self) -> &Path {
        &self.path
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    fn shape(&self, name: &str) -> Option<&[usize]> {
        self.entries.get(name).map(|entry| entry.shape.as_slice())
    }

    fn read(&self, name: &str) -> Result<Vec<f32>, FormatError> {
        let Some(entry) = self.entries.get(name) else {
            return Err(FormatError::malformed(
                &self.path,
                format!("tensor `{name}` is missing"),
            ));
        };
        let (path, map) = &self.files[entry.file];
        let values = entry.read(path, map, name);
        let range = entry.range.clone();
        #[expect(unsafe_code, reason = "see below")]
        // SAFETY: the map is shared with its file and read only: pages that are let go of come back from there.
        let told = unsafe {
            map.unchecked_advise_range(UncheckedAdvice::DontNeed, range.start, range.len())
        };
        // No more than a hint: otherwise the file would count as memory of this process beside what was made of it.
        let _ = told;
        values
    }
}

/// Says so if a missing file is there in PyTorch's older, pickled form.
fn refuse_pickle(path: &Path) -> Result<(), FormatError> {
    let older = match path.file_name().and_then(|name| name.to_str()) {
        Some("model.safetensors") => "pytorch_model.bin",
        Some("adapter_model.safetensors") => "adapter_model.bin",
        _ => return Ok(()),
    };
    let older = path.with_file_name(older);
    if path.exists() || !older.exists() {
        return Ok(());
    }
    Err(FormatError::unsupported(
        &older,
        "a pickled file, which can run code when it is opened,",
        "load it in PyTorch and save it with `safe_serialization=True`",
    ))
}

/// Parses the header of file number `file`.
fn parse_header(
    path: &Path,
    file: usize,
    bytes: &[u8],
) -> Result<BTreeMap<String, Entry>, FormatError> {
    let (header, metadata) = SafeTensors::read_metadata(bytes).map_err(|error| {
        FormatError::malformed(path, format!("not a safetensors file: {error}"))
    })?;
    let data_start = size_of::<u64>() + header;
    let tensors = metadata.tensors().into_iter();
    let entries = tensors.map(|(name, info)| {
        let (start, end) = info.data_offsets;
        let entry = Entry {
            file,
            dtype: info.dtype,
            shape: info.shape.clone(),
            range: data_start + start..data_start + end,
        };
        (name, entry)
    });
    Ok(entries.collect())
}

impl Entry {
    /// Decodes the tensor from the bytes of its file.
    fn read(&self, path: &Path, file: &[u8], name: &str) -> Result<Vec<f32>, FormatError> {
        let bytes = &file[self.range.clone()];
        match self.dtype {
            Dtype::F32 => Ok(decode(bytes, f32::from_le_bytes)),
            Dtype::F16 => Ok(decode(bytes, |pair| f16::from_le_bytes(pair).to_f32())),
            Dtype::BF16 => Ok(decode(bytes, |pair| bf16::from_le_bytes(pair).to_f32())),
            other => Err(FormatError::unsupported(
                path,
                format!("data type {other} of tensor `{name}`"),
                "store it as F32, F16 or BF16",
            )),
        }
    }
}

/// Decodes fixed-size elements in parallel.
fn decode<const N: usize>(bytes: &[u8], element: impl Fn([u8; N]) -> f32 + Sync) -> Vec<f32> {
    let elements = bytes.as_chunks::<N>().0;
    let mut values = vec![0.0; elements.len()];
    values
        .par_chunks_mut(CHUNK)
        .zip(elements.par_chunks(CHUNK))
        .for_each(|(values, elements)| {
            for (value, bytes) in values.iter_mut().zip(elements) {
                *value = element(*bytes);
            }
        });
    values
}

/// Returns the names of the tensors of a file, in order.
pub fn tensor_names(path: &Path) -> Result<Vec<String>, FormatError> {
    Ok(SafetensorsFiles::open(path)?.entries.into_keys().collect())
}

/// Reads all tensors of a file as `f32`.
pub fn load_safetensors(path: &Path) -> Result<Weights, FormatError> {
    let files = SafetensorsFiles::open(path)?;
    let all: Vec<_> = files
        .entries
        .iter()
        .map(|(name, entry)| (name.clone(), entry.shape.clone()))
        .collect();
    super::tensors::read_exactly(
        &files,
        all.into_iter(),
        &Placement::HOST,
        |_| false,
        |_, _| Ok(()),
    )
}

/// A tensor in the header of a file.
#[derive(Serialize)]
struct HeaderEntry<'a> {
    dtype: &'static str,
    shape: &'a [usize],
    data_offsets: [usize; 2],
}

/// Writes tensors as `f32`, in name order: equal weights give equal bytes.
pub fn save_safetensors(path: &Path, weights: &Weights) -> Result<(), FormatError> {
    let mut end = 0;
    let mut entries = BTreeMap::new();
    for (name, tensor) in weights {
        let start = end;
        end += tensor.elem_count() * size_of::<f32>();
        let entry = HeaderEntry {
            dtype: "F32",
            shape: tensor.dims(),
            data_offsets: [start, end],
        };
        entries.insert(name, entry);
    }
    let json = |error: serde_json::Error| FormatError::malformed(path, error.to_string());
    // PyTorch's loaders want to be told that the file is theirs.
    let mut header = String::from(r#"{"__metadata__":{"format":"pt"}"#);
    for (name, entry) in &entries {
        header.push(',');
        header.push_str(&serde_json::to_string(name).map_err(json)?);
        header.push(':');
        header.push_str(&serde_json::to_string(entry).map_err(json)?);
    }
    header.push('}');
    // The data starts at a multiple of 8.
    let padding = header.len().next_multiple_of(size_of::<u64>()) - header.len();
    header.extend(std::iter::repeat_n(' ', padding));

    let mut file = BufWriter::new(fs_err::File::create(path)?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    for tensor in weights.values() {
        let values = values_of(tensor).map_err(FormatError::tensor(path))?;
        for chunk in values.chunks(CHUNK) {
            let bytes: Vec<u8> = chunk.iter().flat_map(|value| value.to_le_bytes()).collect();
            file.write_all(&bytes)?;
        }
    }
    file.flush()?;
    Ok(())
}

fn values_of(tensor: &Tensor) -> candle_core::Result<Vec<f32>> {
    tensor
        .to_dtype(DType::F32)?
        .to_device(&Device::Cpu)?
        .flatten_all()?
        .to_vec1()
}

#[cfg(test)]
mod tests {
    use super::super::damage::survives;
    use super::super::fixture;
    use super::*;

    #[test]
    fn a_file_is_read_back_bit_for_bit_and_depends_on_its_tensors_only() {
        let folder = tempfile::tempdir().unwrap();
        let weights = fixture::weights(&fixture::config());
        let (first, second) = (folder.path().join("a"), folder.path().join("b"));
        save_safetensors(&first, &weights).unwrap();
        save_safetensors(&second, &load_safetensors(&first).unwrap()).unwrap();
        fixture::assert_equal(&load_safetensors(&second).unwrap(), &weights);
        let bytes = |path: &Path| fs_err::read(path).unwrap();
        assert_eq!(bytes(&first), bytes(&second));
        // Golden: a changed layout changes every digest in every store.
        let digest = blake3::hash(&bytes(&first)).to_hex();
        assert_eq!(&digest[..16], "264a3bd3936482d5");
    }

    #[test]
    fn transposed_tensors_are_written_row_by_row() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t");
        let matrix = Tensor::new(&[[1f32, 2., 3.], [4., 5., 6.]], &Device::Cpu).unwrap();
        save_safetensors(&path, &[("t".to_owned(), matrix.t().unwrap())].into()).unwrap();
        let read = load_safetensors(&path).unwrap().remove("t").unwrap();
        assert_eq!(
            read.to_vec2::<f32>().unwrap(),
            [[1., 4.], [2., 5.], [3., 6.]]
        );
    }

    #[test]
    fn half_precision_becomes_single() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("half.safetensors");
        let values = Tensor::new(&[1.0f32, -0.333_333_34, 70000.0], &Device::Cpu).unwrap();
        let with = |dtype: DType| {
            let tensor = values.to_dtype(dtype).unwrap();
            candle_core::safetensors::save(&[("x", tensor)].into(), &path).unwrap();
            load_safetensors(&path).map(|weights| fixture::values(&weights["x"]))
        };
        assert_eq!(
            with(DType::F16).unwrap(),
            [1.0, -0.333_251_95, f32::INFINITY]
        );
        assert_eq!(with(DType::BF16).unwrap(), [1.0, -0.333_984_38, 70144.0]);
        let error = with(DType::F64).unwrap_err().to_string();
        assert!(
            error.ends_with(
                "data type F64 of tensor `x` is not supported; store it as F32, F16 or BF16"
            ),
            "{error}"
        );
    }

    #[test]
    fn a_message_quotes_only_the_beginning_of_a_long_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t");
        let one = Tensor::new(&[1f32], &Device::Cpu).unwrap();
        save_safetensors(&path, &[("x".repeat(1 << 20), one)].into()).unwrap();
        let files = SafetensorsFiles::open(&path).unwrap();
        let nothing = std::iter::empty();
        let error =
            super::super::tensors::load_exactly(&files, nothing, &Placement::HOST, |_| false)
                .unwrap_err();
        let message = error.to_string();
        assert!(
            message.contains("unexpected tensor `xxx") && message.len() < 1500,
            "{}",
            message.len()
        );
    }

    #[test]
    fn damaged_files_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let mut weights = fixture::weights(&fixture::config());
        weights.retain(|name, _| name.contains("layers.0.self_attn") || name.contains("norm"));
        save_safetensors(&path, &weights).unwrap();
        let valid = fs_err::read(&path).unwrap();
        survives(&valid, 3000, |path, bytes| {
            let entries = parse_header(path, 0, bytes)?;
            let read = |(name, entry): (&String, &Entry)| entry.read(path, bytes, name);
            entries.iter().map(read).collect::<Result<Vec<_>, _>>()
        });
    }
}
