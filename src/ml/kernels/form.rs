//! Which form of the operations runs.

use std::sync::OnceLock;

use candle_core::{DType, Result, Tensor, bail};

/// A form of the operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Loops of our own, for `f32` on the CPU; other devices and dtypes take the composed form.
    Fused,
    /// Operations of candle everywhere: what runs on other devices, on the CPU for checking.
    Composed,
}

/// The variable that chooses a form.
pub const VARIABLE: &str = "FLOWGRAPH_KERNELS";
/// Its value for [`Form::Composed`].
pub const COMPOSED: &str = "composed";

impl Form {
    /// Returns the form that the environment asks for.
    ///
    /// # Errors
    /// What it asks for, if there is no such form.
    pub fn of_environment() -> std::result::Result<Self, String> {
        match std::env::var_os(VARIABLE) {
            None => Ok(Self::Fused),
            Some(name) => match &*name.to_string_lossy() {
                "" | "fused" => Ok(Self::Fused),
                COMPOSED => Ok(Self::Composed),
                other => Err(format!(
                    "{VARIABLE} is `{other}`, expected fused or composed"
                )),
            },
        }
    }

    /// Returns the form in use: what the environment asked for when it was first needed.
    pub fn in_use() -> Self {
        static IN_USE: OnceLock<Form> = OnceLock::new();
        *IN_USE.get_or_init(|| Self::of_environment().unwrap_or(Self::Fused))
    }
}

/// Tells whether operations on a tensor are composed of candle's.
pub(in crate::ml) fn is_composed(x: &Tensor) -> bool {
    // `f64` is for tests: some loops take it, the others look for `f32` themselves.
    let is_ours = x.device().is_cpu() && matches!(x.dtype(), DType::F32 | DType::F64);
    Form::in_use() == Form::Composed || !is_ours
}

/// Returns the dtype that sums and softmaxes of a dtype are taken in.
pub(in crate::ml) fn wide(dtype: DType) -> DType {
    match dtype {
        DType::F64 => DType::F64,
        _ => DType::F32,
    }
}

/// Refuses to run a loop of our own where the composed form was asked for: it would not run on another device.
pub(in crate::ml) fn must_be_fused(operation: &str) -> Result<()> {
    if Form::in_use() == Form::Composed {
        bail!("{operation} has run in its fused form, although {VARIABLE} is `{COMPOSED}`");
    }
    Ok(())
}

/// Whether results are the same to the last bit whatever stands beside them: a promise of the fused form alone.
#[cfg(test)]
pub(in crate::ml) fn bits_are_promised() -> bool {
    Form::in_use() == Form::Fused
}

/// Whether numbers are the same: to the last bit where that is promised.
#[cfg(test)]
pub(in crate::ml) fn are_same(found: &[f32], expected: &[f32]) -> bool {
    let same = |(found, expected): (&f32, &f32)| {
        if bits_are_promised() {
            found.to_bits() == expected.to_bits()
        } else {
            (found - expected).abs() <= 1e-5 * expected.abs().max(1.0)
        }
    };
    found.len() == expected.len() && found.iter().zip(expected).all(same)
}
