//! Damaging bytes at random.

use flowgraph::random::Draws;

/// No input grows beyond this.
const LONGEST: usize = 256 << 10;

/// Numbers at which readers go wrong.
const EDGES: [u64; 14] = [
    0,
    1,
    2,
    7,
    0x7f,
    0xff,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x7fff_ffff_ffff_ffff,
    0x8000_0000_0000_0000,
    u64::MAX,
];

const NUMBERS: [&str; 12] = [
    "0",
    "-1",
    "1",
    "3",
    "255",
    "4294967295",
    "4294967296",
    "9223372036854775807",
    "18446744073709551615",
    "1e308",
    "-1e400",
    "0.1",
];

/// Returns one of `seeds` after one to eight changes; `words` are what the format is made of.
pub(crate) fn mutate(draws: &mut Draws, seeds: &[Vec<u8>], words: &[&str]) -> Vec<u8> {
    let mut bytes = seeds[draws.below(seeds.len())].clone();
    let changes = if draws.chance(0.5) {
        1
    } else {
        1 + draws.below(8)
    };
    for _ in 0..changes {
        change(draws, &mut bytes, seeds, words);
        bytes.truncate(LONGEST);
    }
    bytes
}

/// A stretch of `bytes`, mostly a short one.
fn stretch(draws: &mut Draws, bytes: &[u8]) -> std::ops::Range<usize> {
    let start = draws.below(bytes.len() + 1);
    let most = if draws.chance(0.8) { 16 } else { bytes.len() };
    let length = draws.below(most + 1).min(bytes.len() - start);
    start..start + length
}

fn change(draws: &mut Draws, bytes: &mut Vec<u8>, seeds: &[Vec<u8>], words: &[&str]) {
    let at = draws.below(bytes.len() + 1);
    match draws.below(11) {
        0 if at < bytes.len() => bytes[at] ^= 1 << draws.below(8),
        1 if at < bytes.len() => bytes[at] = draws.below(256) as u8,
        2 => {
            let edge = EDGES[draws.below(EDGES.len())].to_le_bytes();
            let width = [1, 2, 4, 8][draws.below(4)];
            let end = bytes.len().min(at + width);
            bytes[at..end].copy_from_slice(&edge[..end - at]);
        }
        3 => {
            let range = stretch(draws, bytes);
            bytes.drain(range);
        }
        4 => {
            let range = stretch(draws, bytes);
            let copy = bytes[range].to_vec();
            bytes.splice(at..at, copy);
        }
        // Nests and counts: the same few bytes very often.
        5 => {
            let range = stretch(draws, bytes);
            let range = range.start..range.end.min(range.start + 24);
            let times = [2, 10, 200, 5000][draws.below(4)];
            let copy = bytes[range].repeat(times);
            bytes.splice(at..at, copy);
        }
        6 => {
            let other = &seeds[draws.below(seeds.len())];
            let range = stretch(draws, other);
            let end = bytes.len().min(at + draws.below(range.len() + 1));
            bytes.splice(at..end, other[range].to_vec());
        }
        7 if draws.chance(0.2) => bytes.truncate(at),
        8 if !words.is_empty() => {
            let word = words[draws.below(words.len())].bytes();
            bytes.splice(at..at, word);
        }
        9 => replace_number(draws, bytes, at),
        _ => {
            let noise: Vec<u8> = (0..draws.below(8))
                .map(|_| draws.below(256) as u8)
                .collect();
            bytes.splice(at..at, noise);
        }
    }
}

/// Replaces the first number, written in digits, at or after `at`.
fn replace_number(draws: &mut Draws, bytes: &mut Vec<u8>, at: usize) {
    let digits = |byte: &u8| byte.is_ascii_digit();
    if let Some(start) = bytes[at..].iter().position(digits) {
        let start = at + start;
        let length = bytes[start..]
            .iter()
            .take_while(|byte| digits(byte))
            .count();
        let number = NUMBERS[draws.below(NUMBERS.len())].bytes();
        bytes.splice(start..start + length, number);
    }
}
