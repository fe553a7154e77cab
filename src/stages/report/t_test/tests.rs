use serde_json::json;

use super::*;
use crate::stages::report::fixture::{rows, scored, with_rewards};
use crate::stages::report::groups::tests::labels;
use crate::stages::report::repeats::tests::repeat;

fn kind(params: serde_json::Value) -> TTest {
    serde_json::from_value(params).unwrap()
}

fn published(std: &str, expected: f64) -> (Table, Vec<String>) {
    let published = json!([{
        "name": "FlowHF > PPO", "n": 200, "a": { "mean": 1.024, "std": 0.914 },
        "b": { "mean": 0.872, "std": 0.796 }, "std": std, "expected_p": expected,
    }]);
    let published: Vec<Published> = serde_json::from_value(published).unwrap();
    recomputed(&published, Alternative::Greater).unwrap()
}

fn cell(table: &Table, column: &str, row: usize) -> f64 {
    table.numbers(column).unwrap()[row].unwrap()
}

/// ```python
/// s = np.sqrt(200 / 199)
/// scipy.stats.ttest_ind_from_stats(1.024, .914*s, 200, .872, .796*s, 200, equal_var=False, alternative="greater")
/// ```
#[test]
fn the_published_test_follows_from_the_published_table() {
    let (table, differing) = published("population", 0.039);
    assert!(
        (cell(&table, "t", 0) - 1.769).abs() < 5e-4,
        "{}",
        table.text()
    );
    assert!(
        (cell(&table, "df", 0) - 390.6).abs() < 0.05,
        "{}",
        table.text()
    );
    assert!(
        (cell(&table, "p", 0) - 0.038_83).abs() < 5e-6,
        "{}",
        table.text()
    );
    assert!(
        (cell(&table, "Student p", 0) - 0.038_82).abs() < 5e-6,
        "{}",
        table.text()
    );
    assert_eq!(differing, Vec::<String>::new());
    // Read as sample deviations, the same numbers round to 0.038.
    let (table, differing) = published("sample", 0.039);
    assert_eq!(
        table.texts("Verdict").unwrap(),
        [Some("differs".to_owned())]
    );
    assert_eq!(differing, ["FlowHF > PPO"]);
}

/// ```python
/// a, b = [1.2, .7, 1.9, 1.4, .3, 2.2], [.4, 1.0, .1, .8, -.3, .6]
/// scipy.stats.ttest_ind(a, b, equal_var=False, alternative="greater"), scipy.stats.ttest_ind(a, b, alternative="greater")
/// ```
#[test]
fn one_run_is_one_line() {
    let texts = ["a", "b", "c", "d", "e", "f"].map(str::to_owned);
    let of = |policy: &str, rewards: [f64; 6]| {
        (
            labels(&[("policy", policy)]),
            with_rewards(&rewards, &texts),
        )
    };
    let rows = rows(vec![
        of("flowhf", [1.2, 0.7, 1.9, 1.4, 0.3, 2.2]),
        of("ppo", [0.4, 1.0, 0.1, 0.8, -0.3, 0.6]),
    ]);
    let table = kind(json!({ "pairs": [{ "a": "flowhf", "b": "ppo" }] }))
        .table(&rows)
        .unwrap();
    assert_eq!(table.height(), 1);
    assert_eq!(table.texts("Runs").unwrap(), [Some("all".to_owned())]);
    let close = |column: &str, expected: f64| {
        let found = cell(&table, column, 0);
        assert!(
            (found - expected).abs() < 1e-10,
            "{column}: {found}, not {expected}"
        );
    };
    close("Difference", 5.1 / 6.0);
    close("t", T_WELCH);
    close("df", DF_WELCH);
    close("p", P_WELCH);
    close("Holm p", P_WELCH);
    close("Student p", P_STUDENT);
}

const T_WELCH: f64 = 2.426_371_635_159_346;
const DF_WELCH: f64 = 8.712_966_133_986_324;
const P_WELCH: f64 = 0.019_527_058_638_504_992;
const P_STUDENT: f64 = 0.017_835_425_333_759_307;

#[test]
fn runs_are_tested_pooled_over_runs_and_one_by_one() {
    let mut items = Vec::new();
    for seed in 1..=3 {
        items.push(scored("ppo", seed, 1.0, 50));
        items.push(scored("flowhf", seed, 0.8, 50));
        items.push(scored("baseline", seed, 0.98, 50));
    }
    let rows = rows(items);
    let params = json!({ "pairs": [{ "a": "ppo", "b": "flowhf", "claim": "PPO wins" }, { "a": "ppo", "b": "baseline" }] });
    let table = kind(params).table(&rows).unwrap();
    let runs: Vec<String> = table.texts("Runs").unwrap().into_iter().flatten().collect();
    assert_eq!(
        runs,
        ["pooled", "runs", "seed 1", "seed 2", "seed 3"].repeat(2)
    );
    assert_eq!(
        (
            cell(&table, "n a", 0),
            cell(&table, "n a", 1),
            cell(&table, "n a", 2)
        ),
        (150.0, 3.0, 50.0)
    );
    let means: Vec<f64> = (2..5).map(|row| cell(&table, "Difference", row)).collect();
    let over_runs = stats::one_sample_t_test(&means, 0.0, stats::Alternative::Greater).unwrap();
    assert!((cell(&table, "t", 1) - over_runs.t).abs() < 1e-9);
    assert!((cell(&table, "p", 1) - over_runs.p).abs() < 1e-12);
    // Two tests in each family: the smaller p doubles, and the greater one is at least that.
    for row in 0..5 {
        let (first, second) = (cell(&table, "p", row), cell(&table, "p", row + 5));
        let (small, great) = (first.min(second), first.max(second));
        let adjusted = [cell(&table, "Holm p", row), cell(&table, "Holm p", row + 5)];
        let expected = [(2.0 * small).min(1.0), great.max((2.0 * small).min(1.0))];
        assert_eq!(
            if first <= second {
                adjusted
            } else {
                [adjusted[1], adjusted[0]]
            },
            expected
        );
    }
    // The rewards share most of their noise, so pairing makes the interval narrower (0.24, where independence gives 0.33).
    let width = cell(&table, "Difference high", 2) - cell(&table, "Difference low", 2);
    assert!((0.15..0.28).contains(&width), "{width}");
    assert_eq!(table.numbers("Student t").unwrap()[1], None);
    assert_eq!(table.texts("Claim").unwrap()[5], None);
}

#[test]
fn values_that_do_not_vary_leave_cells_empty() {
    let texts = ["a", "b", "c"].map(str::to_owned);
    let of = |policy: &str, reward: f64| {
        (
            labels(&[("policy", policy)]),
            with_rewards(&[reward; 3], &texts),
        )
    };
    let rows = rows(vec![of("a", 1.0), of("b", 0.5)]);
    let table = kind(json!({ "pairs": [{ "a": "a", "b": "b" }] }))
        .table(&rows)
        .unwrap();
    assert_eq!(table.numbers("p").unwrap(), [None]);
    assert_eq!(table.numbers("Holm p").unwrap(), [None]);
    assert_eq!(cell(&table, "Difference", 0), 0.5);
}

#[test]
fn unknown_rows_are_named() {
    let rows = rows(vec![scored("ppo", 1, 1.0, 9)]);
    let error = kind(json!({ "pairs": [{ "a": "ppo", "b": "flowfh" }] }))
        .table(&rows)
        .unwrap_err();
    assert!(
        matches!(error, StageError::Failed { message, hint: Some(_) } if message == "no input is the row `flowfh`")
    );
}

#[test]
fn runs_that_are_one_and_the_same_are_pooled_once() {
    let items = (1..=3).flat_map(|seed| [scored("a", seed, 1.0, 20), scored("b", seed, 0.9, 20)]);
    let mut rows = rows(items.collect());
    let kind = kind(json!({ "pairs": [{ "a": "a", "b": "b" }] }));
    let runs = |rows: &[Row<Scored>]| kind.table(rows).unwrap().all_texts("Runs").unwrap();
    assert_eq!(
        runs(&rows),
        ["pooled", "runs", "seed 1", "seed 2", "seed 3"]
    );
    repeat(&mut rows[0]);
    // Another row differs from run to run.
    assert_eq!(runs(&rows).len(), 5);
    repeat(&mut rows[1]);
    let table = kind.table(&rows).unwrap();
    assert_eq!(table.all_texts("Runs").unwrap(), ["pooled", "seed 1"]);
    assert_eq!(
        (cell(&table, "n a", 0), cell(&table, "n b", 0)),
        (20.0, 20.0)
    );
    assert!(
        table
            .notes
            .iter()
            .any(|note| note.ends_with("count once: seed 1 = 2 = 3."))
    );
}
