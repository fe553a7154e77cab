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
    /// Reads words, and returns the numbers whose upper bits are their lower and their upper halves.
    unsafe fn widened(from: *const u32) -> [Self; 2];
}

/// Vectors of eight `f32`.
///
/// # Safety
///
/// As for [`Vector`].
pub(super) unsafe trait Eight: Vector {
    /// Reads eight rows of eight numbers, `stride` apart, and returns their columns.
    unsafe fn turned(from: *const f32, stride: usize) -> [Self; 8];
}

unsafe impl Eight for [f32; 8] {
    #[inline(always)]
    unsafe fn turned(from: *const f32, stride: usize) -> [Self; 8] {
        std::array::from_fn(|column| {
            std::array::from_fn(|row| unsafe { *from.add(row * stride + column) })
        })
    }
}

unsafe impl Vector for [f32; 8] {
    const LANES: usize = 8;
    #[inline(always)]
    unsafe fn widened(from: *const u32) -> [Self; 2] {
        let words = unsafe { from.cast::<[u32; 8]>().read_unaligned() };
        [
            words.map(|word| f32::from_bits(word << 16)),
            words.map(|word| f32::from_bits(word & 0xffff_0000)),
        ]
    }
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
    ($vector:ident, $lanes:literal, $widened:ident, $splat:ident, $load:ident, $store:ident, $fma:ident, $mul:ident, $add:ident) => {
        unsafe impl Vector for std::arch::x86_64::$vector {
            const LANES: usize = $lanes;
            #[inline(always)]
            unsafe fn widened(from: *const u32) -> [Self; 2] {
                unsafe { $widened(from) }
            }
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
    widened_8,
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
    widened_16,
    _mm512_set1_ps,
    _mm512_loadu_ps,
    _mm512_storeu_ps,
    _mm512_fmadd_ps,
    _mm512_mul_ps,
    _mm512_add_ps
);

#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn widened_8(from: *const u32) -> [std::arch::x86_64::__m256; 2] {
    use std::arch::x86_64::{
        _mm256_and_si256, _mm256_castsi256_ps, _mm256_loadu_si256, _mm256_set1_epi32,
        _mm256_slli_epi32,
    };
    unsafe {
        let words = _mm256_loadu_si256(from.cast());
        let upper = _mm256_and_si256(words, _mm256_set1_epi32(!0xffff));
        [_mm256_slli_epi32::<16>(words), upper].map(|bits| _mm256_castsi256_ps(bits))
    }
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn widened_16(from: *const u32) -> [std::arch::x86_64::__m512; 2] {
    use std::arch::x86_64::{
        _mm512_and_si512, _mm512_castsi512_ps, _mm512_loadu_si512, _mm512_set1_epi32,
        _mm512_slli_epi32,
    };
    unsafe {
        let words = _mm512_loadu_si512(from.cast());
        let upper = _mm512_and_si512(words, _mm512_set1_epi32(!0xffff));
        [_mm512_slli_epi32::<16>(words), upper].map(|bits| _mm512_castsi512_ps(bits))
    }
}

#[cfg(target_arch = "x86_64")]
unsafe impl Eight for std::arch::x86_64::__m256 {
    /// Quarters of lines are read into their halves, then interleaved in three steps.
    #[inline(always)]
    unsafe fn turned(from: *const f32, stride: usize) -> [Self; 8] {
        use std::arch::x86_64::{
            _mm_loadu_ps, _mm256_castps128_ps256, _mm256_insertf128_ps, _mm256_setzero_ps,
            _mm256_shuffle_ps, _mm256_unpackhi_ps, _mm256_unpacklo_ps,
        };
        unsafe {
            // Rows i and i + 4, columns 4 h to 4 h + 3.
            let halves = |row: usize, half: usize| {
                let from = from.add(row * stride + 4 * half);
                _mm256_insertf128_ps::<1>(
                    _mm256_castps128_ps256(_mm_loadu_ps(from)),
                    _mm_loadu_ps(from.add(4 * stride)),
                )
            };
            let mut columns = [_mm256_setzero_ps(); 8];
            for half in 0..2 {
                let rows = [0, 1, 2, 3].map(|row| halves(row, half));
                let low = _mm256_unpacklo_ps(rows[0], rows[1]);
                let high = _mm256_unpackhi_ps(rows[0], rows[1]);
                let next_low = _mm256_unpacklo_ps(rows[2], rows[3]);
                let next_high = _mm256_unpackhi_ps(rows[2], rows[3]);
                columns[4 * half] = _mm256_shuffle_ps::<0x44>(low, next_low);
                columns[4 * half + 1] = _mm256_shuffle_ps::<0xee>(low, next_low);
                columns[4 * half + 2] = _mm256_shuffle_ps::<0x44>(high, next_high);
                columns[4 * half + 3] = _mm256_shuffle_ps::<0xee>(high, next_high);
            }
            columns
        }
    }
}
