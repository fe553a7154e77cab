//! Rows that are left out: how many, and what is wrong with the first.

use crate::engine::stage::StageError;

/// Why a row is not taken.
#[derive(Debug)]
pub(super) enum Fault {
    /// It is left out.
    Row(String),
    /// The stage ends: what is wrong with the row, and what helps.
    File(String, &'static str),
    /// The stage ends for a reason that is not the row's.
    Stage(StageError),
}

impl Fault {
    /// What becomes of a row that `place` names: a reason to leave it out, or to end.
    pub(super) fn of_row(self, place: impl FnOnce() -> String) -> Result<String, StageError> {
        match self {
            Self::Row(fault) => Ok(format!("{}: {fault}", place())),
            Self::File(fault, hint) => {
                Err(StageError::new(format!("{}: {fault}", place())).hint(hint))
            }
            Self::Stage(error) => Err(error),
        }
    }
}

impl From<String> for Fault {
    fn from(fault: String) -> Self {
        Self::Row(fault)
    }
}

impl From<&str> for Fault {
    fn from(fault: &str) -> Self {
        Self::Row(fault.to_owned())
    }
}

/// What was left out of the rows that were read.
#[derive(Debug, Default)]
pub(super) struct LeftOut {
    /// Rows in all.
    pub(super) rows: usize,
    pub(super) count: usize,
    /// What is wrong with the first row that was left out.
    pub(super) first: Option<String>,
}

impl LeftOut {
    /// Leaves a row out.
    pub(super) fn add(&mut self, fault: &impl ToString) {
        self.count += 1;
        self.first.get_or_insert_with(|| fault.to_string());
    }

    /// Says how many rows were left out and why, if any were.
    pub(super) fn note(&self) -> Option<String> {
        let fault = self.first.as_ref()?;
        let others = if self.count > 1 { ", and others" } else { "" };
        Some(format!(
            "{} of {} rows were left out: {fault}{others}",
            self.count, self.rows
        ))
    }

    /// The error about a file without a row that can be used.
    pub(super) fn nothing_left(&self, name: &str) -> StageError {
        StageError::new(match self.note() {
            Some(note) => format!("{name}: no row can be used; {note}"),
            None => format!("{name}: it has no row"),
        })
    }
}
