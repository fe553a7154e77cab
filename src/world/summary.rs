//! Summaries of posts: every legal one, and the exact reward of any text.
//!
//! A good summary says in one of six forms what is to be done with what in which topic, what was tried and what the
//! trouble is. Three forms suit each request best and tie. Leaving out what was tried or the trouble costs, and so do
//! wrong words, what does not matter, words beyond [`FREE_WORDS`], rudeness, and not ending.

use super::{
    corpus::{first_wins, in_rounds},
    grammar,
    lexicon::Slot,
    post::{ASIDES, Facts, Post, Posts, Request},
    reward::{Fit, count_rude_words},
};
use crate::random::{Draws, Stream};

/// How many legal summaries each post has.
pub const SUMMARIES_PER_POST: usize =
    Form::ALL.len() * (Coverage::ALL.len() * 2 * Ending::ALL.len() + 1) + Useless::ALL.len();

/// Words of a summary that cost nothing.
pub const FREE_WORDS: usize = 16;

/// How a summary puts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Form {
    /// The question.
    Question,
    /// What somebody wants.
    Wish,
    /// What help is needed.
    Need,
    /// What was tried.
    Attempt,
    /// What is the case.
    State,
    /// A headline.
    Headline,
}

impl Form {
    /// All forms.
    pub const ALL: [Self; 6] = [
        Self::Question,
        Self::Wish,
        Self::Need,
        Self::Attempt,
        Self::State,
        Self::Headline,
    ];

    /// The name used in tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Question => "question",
            Self::Wish => "wish",
            Self::Need => "need",
            Self::Attempt => "attempt",
            Self::State => "state",
            Self::Headline => "headline",
        }
    }

    /// How well it suits what a post asks for; three forms suit each request best.
    pub const fn fit(self, request: Request) -> Fit {
        match (request, self) {
            (Request::Way, Self::Question | Self::Wish | Self::Need)
            | (Request::Reason, Self::Attempt | Self::State | Self::Headline)
            | (Request::Help, Self::Need | Self::Wish | Self::Attempt) => Fit::Excellent,
            (Request::Way, Self::Attempt | Self::Headline)
            | (Request::Reason, Self::Question | Self::Wish)
            | (Request::Help, Self::State | Self::Headline) => Fit::Fair,
            _ => Fit::Poor,
        }
    }

    const fn template(self, coverage: Coverage) -> &'static str {
        use Coverage::{Full, NoAttempt, NoTrouble};
        match (self, coverage) {
            (Self::Question, Full) => {
                "how to {verb} the {object} in {topic} if {tried} fails and it is {property} ?"
            }
            (Self::Question, NoTrouble) => {
                "how to {verb} the {object} in {topic} if {tried} fails ?"
            }
            (Self::Question, NoAttempt) => {
                "how to {verb} the {object} in {topic} if it is {property} ?"
            }
            (Self::Wish, Full) => {
                "wants to {verb} the {object} in {topic} , {tried} fails , it is {property} ."
            }
            (Self::Wish, NoTrouble) => "wants to {verb} the {object} in {topic} , {tried} fails .",
            (Self::Wish, NoAttempt) => {
                "wants to {verb} the {object} in {topic} , it is {property} ."
            }
            (Self::Need, Full) => {
                "needs {topic} help : {verb} the {property} {object} without {tried} ."
            }
            (Self::Need, NoTrouble) => "needs {topic} help : {verb} the {object} without {tried} .",
            (Self::Need, NoAttempt) => "needs {topic} help : {verb} the {property} {object} .",
            (Self::Attempt, Full) => {
                "tried {tried} to {verb} the {object} in {topic} , but it is {property} ."
            }
            (Self::Attempt, NoTrouble) => {
                "tried {tried} to {verb} the {object} in {topic} , no luck ."
            }
            (Self::Attempt, NoAttempt) => {
                "tried to {verb} the {object} in {topic} , but it is {property} ."
            }
            (Self::State, Full) => {
                "the {object} is {property} , so {tried} can not {verb} it in {topic} ."
            }
            (Self::State, NoTrouble) => "so far {tried} can not {verb} the {object} in {topic} .",
            (Self::State, NoAttempt) => {
                "the {object} is {property} , can not {verb} it in {topic} ."
            }
            (Self::Headline, Full) => "{topic} : {tried} does not {verb} the {property} {object} .",
            (Self::Headline, NoTrouble) => "{topic} : {tried} does not {verb} the {object} .",
            (Self::Headline, NoAttempt) => "{topic} : can not {verb} the {property} {object} .",
        }
    }

    const fn weight(self) -> f64 {
        match self {
            Self::Attempt | Self::Question => 0.22,
            Self::Wish | Self::State => 0.16,
            Self::Need | Self::Headline => 0.12,
        }
    }
}

/// Which of the facts that can be left out a summary has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Coverage {
    /// All.
    Full,
    /// Not what the trouble is.
    NoTrouble,
    /// Not what was tried.
    NoAttempt,
}

impl Coverage {
    /// All, the longest first.
    pub const ALL: [Self; 3] = [Self::Full, Self::NoTrouble, Self::NoAttempt];

    const fn weight(self) -> f64 {
        match self {
            Self::Full => 0.4,
            Self::NoTrouble | Self::NoAttempt => 0.3,
        }
    }
}

/// What stands after a summary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ending {
    /// Nothing.
    None,
    /// The aside of the post, or one like it: it does not matter.
    Aside,
    /// Thanks, which belong into no summary.
    Thanks,
    /// An insult.
    Rude,
}

impl Ending {
    /// All endings.
    pub const ALL: [Self; 4] = [Self::None, Self::Aside, Self::Thanks, Self::Rude];

    const fn templates(self) -> &'static [&'static str] {
        match self {
            Self::None => &[],
            Self::Aside => &ASIDES,
            Self::Thanks => &["thanks to all ."],
            Self::Rude => &["so dumb ."],
        }
    }

    const fn weight(self) -> f64 {
        match self {
            Self::None => 0.55,
            Self::Aside => 0.25,
            Self::Thanks => 0.13,
            Self::Rude => 0.07,
        }
    }
}

/// A text that summarises nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Useless {
    /// The first sentence of the post.
    Copy,
    /// A pointer to the post.
    Pointer,
    /// An insult.
    Rude,
}

impl Useless {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Copy, Self::Pointer, Self::Rude];

    /// The name used in tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Copy => "copy",
            Self::Pointer => "pointer",
            Self::Rude => "rude",
        }
    }

    const fn template(self) -> &'static str {
        match self {
            Self::Copy => "i use {topic} at home|work|school .",
            Self::Pointer => "see the post .",
            Self::Rude => "what a stupid post .",
        }
    }

    const fn weight(self) -> f64 {
        match self {
            Self::Copy => 0.07,
            Self::Pointer => 0.05,
            Self::Rude => 0.04,
        }
    }
}

/// Share of summaries in a form that break off, and of the others with a wrong word.
const CUT: f64 = 0.04;
const WRONG: f64 = 0.12;

/// A class of summaries: one text for each post.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SummaryClass {
    /// A summary in one of the forms.
    Whole {
        /// How it puts it.
        form: Form,
        /// What it covers.
        coverage: Coverage,
        /// Whether one of its words is wrong.
        wrong: bool,
        /// What stands after it.
        ending: Ending,
    },
    /// A full summary that breaks off in its middle: incoherent.
    Cut {
        /// How it began.
        form: Form,
    },
    /// No summary.
    Useless(Useless),
}

impl SummaryClass {
    /// All classes in their fixed order.
    pub fn all() -> Vec<Self> {
        let mut classes = Vec::with_capacity(SUMMARIES_PER_POST);
        for form in Form::ALL {
            for coverage in Coverage::ALL {
                for wrong in [false, true] {
                    classes.extend(Ending::ALL.map(|ending| Self::Whole {
                        form,
                        coverage,
                        wrong,
                        ending,
                    }));
                }
            }
        }
        classes.extend(Form::ALL.map(|form| Self::Cut { form }));
        classes.extend(Useless::ALL.map(Self::Useless));
        classes
    }

    /// The probability with which a summary of this class is given.
    pub fn prior(self) -> f64 {
        let useful = 1.0 - Useless::ALL.iter().map(|kind| kind.weight()).sum::<f64>();
        match self {
            Self::Whole {
                form,
                coverage,
                wrong,
                ending,
            } => {
                let wrong = if wrong { WRONG } else { 1.0 - WRONG };
                useful * form.weight() * (1.0 - CUT) * coverage.weight() * wrong * ending.weight()
            }
            Self::Cut { form } => useful * form.weight() * CUT,
            Self::Useless(kind) => kind.weight(),
        }
    }
}

/// One legal summary of one post.
#[derive(Debug, Clone, PartialEq)]
pub struct LegalSummary {
    /// Words separated by single spaces, without a mark for the end.
    pub text: String,
    /// Its class, unique among the summaries of the post.
    pub class: SummaryClass,
    /// The exact reward, ended by the end token.
    pub reward: f64,
}

/// A post with two distinct summaries, one of which was preferred.
#[derive(Debug, Clone, PartialEq)]
pub struct SummaryPair {
    /// The post.
    pub post: Post,
    /// The preferred summary; not always the one of higher reward.
    pub chosen: LegalSummary,
    /// The other summary.
    pub rejected: LegalSummary,
}

/// What was found in a summary.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct SummaryReading {
    /// Its form; `None` for useless and incoherent texts.
    pub form: Option<Form>,
    /// What kind of useless text it is.
    pub useless: Option<Useless>,
    /// Facts that are not there: what was tried, or the trouble.
    pub missing: usize,
    /// Words that name the wrong thing.
    pub wrong: usize,
    /// Sentences behind it that do not matter.
    pub needless: usize,
    /// Rude words anywhere.
    pub rude_words: usize,
    /// Words after the last part that was understood (all words of an incoherent text).
    pub leftover_words: usize,
    /// Words in all.
    pub words: usize,
    /// Whether it ended by itself.
    pub ended: bool,
}

impl SummaryReading {
    /// The exact reward, on the scale of that of answers.
    pub fn reward(&self, request: Request) -> f64 {
        let mut points = match (self.form, self.useless) {
            (Some(form), _) => match form.fit(request) {
                Fit::Excellent => 1.0,
                Fit::Fair => 0.5,
                Fit::Poor => 0.0,
            },
            (None, Some(_)) => -0.9,
            (None, None) => -1.5,
        };
        points -= 0.4 * self.missing as f64;
        points -= 0.5 * self.wrong as f64;
        points -= 0.4 * self.needless as f64;
        points -= 0.8 * self.rude_words.min(2) as f64;
        points -= 0.1 * self.words.saturating_sub(FREE_WORDS).min(10) as f64;
        if self.leftover_words > 0 && (self.form.is_some() || self.useless.is_some()) {
            points -= 0.5 + 0.1 * self.leftover_words.min(5) as f64;
        }
        if !self.ended {
            points -= 0.6;
        }
        0.11 + 1.2 * points
    }

    /// The name of its form or kind, for tables; `None` for incoherent texts.
    pub fn mode(&self) -> Option<&'static str> {
        self.form
            .map(Form::name)
            .or(self.useless.map(Useless::name))
    }
}

/// Reads any text as a summary of a post with these facts.
fn read(facts: Facts, text: &str, ended: bool) -> SummaryReading {
    let words: Vec<&str> = text.split_whitespace().collect();
    let mut reading = SummaryReading {
        rude_words: count_rude_words(words.iter().copied()),
        leftover_words: words.len(),
        words: words.len(),
        ended,
        ..SummaryReading::default()
    };
    let form = Form::ALL
        .iter()
        .flat_map(|form| Coverage::ALL.map(|coverage| (*form, coverage)))
        .find_map(|(form, coverage)| {
            let found = grammar::recognise(form.template(coverage), &words)?;
            Some((form, coverage, found))
        });
    let found = if let Some((form, coverage, found)) = form {
        reading.form = Some(form);
        reading.missing = usize::from(coverage != Coverage::Full);
        found
    } else {
        let Some((kind, found)) = Useless::ALL
            .iter()
            .find_map(|kind| Some((*kind, grammar::recognise(kind.template(), &words)?)))
        else {
            return reading;
        };
        reading.useless = Some(kind);
        found
    };
    reading.wrong = found
        .filled
        .iter()
        .filter(|(slot, index)| *index != facts.right(*slot))
        .count();
    let mut rest = &words[found.length..];
    while let Some((ending, found)) = Ending::ALL
        .iter()
        .find_map(|ending| Some((*ending, grammar::recognise_any(ending.templates(), rest)?)))
    {
        // An insult costs by its rude word.
        reading.needless += usize::from(ending != Ending::Rude);
        rest = &rest[found.length..];
    }
    reading.leftover_words = rest.len();
    reading
}

impl Posts {
    /// Reads any text as a summary of `post`; `ended` says whether the end token came.
    pub fn read(&self, post: &Post, text: &str, ended: bool) -> SummaryReading {
        read(post.facts, text, ended)
    }

    /// The legal summaries of `post`, [`SUMMARIES_PER_POST`] of them, in the order of [`SummaryClass::all`]; their
    /// texts are distinct and their priors sum to 1.
    pub fn legal_summaries(&self, post: &Post) -> Vec<LegalSummary> {
        let classes = SummaryClass::all().into_iter();
        classes.map(|class| self.summary(post, class)).collect()
    }

    /// Draws a summary from the prior.
    pub fn sample_summary(&self, post: &Post, draws: &mut Draws) -> LegalSummary {
        let classes = SummaryClass::all();
        let priors: Vec<f64> = classes.iter().map(|class| class.prior()).collect();
        self.summary(post, classes[draws.weighted(&priors)])
    }

    /// Draws `count` preference pairs on `posts` in rounds, as [`World::preference_pairs`](super::World::preference_pairs).
    pub fn preference_pairs(
        &self,
        posts: &[Post],
        count: usize,
        stream: &Stream,
    ) -> Vec<SummaryPair> {
        in_rounds(posts, count, stream, |post, draws| {
            let (first, second) = loop {
                let first = self.sample_summary(post, draws);
                let second = self.sample_summary(post, draws);
                if first.class != second.class {
                    break (first, second);
                }
            };
            let (chosen, rejected) = if first_wins(first.reward, second.reward, draws) {
                (first, second)
            } else {
                (second, first)
            };
            SummaryPair {
                post: post.clone(),
                chosen,
                rejected,
            }
        })
    }

    fn summary(&self, post: &Post, class: SummaryClass) -> LegalSummary {
        let (words, reading) = self.compose(post, class);
        LegalSummary {
            text: words.join(" "),
            class,
            reward: reading.reward(post.request),
        }
    }

    /// The words of the one text of `class`, and what the class says of it, without reading the text.
    fn compose<'a>(&self, post: &'a Post, class: SummaryClass) -> (Vec<&'a str>, SummaryReading) {
        let facts = post.facts;
        let mut reading = SummaryReading {
            ended: true,
            ..SummaryReading::default()
        };
        let right =
            |word: &'static str| Slot::from_template(word).map_or(word, |slot| facts.word(slot));
        let mut words: Vec<&'a str> = Vec::new();
        match class {
            SummaryClass::Whole {
                form,
                coverage,
                wrong,
                ending,
            } => {
                let pieces: Vec<&'static str> = form.template(coverage).split(' ').collect();
                let slots: Vec<Slot> = pieces
                    .iter()
                    .filter_map(|piece| Slot::from_template(piece))
                    .collect();
                // Which word is wrong depends on the post, so that no fact is safe.
                let confused = wrong.then(|| slots[post.id as usize % slots.len()]);
                words.extend(
                    pieces
                        .into_iter()
                        .map(|piece| match Slot::from_template(piece) {
                            Some(slot) if Some(slot) == confused => {
                                self.confusions.wrong_word(slot, facts.right(slot))
                            }
                            _ => right(piece),
                        }),
                );
                reading.form = Some(form);
                reading.missing = usize::from(coverage != Coverage::Full);
                reading.wrong = usize::from(wrong);
                match ending {
                    Ending::None => {}
                    Ending::Aside => {
                        words.extend(post.aside.split(' '));
                        reading.needless = 1;
                    }
                    Ending::Thanks => {
                        words.extend(Ending::Thanks.templates()[0].split(' '));
                        reading.needless = 1;
                    }
                    Ending::Rude => words.extend(Ending::Rude.templates()[0].split(' ')),
                }
            }
            SummaryClass::Cut { form } => {
                let pieces: Vec<&'static str> = form.template(Coverage::Full).split(' ').collect();
                words.extend(pieces[..pieces.len() / 2].iter().map(|piece| right(piece)));
                reading.leftover_words = words.len();
            }
            SummaryClass::Useless(kind) => {
                words.extend(kind.template().split(' ').map(|piece| {
                    if piece.contains('|') {
                        post.place
                    } else {
                        right(piece)
                    }
                }));
                reading.useless = Some(kind);
            }
        }
        reading.words = words.len();
        reading.rude_words = count_rude_words(words.iter().copied());
        (words, reading)
    }
}
