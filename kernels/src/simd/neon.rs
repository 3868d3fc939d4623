//! NEON, the vector unit of every 64-bit Arm CPU.

use std::arch::aarch64::*;
use std::ops::{Add, Div, Mul, Sub};

use super::{Kernel, Lanes};

/// Four lanes; needs `neon`.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct F32x4(float32x4_t);

/// Runs a kernel on 4 lanes.
///
/// # Safety
/// The CPU has `neon`; the kernel's own demands hold.
#[target_feature(enable = "neon")]
pub(super) unsafe fn run_neon<K: Kernel>(kernel: K) {
    // SAFETY: this function's own contract.
    unsafe { kernel.run::<F32x4>() }
}

macro_rules! operators {
    ($($trait:ident $method:ident $intrinsic:ident),*) => {$(
        impl $trait for F32x4 {
            type Output = Self;
            #[inline(always)]
            fn $method(self, other: Self) -> Self {
                // SAFETY: the operands exist, so the CPU has the instruction.
                F32x4(unsafe { $intrinsic(self.0, other.0) })
            }
        }
    )*};
}
operators!(Add add vaddq_f32, Sub sub vsubq_f32, Mul mul vmulq_f32, Div div vdivq_f32);

impl Lanes for F32x4 {
    const LANES: usize = 4;
    const MANY_REGISTERS: bool = true;

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the caller vouches for the instruction.
        F32x4(unsafe { vdupq_n_f32(0.0) })
    }
    #[inline(always)]
    unsafe fn load(source: *const f32) -> Self {
        // SAFETY: the caller vouches for the instruction and the memory.
        F32x4(unsafe { vld1q_f32(source) })
    }
    #[inline(always)]
    unsafe fn store(self, target: *mut f32) {
        // SAFETY: `self` exists; the caller vouches for the memory.
        unsafe { vst1q_f32(target, self.0) }
    }
    #[inline(always)]
    fn splat(self, value: f32) -> Self {
        // SAFETY: `self` exists, so the CPU has the instruction. (The same holds below.)
        F32x4(unsafe { vdupq_n_f32(value) })
    }
    #[inline(always)]
    fn mul_add(self, factor: Self, summand: Self) -> Self {
        // SAFETY: as in `splat`.
        F32x4(unsafe { vfmaq_f32(summand.0, self.0, factor.0) })
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        // SAFETY: as in `splat`. Not vmaxq_f32: it hands on NaN from either side.
        F32x4(unsafe { vbslq_f32(vcgtq_f32(self.0, other.0), self.0, other.0) })
    }
    #[inline(always)]
    fn neg_abs(self) -> Self {
        // SAFETY: as in `splat`.
        F32x4(unsafe { vnegq_f32(vabsq_f32(self.0)) })
    }
    #[inline(always)]
    fn select_not_negative(self, yes: Self, no: Self) -> Self {
        // SAFETY: as in `splat`.
        F32x4(unsafe { vbslq_f32(vcgeq_f32(self.0, vdupq_n_f32(0.0)), yes.0, no.0) })
    }
    #[inline(always)]
    fn round(self) -> Self {
        // SAFETY: as in `splat`.
        F32x4(unsafe { vrndnq_f32(self.0) })
    }
    #[inline(always)]
    fn scale(self, exponent: Self) -> Self {
        // SAFETY: as in `splat`.
        F32x4(unsafe {
            let shift = vshlq_n_s32::<23>(vcvtq_s32_f32(exponent.0));
            vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(self.0), shift))
        })
    }
    #[inline(always)]
    fn sum(self) -> f32 {
        // SAFETY: as in `splat`.
        unsafe { vaddvq_f32(self.0) }
    }
}
