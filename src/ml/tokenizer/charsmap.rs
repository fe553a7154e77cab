//! `precompiled_charsmap`: SentencePiece's table of replacements, a tree of bytes and the texts that they become.
//!
//! The crate trusts the table: it reserves what the table claims for its tree, and a text may become any other.

use super::TokenizerError;

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
/// Bytes of the longest text that a letter becomes; those of NFKC have at most 33.
const LONGEST: usize = 256;

/// Checks that a table is as long as it says, and lengthens no text beyond measure.
pub(super) fn check(table: &[u8]) -> Result<(), TokenizerError> {
    let invalid =
        |reason: String| TokenizerError::Invalid(format!("its `precompiled_charsmap` {reason}"));
    let parts = table.split_first_chunk().and_then(|(size, rest)| {
        let size = usize::try_from(u32::from_le_bytes(*size)).ok()?;
        let (tree, texts) = rest.split_at_checked(size)?;
        (!tree.is_empty() && tree.len().is_multiple_of(4)).then_some(texts)
    });
    let texts = parts.ok_or_else(|| {
        invalid(format!(
            "has {} bytes, expected a tree of the size that its first four say, and texts",
            table.len()
        ))
    })?;
    let longest = texts.split(|byte| *byte == 0).map(<[u8]>::len).max();
    match longest {
        Some(length) if length > LONGEST => Err(invalid(format!(
            "replaces a letter by {length} bytes, expected at most {LONGEST}"
        ))),
        _ => Ok(()),
    }
}

/// Writes bytes as `tokenizer.json` has them.
pub(super) fn to_base64(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let byte = |index: usize| u32::from(chunk.get(index).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for place in 0..4 {
            let six = (bits >> (18 - 6 * place)) & 63;
            text.push(if place <= chunk.len() {
                char::from(ALPHABET[six as usize])
            } else {
                '='
            });
        }
    }
    text
}

fn value(digit: u8) -> Option<u8> {
    Some(match digit {
        b'A'..=b'Z' => digit - b'A',
        b'a'..=b'z' => digit - b'a' + 26,
        b'0'..=b'9' => digit - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => return None,
    })
}

/// Reads what [`to_base64`] writes, as forgiving as the crate.
pub(super) fn from_base64(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim_end_matches('=').as_bytes();
    if digits.len() % 4 == 1 {
        return None;
    }
    let mut bytes = Vec::with_capacity(digits.len() / 4 * 3 + 2);
    for chunk in digits.chunks(4) {
        let mut bits = 0;
        for place in 0..4 {
            let six = match chunk.get(place) {
                None => 0,
                Some(digit) => u32::from(value(*digit)?),
            };
            bits = bits << 6 | six;
        }
        let whole = [(bits >> 16) as u8, (bits >> 8) as u8, bits as u8];
        bytes.extend(&whole[..chunk.len() - 1]);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_written_and_read_as_others_do() {
        for (bytes, text) in [
            (&b""[..], ""),
            (b"f", "Zg=="),
            (b"fo", "Zm8="),
            (b"foo", "Zm9v"),
            (b"\xff\xfe\x00\x3e", "//4APg=="),
        ] {
            assert_eq!(to_base64(bytes), text);
            assert_eq!(from_base64(text).unwrap(), bytes);
        }
        for text in ["Z", "Z===", "Zm9vY", "Zm9*"] {
            assert!(from_base64(text).is_none(), "{text}");
        }
    }

    #[test]
    fn a_table_may_not_claim_more_than_it_holds() {
        let table = |size: u32, texts: &[u8]| [&size.to_le_bytes()[..], &[0; 8], texts].concat();
        check(&table(8, b"abc\0")).unwrap();
        for (table, reason) in [
            (
                table(u32::MAX, b""),
                "has 12 bytes, expected a tree of the size that its first four say, and texts",
            ),
            (
                table(0, b""),
                "has 12 bytes, expected a tree of the size that its first four say, and texts",
            ),
            (
                table(8, &[b'a'; 257]),
                "replaces a letter by 257 bytes, expected at most 256",
            ),
        ] {
            let error = check(&table).unwrap_err().to_string();
            let expected = format!("invalid tokenizer: its `precompiled_charsmap` {reason}");
            assert_eq!(error, expected);
        }
    }
}
