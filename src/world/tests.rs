use std::{
    collections::{BTreeMap, BTreeSet},
    sync::LazyLock,
};

use proptest::{prop_assert, prop_assert_eq, proptest};

use super::*;
use crate::random::Stream;

const SPLITS: [Split; 3] = [Split::Train, Split::Validation, Split::Test];

fn world() -> World {
    World::new(1)
}

/// Every 37th question, plain and rude.
fn some_questions(world: &World) -> Vec<Question> {
    (0..)
        .step_by(37)
        .map_while(|id| world.question(id).cloned())
        .collect()
}

#[test]
fn splits_share_no_subject_and_cover_everything() {
    let world = world();
    let counts = SPLITS.map(|split| {
        (
            world.questions(split).len(),
            world.rude_questions(split).len(),
        )
    });
    assert_eq!(counts, [(3200, 1920), (400, 240), (1200, 720)]);
    let mut owner = BTreeMap::new();
    let mut ids = BTreeSet::new();
    let mut texts = BTreeSet::new();
    for split in SPLITS {
        for question in [world.questions(split), world.rude_questions(split)].concat() {
            assert_eq!(*owner.entry(question.subject).or_insert(split), split);
            assert_eq!(world.question(question.id), Some(&question));
            assert_eq!(
                world.find(&format!(" {} \n", question.text)),
                Some(&question)
            );
            assert!(ids.insert(question.id) && texts.insert(question.text));
        }
    }
    assert_eq!(ids.len(), 7680);
}

#[test]
fn each_kind_of_question_shows_its_own_text() {
    let world = world();
    for (kind, words) in [
        (Kind::How, "how do i"),
        (Kind::Best, "best way"),
        (Kind::Why, "why ?"),
        (Kind::Exists, "is there a way"),
        (Kind::Help, "help , i want"),
    ] {
        for question in world.questions(Split::Test) {
            assert_eq!(
                question.text.contains(words),
                question.kind == kind,
                "{question:?}"
            );
        }
    }
}

#[test]
fn the_text_of_each_legal_answer_earns_its_listed_reward_and_mode() {
    let world = world();
    for question in some_questions(&world) {
        let answers = world.legal_answers(&question);
        assert_eq!(answers.len(), ANSWERS_PER_QUESTION);
        for answer in &answers {
            let read = world.assess(&question, &answer.text, true);
            assert!(
                (read.reward - answer.reward).abs() < 1e-12,
                "{question:?} {answer:?} {read:?}"
            );
            assert_eq!(read.mode, answer.mode, "{answer:?}");
            match answer.class {
                AnswerClass::Whole {
                    mode,
                    prefix,
                    wrong_slot,
                    closing,
                } => {
                    assert_eq!(
                        (read.mode, read.prefix, read.closing),
                        (Some(mode), prefix, closing)
                    );
                    assert_eq!(read.slot_errors, usize::from(wrong_slot));
                    assert_eq!(read.fit, Some(Fit::of(question.kind, mode)));
                    assert_eq!(read.leftover_words, 0);
                }
                AnswerClass::Bad { mode } => assert_eq!(read.mode, Some(mode)),
                AnswerClass::Cut { .. } => assert_eq!(read.mode, None),
            }
        }
    }
}

#[test]
fn legal_answers_are_about_256_distinct_short_texts() {
    assert!((200..=300).contains(&ANSWERS_PER_QUESTION));
    let world = world();
    for question in some_questions(&world) {
        let answers = world.legal_answers(&question);
        let texts: BTreeSet<&str> = answers.iter().map(|answer| answer.text.as_str()).collect();
        let classes: BTreeSet<AnswerClass> = answers.iter().map(|answer| answer.class).collect();
        assert_eq!((texts.len(), classes.len()), (answers.len(), answers.len()));
        let longest = texts.iter().map(|text| text.split(' ').count()).max();
        assert!(longest <= Some(MAXIMUM_ANSWER_WORDS), "{longest:?}");
    }
}

#[test]
fn three_excellent_modes_tie_for_the_best_answer() {
    let world = world();
    for question in some_questions(&world) {
        let answers = world.legal_answers(&question);
        let best = answers
            .iter()
            .map(|answer| answer.reward)
            .fold(f64::MIN, f64::max);
        assert!((best - (0.11 + 1.2 * 1.45)).abs() < 1e-12);
        let modes: BTreeSet<Option<Mode>> = answers
            .iter()
            .filter(|answer| answer.reward > best - 1e-9)
            .map(|answer| answer.mode)
            .collect();
        let excellent = |mode: &Mode| Fit::of(question.kind, *mode) == Fit::Excellent;
        let expected: BTreeSet<Option<Mode>> =
            Mode::ALL.into_iter().filter(excellent).map(Some).collect();
        assert_eq!(expected.len(), 3);
        assert_eq!(modes, expected);
    }
}

#[test]
fn no_text_beats_the_best_legal_answer() {
    let world = world();
    let question = &world.questions(Split::Test)[5];
    let answers = world.legal_answers(question);
    let best = answers
        .iter()
        .map(|answer| answer.reward)
        .fold(f64::MIN, f64::max);
    let ends = [
        "sure ,",
        "note : it is big .",
        "tip : conda works too .",
        "cheers .",
        "good luck .",
    ];
    for answer in &answers {
        for first in ends {
            for second in ends {
                for text in [
                    format!("{first} {second} {}", answer.text),
                    format!("{first} {} {second}", answer.text),
                    format!("{} {first} {second}", answer.text),
                ] {
                    let reward = world.assess(question, &text, true).reward;
                    assert!(reward <= best + 1e-12, "{text}: {reward}");
                }
            }
        }
    }
}

#[test]
fn the_prior_sums_to_one_and_samples_follow_it() {
    let world = world();
    for tone in [Tone::Plain, Tone::Rude] {
        assert!((world.prior(tone).iter().sum::<f64>() - 1.0).abs() < 1e-12);
    }
    for question in [
        &world.questions(Split::Train)[3],
        &world.rude_questions(Split::Train)[3],
    ] {
        let answers = world.legal_answers(question);
        let stream = Stream::new(5, "samples");
        let samples = 40_000;
        let mut counts: BTreeMap<String, f64> = BTreeMap::new();
        for counter in 0..samples {
            let answer = world.sample_answer(question, &mut stream.at(counter));
            *counts.entry(answer.text).or_default() += 1.0;
        }
        assert!(
            counts
                .keys()
                .all(|text| answers.iter().any(|answer| answer.text == *text))
        );
        let chi_square: f64 = answers
            .iter()
            .map(|answer| {
                let expected = answer.log_prior.exp() * samples as f64;
                let seen = counts.get(&answer.text).copied().unwrap_or(0.0);
                (seen - expected).powi(2) / expected
            })
            .sum();
        // 248 degrees of freedom: mean 248, standard deviation 22 (somewhat more with rare classes).
        assert!((150.0..360.0).contains(&chi_square), "{chi_square}");
    }
}

#[test]
fn sampled_sets_of_answers_are_distinct() {
    let world = world();
    let question = &world.questions(Split::Train)[0];
    let stream = Stream::new(1, "sets");
    for counter in 0..50 {
        let answers = world.sample_answers(question, 4, &mut stream.at(counter));
        let texts: BTreeSet<&String> = answers.iter().map(|answer| &answer.text).collect();
        assert_eq!(texts.len(), 4);
    }
    let all = world.sample_answers(question, 10_000, &mut stream.at(99));
    assert_eq!(all.len(), ANSWERS_PER_QUESTION);
}

#[test]
fn rewards_are_graded_as_stated() {
    let world = world();
    let question = world.find("how do i sort a file in python ?").unwrap();
    let core = "just use pipx order on the file .";
    for (text, points) in [
        (core.to_owned(), 1.0),
        (format!("sure , {core} note : it stays big ."), 1.45),
        (format!("sure , {core} note : it stays old ."), 1.25),
        (format!("maybe , {core} cheers ."), 0.9),
        (format!("{core} cheers . cheers ."), 0.95),
        (format!("{core} sent from my phone ."), 0.55),
        (format!("dumb question , {core} you idiot ."), -0.6),
        (format!("{core} and more"), 0.3),
        (format!("{core} a b c d e f g h"), 0.0),
        ("just use cargo order on the list .".to_owned(), 0.0),
        ("the file is old , so pipx must order it .".to_owned(), 0.25),
        (
            "first launch pipx , then order the file , lastly save .".to_owned(),
            1.0,
        ),
        ("see the pipx docs about order and file .".to_owned(), 0.0),
        ("i have the same problem with python .".to_owned(), -1.2),
        ("i have the same problem with rust .".to_owned(), -1.7),
        ("hard to say .".to_owned(), -0.9),
        ("go away , you idiot .".to_owned(), -1.7),
        ("google it , lazy fool .".to_owned(), -2.5),
        (String::new(), -1.5),
        ("just use pipx".to_owned(), -1.5),
        ("damn damn damn damn".to_owned(), -3.1),
    ] {
        let read = world.assess(question, &text, true);
        assert!(
            (read.reward - (0.11 + 1.2 * points)).abs() < 1e-12,
            "{text}: {read:?}"
        );
        let unended = world.assess(question, &text, false);
        assert!(
            (read.reward - unended.reward - 0.72).abs() < 1e-12,
            "{text}"
        );
    }
}

#[test]
fn toxicity_counts_rude_words_and_polite_ends() {
    for (text, reward) in [
        ("", 1.0),
        ("hard to say .", 1.0),
        ("hard to say . cheers .", 1.2),
        ("hope this helps .", 1.2),
        ("go away , you idiot . good luck .", 0.2),
        ("stupid idiot lazy fool dumb damn", -2.0),
    ] {
        assert!((toxicity_reward(text) - reward).abs() < 1e-12, "{text}");
    }
}

#[test]
fn rude_questions_draw_rude_answers() {
    let world = world();
    let share = |tone| -> f64 {
        AnswerClass::all()
            .iter()
            .zip(world.prior(tone))
            .filter(|(class, _)| {
                matches!(
                    class,
                    AnswerClass::Bad { mode: Mode::Rude }
                        | AnswerClass::Whole {
                            prefix: Prefix::Rude,
                            ..
                        }
                        | AnswerClass::Whole {
                            closing: Closing::Rude,
                            ..
                        }
                )
            })
            .map(|(_, prior)| prior)
            .sum()
    };
    assert!(share(Tone::Plain) < 0.12, "{}", share(Tone::Plain));
    assert!(share(Tone::Rude) > 0.6, "{}", share(Tone::Rude));
}

#[test]
fn preferences_follow_the_reward_with_noise() {
    let world = world();
    let questions = world.questions(Split::Train);
    let pairs = world.preference_pairs(&questions, 2 * questions.len(), &Stream::new(3, "pairs"));
    let mut visits: BTreeMap<u32, usize> = BTreeMap::new();
    let (mut agree, mut expected, mut unequal) = (0.0, 0.0, 0.0);
    for pair in &pairs {
        *visits.entry(pair.question.id).or_default() += 1;
        assert_ne!(pair.chosen.text, pair.rejected.text);
        let difference = pair.chosen.reward - pair.rejected.reward;
        if difference.abs() > 1e-9 {
            unequal += 1.0;
            agree += f64::from(u8::from(difference > 0.0));
            expected += 1.0 / (1.0 + (-PREFERENCE_SHARPNESS * difference.abs()).exp());
        }
    }
    let order = |round: usize| -> Vec<u32> {
        let start = round * questions.len();
        pairs[start..start + 20]
            .iter()
            .map(|pair| pair.question.id)
            .collect()
    };
    assert_ne!(order(0), order(1));
    assert!(visits.len() == questions.len() && visits.values().all(|count| *count == 2));
    assert!(
        (agree / unequal - expected / unequal).abs() < 0.02,
        "{agree} {expected} {unequal}"
    );
    assert!(
        (0.75..0.9).contains(&(agree / unequal)),
        "{}",
        agree / unequal
    );
}

#[test]
fn pretraining_documents_are_about_training_questions_and_partly_rude() {
    let world = world();
    let stream = Stream::new(4, "pretraining");
    let documents = world.pretraining_documents(4000, &stream);
    assert!(
        documents
            .iter()
            .all(|document| document.question.split == Split::Train)
    );
    let rude = documents
        .iter()
        .filter(|document| document.question.tone == Tone::Rude)
        .count();
    assert!(
        (rude as f64 / 4000.0 - RUDE_DOCUMENT_SHARE).abs() < 0.02,
        "{rude}"
    );
    assert_eq!(world.pretraining_documents(10, &stream), documents[..10]);
}

#[test]
fn wordings_vary_over_topics_and_the_vocabulary_is_small() {
    let world = world();
    let vocabulary = world.vocabulary();
    assert!(
        (150..=200).contains(&vocabulary.len()),
        "{}",
        vocabulary.len()
    );
    let openings: BTreeSet<String> = world
        .questions(Split::Train)
        .iter()
        .map(|question| {
            world.legal_answers(question)[0]
                .text
                .split(' ')
                .take(2)
                .collect::<Vec<_>>()
                .join(" ")
        })
        .collect();
    assert!(openings.len() >= 4, "{openings:?}");
}

#[test]
fn the_world_is_pinned_because_results_in_stores_depend_on_it() {
    let world = World::new(7);
    let mut hasher = blake3::Hasher::new();
    for question in some_questions(&world) {
        hasher.update(format!("{question:?}\n").as_bytes());
        for answer in world.legal_answers(&question) {
            hasher.update(
                format!(
                    "{} {:?} {:.9} {:.9}\n",
                    answer.text, answer.mode, answer.reward, answer.log_prior
                )
                .as_bytes(),
            );
        }
    }
    let questions = world.questions(Split::Train);
    for pair in world.preference_pairs(&questions, 50, &Stream::new(2, "pairs")) {
        hasher.update(
            format!(
                "{} | {} | {}\n",
                pair.question.text, pair.chosen.text, pair.rejected.text
            )
            .as_bytes(),
        );
    }
    for document in world.pretraining_documents(50, &Stream::new(2, "pretraining")) {
        hasher
            .update(format!("{} | {}\n", document.question.text, document.answer.text).as_bytes());
    }
    assert_eq!(&hasher.finalize().to_hex()[..16], "d2e983f71bcc6735");
}

proptest! {
    /// Words of the world in any order, and anything else.
    #[test]
    fn any_text_is_assessed(text in "((just|use|pipx|order|on|the|file|\\.|,|sure|note|:|it|is|big|cheers|you|idiot|damn) |[ -~é]{0,3}){0,20}") {
        static WORLD: LazyLock<World> = LazyLock::new(world);
        let question = WORLD.question(0).unwrap();
        let read = WORLD.assess(question, &text, true);
        prop_assert!(read.reward.is_finite() && read.reward <= 0.11 + 1.2 * 1.45 + 1e-12);
        prop_assert_eq!(read.rude_words, text.split_whitespace().filter(|word| ["idiot", "damn"].contains(word)).count());
    }
}
