//! Vectors of `f32` for the inner loops of products.
#![expect(
    unsafe_code,
    clippy::inline_always,
    reason = "instructions that not every processor has, inlined into functions for those that do"
)]

/// Some `f32` that the processor handles at once.
///
/// # Safety
///
/// Methods may only run where the processor has the instructions of the type, inlined into a function that is
/// compiled for them.
pub(super) unsafe trait Vector: Copy {
    /// How many numbers.
    const LANES: usize;
    /// Spreads one number.
    unsafe fn splat(value: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn store(self, to: *mut f32);
    /// `self * factor + addend` with one rounding.
    unsafe fn fma(self, factor: Self, addend: Self) -> Self;
    unsafe fn mul(self, factor: Self) -> Self;
    unsafe fn add(self, addend: Self) -> Self;
}

unsafe impl Vector for [f32; 8] {
    const LANES: usize = 8;
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        [value; 8]
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        unsafe { from.cast::<[f32; 8]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe { to.cast::<[f32; 8]>().write_unaligned(self) }
    }
    #[inline(always)]
    unsafe fn fma(self, factor: Self, addend: Self) -> Self {
        std::array::from_fn(|lane| self[lane].mul_add(factor[lane], addend[lane]))
    }
    #[inline(always)]
    unsafe fn mul(self, factor: Self) -> Self {
        std::array::from_fn(|lane| self[lane] * factor[lane])
    }
    #[inline(always)]
    unsafe fn add(self, addend: Self) -> Self {
        std::array::from_fn(|lane| self[lane] + addend[lane])
    }
}

#[cfg(target_arch = "x86_64")]
macro_rules! x86 {
    ($vector:ident, $lanes:literal, $splat:ident, $load:ident, $store:ident, $fma:ident, $mul:ident, $add:ident) => {
        unsafe impl Vector for std::arch::x86_64::$vector {
            const LANES: usize = $lanes;
            #[inline(always)]
            unsafe fn splat(value: f32) -> Self {
                unsafe { std::arch::x86_64::$splat(value) }
            }
            #[inline(always)]
            unsafe fn load(from: *const f32) -> Self {
                unsafe { std::arch::x86_64::$load(from) }
            }
            #[inline(always)]
            unsafe fn store(self, to: *mut f32) {
                unsafe { std::arch::x86_64::$store(to, self) }
            }
            #[inline(always)]
            unsafe fn fma(self, factor: Self, addend: Self) -> Self {
                unsafe { std::arch::x86_64::$fma(self, factor, addend) }
            }
            #[inline(always)]
            unsafe fn mul(self, factor: Self) -> Self {
                unsafe { std::arch::x86_64::$mul(self, factor) }
            }
            #[inline(always)]
            unsafe fn add(self, addend: Self) -> Self {
                unsafe { std::arch::x86_64::$add(self, addend) }
            }
        }
    };
}
#[cfg(target_arch = "x86_64")]
x86!(
    __m256,
    8,
    _mm256_set1_ps,
    _mm256_loadu_ps,
    _mm256_storeu_ps,
    _mm256_fmadd_ps,
    _mm256_mul_ps,
    _mm256_add_ps
);
#[cfg(target_arch = "x86_64")]
x86!(
    __m512,
    16,
    _mm512_set1_ps,
    _mm512_loadu_ps,
    _mm512_storeu_ps,
    _mm512_fmadd_ps,
    _mm512_mul_ps,
    _mm512_add_ps
);
