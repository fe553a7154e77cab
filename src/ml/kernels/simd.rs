//! Which vector instructions the fused operations use: the best that the processor has, or a lower choice.
//!
//! The choice changes speed and no bit of a result.

use std::sync::atomic::{AtomicU8, Ordering};

/// Instructions that the inner loops are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Path {
    /// What the build's target has anyway; fused products by `f32::mul_add`, which is slow where it is a call.
    Scalar = 1,
    /// AVX2 and FMA.
    Avx2,
    /// AVX-512F.
    Avx512,
}

/// The variable that chooses a path.
pub const VARIABLE: &str = "FLOWGRAPH_SIMD";

/// A path that there is not, here or anywhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrongPath {
    /// What was asked for, and why it cannot be had.
    pub message: String,
    /// What can.
    pub hint: String,
}

/// The path in use; 0 before it is first asked for.
static IN_USE: AtomicU8 = AtomicU8::new(0);

impl Path {
    /// All paths, the slowest first.
    pub const ALL: [Self; 3] = [Self::Scalar, Self::Avx2, Self::Avx512];

    /// Its name in [`VARIABLE`].
    pub fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
        }
    }

    /// Tells whether this processor has the instructions.
    pub fn is_available(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return match self {
            Self::Scalar => true,
            Self::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            // Wide loops also use what AVX2 has.
            Self::Avx512 => is_x86_feature_detected!("avx512f") && Self::Avx2.is_available(),
        };
        #[cfg(not(target_arch = "x86_64"))]
        return self == Self::Scalar;
    }

    /// Returns the fastest path of this processor.
    pub fn best() -> Self {
        let available = Self::ALL.into_iter().filter(|path| path.is_available());
        available.max().unwrap_or(Self::Scalar)
    }

    /// Returns the path that `name` asks for.
    pub fn parse(name: &str) -> Result<Self, WrongPath> {
        let asked = Self::ALL.into_iter().find(|path| path.name() == name);
        let problem = match asked {
            Some(path) if path.is_available() => return Ok(path),
            Some(_) => "which this processor does not have",
            None => "expected scalar, avx2 or avx512",
        };
        let available = Self::ALL.into_iter().filter(|path| path.is_available());
        let available: Vec<&str> = available.map(Self::name).collect();
        Err(WrongPath {
            message: format!("{VARIABLE} is `{name}`, {problem}"),
            hint: format!("this processor has {}", available.join(", ")),
        })
    }

    /// Returns the path that the environment asks for, or the best.
    pub fn of_environment() -> Result<Self, WrongPath> {
        match std::env::var_os(VARIABLE) {
            Some(name) if !name.is_empty() => Self::parse(&name.to_string_lossy()),
            _ => Ok(Self::best()),
        }
    }

    /// Uses this path from now on.
    ///
    /// # Panics
    ///
    /// If the processor lacks it.
    pub fn choose(self) {
        assert!(self.is_available(), "BUG: {self:?} on another processor");
        IN_USE.store(self as u8, Ordering::Relaxed);
    }

    /// Returns the path in use: what was [chosen](Self::choose), else what the environment asks for if that can be
    /// had, else the best.
    pub fn in_use() -> Self {
        match IN_USE.load(Ordering::Relaxed) {
            1 => Self::Scalar,
            2 => Self::Avx2,
            3 => Self::Avx512,
            _ => {
                let path = Self::of_environment().unwrap_or_else(|_| Self::best());
                path.choose();
                path
            }
        }
    }
}

/// Defines a function whose body is compiled for AVX-512, for AVX2 with FMA and for the build's own target,
/// and which runs as [`Path::in_use`] says.
///
/// All three give the same bits: the compiler neither reorders sums nor fuses products unless the body says
/// so (`mul_add`), and a fused product has one rounding wherever it is computed.
macro_rules! vectorised {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($argument:ident: $type:ty),* $(,)?) $(-> $result:ty)? $body:block) => {
        $(#[$meta])*
        $vis fn $name($($argument: $type),*) $(-> $result)? {
            #[inline(always)]
            fn portable($($argument: $type),*) $(-> $result)? $body

            #[cfg(target_arch = "x86_64")]
            {
                use $crate::ml::kernels::simd::Path;

                #[target_feature(enable = "avx512f")]
                fn avx512($($argument: $type),*) $(-> $result)? {
                    portable($($argument),*)
                }

                #[target_feature(enable = "avx2,fma")]
                fn avx2($($argument: $type),*) $(-> $result)? {
                    portable($($argument),*)
                }

                #[expect(unsafe_code, reason = "functions for given instructions are called")]
                // SAFETY: a path is in use only where the processor has its instructions.
                match Path::in_use() {
                    Path::Avx512 => return unsafe { avx512($($argument),*) },
                    Path::Avx2 => return unsafe { avx2($($argument),*) },
                    Path::Scalar => {}
                }
            }
            portable($($argument),*)
        }
    };
}

pub(super) use vectorised;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_chosen_by_its_name_and_one_that_is_not_there_is_an_error() {
        assert_eq!(Path::parse("scalar"), Ok(Path::Scalar));
        assert!(
            Path::parse("sse")
                .unwrap_err()
                .hint
                .starts_with("this processor has scalar")
        );
        for path in Path::ALL {
            assert_eq!(Path::parse(path.name()).is_ok(), path.is_available());
        }
        assert!(Path::best().is_available());
    }
}
