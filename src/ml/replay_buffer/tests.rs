use proptest::prelude::*;

use super::*;
use crate::random::Stream;

fn completion(token: u32, log_r: f64) -> Completion {
    Completion {
        tokens: vec![token, 0],
        log_r,
        truncated: token % 2 == 1,
    }
}

fn filled(rewards: &[f64], capacity: usize) -> ReplayBuffer {
    let mut buffer = ReplayBuffer::new(capacity).unwrap();
    for (token, log_r) in rewards.iter().enumerate() {
        buffer.insert(5, completion(token as u32, *log_r)).unwrap();
    }
    buffer
}

#[test]
fn the_best_distinct_completions_stay() {
    let mut buffer = filled(&[1.0, 3.0, 2.0], 2);
    let rewards: Vec<f64> = buffer.completions(5).iter().map(|c| c.log_r).collect();
    assert_eq!(rewards, [3.0, 2.0]);
    assert_eq!(
        buffer.insert(5, completion(9, 1.5)).unwrap(),
        Insertion::Rejected
    );
    assert_eq!(
        buffer.insert(5, completion(1, 2.5)).unwrap(),
        Insertion::Updated
    );
    assert_eq!(
        buffer.insert(6, completion(1, -8.0)).unwrap(),
        Insertion::Added
    );
    assert_eq!(buffer.len(), 3);
    assert_eq!(buffer.prompts().collect::<Vec<_>>(), [5, 6]);
    assert_eq!(buffer.completions(5)[0].log_r, 2.5);
    assert!(buffer.completions(7).is_empty());
}

#[test]
fn uniform_draws_are_uniform_and_without_replacement() {
    let buffer = filled(&[0.0, 50.0, 1.0, 2.0], 4);
    let stream = Stream::new(1, "replay");
    let mut counts = [0usize; 4];
    for counter in 0..4000 {
        let drawn = buffer
            .draw(5, 2, Priority::Uniform, &mut stream.at(counter))
            .unwrap();
        assert_eq!(drawn.len(), 2);
        assert_ne!(drawn[0].tokens, drawn[1].tokens);
        counts[drawn[0].tokens[0] as usize] += 1;
    }
    assert!(counts.iter().all(|n| (900..1100).contains(n)), "{counts:?}");
    let all = buffer.draw(5, 99, Priority::Uniform, &mut stream.at(0));
    assert_eq!(all.unwrap().len(), 4);
    let none = buffer.draw(8, 1, Priority::Uniform, &mut stream.at(0));
    assert!(none.unwrap().is_empty());
}

#[test]
fn prioritised_draws_follow_the_reward() {
    let buffer = filled(&[0.0, 2.0 * 3f64.ln(), -5000.0], 4);
    let stream = Stream::new(2, "replay");
    let mut counts = [0usize; 3];
    for counter in 0..4000 {
        let priority = Priority::Reward { temperature: 2.0 };
        let drawn = buffer
            .draw(5, 1, priority, &mut stream.at(counter))
            .unwrap();
        counts[drawn[0].tokens[0] as usize] += 1;
    }
    assert!((2900..3100).contains(&counts[1]), "{counts:?}");
    assert_eq!(counts[2], 0);
    for temperature in [0.0, f64::NAN, -1.0] {
        let priority = Priority::Reward { temperature };
        assert!(buffer.draw(5, 1, priority, &mut stream.at(0)).is_err());
    }
}

#[test]
fn what_cannot_be_ordered_is_refused() {
    assert_eq!(
        ReplayBuffer::new(0).unwrap_err(),
        ReplayBufferError::NoCapacity
    );
    let mut buffer = ReplayBuffer::new(1).unwrap();
    let error = buffer.insert(3, completion(1, f64::INFINITY)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "a completion of prompt 3 has log-reward inf, expected a finite number"
    );
    let mut empty = completion(1, 0.0);
    empty.tokens.clear();
    assert!(buffer.insert(3, empty).is_err());
    assert!(buffer.is_empty());
}

#[test]
fn a_forged_buffer_is_refused() {
    let json = serde_json::to_string(&filled(&[1.0, 2.0], 2)).unwrap();
    serde_json::from_str::<ReplayBuffer>(&json).unwrap();
    for (from, to, problem) in [
        ("\"capacity\":2", "\"capacity\":1", "more completions"),
        ("\"capacity\":2", "\"capacity\":0", "capacity"),
        ("2.0", "0.5", "not sorted"),
        ("[0,0]", "[1,0]", "twice"),
        ("[0,0]", "[]", "no tokens"),
        ("\"capacity\"", "\"extra\":1,\"capacity\"", "unknown field"),
    ] {
        let forged = json.replace(from, to);
        assert_ne!(forged, json);
        let error = serde_json::from_str::<ReplayBuffer>(&forged).unwrap_err();
        assert!(error.to_string().contains(problem), "{error}");
    }
}

proptest! {
    #[test]
    fn content_does_not_depend_on_the_order_of_insertion(
        items in proptest::collection::vec((0u64..3, 0u32..6), 0..40),
        seed in any::<u64>(),
    ) {
        // One completion has one reward, with ties between completions.
        let reward = |token: u32| f64::from(token / 2) * 0.3;
        let fill = |items: &[(u64, u32)]| {
            let mut buffer = ReplayBuffer::new(3).unwrap();
            for (prompt, token) in items {
                buffer.insert(*prompt, completion(*token, reward(*token))).unwrap();
            }
            buffer
        };
        let mut shuffled = items.clone();
        Stream::new(seed, "shuffle").at(0).shuffle(&mut shuffled);
        prop_assert_eq!(fill(&items), fill(&shuffled));
    }

    #[test]
    fn a_stored_buffer_comes_back_bit_by_bit(
        items in proptest::collection::vec((any::<u64>(), 0u32..9, -1e30f64..1e30), 0..30),
    ) {
        let mut buffer = ReplayBuffer::new(4).unwrap();
        for (prompt, token, log_r) in items {
            buffer.insert(prompt % 3, completion(token, log_r)).unwrap();
        }
        let json = serde_json::to_string(&buffer).unwrap();
        let back: ReplayBuffer = serde_json::from_str(&json).unwrap();
        prop_assert_eq!(&back, &buffer);
        for prompt in buffer.prompts() {
            for (a, b) in buffer.completions(prompt).iter().zip(back.completions(prompt)) {
                prop_assert_eq!(a.log_r.to_bits(), b.log_r.to_bits());
            }
        }
        prop_assert_eq!(serde_json::to_string(&back).unwrap(), json);
    }
}

/// A completion that ended with EOS, its letters as tokens.
fn words(text: &str, log_r: f64) -> Completion {
    Completion {
        tokens: text.bytes().map(u32::from).chain([2]).collect(),
        log_r,
        truncated: false,
    }
}

fn held(buffer: &ReplayBuffer) -> Vec<String> {
    let text = |tokens: &[u32]| tokens.iter().map(|token| *token as u8 as char).collect();
    let held = buffer.completions(5).iter();
    held.map(|held| text(&held.tokens[..held.tokens.len() - 1]))
        .collect()
}

#[test]
fn of_close_completions_the_best_stays() {
    let buffer = ReplayBuffer::new(3).unwrap();
    let mut buffer = buffer.with_min_distance(Some(0.25)).unwrap();
    let mut insert = |text: &str, log_r: f64| {
        let found = buffer.insert(5, words(text, log_r)).unwrap();
        (found, held(&buffer))
    };
    // Of 4 and 4 letters, 2 that differ are a quarter.
    assert_eq!(insert("aaaa", 1.0).0, Insertion::Added);
    assert_eq!(insert("aaab", 0.5).0, Insertion::Rejected, "worse");
    assert_eq!(insert("aaab", 1.0).0, Insertion::Rejected, "as good");
    assert_eq!(insert("aabb", 0.0).0, Insertion::Added, "far enough");
    // Close to both, better than one.
    assert_eq!(
        insert("aaab", 0.75),
        (
            Insertion::Rejected,
            vec!["aaaa".to_owned(), "aabb".to_owned()]
        )
    );
    // Close to both and better than both.
    assert_eq!(
        insert("aaab", 2.0),
        (Insertion::Replaced, vec!["aaab".to_owned()])
    );
    // The same again: its reward is what is known last.
    assert_eq!(
        insert("aaab", 1.5),
        (Insertion::Updated, vec!["aaab".to_owned()])
    );
    assert_eq!(insert("cccccc", 1.0).0, Insertion::Added);
    assert_eq!(insert("dddddd", 0.5).0, Insertion::Added);
    // The capacity still holds, the least reward goes first.
    assert_eq!(
        insert("eeeeee", 0.75).1,
        ["aaab", "cccccc", "eeeeee"].map(str::to_owned)
    );
    // Other prompts do not count.
    assert_eq!(
        buffer.insert(6, words("aaab", 0.0)).unwrap(),
        Insertion::Added
    );
    // A completion of EOS alone is near to nothing.
    assert_eq!(buffer.insert(6, words("", 0.0)).unwrap(), Insertion::Added);
}

#[test]
fn a_distance_has_a_range_and_is_stored() {
    for distance in [0.0, -0.1, 1.1, f64::NAN] {
        let buffer = ReplayBuffer::new(1).unwrap();
        assert!(buffer.with_min_distance(Some(distance)).is_err());
    }
    let buffer = filled(&[1.0], 2).with_min_distance(Some(0.25)).unwrap();
    let json = serde_json::to_string(&buffer).unwrap();
    assert_eq!(serde_json::from_str::<ReplayBuffer>(&json).unwrap(), buffer);
    let forged = json.replace("0.25", "2.5");
    assert!(serde_json::from_str::<ReplayBuffer>(&forged).is_err());
    // Without a distance the stored form is what it was.
    let plain = serde_json::to_string(&filled(&[1.0], 2)).unwrap();
    assert!(!plain.contains("distance"), "{plain}");
}

proptest! {
    #[test]
    fn no_two_that_are_held_are_close(
        items in proptest::collection::vec(("[ab]{0,8}", 0u32..6), 0..40),
        later in 0usize..40,
    ) {
        let buffer = ReplayBuffer::new(4).unwrap();
        let mut buffer = buffer.with_min_distance(Some(0.25)).unwrap();
        let mut resumed = None;
        for (at, (text, log_r)) in items.iter().enumerate() {
            if at == later {
                let json = serde_json::to_string(&buffer).unwrap();
                resumed = Some(serde_json::from_str::<ReplayBuffer>(&json).unwrap());
            }
            let completion = words(text, f64::from(*log_r));
            if let Some(resumed) = &mut resumed {
                resumed.insert(5, completion.clone()).unwrap();
            }
            buffer.insert(5, completion).unwrap();
            let held = buffer.completions(5);
            prop_assert!(held.is_sorted_by(|a, b| a.log_r >= b.log_r) && held.len() <= 4);
            for (place, first) in held.iter().enumerate() {
                for second in &held[place + 1..] {
                    prop_assert!(!are_close(first, second, 0.25), "{:?} {:?}", first, second);
                }
            }
        }
        if let Some(resumed) = resumed {
            prop_assert_eq!(resumed, buffer);
        }
    }
}
