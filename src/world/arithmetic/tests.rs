use std::collections::{BTreeMap, BTreeSet};

use proptest::{prop_assert, proptest};

use super::*;
use crate::random::Stream;
use crate::world::{Examiner, Split};

/// That of the problems in these tests, but for the generated ones.
const GREATEST: u32 = 20;

fn problem(text: &str) -> Problem {
    Problem::find(text, GREATEST).unwrap()
}

fn read(text: &str) -> (usize, Option<Fault>, usize) {
    let reading = problem("numbers 2 3 4 6 target 18").read(text, true);
    let steps = reading.derivation.0.len();
    (steps, reading.fault, reading.leftover_words)
}

#[test]
fn a_problem_is_found_in_whatever_prompt() {
    let expected = Problem {
        numbers: vec![2, 3, 4, 6],
        target: 18,
        greatest: GREATEST,
    };
    for prompt in [
        "numbers 2 3 4 6 target 18",
        "Question: numbers 2 3 4 6 target 18 Answer:",
        "Of numbers that are given make it. (numbers: 2, 3, 4, 6; target: 18.)",
        "numbers 1 1 target 2 ; numbers 2 3 4 6 target 18 :",
    ] {
        assert_eq!(Problem::find(prompt, GREATEST), Some(expected.clone()));
    }
    assert_eq!(expected.to_string(), "numbers 2 3 4 6 target 18");
    for prompt in [
        "",
        "numbers",
        "numbers 2 3 4 6",
        "numbers 2 target 2",
        "numbers 2 3 target",
        "numbers 2 3 target x",
        "numbers 2 0 target 2",
        "numbers 2 03 target 5",
        "numbers 2 21 target 5",
        "numbers 2 3 target 21",
        "numbers 1 2 3 4 5 6 target 7",
        "target 5 numbers 2 3",
    ] {
        assert_eq!(Problem::find(prompt, GREATEST), None, "{prompt}");
    }
}

#[test]
fn steps_use_what_is_there_and_are_exact() {
    use Fault::{Inexact, Malformed, Unavailable};
    for (text, expected) in [
        ("3 * 6 = 18", (1, None, 0)),
        ("2 * 3 = 6 ; 4 + 6 = 10", (2, None, 0)),
        // Made twice over: the six that was given and the one that was made.
        ("2 * 3 = 6 ; 6 + 6 = 12 ; 12 + 4 = 16", (3, None, 0)),
        ("6 + 6 = 12", (0, Some(Unavailable), 5)),
        // What was used is gone.
        ("2 * 3 = 6 ; 3 * 6 = 18", (1, Some(Unavailable), 5)),
        ("5 + 4 = 9", (0, Some(Unavailable), 5)),
        ("3 * 6 = 17", (0, Some(Inexact), 5)),
        ("2 - 3 = 1", (0, Some(Inexact), 5)),
        // Beyond the greatest number.
        ("4 * 6 = 24", (0, Some(Inexact), 5)),
        ("3 * 6 = 18 ;", (1, Some(Malformed), 0)),
        ("3 * 6 = 18 ; ; 2", (1, Some(Malformed), 2)),
        ("3 * 6", (0, Some(Malformed), 3)),
        ("3 / 6 = 2", (0, Some(Malformed), 5)),
        ("3 * 6 = 18 18", (0, Some(Malformed), 6)),
        ("3 * 6 = 018", (0, Some(Malformed), 5)),
        ("3 * 6 = 99999999999", (0, Some(Malformed), 5)),
        ("", (0, Some(Malformed), 0)),
    ] {
        assert_eq!(read(text), expected, "{text}");
    }
}

#[test]
fn the_last_step_of_a_text_that_goes_on_does_not_count_yet() {
    let problem = problem("numbers 2 3 4 6 target 18");
    let steps = |text: &str| {
        let reading = problem.read(text, false);
        assert!(!problem.is_right(&reading) || text.contains("18 ;"));
        (reading.derivation.0.len(), reading.fault)
    };
    // With tokens of single letters the last word may go on: `1` of `18`.
    for open in ["", "3 * 6 = 1", "3 * 6 = 18", "nonsense"] {
        assert_eq!(steps(open), (0, None), "{open}");
    }
    assert_eq!(steps("2 * 3 = 6 ;"), (1, None));
    assert_eq!(steps("2 * 3 = 6 ; 6 *"), (1, None));
    assert_eq!(steps("3 * 6 = 1 ;"), (0, Some(Fault::Inexact)));
}

#[test]
fn right_derivations_are_all_texts_that_read_as_right() {
    // Every text of one or two steps with small numbers, by brute force.
    let problem = Problem {
        numbers: vec![2, 3, 1],
        target: 5,
        greatest: 9,
    };
    let words: Vec<String> = (1..=9).map(|number: u32| number.to_string()).collect();
    let mut steps = Vec::new();
    for left in &words {
        for sign in ["+", "-", "*"] {
            for right in &words {
                for result in &words {
                    steps.push(format!("{left} {sign} {right} = {result}"));
                }
            }
        }
    }
    let right = |text: &String| problem.is_right(&problem.read(text, true));
    let mut expected: Vec<String> = steps.iter().filter(|text| right(text)).cloned().collect();
    let holds = |text: &&String| problem.read(text, true).fault.is_none();
    for first in steps.iter().filter(holds) {
        let both = steps.iter().map(|second| format!("{first} ; {second}"));
        expected.extend(both.filter(right));
    }
    expected.sort();
    let derivations = problem.right_derivations();
    let mut found: Vec<String> = derivations.iter().map(ToString::to_string).collect();
    found.sort();
    assert_eq!(found, expected);
    assert!(found.contains(&"2 + 3 = 5 ; 5 * 1 = 5".to_owned()) && found.len() > 4);
    found.dedup();
    assert_eq!(found.len(), expected.len());
}

#[test]
fn equal_numbers_make_no_text_twice() {
    let problem = problem("numbers 2 2 2 target 4");
    let found: Vec<String> = problem
        .right_derivations()
        .iter()
        .map(ToString::to_string)
        .collect();
    // 2 * 2 = 4 ; 4 - 2 = 2 and the like miss the target.
    assert_eq!(found, ["2 * 2 = 4", "2 + 2 = 4"]);
    // Nor is there a zero on the way: 4 - 4 = 0 ; 5 + 0 = 5.
    let problem = self::problem("numbers 4 4 5 target 5");
    let right = problem.right_derivations();
    assert!(
        right
            .iter()
            .all(|found| problem.is_right(&problem.read(&found.to_string(), true)))
    );
}

#[test]
fn derivations_are_the_same_where_sums_and_products_are_turned_round() {
    let problem = problem("numbers 2 3 4 6 target 18");
    let canonical = |text: &str| problem.read(text, true).derivation.canonical().to_string();
    assert_eq!(canonical("3 *  6 = 18"), "6 * 3 = 18");
    assert_eq!(canonical("6 * 3 = 18"), "6 * 3 = 18");
    assert_eq!(canonical("6 - 4 = 2"), "6 - 4 = 2");
    assert_eq!(
        canonical("2 * 3 = 6 ; 4 + 6 = 10"),
        "3 * 2 = 6 ; 6 + 4 = 10"
    );
}

#[test]
fn progress_is_the_share_of_the_shortest_way_that_is_made() {
    let problem = problem("numbers 2 3 4 6 target 18");
    let progress = |text: &str| problem.progress(&problem.read(text, false));
    assert_eq!(progress(""), 0.0);
    assert_eq!(progress("3 * 6 = 18"), 0.0);
    // One step of two: 3 * 6 = 18 is still to be made.
    assert_eq!(progress("4 + 2 = 6 ;"), 0.5);
    assert_eq!(progress("2 * 4 = 8 ;"), 0.5);
    // No way is left, or a step does not hold.
    assert_eq!(progress("2 + 6 = 8 ;"), 0.0);
    assert_eq!(progress("6 - 4 = 2 ;"), 0.0);
    assert_eq!(progress("2 * 3 = 6 ; 6 + 6 = 12 ;"), 0.0);
    assert_eq!(progress("2 * 4 = 9 ;"), 0.0);
    assert_eq!(progress("4 + 2 = 6 ; 9 + 9 = 18 ;"), 0.0);
    // A step behind the target: another must follow it.
    assert_eq!(progress("3 * 6 = 18 ;"), 0.0);
    assert_eq!(progress("3 * 6 = 18 ; 4 - 2 = 2 ;"), 0.0);
}

/// Numbers of `fewest_steps` by plain enumeration of all ways.
#[test]
fn the_shortest_way_is_that_of_the_enumeration() {
    for numbers in [vec![1, 2, 3, 4], vec![2, 3, 3], vec![5, 7, 9], vec![4, 4]] {
        for target in 1..=GREATEST {
            let problem = Problem {
                numbers: numbers.clone(),
                target,
                greatest: GREATEST,
            };
            let lengths = problem.right_derivations();
            let shortest = lengths.iter().map(|found| found.0.len()).min();
            assert_eq!(problem.fewest_steps(&numbers), shortest, "{problem}");
        }
    }
}

/// As a program of its own counted them (Python, breadth first over tuples).
#[test]
fn the_problems_have_several_right_answers_and_lie_in_one_split_each() {
    let problems = Problems::new(3);
    let splits = [Split::Train, Split::Validation, Split::Test].map(|split| problems.of(split));
    assert_eq!(splits.each_ref().map(Vec::len), [903, 112, 338]);
    let all: BTreeSet<String> = splits
        .iter()
        .flatten()
        .map(|posed| posed.problem.to_string())
        .collect();
    assert_eq!(all.len(), 1353);
    let mut answers = 0;
    for posed in splits.iter().flatten() {
        let problem = &posed.problem;
        let text = problem.to_string();
        assert_eq!(
            Problem::find(&text, super::GREATEST).as_ref(),
            Some(problem)
        );
        assert!(!problem.numbers.contains(&problem.target), "{text}");
        let right = problem.right_derivations();
        let distinct: BTreeSet<Derivation> = right.iter().map(Derivation::canonical).collect();
        assert!(distinct.len() >= FEWEST_ANSWERS && right.len() <= MOST_ANSWERS);
        answers += right.len();
    }
    assert_eq!(answers, 8681);
    // Another world holds back others, of the same problems.
    let other = Problems::new(4).of(Split::Test);
    assert!(other.len() == 338 && other != splits[2]);
    assert_eq!(
        problems.posed(7).unwrap().problem,
        Problems::new(4).posed(7).unwrap().problem
    );
}

#[test]
fn the_preferred_of_a_pair_is_right_and_the_other_is_not() {
    let problems = Problems::new(1);
    let train = problems.of(Split::Train);
    let pairs = problems.pairs(&train, 2 * train.len(), &Stream::new(5, "pairs"));
    let mut faults: BTreeMap<Option<Fault>, usize> = BTreeMap::new();
    for pair in &pairs {
        let problem = &pair.posed.problem;
        let read = |text: &str| problem.read(text, true);
        assert!(problem.is_right(&read(&pair.chosen)), "{pair:?}");
        let rejected = read(&pair.rejected);
        assert!(!problem.is_right(&rejected), "{pair:?}");
        *faults.entry(rejected.fault).or_default() += 1;
    }
    // Of each kind about a third; a strange number may make a wrong result no fault of its own.
    for fault in [None, Some(Fault::Unavailable), Some(Fault::Inexact)] {
        assert!(faults[&fault] > pairs.len() / 5, "{faults:?}");
    }
    assert_eq!(faults.len(), 3);
    let asked: BTreeSet<u32> = pairs.iter().map(|pair| pair.posed.id).collect();
    assert_eq!(asked.len(), train.len());
}

#[test]
fn documents_have_the_stated_share_of_wrong_derivations() {
    let problems = Problems::new(1);
    let posed = problems.posed(100).unwrap();
    let stream = Stream::new(1, "documents");
    let wrong = (0..4000).filter(|at| {
        let text = problems.document(posed, &mut stream.at(*at));
        let reading = posed.problem.read(&text, true);
        !posed.problem.is_right(&reading)
    });
    let share = wrong.count() as f64 / 4000.0;
    assert!((share - FLAWED_SHARE).abs() < 0.02, "{share}");
}

#[test]
fn the_examiner_knows_problems() {
    let examiner = Examiner::new(1);
    for posed in Problems::new(1).of(Split::Test).iter().step_by(40) {
        let exam = examiner.exam(&posed.problem.to_string()).unwrap();
        let legal = exam.legal();
        assert!(legal.len() >= FEWEST_ANSWERS);
        let prior: f64 = legal.iter().map(|one| one.log_prior.exp()).sum();
        assert!((prior - 1.0).abs() < 1e-9);
        for one in legal {
            let marks = exam.marks(&one.text, true);
            assert_eq!(
                (marks.reward, marks.mode, marks.leftover_words),
                (1.0, one.mode, 0)
            );
            assert_eq!(
                (one.reward, exam.marks(&one.text, false).reward),
                (1.0, 0.0)
            );
        }
    }
    let exam = examiner.exam("numbers 2 3 6 target 18").unwrap();
    let marks = |text: &str| {
        let marks = exam.marks(text, true);
        (
            marks.reward,
            marks.mode,
            marks.slot_errors,
            marks.leftover_words,
        )
    };
    assert_eq!(marks("3 * 6 = 18"), (1.0, Some("product"), 0, 0));
    assert_eq!(marks("6 + 3 = 9"), (0.0, Some("sum"), 0, 0));
    assert_eq!(
        marks("6 - 3 = 3 ; 3 * 3 = 9"),
        (0.0, Some("difference"), 1, 5)
    );
    assert_eq!(marks("so so"), (0.0, None, 0, 2));
}

#[test]
fn derivations_are_drawn_as_the_priors_say() {
    let problem = Problem::find("numbers 2 3 6 target 18", super::GREATEST).unwrap();
    let right = problem.right_derivations();
    let texts: Vec<String> = right.iter().map(ToString::to_string).collect();
    let priors = log_priors(&right);
    let of = |text: &str| priors[texts.iter().position(|one| one == text).unwrap()].exp();
    // A product with the greater number first is three times as likely as the other way round.
    assert!((of("6 * 3 = 18") / of("3 * 6 = 18") - 3.0).abs() < 1e-12);
    // A sum before a product: 2 * 0.9 times as likely as the product alone.
    assert!((of("6 + 3 = 9 ; 9 * 2 = 18") / of("6 * 3 = 18") - 1.8).abs() < 1e-12);
}

#[test]
fn the_problems_are_pinned_because_results_in_stores_depend_on_them() {
    let problems = Problems::new(7);
    let mut hasher = blake3::Hasher::new();
    for posed in problems.of(Split::Test) {
        hasher.update(format!("{} {}\n", posed.id, posed.problem).as_bytes());
        for derivation in posed.problem.right_derivations() {
            hasher.update(format!("{derivation}\n").as_bytes());
        }
    }
    let train = problems.of(Split::Train);
    let stream = Stream::new(7, "pinned");
    for pair in problems.pairs(&train, 200, &stream) {
        hasher.update(format!("{} | {}\n", pair.chosen, pair.rejected).as_bytes());
    }
    for posed in train.iter().step_by(9) {
        let text = problems.document(posed, &mut stream.at(u64::from(posed.id)));
        hasher.update(text.as_bytes());
    }
    assert_eq!(&hasher.finalize().to_hex()[..16], "ff70bf930ad691de");
}

proptest! {
    /// Numbers and signs in any order, derivations with words changed, and anything else.
    #[test]
    fn any_text_is_read(text in "((2|3|6|1|18|9|[0-9]{1,12}|[+*;=-]|2 \\* 3 = 6|6 \\+ 3 = 9|; 9 \\* 2 = 18|3 \\* 6 = 18|6 - 3 = 3) |[ -~é]{0,3}){0,12}") {
        let problem = Problem::find("numbers 2 3 6 target 18", 24).unwrap();
        for whole in [true, false] {
            let reading = problem.read(&text, whole);
            prop_assert!(reading.derivation.0.len() + reading.numbers.len() == 3);
            prop_assert!(reading.numbers.is_sorted());
            prop_assert!((0.0..=1.0).contains(&problem.progress(&reading)));
            if whole && problem.is_right(&reading) {
                let words: Vec<&str> = text.split_whitespace().collect();
                prop_assert!(reading.derivation.to_string() == words.join(" "));
                prop_assert!(problem.right_derivations().contains(&reading.derivation));
            }
        }
        // A prompt may be anything as well.
        Problem::find(&text, 24);
        Problem::find(&format!("numbers {text} target 3"), 24);
    }
}
