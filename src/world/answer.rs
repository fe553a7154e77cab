//! Classes of answers and their prior.

use super::{grammar, question::Tone};

/// The greatest number of words of a legal answer; generation needs one token more, for the end.
pub const MAXIMUM_ANSWER_WORDS: usize = 23;

/// How many legal answers each question has.
pub const ANSWERS_PER_QUESTION: usize =
    Prefix::ALL.len() * Mode::GOOD.len() * 2 * Closing::ALL.len()
        + Mode::GOOD.len()
        + Mode::BAD.len();

/// What the core of an answer does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mode {
    /// Names the command.
    Direct,
    /// Points to the documentation.
    Reference,
    /// Shows an example.
    Example,
    /// Lists the steps.
    Steps,
    /// Explains the cause.
    Explanation,
    /// Proposes another tool.
    Alternative,
    /// Has the same problem (bad).
    MeToo,
    /// Says nothing (bad).
    Filler,
    /// Insults (bad).
    Rude,
}

impl Mode {
    /// The modes that help some kind of question.
    pub const GOOD: [Self; 6] = [
        Self::Direct,
        Self::Reference,
        Self::Example,
        Self::Steps,
        Self::Explanation,
        Self::Alternative,
    ];
    /// The modes that help nobody.
    pub const BAD: [Self; 3] = [Self::MeToo, Self::Filler, Self::Rude];
    /// All modes, good ones first.
    pub const ALL: [Self; 9] = [
        Self::Direct,
        Self::Reference,
        Self::Example,
        Self::Steps,
        Self::Explanation,
        Self::Alternative,
        Self::MeToo,
        Self::Filler,
        Self::Rude,
    ];

    /// The name used in tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Reference => "reference",
            Self::Example => "example",
            Self::Steps => "steps",
            Self::Explanation => "explanation",
            Self::Alternative => "alternative",
            Self::MeToo => "me_too",
            Self::Filler => "filler",
            Self::Rude => "rude",
        }
    }

    /// Whether the mode is one of [`Mode::GOOD`].
    pub const fn is_good(self) -> bool {
        !matches!(self, Self::MeToo | Self::Filler | Self::Rude)
    }

    pub(super) fn templates(self) -> &'static [&'static str] {
        match self {
            Self::MeToo => grammar::ME_TOO,
            Self::Filler => grammar::FILLER,
            Self::Rude => grammar::RUDE_ANSWER,
            good => std::slice::from_ref(&grammar::GOOD_CORES[good as usize]),
        }
    }

    /// Share among the answers to plain questions.
    const fn weight(self) -> f64 {
        match self {
            Self::Direct => 0.22,
            Self::Reference => 0.18,
            Self::Example => 0.13,
            Self::Steps | Self::Explanation => 0.11,
            Self::Alternative => 0.09,
            Self::MeToo | Self::Filler => 0.06,
            Self::Rude => 0.04,
        }
    }
}

/// What stands before the core.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Prefix {
    /// Nothing.
    None,
    /// A confident opening.
    Sure,
    /// A hesitant one.
    Hedge,
    /// An insult.
    Rude,
}

impl Prefix {
    /// All prefixes.
    pub const ALL: [Self; 4] = [Self::None, Self::Sure, Self::Hedge, Self::Rude];

    pub(super) const fn templates(self) -> &'static [&'static str] {
        match self {
            Self::None => &[],
            Self::Sure => grammar::SURE,
            Self::Hedge => grammar::HEDGE,
            Self::Rude => grammar::RUDE_PREFIX,
        }
    }

    const fn weight(self) -> f64 {
        match self {
            Self::None => 0.65,
            Self::Sure => 0.14,
            Self::Hedge => 0.17,
            Self::Rude => 0.04,
        }
    }
}

/// What stands after the core.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Closing {
    /// Nothing.
    None,
    /// A further fact about the object, or another tool.
    Note,
    /// Good wishes.
    Polite,
    /// A signature or other noise.
    Noise,
    /// An insult.
    Rude,
}

impl Closing {
    /// All closings.
    pub const ALL: [Self; 5] = [
        Self::None,
        Self::Note,
        Self::Polite,
        Self::Noise,
        Self::Rude,
    ];

    pub(super) const fn templates(self) -> &'static [&'static str] {
        match self {
            Self::None => &[],
            Self::Note => grammar::NOTE,
            Self::Polite => grammar::POLITE,
            Self::Noise => grammar::NOISE,
            Self::Rude => grammar::RUDE_CLOSING,
        }
    }

    const fn weight(self) -> f64 {
        match self {
            Self::None => 0.45,
            Self::Note => 0.15,
            Self::Polite => 0.22,
            Self::Noise => 0.13,
            Self::Rude => 0.05,
        }
    }
}

/// Share of good-mode answers that are cut inside their core.
const CUT: f64 = 0.04;
/// Share of complete good-mode answers with a wrong slot.
const WRONG_SLOT: f64 = 0.12;
/// In answers to rude questions: how much likelier the rude mode is, and the shares of rude ends.
const RUDE_MODE_FACTOR: f64 = 8.0;
const RUDE_PREFIX_SHARE: f64 = 0.45;
const RUDE_CLOSING_SHARE: f64 = 0.40;

/// A class of answers: one text for each question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AnswerClass {
    /// A whole answer in one of the good modes.
    Whole {
        /// One of [`Mode::GOOD`].
        mode: Mode,
        /// What stands before the core.
        prefix: Prefix,
        /// Whether one slot of the core names the wrong thing.
        wrong_slot: bool,
        /// What stands after the core.
        closing: Closing,
    },
    /// An answer in a good mode that breaks off inside its core: incoherent.
    Cut {
        /// One of [`Mode::GOOD`].
        mode: Mode,
    },
    /// An answer in one of the bad modes.
    Bad {
        /// One of [`Mode::BAD`].
        mode: Mode,
    },
}

impl AnswerClass {
    /// All classes in their fixed order.
    pub fn all() -> Vec<Self> {
        let mut classes = Vec::with_capacity(ANSWERS_PER_QUESTION);
        for mode in Mode::GOOD {
            for prefix in Prefix::ALL {
                for wrong_slot in [false, true] {
                    for closing in Closing::ALL {
                        classes.push(Self::Whole {
                            mode,
                            prefix,
                            wrong_slot,
                            closing,
                        });
                    }
                }
            }
        }
        classes.extend(Mode::GOOD.map(|mode| Self::Cut { mode }));
        classes.extend(Mode::BAD.map(|mode| Self::Bad { mode }));
        classes
    }

    /// The probability with which an answer of this class is given to a question of this tone.
    pub fn prior(self, tone: Tone) -> f64 {
        match self {
            Self::Whole {
                mode,
                prefix,
                wrong_slot,
                closing,
            } => {
                let slot = if wrong_slot {
                    WRONG_SLOT
                } else {
                    1.0 - WRONG_SLOT
                };
                mode_share(mode, tone)
                    * (1.0 - CUT)
                    * slot
                    * share(
                        prefix.weight(),
                        Prefix::Rude.weight(),
                        prefix == Prefix::Rude,
                        tone,
                        RUDE_PREFIX_SHARE,
                    )
                    * share(
                        closing.weight(),
                        Closing::Rude.weight(),
                        closing == Closing::Rude,
                        tone,
                        RUDE_CLOSING_SHARE,
                    )
            }
            Self::Cut { mode } => mode_share(mode, tone) * CUT,
            Self::Bad { mode } => mode_share(mode, tone),
        }
    }
}

fn mode_share(mode: Mode, tone: Tone) -> f64 {
    if tone == Tone::Plain {
        return mode.weight();
    }
    let rude = Mode::Rude.weight();
    let total = 1.0 + (RUDE_MODE_FACTOR - 1.0) * rude;
    let factor = if mode == Mode::Rude {
        RUDE_MODE_FACTOR
    } else {
        1.0
    };
    factor * mode.weight() / total
}

/// The share of one choice, where rude questions raise the rude choice and shrink the others alike.
fn share(weight: f64, rude_weight: f64, is_rude: bool, tone: Tone, rude_share: f64) -> f64 {
    match (tone, is_rude) {
        (Tone::Plain, _) => weight,
        (Tone::Rude, true) => rude_share,
        (Tone::Rude, false) => weight * (1.0 - rude_share) / (1.0 - rude_weight),
    }
}

/// One legal answer to one question.
#[derive(Debug, Clone, PartialEq)]
pub struct LegalAnswer {
    /// Words separated by single spaces, without a mark for the end.
    pub text: String,
    /// Its class, unique among the answers to the question.
    pub class: AnswerClass,
    /// The mode that a reader sees; `None` for a cut answer, which is incoherent.
    pub mode: Option<Mode>,
    /// The exact reward, ended by the end token.
    pub reward: f64,
    /// Natural logarithm of the probability with which the world gives this answer.
    pub log_prior: f64,
}
