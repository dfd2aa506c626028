//! Each kernel is written once and compiled twice on x86-64: for the baseline, and for AVX2.
//!
//! Neither version contracts `a * b + c`, and sums run over a fixed number of lanes, so both give the same bits.

/// Instruction set the kernels run with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Simd {
    /// What the target guarantees (SSE2 on x86-64, NEON on aarch64).
    Baseline,
    /// 256-bit vectors. Constructed only after the CPU was asked.
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2Token),
}

/// Proof that this CPU has AVX2: only [`Simd::detect`] makes one.
#[cfg(target_arch = "x86_64")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Avx2Token(());

impl Simd {
    /// The best instruction set of this CPU.
    pub(crate) fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx2") {
            return Simd::Avx2(Avx2Token(()));
        }
        Simd::Baseline
    }
}

/// Defines a kernel: `fn name[generics][their names](arguments) -> result { body }`. The function made takes a
/// [`Simd`] before its arguments and runs the body compiled for it.
///
/// The slices must be separate parameters of a function that is not inlined: then the compiler knows that they do not
/// overlap, and vectorizes without run-time checks.
macro_rules! kernel {
    ($(#[$doc:meta])* fn $name:ident[$($generics:tt)*][$($use:tt)*]($($arg:ident: $type:ty),* $(,)?) $(-> $result:ty)? $body:block) => {
        $(#[$doc])*
        #[inline(always)]
        pub(super) fn $name<$($generics)*>(simd: $crate::cpu::simd::Simd, $($arg: $type),*) $(-> $result)? {
            #[inline(always)]
            fn body<$($generics)*>($($arg: $type),*) $(-> $result)? $body

            #[inline(never)]
            fn baseline<$($generics)*>($($arg: $type),*) $(-> $result)? {
                body::<$($use)*>($($arg),*)
            }

            #[cfg(target_arch = "x86_64")]
            #[inline(never)]
            #[target_feature(enable = "avx2")]
            fn avx2<$($generics)*>($($arg: $type),*) $(-> $result)? {
                body::<$($use)*>($($arg),*)
            }

            match simd {
                $crate::cpu::simd::Simd::Baseline => baseline::<$($use)*>($($arg),*),
                #[cfg(target_arch = "x86_64")]
                $crate::cpu::simd::Simd::Avx2(_) => {
                    // SAFETY: an `Avx2Token` exists only if `Simd::detect` found AVX2 on this CPU.
                    unsafe { avx2::<$($use)*>($($arg),*) }
                }
            }
        }
    };
}
pub(crate) use kernel;
