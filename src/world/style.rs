//! House styles: how the answers of one topic are worded, and which slips they make.

use super::{
    answer::{Closing, Mode, Prefix},
    grammar::{self, Piece},
    lexicon::Slot,
};
use crate::random::{Draws, Stream};

/// The wording of one topic, drawn once.
#[derive(Debug, Clone)]
pub(super) struct HouseStyle {
    prefixes: Vec<Vec<Piece>>,
    cores: Vec<Vec<Piece>>,
    closings: Vec<Vec<Piece>>,
    /// For each good mode, the slot of its core that is wrong where a slot is wrong.
    confused_slots: Vec<Slot>,
    /// For each good mode, how many words of its core remain when it is cut.
    cut_lengths: Vec<usize>,
}

impl HouseStyle {
    pub(super) fn draw(draws: &mut Draws) -> Self {
        let mut word = |templates: &'static [&'static str]| match templates {
            [] => Vec::new(),
            templates => grammar::settle(templates[draws.below(templates.len())], draws),
        };
        let prefixes = Prefix::ALL.map(|prefix| word(prefix.templates())).into();
        let cores: Vec<Vec<Piece>> = Mode::ALL.map(|mode| word(mode.templates())).into();
        let closings = Closing::ALL.map(|closing| word(closing.templates())).into();
        let mut confused_slots = Vec::new();
        let mut cut_lengths = Vec::new();
        for mode in Mode::GOOD {
            let core = &cores[mode as usize];
            let slots: Vec<Slot> = core.iter().filter_map(|piece| piece.slot()).collect();
            confused_slots.push(slots[draws.below(slots.len())]);
            // At least two words remain and at least two are lost.
            cut_lengths.push(2 + draws.below(core.len() - 3));
        }
        Self {
            prefixes,
            cores,
            closings,
            confused_slots,
            cut_lengths,
        }
    }

    pub(super) fn prefix(&self, prefix: Prefix) -> &[Piece] {
        &self.prefixes[prefix as usize]
    }

    pub(super) fn core(&self, mode: Mode) -> &[Piece] {
        &self.cores[mode as usize]
    }

    pub(super) fn cut_core(&self, mode: Mode) -> &[Piece] {
        &self.core(mode)[..self.cut_lengths[mode as usize]]
    }

    pub(super) fn closing(&self, closing: Closing) -> &[Piece] {
        &self.closings[closing as usize]
    }

    pub(super) fn confused_slot(&self, mode: Mode) -> Slot {
        self.confused_slots[mode as usize]
    }
}

/// Which wrong word takes the place of the right one: for each slot always the entry a fixed distance
/// further down its list, so that a policy can know the slips too.
#[derive(Debug, Clone)]
pub(super) struct Confusions {
    shifts: Vec<usize>,
}

impl Confusions {
    pub(super) fn draw(stream: &Stream) -> Self {
        let shift = |slot: Slot| 1 + stream.at(slot as u64).below(slot.words().len() - 1);
        Self {
            shifts: Slot::ALL.map(shift).into(),
        }
    }

    /// The word that takes the place of word `right` of the slot's list.
    pub(super) fn wrong_word(&self, slot: Slot, right: usize) -> &'static str {
        let words = slot.words();
        words[(right + self.shifts[slot as usize]) % words.len()]
    }
}
