//! The trainings that made the policies of a table: their curves, and how they ended.

use super::groups::{Grouping, Row, read_rows};
use crate::artifacts::curve::{CURVE, Curve, Status};
use crate::engine::context::RunContext;
use crate::engine::stage::{Port, StageError};

/// The port for the curves of trainings whose results are compared.
pub(super) fn curves_port() -> Port {
    Port::optional_many(
        "curves",
        &[CURVE],
        "training curves, which say what diverged and what it cost",
    )
    .labelled()
}

/// Reads the `curves` port; a curve without the row axis is named after its stage.
pub(super) fn load_curves(
    ctx: &RunContext,
    grouping: Grouping<'_>,
) -> Result<Vec<Row<Curve>>, StageError> {
    read_rows(ctx.inputs("curves"), grouping, true, |input| {
        Ok(Curve::read(&input.path)?)
    })
}

/// Says how the runs of one row ended; nothing if none was trained.
pub(super) fn ended(trainings: &[&Curve]) -> Option<String> {
    let diverged = trainings
        .iter()
        .filter(|curve| curve.summary.status == Status::Diverged)
        .count();
    match (trainings, diverged) {
        ([], _) => None,
        (_, 0) => Some("completed".to_owned()),
        ([one], _) => Some(format!("diverged at step {}", one.summary.steps)),
        (all, some) if all.len() == some => Some("diverged".to_owned()),
        (all, some) => Some(format!("diverged in {some} of {} runs", all.len())),
    }
}
