//! SentencePiece's `tokenizer.model`: the protocol buffer, read as far as `transformers` looks at it.
//!
//! Fields are those of `sentencepiece_model.proto` (google/sentencepiece). The file is not trusted: every length is held
//! against what is left of it before anything is taken.

mod convert;
#[cfg(test)]
mod tests;

use std::fmt::Display;

use super::TokenizerError;

pub(super) use convert::{PieceClass, document};

/// Most pieces of a vocabulary; XLM-R has a quarter of a million.
const MOST_PIECES: usize = 1 << 20;

/// How a text is taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Algorithm {
    /// The most probable sequence of pieces.
    Unigram,
    /// Merges in the order of scores.
    Bpe,
}

/// What a piece is for; unknown and byte pieces are found by other means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PieceKind {
    /// Begins or ends a text, and the like.
    Control,
    /// Matched before anything else, and part of text.
    UserDefined,
    /// Anything else.
    Other,
}

/// A piece with its score.
#[derive(Debug, Clone, PartialEq)]
struct Piece {
    /// The text, spaces written as U+2581.
    text: String,
    /// A logarithm of a probability, or minus the rank of a merge.
    score: f32,
    /// What it is for.
    kind: PieceKind,
}

/// What a file says.
#[derive(Debug)]
pub(super) struct SentencePieceModel {
    pieces: Vec<Piece>,
    algorithm: Algorithm,
    unk_id: i64,
    unk_piece: String,
    /// How letters are replaced before all else, in the form of SentencePiece; empty if they are not.
    charsmap: Vec<u8>,
}

fn malformed(reason: impl Display) -> TokenizerError {
    TokenizerError::Invalid(format!("not a SentencePiece model: {reason}"))
}

impl SentencePieceModel {
    /// Reads the bytes of a file.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, TokenizerError> {
        if is_of_tiktoken(bytes) {
            return Err(malformed(
                "it is a list of tiktoken's, which has the same name and is not read here; \
                 `AutoTokenizer.from_pretrained(folder).save_pretrained(folder)` writes a `tokenizer.json`",
            ));
        }
        let mut model = Self {
            pieces: Vec::new(),
            algorithm: Algorithm::Unigram,
            unk_id: 0,
            unk_piece: "<unk>".to_owned(),
            charsmap: Vec::new(),
        };
        for field in Fields(bytes) {
            match field? {
                (1, Wire::Bytes(piece)) => {
                    if model.pieces.len() == MOST_PIECES {
                        return Err(malformed(format!("more than {MOST_PIECES} pieces")));
                    }
                    model.pieces.push(read_piece(piece)?);
                }
                (2, Wire::Bytes(trainer)) => model.read_trainer(trainer)?,
                (3, Wire::Bytes(normalizer)) => {
                    for field in Fields(normalizer) {
                        if let (2, Wire::Bytes(charsmap)) = field? {
                            model.charsmap = charsmap.to_vec();
                        }
                    }
                }
                _ => {}
            }
        }
        if model.pieces.is_empty() {
            return Err(malformed("it has no pieces"));
        }
        Ok(model)
    }

    fn read_trainer(&mut self, bytes: &[u8]) -> Result<(), TokenizerError> {
        for field in Fields(bytes) {
            match field? {
                (3, Wire::Number(1)) => self.algorithm = Algorithm::Unigram,
                (3, Wire::Number(2)) => self.algorithm = Algorithm::Bpe,
                (3, Wire::Number(other)) => {
                    let name = match other {
                        3 => "word",
                        4 => "char",
                        _ => "unknown",
                    };
                    return Err(malformed(format!(
                        "its `trainer_spec.model_type` is {other} ({name}), expected 1 (unigram) or 2 (bpe)"
                    )));
                }
                (40, Wire::Number(id)) => self.unk_id = id.cast_signed(),
                (45, Wire::Bytes(text)) => self.unk_piece = read_text(text)?,
                _ => {}
            }
        }
        Ok(())
    }
}

/// Tells whether a file begins with a line of letters in base 64 and a rank.
fn is_of_tiktoken(bytes: &[u8]) -> bool {
    let start = &bytes[..bytes.len().min(256)];
    let line = start.split(|byte| *byte == b'\n').next();
    let line = line.and_then(|line| std::str::from_utf8(line).ok());
    let parts = line.and_then(|line| line.trim_end().split_once(' '));
    parts.is_some_and(|(letters, rank)| {
        let is_letter = |byte: &u8| byte.is_ascii_alphanumeric() || b"+/=".contains(byte);
        letters.as_bytes().iter().all(is_letter)
            && !letters.is_empty()
            && rank.parse::<u32>().is_ok()
    })
}

fn read_piece(bytes: &[u8]) -> Result<Piece, TokenizerError> {
    let mut piece = Piece {
        text: String::new(),
        score: 0.0,
        kind: PieceKind::Other,
    };
    for field in Fields(bytes) {
        match field? {
            (1, Wire::Bytes(text)) => piece.text = read_text(text)?,
            (2, Wire::Fixed32(bits)) => piece.score = f32::from_bits(bits),
            (3, Wire::Number(kind)) => {
                piece.kind = match kind {
                    3 => PieceKind::Control,
                    4 => PieceKind::UserDefined,
                    _ => PieceKind::Other,
                }
            }
            _ => {}
        }
    }
    if !piece.score.is_finite() {
        return Err(malformed(format!(
            "piece `{}` has the score {}, expected a number",
            piece.text, piece.score
        )));
    }
    Ok(piece)
}

fn read_text(bytes: &[u8]) -> Result<String, TokenizerError> {
    let text = std::str::from_utf8(bytes);
    text.map(str::to_owned)
        .map_err(|_| malformed("a text in it is not UTF-8"))
}

/// A value as it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wire<'a> {
    Number(u64),
    Fixed64,
    Bytes(&'a [u8]),
    Fixed32(u32),
}

/// The fields of a message: number and value.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, length: u64) -> Result<&'a [u8], TokenizerError> {
        let left = self.0.len();
        let taken = usize::try_from(length).ok();
        let parts = taken.and_then(|length| self.0.split_at_checked(length));
        let (taken, rest) = parts.ok_or_else(|| {
            malformed(format!(
                "a field of {length} bytes, where {left} are left in the file"
            ))
        })?;
        self.0 = rest;
        Ok(taken)
    }

    fn number(&mut self) -> Result<u64, TokenizerError> {
        let mut number = 0;
        // Ten bytes hold 64 bits by sevens.
        for shift in (0..64).step_by(7) {
            let byte = u64::from(self.take(1)?[0]);
            number |= (byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(number);
            }
        }
        Err(malformed("a number of more than ten bytes"))
    }

    fn field(&mut self) -> Result<(u64, Wire<'a>), TokenizerError> {
        let tag = self.number()?;
        let value = match tag & 7 {
            0 => Wire::Number(self.number()?),
            1 => {
                self.take(8)?;
                Wire::Fixed64
            }
            2 => {
                let length = self.number()?;
                Wire::Bytes(self.take(length)?)
            }
            5 => {
                let mut bits = [0; 4];
                bits.copy_from_slice(self.take(4)?);
                Wire::Fixed32(u32::from_le_bytes(bits))
            }
            other => return Err(malformed(format!("a field of the wire type {other}"))),
        };
        Ok((tag >> 3, value))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Wire<'a>), TokenizerError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            // Nothing can be told of what follows.
            self.0 = &[];
        }
        Some(field)
    }
}
