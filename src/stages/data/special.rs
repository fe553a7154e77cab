//! Texts that spell tokens which mean something to a model.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::left_out::Fault;

/// What becomes of texts that spell special tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Spelt {
    /// They stay, and a warning counts them.
    #[default]
    Warn,
    /// Their rows are left out, and counted.
    LeaveOut,
    /// The first of them is an error.
    Refuse,
}

impl Spelt {
    #[expect(
        clippy::trivially_copy_pass_by_ref,
        reason = "serde passes a reference"
    )]
    pub(super) fn is_warn(&self) -> bool {
        *self == Self::Warn
    }

    /// Says what becomes of a row that spells a token, if it must not stay.
    pub(super) fn check(self, token: &str) -> Result<(), Fault> {
        match self {
            Self::Warn => Ok(()),
            Self::LeaveOut => Err(Fault::Row(format!("it spells {token:?}"))),
            Self::Refuse => Err(Fault::File(
                format!("it spells the special token {token:?}"),
                "mend the file, or go on without such rows: `special_tokens: leave_out`",
            )),
        }
    }
}

/// The warning about rows that stay.
pub(super) fn warning(count: usize) -> Option<String> {
    (count > 0).then(|| {
        format!(
            "warning: {count} rows spell a special token, which the model takes for that; `special_tokens: leave_out` leaves \
             them out"
        )
    })
}
