//! One loop compiled for several instruction sets.

/// Defines a function whose body is compiled for AVX-512, for AVX2 with FMA and for the build's own target,
/// and which takes the best of them that the processor has.
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
                #[target_feature(enable = "avx512f")]
                fn avx512($($argument: $type),*) $(-> $result)? {
                    portable($($argument),*)
                }

                #[target_feature(enable = "avx2,fma")]
                fn avx2($($argument: $type),*) $(-> $result)? {
                    portable($($argument),*)
                }

                if is_x86_feature_detected!("avx512f") {
                    #[expect(unsafe_code, reason = "a function for given instructions is called")]
                    // SAFETY: the processor has the instructions, as was just asked.
                    return unsafe { avx512($($argument),*) };
                }
                if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                    #[expect(unsafe_code, reason = "a function for given instructions is called")]
                    // SAFETY: the processor has the instructions, as was just asked.
                    return unsafe { avx2($($argument),*) };
                }
            }
            portable($($argument),*)
        }
    };
}

pub(super) use vectorised;
