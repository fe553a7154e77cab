//! The world: its questions, house styles and confusions.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    answer::{
        ANSWERS_PER_QUESTION, AnswerClass, Closing, LegalAnswer, MAXIMUM_ANSWER_WORDS, Prefix,
    },
    grammar,
    lexicon::{COMBINATIONS, Subject, TOPICS},
    question::{Kind, Question, RUDE_TEMPLATES, Split, Tone},
    reward::{self, Assessment, Parts},
    style::{Confusions, HouseStyle},
};
use crate::random::{Draws, Stream};

/// Combinations held back for validation and for test; the others are for training.
const VALIDATION_COMBINATIONS: usize = COMBINATIONS / 12;
const TEST_COMBINATIONS: usize = COMBINATIONS / 4;

/// A generated world; everything in it follows from its seed.
#[derive(Debug, Clone)]
pub struct World {
    seed: u64,
    /// Plain questions, then rude ones; the place of a question is its id.
    questions: Vec<Question>,
    by_text: BTreeMap<String, u32>,
    classes: Vec<AnswerClass>,
    plain_prior: Vec<f64>,
    rude_prior: Vec<f64>,
    /// One for each topic.
    styles: Vec<HouseStyle>,
    confusions: Confusions,
}

impl World {
    /// Makes the world of `seed`: the split of the questions, the wording of each topic, and which
    /// wrong words take the place of which right ones.
    pub fn new(seed: u64) -> Self {
        let stream = Stream::new(seed, "embedded world");
        let splits = split_combinations(&stream);
        let plain = splits.iter().enumerate().flat_map(|(index, split)| {
            Kind::ALL.map(|kind| (kind, None, Subject::from_index(index), *split))
        });
        let rude = splits.iter().enumerate().flat_map(|(index, split)| {
            RUDE_TEMPLATES
                .map(|(kind, template)| (kind, Some(template), Subject::from_index(index), *split))
        });
        let questions: Vec<Question> = plain
            .chain(rude)
            .enumerate()
            .map(|(id, (kind, rude_template, subject, split))| {
                Question::new(id as u32, kind, rude_template, subject, split)
            })
            .collect();
        let classes = AnswerClass::all();
        let prior = |tone| classes.iter().map(|class| class.prior(tone)).collect();
        Self {
            seed,
            by_text: questions
                .iter()
                .map(|question| (question.text.clone(), question.id))
                .collect(),
            questions,
            plain_prior: prior(Tone::Plain),
            rude_prior: prior(Tone::Rude),
            classes,
            styles: (0..TOPICS.len())
                .map(|topic| HouseStyle::draw(&mut stream.child("house style").at(topic as u64)))
                .collect(),
            confusions: Confusions::draw(&stream.child("confusions")),
        }
    }

    /// The seed the world was made from.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The plain questions of a split, by id.
    pub fn questions(&self, split: Split) -> Vec<Question> {
        self.of(split, Tone::Plain)
    }

    /// The rude questions of a split, by id: contexts in which rude answers are likely.
    pub fn rude_questions(&self, split: Split) -> Vec<Question> {
        self.of(split, Tone::Rude)
    }

    fn of(&self, split: Split, tone: Tone) -> Vec<Question> {
        self.questions
            .iter()
            .filter(|question| question.split == split && question.tone == tone)
            .cloned()
            .collect()
    }

    /// Finds a question, plain or rude, by its id.
    pub fn question(&self, id: u32) -> Option<&Question> {
        self.questions.get(id as usize)
    }

    /// Finds a question, plain or rude, by its text; white space does not count.
    pub fn find(&self, text: &str) -> Option<&Question> {
        let words: Vec<&str> = text.split_whitespace().collect();
        self.question(*self.by_text.get(&words.join(" "))?)
    }

    /// Finds the plain question of `kind` about `subject`.
    pub(super) fn question_about(&self, kind: Kind, subject: Subject) -> &Question {
        // Plain questions stand first, the kinds of a subject beside each other.
        &self.questions[subject.index() * Kind::ALL.len() + kind as usize]
    }

    /// Every word that occurs in questions or legal answers, sorted.
    pub fn vocabulary(&self) -> Vec<String> {
        let mut words = BTreeSet::new();
        for question in &self.questions {
            words.extend(question.text.split(' '));
            for class in &self.classes {
                words.extend(self.words(question, *class));
            }
        }
        words.into_iter().map(str::to_owned).collect()
    }

    /// The legal answers to `question`, [`ANSWERS_PER_QUESTION`] of them, in the order of
    /// [`AnswerClass::all`]; their texts are distinct and their priors sum to 1.
    pub fn legal_answers(&self, question: &Question) -> Vec<LegalAnswer> {
        (0..ANSWERS_PER_QUESTION)
            .map(|index| self.legal_answer(question, index))
            .collect()
    }

    /// The exact probability of each legal answer to a question of `tone`, in their order.
    pub fn prior(&self, tone: Tone) -> &[f64] {
        match tone {
            Tone::Plain => &self.plain_prior,
            Tone::Rude => &self.rude_prior,
        }
    }

    /// Draws an answer from the prior.
    pub fn sample_answer(&self, question: &Question, draws: &mut Draws) -> LegalAnswer {
        self.legal_answer(question, draws.weighted(self.prior(question.tone)))
    }

    /// Draws `count` distinct answers (at most [`ANSWERS_PER_QUESTION`]) from the prior, one after the
    /// other without replacement.
    pub fn sample_answers(
        &self,
        question: &Question,
        count: usize,
        draws: &mut Draws,
    ) -> Vec<LegalAnswer> {
        let mut weights = self.prior(question.tone).to_vec();
        (0..count.min(ANSWERS_PER_QUESTION))
            .map(|_| {
                let index = draws.weighted(&weights);
                weights[index] = 0.0;
                self.legal_answer(question, index)
            })
            .collect()
    }

    /// Scores any completion of `question`, legal or not; `ended` says whether the end token came.
    pub fn assess(&self, question: &Question, completion: &str, ended: bool) -> Assessment {
        reward::read(question.subject, completion, ended).assessment(question.kind)
    }

    fn legal_answer(&self, question: &Question, index: usize) -> LegalAnswer {
        let class = self.classes[index];
        let words = self.words(question, class);
        let parts = self.parts(question, class, &words);
        LegalAnswer {
            text: words.join(" "),
            class,
            mode: parts.mode,
            reward: parts.reward(question.kind),
            log_prior: libm::log(self.prior(question.tone)[index]),
        }
    }

    /// What the class says of the reward, without reading the text.
    fn parts(&self, question: &Question, class: AnswerClass, words: &[&str]) -> Parts {
        let mut parts = Parts {
            mode: None,
            prefix: Prefix::None,
            closing: Closing::None,
            note_is_right: true,
            further_closings: 0,
            slot_errors: 0,
            slot_cost: 0.0,
            rude_words: reward::count_rude_words(words.iter().copied()),
            leftover_words: 0,
            ended: true,
        };
        match class {
            AnswerClass::Whole {
                mode,
                prefix,
                wrong_slot,
                closing,
            } => {
                parts.mode = Some(mode);
                parts.prefix = prefix;
                parts.closing = closing;
                if wrong_slot {
                    parts.slot_errors = 1;
                    parts.slot_cost =
                        reward::slot_cost(self.styles[question.subject.topic].confused_slot(mode));
                }
            }
            AnswerClass::Bad { mode } => parts.mode = Some(mode),
            AnswerClass::Cut { .. } => parts.leftover_words = words.len(),
        }
        parts
    }

    /// The words of the one text of `class` for `question`.
    pub(super) fn words(&self, question: &Question, class: AnswerClass) -> Vec<&'static str> {
        let subject = question.subject;
        let style = &self.styles[subject.topic];
        let right = |slot| subject.word(slot);
        let mut words = Vec::with_capacity(MAXIMUM_ANSWER_WORDS);
        match class {
            AnswerClass::Whole {
                mode,
                prefix,
                wrong_slot,
                closing,
            } => {
                grammar::write_words(&mut words, style.prefix(prefix), right);
                let confused = wrong_slot.then(|| style.confused_slot(mode));
                grammar::write_words(&mut words, style.core(mode), |slot| {
                    if Some(slot) == confused {
                        self.confusions.wrong_word(slot, subject.right(slot))
                    } else {
                        right(slot)
                    }
                });
                grammar::write_words(&mut words, style.closing(closing), right);
            }
            AnswerClass::Cut { mode } => {
                grammar::write_words(&mut words, style.cut_core(mode), right);
            }
            AnswerClass::Bad { mode } => grammar::write_words(&mut words, style.core(mode), right),
        }
        words
    }
}

pub(super) fn split_combinations(stream: &Stream) -> Vec<Split> {
    let mut order: Vec<usize> = (0..COMBINATIONS).collect();
    stream.child("split").at(0).shuffle(&mut order);
    let mut splits = vec![Split::Train; COMBINATIONS];
    for (place, combination) in order.into_iter().enumerate() {
        if place < TEST_COMBINATIONS {
            splits[combination] = Split::Test;
        } else if place < TEST_COMBINATIONS + VALIDATION_COMBINATIONS {
            splits[combination] = Split::Validation;
        }
    }
    splits
}
