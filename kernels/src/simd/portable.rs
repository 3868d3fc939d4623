//! Eight floats in plain Rust, for every CPU: the compiler vectorises the short loops with what the target has.

use std::ops::{Add, Div, Mul, Sub};

use super::Lanes;

#[derive(Clone, Copy)]
#[repr(C, align(32))]
pub(crate) struct Array8([f32; 8]);

/// Adding this to a float below 2^22 rounds it to an integer, which then stands in the lowest bits.
const ROUNDER: f32 = 12_582_912.0;

macro_rules! lanewise {
    ($($trait:ident $method:ident $op:tt),*) => {$(
        impl $trait for Array8 {
            type Output = Self;
            #[inline(always)]
            fn $method(mut self, other: Self) -> Self {
                for lane in 0..8 {
                    self.0[lane] $op other.0[lane];
                }
                self
            }
        }
    )*};
}
lanewise!(Add add +=, Sub sub -=, Mul mul *=, Div div /=);

impl Lanes for Array8 {
    const LANES: usize = 8;
    const MANY_REGISTERS: bool = false;

    #[inline(always)]
    unsafe fn zero() -> Self {
        Array8([0.0; 8])
    }
    #[inline(always)]
    unsafe fn load(source: *const f32) -> Self {
        // SAFETY: the caller vouches for eight floats.
        Array8(unsafe { source.cast::<[f32; 8]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn store(self, target: *mut f32) {
        // SAFETY: the caller vouches for eight floats.
        unsafe { target.cast::<[f32; 8]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    fn splat(self, value: f32) -> Self {
        Array8([value; 8])
    }
    #[inline(always)]
    fn mul_add(self, factor: Self, summand: Self) -> Self {
        // Not f32::mul_add: without the instruction that is a call into the C library.
        self * factor + summand
    }
    #[inline(always)]
    fn max(mut self, other: Self) -> Self {
        for lane in 0..8 {
            // Not f32::max, which must look for NaN.
            self.0[lane] = if self.0[lane] > other.0[lane] { self.0[lane] } else { other.0[lane] };
        }
        self
    }
    #[inline(always)]
    fn neg_abs(mut self) -> Self {
        for lane in 0..8 {
            self.0[lane] = -self.0[lane].abs();
        }
        self
    }
    #[inline(always)]
    fn select_not_negative(mut self, yes: Self, no: Self) -> Self {
        for lane in 0..8 {
            self.0[lane] = if self.0[lane] >= 0.0 { yes.0[lane] } else { no.0[lane] };
        }
        self
    }
    #[inline(always)]
    fn round(mut self) -> Self {
        for lane in 0..8 {
            self.0[lane] = (self.0[lane] + ROUNDER) - ROUNDER;
        }
        self
    }
    #[inline(always)]
    fn scale(mut self, exponent: Self) -> Self {
        for lane in 0..8 {
            let shift = (exponent.0[lane] + ROUNDER).to_bits() << 23;
            self.0[lane] = f32::from_bits(self.0[lane].to_bits().wrapping_add(shift));
        }
        self
    }
    #[inline(always)]
    fn sum(self) -> f32 {
        let v = self.0;
        ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]))
    }
}
