//! Vectors of neighbouring channels, one type per instruction set, and the choice between them at run time.
//!
//! A kernel is written once over [`Lanes`], wrapped in a [`Kernel`] and run by [`dispatch`], which compiles it once per
//! instruction set. Nothing here knows what is computed.
#![allow(unsafe_code, reason = "vector instructions and raw pointers are unsafe by nature")]

pub(crate) mod math;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::ops::{Add, Div, Mul, Sub};
use std::sync::OnceLock;

/// A vector of f32, one lane per channel.
///
/// A value of such a type exists only where the CPU has its instructions: the constructors are unsafe, and [`dispatch`]
/// is the one place that calls them unproven. So every method that takes a value is safe.
pub(crate) trait Lanes:
    Copy + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> + Div<Output = Self>
{
    /// How many channels one vector holds.
    const LANES: usize;
    /// Whether there are 32 vector registers rather than 16.
    const MANY_REGISTERS: bool;

    /// All lanes 0.
    ///
    /// # Safety
    /// The CPU has the instructions of this type.
    unsafe fn zero() -> Self;
    /// The `LANES` floats at `source`, of any alignment.
    ///
    /// # Safety
    /// As [`Lanes::zero`], and `LANES` floats are readable.
    unsafe fn load(source: *const f32) -> Self;
    /// Writes all lanes.
    ///
    /// # Safety
    /// `LANES` floats are writable.
    unsafe fn store(self, target: *mut f32);

    /// All lanes `value`; `self` only proves that the CPU can.
    fn splat(self, value: f32) -> Self;
    /// `self * factor + summand`, in one rounding where the instruction exists.
    fn mul_add(self, factor: Self, summand: Self) -> Self;
    /// The greater one; `other` where either is not a number.
    fn max(self, other: Self) -> Self;
    /// `-|self|`
    fn neg_abs(self) -> Self;
    /// `yes` where `self >= 0`, else `no`.
    fn select_not_negative(self, yes: Self, no: Self) -> Self;
    /// The nearest integer, for magnitudes below 2^22.
    fn round(self) -> Self;
    /// `self * 2^exponent` for `self` in `0.5..2` and integers `-126..=126`.
    fn scale(self, exponent: Self) -> Self;
    /// The sum of the lanes, always in the same order.
    fn sum(self) -> f32;

    /// The first `count` floats at `source`, the other lanes 0.
    ///
    /// # Safety
    /// As [`Lanes::load`], for `count` floats.
    #[inline(always)]
    unsafe fn load_part(source: *const f32, count: usize) -> Self {
        debug_assert!(count <= Self::LANES);
        let mut lanes = [0.0; 16];
        // SAFETY: the caller vouches for `count` floats, and no type has more than 16 lanes.
        unsafe {
            if count == Self::LANES {
                return Self::load(source);
            }
            std::ptr::copy_nonoverlapping(source, lanes.as_mut_ptr(), count);
            Self::load(lanes.as_ptr())
        }
    }
    /// Writes the first `count` lanes.
    ///
    /// # Safety
    /// `count` floats are writable.
    #[inline(always)]
    unsafe fn store_part(self, target: *mut f32, count: usize) {
        debug_assert!(count <= Self::LANES);
        let mut lanes = [0.0; 16];
        // SAFETY: the caller vouches for `count` floats, and no type has more than 16 lanes.
        unsafe {
            if count == Self::LANES {
                return self.store(target);
            }
            self.store(lanes.as_mut_ptr());
            std::ptr::copy_nonoverlapping(lanes.as_ptr(), target, count);
        }
    }
}

/// An instruction set that kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    /// 16 lanes, 32 registers.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// 8 lanes, 16 registers, fused multiply-add.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// 4 lanes, 32 registers.
    #[cfg(target_arch = "aarch64")]
    Neon,
    /// Arrays of 8 floats in plain Rust, whatever the compiler makes of them.
    Portable,
}

impl Level {
    /// Every level this CPU can run, the fastest first.
    pub(crate) fn available() -> Vec<Level> {
        let mut levels = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f") {
                levels.push(Level::Avx512);
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                levels.push(Level::Avx2);
            }
        }
        #[cfg(target_arch = "aarch64")]
        if std::arch::is_aarch64_feature_detected!("neon") {
            levels.push(Level::Neon);
        }
        levels.push(Level::Portable);
        levels
    }

    /// The fastest level of this CPU.
    pub(crate) fn best() -> Level {
        static BEST: OnceLock<Level> = OnceLock::new();
        *BEST.get_or_init(|| Level::available()[0])
    }

    /// How many channels one vector holds.
    pub(crate) fn lanes(self) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => x86::F32x16::LANES,
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => x86::F32x8::LANES,
            #[cfg(target_arch = "aarch64")]
            Level::Neon => neon::F32x4::LANES,
            Level::Portable => portable::Array8::LANES,
        }
    }

    /// Its name for people.
    pub(crate) fn name(self) -> &'static str {
        match self {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => "avx512",
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => "avx2+fma",
            #[cfg(target_arch = "aarch64")]
            Level::Neon => "neon",
            Level::Portable => "portable",
        }
    }
}

/// The instruction set the fast kernels use on this CPU: `avx512`, `avx2+fma`, `neon` or `portable`.
pub fn simd_level() -> &'static str {
    Level::best().name()
}

/// A piece of work that can be compiled for any vector type.
pub(crate) trait Kernel {
    /// Does the work. Implementations are `#[inline(always)]`, as is everything below them that touches a vector:
    /// only then does the code inherit the instruction set of [`dispatch`]'s wrappers.
    ///
    /// # Safety
    /// The CPU has the instructions of `V`, and whatever the kernel's pointers need holds.
    unsafe fn run<V: Lanes>(self);
}

/// Runs a kernel with the instructions of `level`.
///
/// # Safety
/// `level` is one of [`Level::available`], and whatever the kernel's pointers need holds.
pub(crate) unsafe fn dispatch<K: Kernel>(level: Level, kernel: K) {
    // SAFETY: the caller vouches for the level and the pointers.
    unsafe {
        match level {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => x86::run_avx512(kernel),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => x86::run_avx2(kernel),
            #[cfg(target_arch = "aarch64")]
            Level::Neon => neon::run_neon(kernel),
            Level::Portable => kernel.run::<portable::Array8>(),
        }
    }
}

/// Floats aligned for every vector type, zero at first.
pub(crate) struct Aligned(Vec<Line>);

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; 16]);

impl Aligned {
    /// `count` zeros.
    pub(crate) fn zeros(count: usize) -> Aligned {
        Aligned(vec![Line([0.0; 16]); count.div_ceil(16)])
    }

    pub(crate) fn as_ptr(&self) -> *const f32 {
        self.0.as_ptr().cast()
    }

    pub(crate) fn as_mut_ptr(&mut self) -> *mut f32 {
        self.0.as_mut_ptr().cast()
    }

    pub(crate) fn set(&mut self, index: usize, value: f32) {
        self.0[index / 16].0[index % 16] = value;
    }
}
