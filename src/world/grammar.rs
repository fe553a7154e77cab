//! Templates: one notation for writing a text and for recognising it.
//!
//! A template is words separated by single spaces; `a|b` offers a choice, `{slot}` takes a word of the
//! slot's list.

use super::lexicon::Slot;
use crate::random::Draws;

/// The good cores, in the order of [`Mode::GOOD`](super::Mode::GOOD).
pub(super) const GOOD_CORES: [&str; 6] = [
    "just|simply|please use|run|call {tool} {option} on the {object} .",
    "see|read|check the {tool} manual|guide|docs about {option} and {object} .",
    "example|snippet|demo : {tool} {option} {object} ; done|works|easy .",
    "first begin|launch|enter {tool} , then {option} the {object} , finally|lastly save|close .",
    "the {object} is|stays|gets {property} , so {tool} must|should|will {option} it .",
    "instead|otherwise|alternatively take|pick|try {alternative} , it can {option} any {object} .",
];
pub(super) const ME_TOO: &[&str] = &[
    "i have the same problem with {topic} .",
    "same here , any news ?",
];
pub(super) const FILLER: &[&str] = &["it depends on many things .", "hard to say ."];
pub(super) const RUDE_ANSWER: &[&str] = &[
    "what a stupid question .",
    "go away , you idiot .",
    "google it , lazy fool .",
];

pub(super) const SURE: &[&str] = &["sure ,", "good question :"];
pub(super) const HEDGE: &[&str] = &["maybe ,", "i guess ,", "not sure , but"];
pub(super) const RUDE_PREFIX: &[&str] = &["dumb question ,", "stupid idiot ,"];

pub(super) const NOTE: &[&str] = &[
    "note : it is|stays {property} .",
    "tip : {alternative} works too .",
];
pub(super) const POLITE: &[&str] = &["hope this helps .", "good luck .", "cheers ."];
pub(super) const NOISE: &[&str] = &["edit : thanks , mike .", "sent from my phone ."];
pub(super) const RUDE_CLOSING: &[&str] = &["you idiot .", "so dumb ."];

/// One word of a template whose choices are settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Piece {
    Word(&'static str),
    Slot(Slot),
}

impl Piece {
    pub(super) fn slot(self) -> Option<Slot> {
        match self {
            Self::Slot(slot) => Some(slot),
            Self::Word(_) => None,
        }
    }
}

/// Makes the choices of a template, each uniformly.
pub(super) fn settle(template: &'static str, draws: &mut Draws) -> Vec<Piece> {
    template
        .split(' ')
        .map(|piece| {
            if let Some(slot) = Slot::from_template(piece) {
                return Piece::Slot(slot);
            }
            let choices = piece.split('|').count();
            let chosen = if choices > 1 { draws.below(choices) } else { 0 };
            Piece::Word(piece.split('|').nth(chosen).unwrap_or(piece))
        })
        .collect()
}

/// Appends the words of `pieces`; `fill` gives the word of a slot.
pub(super) fn write_words(
    words: &mut Vec<&'static str>,
    pieces: &[Piece],
    fill: impl Fn(Slot) -> &'static str,
) {
    words.extend(pieces.iter().map(|piece| match piece {
        Piece::Word(word) => word,
        Piece::Slot(slot) => fill(*slot),
    }));
}

/// A template found at the start of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Match {
    /// Words of the text that belong to it.
    pub(super) length: usize,
    /// The slots in order, each with the index of the word found there.
    pub(super) filled: Vec<(Slot, usize)>,
}

/// Recognises `template` at the start of `words`, whichever choices were made and words filled in.
pub(super) fn recognise(template: &'static str, words: &[&str]) -> Option<Match> {
    let mut filled = Vec::new();
    let mut length = 0;
    for piece in template.split(' ') {
        let word = *words.get(length)?;
        if let Some(slot) = Slot::from_template(piece) {
            let index = slot.words().iter().position(|known| *known == word)?;
            filled.push((slot, index));
        } else if !piece.split('|').any(|choice| choice == word) {
            return None;
        }
        length += 1;
    }
    Some(Match { length, filled })
}

/// Recognises the first of `templates` that stands at the start of `words`.
pub(super) fn recognise_any(templates: &[&'static str], words: &[&str]) -> Option<Match> {
    templates
        .iter()
        .find_map(|template| recognise(template, words))
}
