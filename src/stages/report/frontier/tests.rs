use serde_json::json;

use super::matched::Line;
use super::*;
use crate::artifacts::table::Table;
use crate::stages::report::joined::Point;
use crate::stats::figure::Look;

fn kind(params: serde_json::Value) -> Frontier {
    let kind: Frontier = serde_json::from_value(params).unwrap();
    assert_eq!(kind.validate(), []);
    kind
}

/// A table of runs: policy, strength, seed and a value of each column.
fn table(columns: &[&str], rows: &[(&str, &str, &str, &[f64])]) -> Table {
    let mut table = Table::new("runs");
    let texts =
        |of: fn(&(&str, &str, &str, &[f64])) -> String| rows.iter().map(move |row| Some(of(row)));
    table.label_column("policy", texts(|row| row.0.to_owned()));
    if rows.iter().any(|row| !row.1.is_empty()) {
        table.label_column("strength", texts(|row| row.1.to_owned()));
    }
    table.label_column("seed", texts(|row| row.2.to_owned()));
    for (at, column) in columns.iter().enumerate() {
        table.number_column(*column, 3, rows.iter().map(|row| Some(row.3[at])));
    }
    table
}

/// Two policies over strengths with two seeds: KL and reward in one table, diversity in another.
fn tables() -> Vec<(String, Table)> {
    let rewards = table(
        &["kl", "Mean"],
        &[
            ("gdpo", "10", "1", &[4.0, 2.0]),
            ("gdpo", "2", "1", &[0.0, 0.0]),
            ("gdpo", "2", "2", &[1.0, 1.0]),
            ("gdpo", "10", "2", &[3.0, 3.0]),
            ("dpo", "2", "1", &[2.0, 0.5]),
            ("dpo", "10", "1", &[6.0, 0.5]),
            ("dpo", "2", "2", &[2.0, 0.0]),
            ("dpo", "10", "2", &[3.0, 1.0]),
        ],
    );
    let diversity = table(
        &["Diversity"],
        &[
            ("gdpo", "", "1", &[0.5]),
            ("gdpo", "", "2", &[0.7]),
            ("dpo", "", "1", &[0.4]),
            ("dpo", "", "2", &[0.3]),
        ],
    );
    vec![
        ("rewards".to_owned(), rewards),
        ("diversity".to_owned(), diversity),
    ]
}

fn params() -> serde_json::Value {
    json!({ "along": "strength", "values": ["Mean", "Diversity"], "at": ["kl"], "pairs": [{ "a": "gdpo", "b": "dpo" }] })
}

fn message<T: std::fmt::Debug>(result: Result<T, StageError>) -> (String, String) {
    match result {
        Err(StageError::Failed { message, hint }) => (message, hint.unwrap_or_default()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn tables_are_joined_by_the_axes_that_they_show() {
    let kind = kind(params());
    let points = kind.join().points(&tables(), &kind.wanted()).unwrap();
    let found: Vec<(&str, &str, Option<f64>)> = points
        .iter()
        .map(|point| {
            (
                point.name.as_str(),
                point.run.as_str(),
                point.value("Diversity"),
            )
        })
        .collect();
    // Strengths ascend as numbers.
    assert_eq!(
        found[..4],
        [
            ("gdpo, 2", "1", Some(0.5)),
            ("gdpo, 2", "2", Some(0.7)),
            ("gdpo, 10", "1", Some(0.5)),
            ("gdpo, 10", "2", Some(0.7)),
        ]
    );
    let table = kind.table(&points);
    assert_eq!(
        table.all_texts("policy").unwrap(),
        ["gdpo", "gdpo", "dpo", "dpo"]
    );
    assert_eq!(table.all_numbers("Mean").unwrap(), [0.5, 2.5, 0.25, 0.75]);
    assert_eq!(table.all_numbers("Runs").unwrap(), [2.0; 4]);
    assert!((table.numbers("Mean sd").unwrap()[0].unwrap() - 0.5f64.sqrt()).abs() < 1e-12);
}

#[test]
fn lines_are_compared_over_the_range_that_both_have() {
    let line = |points: &[(f64, f64)]| Line::through(points.to_vec()).unwrap();
    // Two points at 1 are their mean, 2; the order does not matter.
    let a = line(&[(1.0, 3.0), (0.0, 0.0), (1.0, 1.0), (3.0, 2.0)]);
    let flat = line(&[(-1.0, 1.0), (5.0, 1.0)]);
    // Of 2x to 1, then of 2, over a range of 3: (1 + 4) / 3.
    let (difference, range) = a.above(&flat).unwrap();
    assert!(
        (difference - (5.0 / 3.0 - 1.0)).abs() < 1e-12 && range == (0.0, 3.0),
        "{difference}"
    );
    assert!((flat.above(&a).unwrap().0 + difference).abs() < 1e-12);
    let point = line(&[(0.5, 4.0)]);
    assert_eq!(point.above(&a), Some((3.0, (0.5, 0.5))));
    assert_eq!(point.above(&line(&[(0.6, 1.0), (2.0, 1.0)])), None);
    assert_eq!(Line::through(Vec::new()), None);
}

#[test]
fn differences_are_taken_run_by_run() {
    let kind = kind(params());
    let points = kind.join().points(&tables(), &kind.wanted()).unwrap();
    let matched = kind.matched(&points).unwrap();
    assert_eq!(matched.len(), 2);
    // Seed 1: x / 2 - 1/2 from 2 to 4; seed 2: x - (x - 2) from 2 to 3.
    assert_eq!(matched[0].differences, [1.0, 2.0]);
    assert_eq!(matched[0].range, Ok((2.0, 3.5)));
    let table = kind.matched_table(&matched);
    assert_eq!(table.all_numbers("a - b").unwrap()[0], 1.5);
    // One degree of freedom: 1.5 - 12.7062 / 2.
    let low = table.numbers("a - b low").unwrap()[0].unwrap();
    assert!((low - (1.5 - 12.706_204_736 / 2.0)).abs() < 1e-6, "{low}");
    assert_eq!(
        table.all_texts("Common range").unwrap()[0],
        "2.000 to 3.500"
    );
    assert_eq!(table.all_texts("Runs").unwrap(), ["2", "2"]);
}

#[test]
fn ranges_that_do_not_meet_are_told() {
    let mut tables = tables();
    let far = |kl: f64| -> [f64; 2] { [kl, 1.0] };
    let (one, two, three, four) = (far(20.0), far(30.0), far(2.0), far(3.0));
    let rows: Vec<(&str, &str, &str, &[f64])> = vec![
        ("tb", "2", "1", &one),
        ("tb", "10", "1", &two),
        ("tb", "2", "2", &three),
        ("tb", "10", "2", &four),
    ];
    tables.push(("tb".to_owned(), table(&["kl", "Mean"], &rows)));
    tables.push((
        "tb_diversity".to_owned(),
        table(
            &["Diversity"],
            &[("tb", "", "1", &[0.5]), ("tb", "", "2", &[0.5])],
        ),
    ));
    let mut with = params();
    with["values"] = json!(["Mean"]);
    with["pairs"] = json!([{ "a": "gdpo", "b": "tb" }]);
    let some = kind(with.clone());
    let matched = some
        .matched(&some.join().points(&tables, &some.wanted()).unwrap())
        .unwrap();
    assert_eq!((matched[0].runs, matched[0].differences.len()), (2, 1));
    assert_eq!(
        some.matched_table(&matched).all_texts("Runs").unwrap(),
        ["1 of 2"]
    );

    for row in &mut tables[2].1.columns[3..] {
        if let crate::artifacts::table::Values::Numbers(values) = &mut row.values {
            values[2..]
                .iter_mut()
                .for_each(|value| *value = value.map(|value| value + 20.0));
        }
    }
    // One pair alone that does not meet is told in its cell, too.
    let matched = some
        .matched(&some.join().points(&tables, &some.wanted()).unwrap())
        .unwrap();
    let table = some.matched_table(&matched);
    assert_eq!(table.numbers("a - b").unwrap(), [None]);
    assert_eq!(
        table.all_texts("Common range").unwrap(),
        ["no common range: gdpo 0.000 to 4.000, tb 20.000 to 30.000"]
    );
    assert!(
        table
            .notes
            .iter()
            .any(|note| note.starts_with("No common range, so no difference")),
        "{:?}",
        table.notes
    );
    // And beside a pair that meets.
    with["pairs"] = json!([{ "a": "gdpo", "b": "tb" }, { "a": "gdpo", "b": "dpo" }]);
    let both = kind(with);
    let matched = both
        .matched(&both.join().points(&tables, &both.wanted()).unwrap())
        .unwrap();
    let table = both.matched_table(&matched);
    assert_eq!(table.numbers("a - b").unwrap()[0], None);
    assert!(table.all_texts("Common range").unwrap()[0].starts_with("no common range: gdpo"));
    assert_eq!(table.all_texts("Runs").unwrap(), ["0 of 2", "2"]);
}

#[test]
fn what_cannot_be_joined_or_paired_is_an_error() {
    let with = |key: &str, value: serde_json::Value| {
        let mut params = params();
        params[key] = value;
        kind(params)
    };
    let points = |kind: &Frontier, tables: &[(String, Table)]| -> Result<Vec<Point>, StageError> {
        kind.join().points(tables, &kind.wanted())
    };
    let (error, hint) = message(points(&with("values", json!(["Mode"])), &tables()));
    assert_eq!(error, "no table of `points` has a column `Mode`");
    assert_eq!(hint, "expected one of: Mean, kl, Diversity");
    let (error, hint) = message(points(&with("along", json!("size")), &tables()));
    assert_eq!(
        error,
        "no table of `points` has rows with all of policy, size, seed"
    );
    assert!(hint.contains("`rewards` lacks size"), "{hint}");
    // Numbers of a table from outside are values of axes, too.
    let mut outside = tables();
    let seeds = outside[1]
        .1
        .columns
        .iter_mut()
        .find(|column| column.name == "seed")
        .unwrap();
    seeds.decimals = Some(3);
    assert!(
        points(&kind(params()), &outside)
            .unwrap()
            .iter()
            .all(Point::is_complete)
    );
    let mut twice = tables();
    twice.push((
        "again".to_owned(),
        table(&["Diversity"], &[("dpo", "10", "1", &[0.9])]),
    ));
    let (error, _) = message(points(&kind(params()), &twice));
    assert_eq!(
        error,
        "`Diversity` of dpo, 10, seed 1 is 0.4 in `diversity` and 0.9 in `again`"
    );
    let unknown = with("pairs", json!([{ "a": "gdpo", "b": "tb" }]));
    let (error, hint) = message(unknown.matched(&points(&unknown, &tables()).unwrap()));
    assert_eq!(error, "`pairs` names `tb`, and no table has that policy");
    assert_eq!(hint, "there are: gdpo, dpo");
    let mut fewer = tables();
    fewer[0]
        .1
        .keep_rows(&[true, true, false, false, true, true, true, true]);
    let pairs = kind(params());
    let (error, _) = message(pairs.matched(&points(&pairs, &fewer).unwrap()));
    assert_eq!(
        error,
        "`Mean` at equal `kl`: gdpo has the runs 1, and dpo has 1, 2"
    );
}

#[test]
fn there_is_a_chart_for_each_column_and_for_each_series() {
    let mut with = params();
    with["x"] = json!({ "column": "kl", "scale": "sqrt" });
    with["together"] = json!(["Mean", "Diversity"]);
    let kind = kind(with);
    let charts = kind.charts(&kind.join().points(&tables(), &kind.wanted()).unwrap());
    let names: Vec<&str> = charts.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(
        names,
        [
            "Mean-over-kl",
            "Diversity-over-kl",
            "together-1-gdpo",
            "together-2-dpo"
        ]
    );
    let (_, chart) = &charts[0];
    assert_eq!(chart.x_scale, crate::stats::figure::Scale::Sqrt);
    assert_eq!(chart.series[0].points[0].at, (0.5, 0.5));
    assert_eq!(chart.series[0].points[0].y_range, Some((0.0, 1.0)));
    assert_eq!(chart.series[0].points[1].label, "10");
    let looks: Vec<Look> = charts[2]
        .1
        .series
        .iter()
        .map(|series| series.look)
        .collect();
    assert_eq!(looks, [Look(0), Look(1)]);
    for (name, chart) in &charts {
        assert!(
            chart.to_svg().unwrap().contains("square-root scale"),
            "{name}"
        );
    }
}

#[test]
fn runs_with_the_same_points_count_once() {
    let kind = kind(params());
    let mut points = kind.join().points(&tables(), &kind.wanted()).unwrap();
    let first = points.clone();
    for point in points.iter_mut().filter(|point| point.run == "2") {
        let same = |other: &&Point| other.name == point.name && other.run == "1";
        point.values = first.iter().find(same).unwrap().values.clone();
    }
    let matched = kind.matched(&points).unwrap();
    assert_eq!((matched[0].runs, matched[0].differences.len()), (1, 1));
    let table = kind.matched_table(&matched);
    assert_eq!(table.numbers("a - b low").unwrap()[0], None);
    let note = "gdpo and dpo: runs with the same points throughout count once: seed 1 = 2.";
    let notes = table.notes.iter().filter(|told| *told == note);
    assert_eq!(notes.count(), 1, "{:?}", table.notes);
}

#[test]
fn what_a_logarithmic_axis_cannot_show_is_said() {
    let mut with = params();
    with["x"] = json!({ "column": "kl", "scale": "log" });
    let kind = kind(with);
    let mut points = kind.join().points(&tables(), &kind.wanted()).unwrap();
    assert_eq!(kind.check_log_axis(&points).unwrap(), None);
    let mut zero = |name: &str| {
        for point in points
            .iter_mut()
            .filter(|point| point.name.starts_with(name))
        {
            point.values.insert("kl".to_owned(), Some(0.0));
        }
        for (_, chart) in kind.charts(&points) {
            chart.to_svg().unwrap();
        }
        kind.check_log_axis(&points)
    };
    assert_eq!(
        zero("gdpo, 2").unwrap().unwrap(),
        "not above 0 and so without a place on the logarithmic axis of `kl`: gdpo, 2"
    );
    let (error, hint) = message(zero(""));
    assert!(
        error.ends_with("`kl`: gdpo, 2, gdpo, 10, dpo, 2, dpo, 10"),
        "{error}"
    );
    assert_eq!(hint, "`scale: sqrt` has a place for them");
}

#[test]
fn params_that_say_nothing_are_refused() {
    let problems = |key: &str, value: serde_json::Value| -> Vec<String> {
        let mut params = params();
        params[key] = value;
        let kind: Frontier = serde_json::from_value(params).unwrap();
        kind.validate()
            .into_iter()
            .map(|problem| problem.message)
            .collect()
    };
    for (key, value, expected) in [
        (
            "along",
            json!("seed"),
            "`series`, `along` and `aggregate` must be different axes",
        ),
        (
            "at",
            json!([]),
            "`pairs` are compared at equal values of a column, and `at` names none",
        ),
        (
            "values",
            json!(["kl"]),
            "`values` names no column but the one that is held equal",
        ),
        (
            "values",
            json!(["Mean", "Mean"]),
            "`values` has `Mean` twice",
        ),
        (
            "pairs",
            json!([{ "a": "dpo", "b": "dpo" }]),
            "`dpo` is compared to itself",
        ),
        (
            "together",
            json!(["Mean"]),
            "`together` needs `x`, the column that its charts are drawn over",
        ),
        (
            "values",
            json!(["a b", "a-b"]),
            "two figures would be `a_b-over-kl.svg`",
        ),
    ] {
        let found = problems(key, value.clone());
        assert!(
            found.iter().any(|problem| problem == expected),
            "{key} {value}: {found:?}"
        );
    }
}
