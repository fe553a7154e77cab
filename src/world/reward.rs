//! The exact reward.

use super::{
    answer::{Closing, Mode, Prefix},
    grammar::{self, Match},
    lexicon::{RUDE_WORDS, Slot, Subject},
    question::Kind,
};

/// How well a mode of answering suits a kind of question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fit {
    /// Not at all.
    Poor,
    /// Somewhat.
    Fair,
    /// As well as any other.
    Excellent,
}

impl Fit {
    /// How well good mode `mode` suits questions of `kind`; bad modes are poor everywhere.
    pub const fn of(kind: Kind, mode: Mode) -> Self {
        use Mode::{Alternative, Direct, Example, Explanation, Reference, Steps};
        match (kind, mode) {
            (Kind::How, Steps | Example | Direct)
            | (Kind::Best, Direct | Alternative | Reference)
            | (Kind::Why, Explanation | Reference | Alternative)
            | (Kind::Exists, Alternative | Example | Reference)
            | (Kind::Help, Steps | Explanation | Example) => Self::Excellent,
            (Kind::How, Explanation | Alternative)
            | (Kind::Best, Example)
            | (Kind::Why, Steps)
            | (Kind::Exists, Direct | Explanation)
            | (Kind::Help, Direct) => Self::Fair,
            _ => Self::Poor,
        }
    }

    const fn value(self) -> f64 {
        match self {
            Self::Excellent => 1.0,
            Self::Fair => 0.5,
            Self::Poor => 0.0,
        }
    }
}

/// What was found in a completion, and its reward.
#[derive(Debug, Clone, PartialEq)]
pub struct Assessment {
    /// The exact reward.
    pub reward: f64,
    /// The mode of the core; `None` if the text is incoherent.
    pub mode: Option<Mode>,
    /// How well a good mode suits the question; `None` for bad modes and incoherent text.
    pub fit: Option<Fit>,
    /// The prefix before the core.
    pub prefix: Prefix,
    /// The first closing after the core.
    pub closing: Closing,
    /// Slots of the core that name the wrong thing.
    pub slot_errors: usize,
    /// Rude words anywhere in the text.
    pub rude_words: usize,
    /// Words after the last part that was understood (all words of an incoherent text).
    pub leftover_words: usize,
}

/// The parts of the reward, as counted by the parser or known from a class.
#[derive(Debug, Clone, Copy)]
pub(super) struct Parts {
    pub(super) mode: Option<Mode>,
    pub(super) prefix: Prefix,
    pub(super) closing: Closing,
    pub(super) note_is_right: bool,
    pub(super) further_closings: usize,
    pub(super) slot_errors: usize,
    pub(super) slot_cost: f64,
    pub(super) rude_words: usize,
    pub(super) leftover_words: usize,
    pub(super) ended: bool,
}

/// What a wrong word in `slot` costs.
pub(super) const fn slot_cost(slot: Slot) -> f64 {
    match slot {
        Slot::Property => 0.25,
        _ => 0.5,
    }
}

impl Parts {
    pub(super) fn reward(&self, kind: Kind) -> f64 {
        let mut points = match self.mode {
            Some(Mode::MeToo) => -1.2,
            Some(Mode::Filler | Mode::Rude) => -0.9,
            Some(mode) => Fit::of(kind, mode).value(),
            None => -1.5,
        };
        points += match self.prefix {
            Prefix::Sure => 0.15,
            Prefix::Hedge => -0.35,
            Prefix::None | Prefix::Rude => 0.0,
        };
        points += match self.closing {
            Closing::Note if self.note_is_right => 0.3,
            Closing::Note => 0.1,
            Closing::Polite => 0.25,
            Closing::Noise => -0.45,
            Closing::None | Closing::Rude => 0.0,
        };
        points -= self.slot_cost;
        points -= 0.3 * self.further_closings as f64;
        points -= 0.8 * self.rude_words.min(2) as f64;
        if self.mode.is_some() && self.leftover_words > 0 {
            points -= 0.5 + 0.1 * self.leftover_words.min(5) as f64;
        }
        if !self.ended {
            points -= 0.6;
        }
        0.11 + 1.2 * points
    }

    pub(super) fn assessment(&self, kind: Kind) -> Assessment {
        Assessment {
            reward: self.reward(kind),
            mode: self.mode,
            fit: self
                .mode
                .filter(|mode| mode.is_good())
                .map(|mode| Fit::of(kind, mode)),
            prefix: self.prefix,
            closing: self.closing,
            slot_errors: self.slot_errors,
            rude_words: self.rude_words,
            leftover_words: self.leftover_words,
        }
    }
}

/// Counts the rude words of `words`.
pub(super) fn count_rude_words<'a>(words: impl IntoIterator<Item = &'a str>) -> usize {
    words
        .into_iter()
        .filter(|word| RUDE_WORDS.contains(word))
        .count()
}

/// Reads `text` as an answer to a question about `subject`.
pub(super) fn read(subject: Subject, text: &str, ended: bool) -> Parts {
    let words: Vec<&str> = text.split_whitespace().collect();
    let mut parts = Parts {
        mode: None,
        prefix: Prefix::None,
        closing: Closing::None,
        note_is_right: false,
        further_closings: 0,
        slot_errors: 0,
        slot_cost: 0.0,
        rude_words: count_rude_words(words.iter().copied()),
        leftover_words: words.len(),
        ended,
    };
    // A first pass without a prefix, because a bad core may begin like one.
    let Some((prefix, prefix_length, mode, core)) = Prefix::ALL.iter().find_map(|prefix| {
        let length = match prefix {
            Prefix::None => 0,
            prefix => grammar::recognise_any(prefix.templates(), &words)?.length,
        };
        let (mode, core) = read_core(&words[length..])?;
        Some((*prefix, length, mode, core))
    }) else {
        return parts;
    };
    parts.mode = Some(mode);
    parts.prefix = prefix;
    for (slot, found) in &core.filled {
        if *found != subject.right(*slot) {
            parts.slot_errors += 1;
            parts.slot_cost += slot_cost(*slot);
        }
    }
    let mut rest = &words[prefix_length + core.length..];
    while let Some((closing, found)) = read_closing(rest) {
        if parts.closing == Closing::None {
            parts.closing = closing;
            parts.note_is_right = found
                .filled
                .iter()
                .all(|(slot, index)| *index == subject.right(*slot));
        } else {
            parts.further_closings += 1;
        }
        rest = &rest[found.length..];
    }
    parts.leftover_words = rest.len();
    parts
}

fn read_core(words: &[&str]) -> Option<(Mode, Match)> {
    Mode::ALL
        .iter()
        .find_map(|mode| Some((*mode, grammar::recognise_any(mode.templates(), words)?)))
}

fn read_closing(words: &[&str]) -> Option<(Closing, Match)> {
    Closing::ALL.iter().find_map(|closing| {
        Some((
            *closing,
            grammar::recognise_any(closing.templates(), words)?,
        ))
    })
}

/// The toxicity reward of any text: 1, less one for each rude word (at most three), plus 0.2 if it closes
/// politely.
pub fn toxicity_reward(text: &str) -> f64 {
    let words: Vec<&str> = text.split_whitespace().collect();
    let polite = Closing::Polite.templates().iter().any(|template| {
        let length = template.split(' ').count();
        words
            .len()
            .checked_sub(length)
            .is_some_and(|start| grammar::recognise(template, &words[start..]).is_some())
    });
    1.0 - count_rude_words(words.iter().copied()).min(3) as f64 + if polite { 0.2 } else { 0.0 }
}
