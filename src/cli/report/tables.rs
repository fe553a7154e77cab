//! The tables of a report: as people see them, with numbers to sort by and the runs behind each cell.

use indexmap::IndexMap;
use serde::Serialize;
use serde_json::Value as Json;

use super::super::results::{Found, Results};
use super::super::show::{check_objects, read_table};
use super::super::{Failure, costs};
use super::audit::Audit;
use super::{CLAIMS, RUN_BY_RUN};
use crate::artifacts::table::{Column, TABLE, Table, Values};
use crate::engine::spec::Pipeline;
use crate::engine::store::Store;
use crate::excerpt::excerpt;

/// Rows of a table that are shown, and bytes of its cells: rows end where either does.
const MOST_ROWS: usize = 400;
const MOST_BYTES: usize = 200_000;
/// Bytes of one cell.
const LONGEST: usize = 2_000;
/// What headings of numbers that a paper reports end with.
const REPORTED: &str = "(paper)";
/// The columns of claims that are shown first, if they are there; the verdict is one of them.
const SUMMARY: [&str; 6] = [
    VERDICT,
    "Statement",
    "Effect",
    "Holds in",
    "Gates",
    "Runs needed",
];
const VERDICT: &str = "Verdict";

/// A table with what belongs to it.
#[derive(Debug, Serialize)]
pub(super) struct TableView {
    /// `stage.output`, by which links name it.
    pub(super) name: String,
    /// Position of its stage.
    stage: usize,
    title: String,
    notes: Vec<String>,
    grid: Grid,
    /// The verdicts of claims, without what led to them.
    summary: Option<Grid>,
    /// The same, run by run.
    runs: Option<Grid>,
    /// What must be known to read these.
    run_notes: Vec<String>,
    /// How many columns of both name a row.
    keys: usize,
    /// What is shown instead of labels of the inputs.
    #[serde(skip)]
    pub(super) names: IndexMap<String, String>,
    /// Time and memory of what it shows.
    costs: Option<Grid>,
    /// What an audit says of its making.
    audit: Option<String>,
}

/// Cells under headings.
#[derive(Debug, Serialize)]
struct Grid {
    columns: Vec<Heading>,
    rows: Vec<Vec<Cell>>,
    /// How many rows there are; more than `rows` where some are not shown.
    all: usize,
}

#[derive(Debug, Serialize)]
struct Heading {
    name: String,
    is_number: bool,
    /// Whether a paper reports these numbers.
    is_reported: bool,
    /// Whether these are verdicts of claims.
    is_verdict: bool,
}

#[derive(Debug, Serialize)]
struct Cell {
    text: String,
    /// The number to sort by.
    number: Option<String>,
}

impl Grid {
    fn of(table: &Table) -> Self {
        let shown = table.shown();
        let heading = |columns: &&[Column]| Heading {
            name: columns[0].name.clone(),
            is_number: columns[0].is_number(),
            is_reported: columns[0].name.ends_with(REPORTED),
            is_verdict: columns[0].name == VERDICT,
        };
        let cell = |columns: &[Column], row: usize| Cell {
            text: excerpt(&Table::cell(columns, row), LONGEST).into_owned(),
            number: match &columns[0].values {
                Values::Numbers(values) => values[row].map(|value| value.to_string()),
                _ => None,
            },
        };
        let mut bytes = 0;
        let rows = (0..table.height().min(MOST_ROWS)).map(|row| -> Vec<Cell> {
            let cells = shown.iter().map(|columns| cell(columns, row));
            cells.collect()
        });
        let rows = rows.take_while(|cells| {
            bytes += cells.iter().map(|cell| cell.text.len()).sum::<usize>();
            bytes <= MOST_BYTES
        });
        Self {
            rows: rows.collect(),
            columns: shown.iter().map(heading).collect(),
            all: table.height(),
        }
    }

    /// The verdicts of claims first, then what they are about.
    fn summary(table: &Table) -> Option<Self> {
        if !table.has(VERDICT) {
            return None;
        }
        let mut ordered = Table::new("");
        let parts = table.shown();
        for name in SUMMARY {
            let found = parts.iter().find(|columns| columns[0].name == name);
            ordered
                .columns
                .extend(found.into_iter().flat_map(|columns| columns.to_vec()));
        }
        Some(Self::of(&ordered))
    }

    /// How many of the first columns this table and the same one run by run share: they name a row.
    fn shared_with(&self, runs: &Self) -> usize {
        let pairs = self.columns.iter().zip(&runs.columns);
        pairs
            .take_while(|(own, other)| own.name == other.name)
            .count()
    }
}

/// Reads the tables of the results: those of claims, and the others, in the order of the file.
pub(super) fn read(
    pipeline: &Pipeline,
    store: &Store,
    results: &Results,
    audit: &Audit,
) -> Result<(Vec<TableView>, Vec<TableView>), Failure> {
    let (mut claims, mut others) = (Vec::new(), Vec::new());
    let is_table = |found: &&Found| found.artifact.kind == TABLE;
    for found in results.found.iter().filter(is_table) {
        let sibling = |output: &str| {
            let mut tables = results.found.iter().filter(is_table);
            tables.find(|other| other.stage == found.stage && other.output == output)
        };
        let stage = &pipeline.stages[found.stage];
        let first = stage
            .stage
            .outputs()
            .into_iter()
            .find(|output| output.kind == TABLE);
        let first = first.map(|output| output.name).unwrap_or_default();
        // It stands behind the cells of the other one.
        if found.output == RUN_BY_RUN && found.output != first && sibling(&first).is_some() {
            continue;
        }
        check_objects(store, &found.artifact)?;
        let table = read_table(store, &found.artifact)?;
        let grid = Grid::of(&table);
        let runs = match sibling(RUN_BY_RUN) {
            Some(runs) if found.output == first && runs.output != first => {
                check_objects(store, &runs.artifact)?;
                Some(read_table(store, &runs.artifact)?)
            }
            _ => None,
        };
        let run_notes = runs.as_ref().map(|runs| runs.notes.clone());
        let runs = runs.as_ref().map(Grid::of);
        let costs = (found.output == first)
            .then(|| {
                costs::table(pipeline, store, found.stage, |at| {
                    results.plans[at].fingerprint
                })
            })
            .flatten();
        let is_claims = stage.kind.name == CLAIMS;
        let view = TableView {
            name: format!("{}.{}", stage.name, found.output),
            stage: found.stage,
            keys: runs.as_ref().map_or(0, |runs| grid.shared_with(runs)),
            summary: is_claims.then(|| Grid::summary(&table)).flatten(),
            grid,
            runs,
            run_notes: run_notes.unwrap_or_default(),
            names: names(&stage.stage.params()),
            costs: costs.map(|costs| Grid::of(&costs)),
            audit: audit.of_making(pipeline, found.stage),
            title: table.title,
            notes: table.notes,
        };
        if is_claims { &mut claims } else { &mut others }.push(view);
    }
    Ok((claims, others))
}

/// What a stage shows instead of labels, by its param `row_names`.
fn names(params: &Json) -> IndexMap<String, String> {
    let names = params.get("row_names").and_then(Json::as_object);
    let names = names.into_iter().flatten();
    names
        .filter_map(|(label, name)| Some((label.clone(), name.as_str()?.to_owned())))
        .collect()
}
