//! Dialogues, posts and summaries, and the examiner of all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use proptest::{prop_assert, proptest};

use super::*;
use crate::random::Stream;

const SPLITS: [Split; 3] = [Split::Train, Split::Validation, Split::Test];

fn some_posts(posts: &Posts) -> Vec<Post> {
    (0..)
        .step_by(29)
        .map_while(|id| posts.post(id).cloned())
        .collect()
}

#[test]
fn a_dialogue_resolves_to_the_question_it_was_made_of() {
    let world = World::new(1);
    let stream = Stream::new(1, "dialogues");
    let mut changes: BTreeMap<Option<Change>, usize> = BTreeMap::new();
    for split in SPLITS {
        for question in [world.questions(split), world.rude_questions(split)].concat() {
            let dialogue = world.dialogue(&question, &mut stream.at(u64::from(question.id)));
            assert_eq!(
                world.resolve(&dialogue.text),
                Some(&question),
                "{dialogue:?}"
            );
            let Some(earlier) = dialogue.earlier.and_then(|id| world.question(id)) else {
                assert!(dialogue.text.contains(&question.text) && dialogue.change.is_none());
                *changes.entry(None).or_default() += 1;
                continue;
            };
            // The last turn alone does not say what is asked, and no other split shows.
            assert_eq!(earlier.split, split);
            assert!(!dialogue.text.contains(&question.text), "{dialogue:?}");
            let (a, b) = (earlier.subject, question.subject);
            let differs = [
                a.topic != b.topic,
                a.verb != b.verb,
                a.object != b.object,
                earlier.kind != question.kind,
            ];
            let expected = Change::ALL.map(|change| Some(change) == dialogue.change);
            assert_eq!(differs, expected, "{dialogue:?}");
            *changes.entry(dialogue.change).or_default() += 1;
        }
    }
    assert!(
        changes.len() == 5 && changes.values().all(|count| *count > 500),
        "{changes:?}"
    );
}

#[test]
fn follow_ups_keep_what_they_do_not_say() {
    let world = World::new(1);
    let resolved = |turns: &[&str]| -> Option<String> {
        let text: Vec<String> = turns
            .iter()
            .map(|turn| format!("Human: {turn} Assistant: hard to say ."))
            .collect();
        Some(world.resolve(&text.join(" "))?.text.clone())
    };
    let first = "how do i sort a file in python ?";
    for (turns, expected) in [
        (vec![first], first),
        (
            vec![first, "and in rust ?"],
            "how do i sort a file in rust ?",
        ),
        (
            vec![first, "or copy it ?"],
            "how do i copy a file in python ?",
        ),
        (
            vec![first, "what about the list ?"],
            "how do i sort a list in python ?",
        ),
        (
            vec![first, "but why can it not ?"],
            "my python can not sort this file , why ?",
        ),
        (
            vec![
                first,
                "what about git ?",
                "and to open it ?",
                "is there a way at all ?",
            ],
            "is there a way in git to open some file ?",
        ),
        (
            vec![
                first,
                "help , i want to move one key using sql .",
                "and in java ?",
            ],
            "help , i want to move one key using java .",
        ),
    ] {
        assert_eq!(resolved(&turns).as_deref(), Some(expected));
    }
    for turns in [
        vec!["and in rust ?"],
        vec![first, "and in france ?"],
        vec![first, "and in rust ? please"],
        vec![first, ""],
    ] {
        assert_eq!(resolved(&turns), None, "{turns:?}");
    }
    assert_eq!(world.resolve(""), None);
    assert_eq!(world.resolve("Human:"), None);
    assert_eq!(world.resolve(first), world.find(first));
}

#[test]
fn posts_say_their_facts_and_share_no_subject_across_splits() {
    let posts = Posts::new(1);
    let world = World::new(1);
    let counts = SPLITS.map(|split| posts.of(split).len());
    assert_eq!(counts, [3200, 400, 1200]);
    let mut texts = BTreeSet::new();
    for split in SPLITS {
        let questions: BTreeSet<_> = world
            .questions(split)
            .iter()
            .map(|question| question.subject)
            .collect();
        for post in posts.of(split) {
            assert!(questions.contains(&post.facts.subject));
            assert_eq!(posts.find(&format!(" {}\n", post.text)), Some(&post));
            let words: BTreeSet<&str> = post.text.split(' ').collect();
            for slot in [
                lexicon::Slot::Topic,
                lexicon::Slot::Verb,
                lexicon::Slot::Object,
                lexicon::Slot::Tried,
                lexicon::Slot::Property,
            ] {
                assert!(words.contains(post.facts.word(slot)), "{post:?}");
            }
            assert!(post.text.contains(&post.aside) && post.text.ends_with("TL;DR:"));
            texts.insert(post.text);
        }
    }
    assert_eq!(texts.len(), 4800);
}

#[test]
fn the_text_of_each_legal_summary_earns_its_listed_reward_and_form() {
    let posts = Posts::new(1);
    for post in some_posts(&posts) {
        let summaries = posts.legal_summaries(&post);
        assert_eq!(summaries.len(), SUMMARIES_PER_POST);
        let texts: BTreeSet<&str> = summaries.iter().map(|one| one.text.as_str()).collect();
        assert_eq!(texts.len(), summaries.len());
        for summary in &summaries {
            let read = posts.read(&post, &summary.text, true);
            assert!(
                (read.reward(post.request) - summary.reward).abs() < 1e-12,
                "{post:?} {summary:?} {read:?}"
            );
            assert!(
                read.words < 24,
                "with its end token within a horizon of 24: {summary:?}"
            );
            match summary.class {
                SummaryClass::Whole {
                    form,
                    coverage,
                    wrong,
                    ending,
                } => {
                    assert_eq!(read.mode(), Some(form.name()));
                    assert_eq!(read.missing, usize::from(coverage != Coverage::Full));
                    assert_eq!(read.wrong, usize::from(wrong), "{summary:?}");
                    let needless = matches!(ending, Ending::Aside | Ending::Thanks);
                    assert_eq!(read.needless, usize::from(needless));
                    assert_eq!(read.rude_words, usize::from(ending == Ending::Rude));
                    assert_eq!(read.leftover_words, 0);
                }
                SummaryClass::Cut { .. } => assert_eq!(read.mode(), None),
                SummaryClass::Useless(kind) => assert_eq!(read.mode(), Some(kind.name())),
            }
        }
        let prior: f64 = summaries.iter().map(|one| one.class.prior()).sum();
        assert!((prior - 1.0).abs() < 1e-12);
    }
}

#[test]
fn three_forms_tie_for_the_best_summary() {
    let posts = Posts::new(1);
    let mut requests = BTreeSet::new();
    for post in some_posts(&posts) {
        requests.insert(post.request);
        let summaries = posts.legal_summaries(&post);
        let best: BTreeSet<&'static str> = summaries
            .iter()
            .filter(|one| one.reward > 0.11 + 1.2 - 1e-9)
            .filter_map(|one| posts.read(&post, &one.text, true).mode())
            .collect();
        let expected = Form::ALL
            .iter()
            .filter(|form| form.fit(post.request) == Fit::Excellent);
        assert_eq!(best, expected.map(|form| form.name()).collect());
        assert_eq!(best.len(), 3);
        assert!(summaries.iter().all(|one| one.reward < 0.11 + 1.2 + 1e-9));
    }
    assert_eq!(requests.len(), 3);
}

/// A post with a distracting aside, whose summaries are judged by hand.
#[test]
fn summaries_are_graded_as_stated() {
    let posts = Posts::new(1);
    let post = posts
        .of(Split::Train)
        .into_iter()
        .find(|post| post.request == Request::Way && post.aside.starts_with("my friend likes"))
        .unwrap();
    let word = |slot| post.facts.word(slot);
    let (topic, verb, object) = (
        word(lexicon::Slot::Topic),
        word(lexicon::Slot::Verb),
        word(lexicon::Slot::Object),
    );
    let (tried, trouble) = (word(lexicon::Slot::Tried), word(lexicon::Slot::Property));
    let other = post.aside.split(' ').nth(3).unwrap();
    let full = format!("needs {topic} help : {verb} the {trouble} {object} without {tried} .");
    for (text, points) in [
        (full.clone(), 1.0),
        (format!("{full} {}", post.aside), 0.6),
        (format!("{full} thanks to all ."), 0.6),
        (format!("{full} so dumb ."), 0.2),
        (
            format!("{full} thanks to all . and more words"),
            1.0 - 0.4 - 0.8 - 0.2,
        ),
        (
            format!("needs {topic} help : {verb} the {object} without {tried} ."),
            0.6,
        ),
        (full.replace(topic, other), 0.5),
        (
            format!("{topic} : {tried} does not {verb} the {trouble} {object} ."),
            0.5,
        ),
        (
            format!("so far {tried} can not {verb} the {object} in {topic} ."),
            -0.4,
        ),
        (format!("i use {topic} at work ."), -0.9),
        (format!("i use {other} at work ."), -1.4),
        ("see the post .".to_owned(), -0.9),
        ("what a stupid post .".to_owned(), -1.7),
        (full[..full.len() - 2].to_owned(), -1.5),
        (String::new(), -1.5),
    ] {
        let reward = posts.read(&post, &text, true).reward(post.request);
        assert!(
            (reward - (0.11 + 1.2 * points)).abs() < 1e-12,
            "{text}: {} instead of {points}",
            (reward - 0.11) / 1.2
        );
        let open = posts.read(&post, &text, false).reward(post.request);
        assert!((reward - open - 1.2 * 0.6).abs() < 1e-12);
    }
}

#[test]
fn preferences_between_summaries_follow_the_reward_with_noise() {
    let posts = Posts::new(1);
    let train = posts.of(Split::Train);
    let pairs = posts.preference_pairs(&train, 2 * train.len(), &Stream::new(3, "pairs"));
    let (mut agree, mut expected, mut unequal) = (0.0, 0.0, 0.0);
    for pair in &pairs {
        assert_ne!(pair.chosen.class, pair.rejected.class);
        let difference = pair.chosen.reward - pair.rejected.reward;
        if difference.abs() > 1e-9 {
            unequal += 1.0;
            agree += f64::from(u8::from(difference > 0.0));
            expected += 1.0 / (1.0 + (-PREFERENCE_SHARPNESS * difference.abs()).exp());
        }
    }
    assert!(
        (agree / unequal - expected / unequal).abs() < 0.02,
        "{agree} {expected} {unequal}"
    );
    let visits: BTreeSet<u32> = pairs.iter().map(|pair| pair.post.id).collect();
    assert_eq!(visits.len(), train.len());
}

#[test]
fn the_examiner_judges_by_what_the_prompt_is() {
    let examiner = Examiner::new(1);
    let dialogue = "Human: how do i sort a file in python ? Assistant: hard to say . Human: and in rust ? Assistant:";
    let marks = examiner
        .exam(dialogue)
        .unwrap()
        .marks("just use cargo order on the file .", true);
    assert!((marks.reward - (0.11 + 1.2)).abs() < 1e-12 && marks.slot_errors == 0);
    let stale = examiner
        .exam(dialogue)
        .unwrap()
        .marks("just use pipx order on the file .", true);
    assert_eq!((stale.mode, stale.slot_errors), (Some("direct"), 1));
    let posts = Posts::new(1);
    let text = &posts.post(77).unwrap().text;
    for (prompt, count) in [(dialogue, ANSWERS_PER_QUESTION), (text, SUMMARIES_PER_POST)] {
        let exam = examiner.exam(prompt).unwrap();
        let legal = exam.legal();
        assert_eq!(legal.len(), count);
        let prior: f64 = legal.iter().map(|one| one.log_prior.exp()).sum();
        assert!((prior - 1.0).abs() < 1e-9);
        for one in legal {
            let marks = exam.marks(&one.text, true);
            assert!((marks.reward - one.reward).abs() < 1e-12, "{one:?}");
            assert_eq!(marks.mode, one.mode);
        }
    }
    assert!(examiner.exam("post : i use python .").is_none());
}

#[test]
fn the_forms_are_pinned_because_results_in_stores_depend_on_them() {
    let (world, posts) = (World::new(7), Posts::new(7));
    let mut hasher = blake3::Hasher::new();
    let stream = Stream::new(7, "pinned");
    for question in world.questions(Split::Test).iter().step_by(31) {
        let dialogue = world.dialogue(question, &mut stream.at(u64::from(question.id)));
        hasher.update(dialogue.text.as_bytes());
    }
    for post in some_posts(&posts) {
        hasher.update(post.text.as_bytes());
        for summary in posts.legal_summaries(&post) {
            let (reward, prior) = (summary.reward, summary.class.prior());
            hasher.update(format!("{} {reward:.9} {prior:.9}\n", summary.text).as_bytes());
        }
    }
    for pair in posts.preference_pairs(&posts.of(Split::Train), 50, &stream) {
        hasher.update(format!("{} | {}\n", pair.chosen.text, pair.rejected.text).as_bytes());
    }
    assert_eq!(&hasher.finalize().to_hex()[..16], "2d961aa33a1ad304");
}

proptest! {
    /// Words of the world in any order, and anything else.
    #[test]
    fn any_text_is_read(text in "((how|to|sort|the|file|tried|wants|needs|python|help|post|:|,|\\.|is|big|thanks|all|dumb|Human:|Assistant:) |[ -~é]{0,3}){0,24}") {
        static EXAMINER: LazyLock<Examiner> = LazyLock::new(|| Examiner::new(1));
        static POST: LazyLock<String> = LazyLock::new(|| Posts::new(1).post(0).unwrap().text.clone());
        let marks = EXAMINER.exam(&POST).unwrap().marks(&text, true);
        prop_assert!(marks.reward.is_finite() && marks.reward <= 0.11 + 1.2 + 1e-12);
        // A prompt may be anything as well.
        EXAMINER.exam(&text);
        EXAMINER.exam(&format!("Human: {text}"));
    }
}
