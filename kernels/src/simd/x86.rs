//! AVX-512 and AVX2 with fused multiply-add.

use std::arch::x86_64::*;
use std::ops::{Add, Div, Mul, Sub};

use super::{Kernel, Lanes};

/// Sixteen lanes; needs `avx512f`.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct F32x16(__m512);

/// Eight lanes; needs `avx2` and `fma`.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct F32x8(__m256);

/// Runs a kernel on 16 lanes.
///
/// # Safety
/// The CPU has `avx512f`; the kernel's own demands hold.
#[target_feature(enable = "avx512f,avx2,fma")]
pub(super) unsafe fn run_avx512<K: Kernel>(kernel: K) {
    // SAFETY: this function's own contract.
    unsafe { kernel.run::<F32x16>() }
}

/// Runs a kernel on 8 lanes.
///
/// # Safety
/// The CPU has `avx2` and `fma`; the kernel's own demands hold.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn run_avx2<K: Kernel>(kernel: K) {
    // SAFETY: this function's own contract.
    unsafe { kernel.run::<F32x8>() }
}

macro_rules! operators {
    ($type:ident: $($trait:ident $method:ident $intrinsic:ident),*) => {$(
        impl $trait for $type {
            type Output = Self;
            #[inline(always)]
            fn $method(self, other: Self) -> Self {
                // SAFETY: the operands exist, so the CPU has the instruction.
                $type(unsafe { $intrinsic(self.0, other.0) })
            }
        }
    )*};
}
operators!(F32x16: Add add _mm512_add_ps, Sub sub _mm512_sub_ps, Mul mul _mm512_mul_ps, Div div _mm512_div_ps);
operators!(F32x8: Add add _mm256_add_ps, Sub sub _mm256_sub_ps, Mul mul _mm256_mul_ps, Div div _mm256_div_ps);

impl Lanes for F32x16 {
    const LANES: usize = 16;
    const MANY_REGISTERS: bool = true;

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the caller vouches for the instruction.
        F32x16(unsafe { _mm512_setzero_ps() })
    }
    #[inline(always)]
    unsafe fn load(source: *const f32) -> Self {
        // SAFETY: the caller vouches for the instruction and the memory.
        F32x16(unsafe { _mm512_loadu_ps(source) })
    }
    #[inline(always)]
    unsafe fn store(self, target: *mut f32) {
        // SAFETY: `self` exists; the caller vouches for the memory.
        unsafe { _mm512_storeu_ps(target, self.0) }
    }
    #[inline(always)]
    fn splat(self, value: f32) -> Self {
        // SAFETY: `self` exists, so the CPU has the instruction. (The same holds below.)
        F32x16(unsafe { _mm512_set1_ps(value) })
    }
    #[inline(always)]
    fn mul_add(self, factor: Self, summand: Self) -> Self {
        // SAFETY: as in `splat`.
        F32x16(unsafe { _mm512_fmadd_ps(self.0, factor.0, summand.0) })
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        // SAFETY: as in `splat`.
        F32x16(unsafe { _mm512_max_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn neg_abs(self) -> Self {
        // SAFETY: as in `splat`.
        F32x16(unsafe {
            let sign = _mm512_set1_epi32(i32::MIN);
            _mm512_castsi512_ps(_mm512_or_si512(_mm512_castps_si512(self.0), sign))
        })
    }
    #[inline(always)]
    fn select_not_negative(self, yes: Self, no: Self) -> Self {
        // SAFETY: as in `splat`.
        F32x16(unsafe {
            let mask = _mm512_cmp_ps_mask::<_CMP_GE_OQ>(self.0, _mm512_setzero_ps());
            _mm512_mask_blend_ps(mask, no.0, yes.0)
        })
    }
    #[inline(always)]
    fn round(self) -> Self {
        // SAFETY: as in `splat`.
        F32x16(unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0) })
    }
    #[inline(always)]
    fn scale(self, exponent: Self) -> Self {
        // SAFETY: as in `splat`.
        F32x16(unsafe { _mm512_scalef_ps(self.0, exponent.0) })
    }
    #[inline(always)]
    fn sum(self) -> f32 {
        // SAFETY: as in `splat`.
        unsafe { _mm512_reduce_add_ps(self.0) }
    }
    #[inline(always)]
    unsafe fn load_part(source: *const f32, count: usize) -> Self {
        debug_assert!(count <= 16);
        // SAFETY: the caller vouches for `count` floats; masked lanes are not touched.
        F32x16(unsafe { _mm512_maskz_loadu_ps(((1u32 << count) - 1) as __mmask16, source) })
    }
    #[inline(always)]
    unsafe fn store_part(self, target: *mut f32, count: usize) {
        debug_assert!(count <= 16);
        // SAFETY: the caller vouches for `count` floats; masked lanes are not touched.
        unsafe { _mm512_mask_storeu_ps(target, ((1u32 << count) - 1) as __mmask16, self.0) }
    }
}

impl Lanes for F32x8 {
    const LANES: usize = 8;
    const MANY_REGISTERS: bool = false;

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the caller vouches for the instruction.
        F32x8(unsafe { _mm256_setzero_ps() })
    }
    #[inline(always)]
    unsafe fn load(source: *const f32) -> Self {
        // SAFETY: the caller vouches for the instruction and the memory.
        F32x8(unsafe { _mm256_loadu_ps(source) })
    }
    #[inline(always)]
    unsafe fn store(self, target: *mut f32) {
        // SAFETY: `self` exists; the caller vouches for the memory.
        unsafe { _mm256_storeu_ps(target, self.0) }
    }
    #[inline(always)]
    fn splat(self, value: f32) -> Self {
        // SAFETY: `self` exists, so the CPU has the instruction. (The same holds below.)
        F32x8(unsafe { _mm256_set1_ps(value) })
    }
    #[inline(always)]
    fn mul_add(self, factor: Self, summand: Self) -> Self {
        // SAFETY: as in `splat`.
        F32x8(unsafe { _mm256_fmadd_ps(self.0, factor.0, summand.0) })
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        // SAFETY: as in `splat`.
        F32x8(unsafe { _mm256_max_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn neg_abs(self) -> Self {
        // SAFETY: as in `splat`.
        F32x8(unsafe { _mm256_or_ps(self.0, _mm256_set1_ps(-0.0)) })
    }
    #[inline(always)]
    fn select_not_negative(self, yes: Self, no: Self) -> Self {
        // SAFETY: as in `splat`.
        F32x8(unsafe {
            let mask = _mm256_cmp_ps::<_CMP_GE_OQ>(self.0, _mm256_setzero_ps());
            _mm256_blendv_ps(no.0, yes.0, mask)
        })
    }
    #[inline(always)]
    fn round(self) -> Self {
        // SAFETY: as in `splat`.
        F32x8(unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0) })
    }
    #[inline(always)]
    fn scale(self, exponent: Self) -> Self {
        // SAFETY: as in `splat`.
        F32x8(unsafe {
            let shift = _mm256_slli_epi32::<23>(_mm256_cvtps_epi32(exponent.0));
            _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(self.0), shift))
        })
    }
    #[inline(always)]
    fn sum(self) -> f32 {
        // SAFETY: as in `splat`.
        unsafe {
            let four = _mm_add_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }
}
