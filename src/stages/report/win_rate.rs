//! `win_rate`: how often the completions of several policies are judged better.

use std::collections::{BTreeMap, BTreeSet};

use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::axes::Axes;
use super::bootstrap_params::check_bootstrap;
use super::groups::{Grouping, Row, add_axes, read_rows, refuse_ungrouped, within};
use super::questions::{compare, drawn_questions};
use super::repeats::once;
use super::resample::{Measured, Questions, crossed_mean_of};
use crate::artifacts::judgements::{self, JUDGEMENTS, Judgement, Verdict};
use crate::artifacts::table::{TABLE, Table};
use crate::engine::context::RunContext;
use crate::engine::facts::Known;
use crate::engine::stage::{Kind, Output, Port, Problem, StageError};
use crate::random::Stream;
use crate::stages::defaults;
use crate::stats::{Bootstrap, mean, sample_std, wilson};

/// Shows how often the completions of several policies are judged better than their opponents.
///
/// A pair is won (lost) if every verdict on it is for (against) the completion; a judge who prefers one completion in one
/// order and the other in the other calls a tie. The win rate is the mean over questions of 1 for a win, 1/2 for a tie
/// and 0 for a loss, in percent. A reply that names neither counts as unread; a pair without any verdict is left out.
/// `table` has the mean over runs, `per_seed` one row for each run.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WinRate {
    /// The axis whose values are the rows, or a list of axes.
    #[serde(default)]
    row: Axes,
    /// The axis whose values are the runs of a row.
    #[serde(default = "defaults::seed_axis")]
    aggregate: String,
    /// How the interval is found.
    #[serde(default)]
    interval: IntervalKind,
    /// Names shown instead of values of `row`.
    #[serde(default)]
    row_names: BTreeMap<String, String>,
    /// A paper's win rates in percent, by row (of several axes: `gdpo, 1.0`).
    #[serde(default)]
    reference_values: BTreeMap<String, f64>,
    /// The title.
    #[serde(default = "title")]
    title: String,
    /// What else must be known to read the table.
    #[serde(default)]
    notes: Vec<String>,
    /// Coverage of the interval.
    #[serde(default = "defaults::level")]
    level: f64,
    /// Bootstrap replicates.
    #[serde(default = "defaults::replicates")]
    replicates: usize,
    /// Seed of the bootstrap.
    #[serde(default)]
    seed: u64,
}

/// How an interval of a win rate is found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum IntervalKind {
    /// Resamples runs, and questions for all of them together.
    #[default]
    Bootstrap,
    /// Wilson's interval (1927), of all pairs of all runs as if they were independent.
    Wilson,
}

fn title() -> String {
    "Win rates".to_owned()
}

/// The column of the win rate.
const RATE: &str = "Win rate (%)";
/// The columns of what was counted.
const COUNTS: [&str; 6] = [
    "Wins",
    "Ties",
    "Losses",
    "n",
    "Consistent (%)",
    "Unparsable",
];

/// What one run won.
#[derive(Debug, Default, PartialEq)]
struct Won {
    wins: usize,
    ties: usize,
    losses: usize,
    /// Pairs on which all verdicts agree.
    consistent: usize,
    /// Replies that name neither.
    unparsable: usize,
    /// Pairs without any verdict.
    unjudged: usize,
    /// The numbers of all questions, with a verdict or not.
    asked: BTreeSet<u64>,
    /// The number of each question, with its mean score, from 0 to 1.
    questions: Vec<(u64, f64)>,
}

impl Won {
    fn of(judged: &[Judgement]) -> Result<Self, StageError> {
        let mut pairs: IndexMap<(u64, u64), Vec<Verdict>> = IndexMap::new();
        for found in judged {
            let pair = (found.question_id, found.sample);
            pairs.entry(pair).or_default().push(found.verdict);
        }
        let mut won = Self::default();
        let mut questions: IndexMap<u64, Vec<f64>> = IndexMap::new();
        for ((question, _), verdicts) in &pairs {
            won.asked.insert(*question);
            let of = |verdict: Verdict| verdicts.iter().filter(|found| **found == verdict).count();
            let (wins, ties, losses) = (of(Verdict::Win), of(Verdict::Tie), of(Verdict::Loss));
            won.unparsable += of(Verdict::Unparsable);
            let read = wins + ties + losses;
            let score = match read {
                0 => {
                    won.unjudged += 1;
                    continue;
                }
                _ if wins == read => 1.0,
                _ if losses == read => 0.0,
                _ => 0.5,
            };
            won.wins += usize::from(score == 1.0);
            won.ties += usize::from(score == 0.5);
            won.losses += usize::from(score == 0.0);
            won.consistent += usize::from([wins, ties, losses].contains(&read));
            questions.entry(*question).or_default().push(score);
        }
        let means = questions
            .iter()
            .map(|(id, scores)| Ok((*id, mean(scores)?)));
        won.questions = means.collect::<Result<_, StageError>>()?;
        if won.pairs() == 0 {
            return Err(StageError::new("no pair has a verdict")
                .hint("look at the output `replies` of the stage that judged"));
        }
        Ok(won)
    }

    fn pairs(&self) -> usize {
        self.wins + self.ties + self.losses
    }

    fn scores(&self) -> Vec<f64> {
        self.questions.iter().map(|(_, score)| *score).collect()
    }

    /// In percent.
    fn rate(&self) -> Result<f64, StageError> {
        Ok(100.0 * mean(&self.scores())?)
    }
}

impl Kind for WinRate {
    const NAME: &'static str = "win_rate";
    const VERSION: u32 = 4;
    const EXAMPLE: &'static str = r#"{ row: [policy, temperature], row_names: { gdpo: GDPO }, reference_values: { "gdpo, 1.0": 60 } }"#;

    fn ports(&self) -> Vec<Port> {
        vec![
            Port::many(
                "judgements",
                &[JUDGEMENTS],
                "judgements of the completions of every policy and seed",
            )
            .labelled(),
        ]
    }

    fn outputs(&self) -> Vec<Output> {
        vec![Output::new("table", TABLE), Output::new("per_seed", TABLE)]
    }

    fn validate(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        check_bootstrap(self.level, self.replicates, &mut problems);
        for (row, rate) in &self.reference_values {
            if !(0.0..=100.0).contains(rate) {
                problems.push(
                    Problem::new(
                        "reference_values",
                        format!("the win rate of `{row}` is {rate}"),
                    )
                    .hint("win rates are in percent, from 0 to 100"),
                );
            }
        }
        problems
    }

    fn facts(&self, known: &mut Known<'_>) {
        let grouping = self.grouping();
        refuse_ungrouped(known, "judgements", grouping, false, ("row", &[]));
        let own = std::iter::once(RATE).chain(COUNTS).map(str::to_owned);
        known.says_columns("per_seed", grouping.columns_with(own));
    }

    fn run(&self, ctx: &mut RunContext) -> Result<(), StageError> {
        let judged = read_rows(ctx.inputs("judgements"), self.grouping(), false, |input| {
            Ok(judgements::read(&input.path)?)
        })?;
        let mut rows = Vec::new();
        for mut row in judged {
            for run in &mut row.runs {
                let tells = |one: &Judgement| one.rewards.is_some() || one.request.is_some();
                if !run.content.iter().any(tells) {
                    // Verdicts alone may be those of other completions.
                    run.digest = None;
                }
            }
            rows.push(row.try_map(&self.aggregate, |run| Won::of(&run.content))?);
        }
        for row in self.reference_values.keys() {
            if rows.iter().all(|known| known.label != *row) {
                ctx.note(&format!("`reference_values` has `{row}`, which is no row"));
            }
        }
        self.table(&rows)?.write(&ctx.output("table")?)?;
        self.per_seed(&rows)?.write(&ctx.output("per_seed")?)?;
        Ok(())
    }
}

impl WinRate {
    fn grouping(&self) -> Grouping<'_> {
        Grouping {
            row: self.row.names(),
            aggregate: &self.aggregate,
            names: &self.row_names,
        }
    }

    fn table(&self, rows: &[Row<Won>]) -> Result<Table, StageError> {
        let (rows, repeats) = once(rows, &self.aggregate);
        let rows = rows.as_slice();
        let several = rows.iter().any(|row| row.runs.len() > 1);
        let mut table = Table::new(&self.title);
        add_axes(&mut table, self.row.names(), rows.iter());
        let rates = rows
            .iter()
            .map(|row| row.runs.iter().map(|run| run.content.rate()).collect())
            .collect::<Result<Vec<Vec<f64>>, _>>()?;
        let means = rates.iter().map(|rates| Ok(Some(mean(rates)?)));
        let means = means.collect::<Result<Vec<_>, StageError>>()?;
        table.number_column(RATE, 1, means);
        if several {
            table.spread_of_last("sd", rates.iter().map(|rates| sample_std(rates).ok()));
        }
        let bounds = rows
            .iter()
            .map(|row| self.bounds(row))
            .collect::<Result<Vec<_>, _>>()?;
        table.interval_of_last(bounds);
        let reported = |row: &Row<&Won>| self.reference_values.get(&row.label).copied();
        if rows.iter().any(|row| reported(row).is_some()) {
            table.number_column(format!("{RATE} (paper)"), 1, rows.iter().map(reported));
        }
        let lines = rows
            .iter()
            .map(|row| row.runs.iter().map(|run| run.content).collect());
        add_counts(&mut table, &lines.collect::<Vec<Vec<&Won>>>());
        if several {
            let runs = rows.iter().map(|row| Some(row.runs.len() as f64));
            table.whole_column("Runs", runs);
        }
        let asked = compare(rows, &self.aggregate, |won| Ok(won.asked.clone()))?;
        table.notes = self.standard_notes(rows, several, asked.shared);
        table.notes.extend(asked.notes);
        table.notes.extend(repeats);
        Ok(table)
    }

    fn bounds(&self, row: &Row<&Won>) -> Result<(Option<f64>, Option<f64>), StageError> {
        let runs = || row.runs.iter().map(|run| run.content);
        let found = match self.interval {
            IntervalKind::Wilson => {
                let wins: usize = runs().map(|won| won.wins).sum();
                let ties: usize = runs().map(|won| won.ties).sum();
                let pairs = runs().map(Won::pairs).sum();
                wilson(wins as f64 + ties as f64 / 2.0, pairs, self.level)
            }
            IntervalKind::Bootstrap => {
                let stream = Stream::new(self.seed, "win_rate").child(&row.label);
                let mut questions = Questions::new();
                let measured: Vec<Measured> = runs()
                    .map(|won| {
                        let ids = won.questions.iter().map(|(id, _)| *id);
                        let places = ids.map(|id| questions.place(id));
                        Measured::mean_of(&won.scores(), places)
                    })
                    .collect();
                Bootstrap::new(self.replicates, self.level, stream)
                    .and_then(|bootstrap| crossed_mean_of(&bootstrap, &measured, &questions))
            }
        };
        let found = found.map_err(|error| within(&row.label, error))?;
        Ok((Some(100.0 * found.low), Some(100.0 * found.high)))
    }

    fn per_seed(&self, rows: &[Row<Won>]) -> Result<Table, StageError> {
        let mut table = Table::new(format!("{}, run by run", self.title));
        let runs = || {
            rows.iter()
                .flat_map(|row| row.runs.iter().map(move |run| (row, run)))
        };
        add_axes(&mut table, self.row.names(), runs().map(|(row, _)| row));
        let labels = runs().map(|(_, run)| Some(run.label.clone()));
        table.label_column(&self.aggregate, labels);
        let rates = runs().map(|(_, run)| run.content.rate().map(Some));
        table.number_column(RATE, 1, rates.collect::<Result<Vec<_>, _>>()?);
        let lines = runs().map(|(_, run)| vec![&run.content]);
        add_counts(&mut table, &lines.collect::<Vec<_>>());
        Ok(table)
    }

    fn standard_notes(&self, rows: &[Row<&Won>], several: bool, shared: bool) -> Vec<String> {
        let mut notes = self.notes.clone();
        notes.push(
            "Win rate: mean over questions; ties count half. A pair that is judged differently in its two orders is a \
             tie; Consistent: share of pairs judged alike in both."
                .to_owned(),
        );
        let percent = self.level * 100.0;
        notes.push(match self.interval {
            IntervalKind::Wilson => format!(
                "[low, high]: {percent}% interval of Wilson, of all pairs as if they were independent."
            ),
            IntervalKind::Bootstrap if several => format!(
                "[low, high]: {percent}% bootstrap interval over runs ({}) and {}; with few runs it is too narrow.",
                self.aggregate,
                drawn_questions("questions", shared)
            ),
            IntervalKind::Bootstrap => format!(
                "[low, high]: {percent}% bootstrap interval over questions alone: one run does not show how runs \
                 differ."
            ),
        });
        if several {
            notes.push(format!(
                "±: sample standard deviation over the runs ({}).",
                self.aggregate
            ));
        }
        let unjudged: usize = rows
            .iter()
            .flat_map(|row| &row.runs)
            .map(|run| run.content.unjudged)
            .sum();
        if unjudged > 0 {
            notes.push(format!(
                "Left out: {unjudged} pairs without any verdict that could be read."
            ));
        }
        notes
    }
}

/// Adds what was counted; each line sums some runs.
fn add_counts(table: &mut Table, lines: &[Vec<&Won>]) {
    let sums = |of: fn(&Won) -> usize| -> Vec<f64> {
        let sum = |runs: &Vec<&Won>| runs.iter().map(|won| of(won)).sum::<usize>() as f64;
        lines.iter().map(sum).collect()
    };
    let pairs = sums(Won::pairs);
    let [won, tied, lost, n, consistent_share, unparsable] = COUNTS;
    table.number_column(won, 0, sums(|won| won.wins).into_iter().map(Some));
    table.number_column(tied, 0, sums(|won| won.ties).into_iter().map(Some));
    table.number_column(lost, 0, sums(|won| won.losses).into_iter().map(Some));
    table.whole_column(n, pairs.iter().copied().map(Some));
    let consistent = sums(|won| won.consistent);
    let shares = consistent.iter().zip(&pairs);
    let shares = shares.map(|(alike, pairs)| Some(100.0 * alike / pairs));
    table.number_column(consistent_share, 1, shares);
    let unread = sums(|won| won.unparsable).into_iter().map(Some);
    table.number_column(unparsable, 0, unread);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::artifacts::judgements::Order;
    use crate::engine::context::Labels;
    use crate::stages::report::groups::tests::labels;
    use crate::stages::report::repeats::tests::repeat;

    fn kind(params: serde_json::Value) -> WinRate {
        serde_json::from_value(params).unwrap()
    }

    /// Verdicts on pairs of question and sample, a letter each: Win, Tie, Loss, unparsable (`?`).
    fn judged(pairs: &[(u64, u64, &str)]) -> Vec<Judgement> {
        let verdict = |letter| match letter {
            'W' => Verdict::Win,
            'T' => Verdict::Tie,
            'L' => Verdict::Loss,
            _ => Verdict::Unparsable,
        };
        pairs
            .iter()
            .flat_map(|(question_id, sample, letters)| {
                letters.chars().map(move |letter| Judgement {
                    question_id: *question_id,
                    sample: *sample,
                    order: Order::Either,
                    verdict: verdict(letter),
                    rewards: None,
                    request: None,
                })
            })
            .collect()
    }

    fn rows(items: Vec<(Labels, Won)>) -> Vec<Row<Won>> {
        crate::stages::report::fixture::rows(items)
    }

    fn run(policy: &str, seed: &str, pairs: &[(u64, u64, &str)]) -> (Labels, Won) {
        let won = Won::of(&judged(pairs)).unwrap();
        (labels(&[("policy", policy), ("seed", seed)]), won)
    }

    #[test]
    fn a_pair_is_won_only_by_verdicts_that_agree() {
        let won = Won::of(&judged(&[
            (1, 0, "WW"),
            (2, 0, "WL"),
            (3, 0, "LL"),
            (4, 0, "W?"),
            (5, 0, "??"),
            (6, 0, "TT"),
            (7, 0, "WT"),
            (8, 0, "L"),
        ]));
        let expected = Won {
            wins: 2,
            ties: 3,
            losses: 2,
            consistent: 5,
            unparsable: 3,
            unjudged: 1,
            asked: (1..=8).collect(),
            questions: vec![
                (1, 1.0),
                (2, 0.5),
                (3, 0.0),
                (4, 1.0),
                (6, 0.5),
                (7, 0.5),
                (8, 0.0),
            ],
        };
        assert_eq!(won.unwrap(), expected);
        assert!(Won::of(&judged(&[(1, 0, "??")])).is_err());
    }

    #[test]
    fn questions_count_equally_and_ties_count_half() {
        let pairs = [(1, 0, "WW"), (1, 1, "WL"), (1, 2, "WW"), (2, 0, "LL")];
        let table = kind(json!({})).table(&rows(vec![run("dpo", "1", &pairs)]));
        let table = table.unwrap();
        let one = |column: &str| table.numbers(column).unwrap()[0].unwrap();
        // (5/6 + 0) / 2
        assert!((one("Win rate (%)") - 100.0 * 5.0 / 12.0).abs() < 1e-12);
        let counts = ["Wins", "Ties", "Losses", "n", "Unparsable"].map(one);
        assert_eq!(counts, [2.0, 1.0, 1.0, 4.0, 0.0]);
        assert_eq!(one("Consistent (%)"), 75.0);
        assert!(one("Win rate (%) low") < one("Win rate (%)"));
        assert!(!table.has("Runs") && !table.has("Win rate (%) sd"));
    }

    #[test]
    fn runs_are_averaged_and_the_interval_is_the_one_asked_for() {
        let pairs = |wins: u64| -> Vec<(u64, u64, &str)> {
            (0..10)
                .map(|question| (question, 0, if question < wins { "WW" } else { "LL" }))
                .collect()
        };
        let all = || {
            rows(vec![
                run("gdpo", "1", &pairs(7)),
                run("gdpo", "2", &pairs(9)),
                run("dpo", "1", &pairs(8)),
            ])
        };
        let wilson = kind(json!({ "interval": "wilson", "reference_values": { "gdpo": 60 } }));
        let table = wilson.table(&all()).unwrap();
        let numbers = |column: &str| table.numbers(column).unwrap();
        assert_eq!(numbers("Win rate (%)"), [Some(80.0), Some(80.0)]);
        assert_eq!(numbers("Win rate (%) (paper)"), [Some(60.0), None]);
        assert!((numbers("Win rate (%) sd")[0].unwrap() - 200f64.sqrt()).abs() < 1e-12);
        // scipy.stats.binomtest(8, 10).proportion_ci(method="wilson")
        assert!((numbers("Win rate (%) low")[1].unwrap() - 49.016_247).abs() < 1e-6);
        assert!((numbers("Win rate (%) high")[1].unwrap() - 94.331_785).abs() < 1e-6);
        let table = kind(json!({})).table(&all()).unwrap();
        let low = table.numbers("Win rate (%) low").unwrap();
        // Eight of ten questions: a resample of less than 50 % is rare.
        assert!((45.0..65.0).contains(&low[1].unwrap()), "{low:?}");
        let per_seed = wilson.per_seed(&all()).unwrap();
        assert_eq!(
            per_seed.all_numbers("Win rate (%)").unwrap(),
            [70.0, 90.0, 80.0]
        );
        assert_eq!(per_seed.all_texts("seed").unwrap(), ["1", "2", "1"]);
    }

    #[test]
    fn questions_that_all_runs_lose_widen_the_interval() {
        // Each run wins half of 40 questions: the same ones, or others than the run before.
        let width = |apart: u64| {
            let of = |seed: u64| -> Vec<(u64, u64, &str)> {
                let won = |question: u64| (question + seed * apart) % 40 < 20;
                (0..40)
                    .map(|question| (question, 0, if won(question) { "WW" } else { "LL" }))
                    .collect()
            };
            let runs = (0..4).map(|seed| run("dpo", &seed.to_string(), &of(seed)));
            let table = kind(json!({})).table(&rows(runs.collect())).unwrap();
            let one = |column: &str| table.numbers(column).unwrap()[0].unwrap();
            one("Win rate (%) high") - one("Win rate (%) low")
        };
        let (same, others) = (width(0), width(10));
        // 2 x 1.96 x sqrt(1 / 4 / 40)
        assert!((same - 31.0).abs() < 2.0, "{same}");
        assert!(others < 0.7 * same, "{others} {same}");
    }

    #[test]
    fn runs_that_are_one_and_the_same_count_once() {
        let pairs: Vec<(u64, u64, &str)> = (0..10)
            .map(|question| (question, 0, if question < 7 { "WW" } else { "LL" }))
            .collect();
        let seeds = ["1", "2", "3", "4", "5"];
        let mut rows = rows(seeds.map(|seed| run("dpo", seed, &pairs)).into());
        repeat(&mut rows[0]);
        let table = kind(json!({})).table(&rows).unwrap();
        assert_eq!(table.all_numbers("n").unwrap(), [10.0]);
        assert!(!table.has("Runs"));
        let note = "dpo: runs that are one and the same, byte by byte, count once: seed 1 = 2 = 3 = 4 = 5.";
        assert!(
            table.notes.iter().any(|told| told == note),
            "{:?}",
            table.notes
        );
        assert_eq!(kind(json!({})).per_seed(&rows).unwrap().height(), 5);
    }

    #[test]
    fn questions_that_runs_do_not_share_are_told() {
        let notes = |last: u64| {
            let one = run("dpo", "1", &[(1, 0, "W"), (2, 0, "?")]);
            let other = run("dpo", "2", &[(1, 0, "L"), (last, 0, "L")]);
            kind(json!({}))
                .table(&rows(vec![one, other]))
                .unwrap()
                .notes
        };
        let told = |notes: &[String], what: &str| notes.iter().any(|note| note.contains(what));
        let (same, other) = (notes(2), notes(3));
        let note = "dpo, seed 1 (2) and dpo, seed 2 (2) have 1 in common";
        assert!(told(&same, "the questions that they share;") && !told(&same, note));
        assert!(told(&other, "(seed) and questions;") && told(&other, note));
    }

    #[test]
    fn params_are_checked() {
        let wrong = json!({ "level": 95, "replicates": 5, "reference_values": { "dpo": 500 } });
        assert_eq!(kind(wrong).validate().len(), 3);
    }
}
