//! Decoding of tensor data.
//!
//! A quantised tensor is a row of blocks. The plain 32-element blocks are decoded here: a scale `d`, for
//! some a minimum `m`, both `f16`, and 4, 5 or 8 bits for each element (`ggml-quants.c`). The K-quants with
//! their 256-element super-blocks are decoded by candle.

use candle_core::Device;
use candle_core::quantized::{GgmlDType, ggml_file::qtensor_from_ggml};
use half::{bf16, f16};
use rayon::prelude::*;

/// Elements in a plain block.
const BLOCK: usize = 32;
/// Blocks decoded by one task.
const TASK: usize = 512;

/// How the elements of a tensor are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoding {
    F32,
    F16,
    Bf16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    /// A K-quant, decoded by candle.
    K(GgmlDType),
}

impl Encoding {
    /// The names of all encodings, for messages.
    pub(super) const NAMES: &str = "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 and Q2_K to Q6_K";

    /// Returns the encoding of a `ggml_type` code.
    pub(super) fn from_code(code: u32) -> Option<Self> {
        Some(match code {
            0 => Self::F32,
            1 => Self::F16,
            2 => Self::Q4_0,
            3 => Self::Q4_1,
            6 => Self::Q5_0,
            7 => Self::Q5_1,
            8 => Self::Q8_0,
            10 => Self::K(GgmlDType::Q2K),
            11 => Self::K(GgmlDType::Q3K),
            12 => Self::K(GgmlDType::Q4K),
            13 => Self::K(GgmlDType::Q5K),
            14 => Self::K(GgmlDType::Q6K),
            30 => Self::Bf16,
            _ => return None,
        })
    }

    /// Returns elements and bytes of a block.
    fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::Bf16 => (1, 2),
            Self::Q4_0 => (BLOCK, 2 + 16),
            Self::Q4_1 => (BLOCK, 2 + 2 + 16),
            Self::Q5_0 => (BLOCK, 2 + 4 + 16),
            Self::Q5_1 => (BLOCK, 2 + 2 + 4 + 16),
            Self::Q8_0 => (BLOCK, 2 + 32),
            Self::K(kind) => (kind.block_size(), kind.type_size()),
        }
    }

    /// Returns the bytes of a tensor with `elements` elements, `None` if its rows do not fill whole blocks.
    pub(super) fn byte_count(self, row: u64, elements: u64) -> Option<u64> {
        let (block_elements, block_bytes) = self.block();
        if !row.is_multiple_of(block_elements as u64) {
            return None;
        }
        (elements / block_elements as u64).checked_mul(block_bytes as u64)
    }

    /// Decodes whole blocks.
    pub(super) fn decode(self, bytes: &[u8]) -> candle_core::Result<Vec<f32>> {
        match self {
            Self::F32 => Ok(blocks(bytes, |block: &[u8; 4], out: &mut [f32; 1]| {
                out[0] = f32::from_le_bytes(*block);
            })),
            Self::F16 => Ok(blocks(bytes, |block: &[u8; 2], out: &mut [f32; 1]| {
                out[0] = f16::from_le_bytes(*block).to_f32();
            })),
            Self::Bf16 => Ok(blocks(bytes, |block: &[u8; 2], out: &mut [f32; 1]| {
                out[0] = bf16::from_le_bytes(*block).to_f32();
            })),
            Self::Q4_0 => Ok(blocks(bytes, q4_0)),
            Self::Q4_1 => Ok(blocks(bytes, q4_1)),
            Self::Q5_0 => Ok(blocks(bytes, q5_0)),
            Self::Q5_1 => Ok(blocks(bytes, q5_1)),
            Self::Q8_0 => Ok(blocks(bytes, q8_0)),
            Self::K(kind) => k_quant(kind, bytes),
        }
    }
}

/// Decodes blocks of `BYTES` bytes into `ELEMENTS` elements each, in parallel.
fn blocks<const BYTES: usize, const ELEMENTS: usize>(
    bytes: &[u8],
    block: impl Fn(&[u8; BYTES], &mut [f32; ELEMENTS]) + Sync,
) -> Vec<f32> {
    let encoded = bytes.as_chunks::<BYTES>().0;
    let mut values = vec![0.0; encoded.len() * ELEMENTS];
    let decoded = values.as_chunks_mut::<ELEMENTS>().0;
    let task = TASK.max(TASK * BLOCK / ELEMENTS);
    decoded
        .par_chunks_mut(task)
        .zip(encoded.par_chunks(task))
        .for_each(|(decoded, encoded)| {
            for (out, bytes) in decoded.iter_mut().zip(encoded) {
                block(bytes, out);
            }
        });
    values
}

fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// Element `i` has the low, element `i + 16` the high four bits of byte `i`.
fn nibble(nibbles: &[u8], element: usize) -> u8 {
    let byte = nibbles[element % 16];
    if element < 16 { byte & 0x0f } else { byte >> 4 }
}

/// The four bits of [`nibble`] and a fifth one from a bit mask.
fn five_bits(block: &[u8], mask_at: usize, element: usize) -> u8 {
    let high = (block[mask_at + element / 8] >> (element % 8)) & 1;
    nibble(&block[mask_at + 4..], element) | (high << 4)
}

fn q4_0(block: &[u8; 18], out: &mut [f32; BLOCK]) {
    let d = half_at(block, 0);
    for (element, out) in out.iter_mut().enumerate() {
        *out = f32::from(i16::from(nibble(&block[2..], element)) - 8) * d;
    }
}

fn q4_1(block: &[u8; 20], out: &mut [f32; BLOCK]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    for (element, out) in out.iter_mut().enumerate() {
        *out = f32::from(nibble(&block[4..], element)) * d + m;
    }
}

fn q5_0(block: &[u8; 22], out: &mut [f32; BLOCK]) {
    let d = half_at(block, 0);
    for (element, out) in out.iter_mut().enumerate() {
        *out = f32::from(i16::from(five_bits(block, 2, element)) - 16) * d;
    }
}

fn q5_1(block: &[u8; 24], out: &mut [f32; BLOCK]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    for (element, out) in out.iter_mut().enumerate() {
        *out = f32::from(five_bits(block, 4, element)) * d + m;
    }
}

fn q8_0(block: &[u8; 34], out: &mut [f32; BLOCK]) {
    let d = half_at(block, 0);
    for (out, byte) in out.iter_mut().zip(&block[2..]) {
        *out = f32::from(byte.cast_signed()) * d;
    }
}

fn k_quant(kind: GgmlDType, bytes: &[u8]) -> candle_core::Result<Vec<f32>> {
    let (block_elements, block_bytes) = Encoding::K(kind).block();
    let parts = bytes
        .par_chunks(TASK * block_bytes)
        .map(|part| {
            // A copy, because candle reads blocks in place and the file does not align them.
            let part = part.to_vec();
            let elements = part.len() / block_bytes * block_elements;
            qtensor_from_ggml(kind, &part, vec![elements], &Device::Cpu)?
                .dequantize(&Device::Cpu)?
                .to_vec1::<f32>()
        })
        .collect::<candle_core::Result<Vec<_>>>()?;
    Ok(parts.concat())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Stream;
    use candle_core::Tensor;
    use candle_core::quantized::QTensor;

    /// Every encoding must decode what candle encodes to what candle decodes.
    #[test]
    fn blocks_decode_as_candle_decodes_them() {
        let mut draws = Stream::new(1, "quantisation").at(0);
        let values: Vec<f32> = (0..256 * 1200).map(|_| draws.normal() as f32).collect();
        let tensor = Tensor::new(values.as_slice(), &Device::Cpu).unwrap();
        for (encoding, kind) in [
            (Encoding::F32, GgmlDType::F32),
            (Encoding::F16, GgmlDType::F16),
            (Encoding::Bf16, GgmlDType::BF16),
            (Encoding::Q4_0, GgmlDType::Q4_0),
            (Encoding::Q4_1, GgmlDType::Q4_1),
            (Encoding::Q5_0, GgmlDType::Q5_0),
            (Encoding::Q5_1, GgmlDType::Q5_1),
            (Encoding::Q8_0, GgmlDType::Q8_0),
            (Encoding::K(GgmlDType::Q2K), GgmlDType::Q2K),
            (Encoding::K(GgmlDType::Q3K), GgmlDType::Q3K),
            (Encoding::K(GgmlDType::Q4K), GgmlDType::Q4K),
            (Encoding::K(GgmlDType::Q5K), GgmlDType::Q5K),
            (Encoding::K(GgmlDType::Q6K), GgmlDType::Q6K),
        ] {
            let quantised = QTensor::quantize(&tensor, kind).unwrap();
            let expected = quantised.dequantize(&Device::Cpu).unwrap();
            let bytes = quantised.data().unwrap();
            let elements = values.len() as u64;
            assert_eq!(
                encoding.byte_count(elements, elements),
                Some(bytes.len() as u64),
                "{encoding:?}"
            );
            let decoded = encoding.decode(&bytes).unwrap();
            assert_eq!(decoded, expected.to_vec1::<f32>().unwrap(), "{encoding:?}");
        }
    }

    /// Values computed by hand from the layout, so that candle is not the only witness.
    #[test]
    fn plain_blocks_follow_their_layout() {
        let mut block = [0u8; 20];
        block[..2].copy_from_slice(&f16::from_f32(0.5).to_le_bytes());
        block[2..4].copy_from_slice(&f16::from_f32(-1.0).to_le_bytes());
        block[4] = 0xf3;
        let mut out = [0.0; BLOCK];
        q4_1(&block, &mut out);
        assert_eq!((out[0], out[16], out[1]), (0.5, 6.5, -1.0));

        let mut block = [0u8; 34];
        block[..2].copy_from_slice(&f16::from_f32(0.25).to_le_bytes());
        block[2 + 31] = 0xfe;
        q8_0(&block, &mut out);
        assert_eq!((out[0], out[31]), (0.0, -0.5));
    }

    #[test]
    fn rows_must_fill_whole_blocks() {
        assert_eq!(Encoding::Q8_0.byte_count(16, 64), None);
        assert_eq!(Encoding::Q8_0.byte_count(64, 128), Some(4 * 34));
        assert_eq!(Encoding::F32.byte_count(u64::MAX, u64::MAX), None);
    }
}
