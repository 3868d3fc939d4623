//! The few transcendental functions of the kernels, as polynomials over [`Lanes`].
//!
//! Polynomials are weighted minimax fits; the tests hold every level to its error bound over the whole range.

use std::f32::consts::LOG2_E;

use super::Lanes;

/// ln 2 in two parts: the first has trailing zeros, so that its product with an exponent is exact.
const LN_2_HIGH: f32 = 0.693_359_4;
const LN_2_LOW: f32 = -2.121_944_4e-4;

/// Powers below this one are taken for it: the smallest that is a normal number.
const LEAST_EXPONENT: f32 = -126.0;

/// `2^v` for `v <= 0`: relative error below 2.5e-7, never less than 2^-126 and so never a denormal number.
#[inline(always)]
pub(crate) fn exp2_not_positive<V: Lanes>(v: V) -> V {
    let v = v.max(v.splat(LEAST_EXPONENT));
    let exponent = v.round();
    exp2_fraction(v - exponent).scale(exponent)
}

/// `2^fraction` in `-0.5..=0.5`.
#[inline(always)]
fn exp2_fraction<V: Lanes>(fraction: V) -> V {
    let p = fraction.splat(1.535_336_2e-4);
    let p = p.mul_add(fraction, fraction.splat(1.339_887_5e-3));
    let p = p.mul_add(fraction, fraction.splat(9.618_437e-3));
    let p = p.mul_add(fraction, fraction.splat(5.550_332_4e-2));
    let p = p.mul_add(fraction, fraction.splat(2.402_264_8e-1));
    let p = p.mul_add(fraction, fraction.splat(6.931_472e-1));
    p.mul_add(fraction, fraction.splat(1.0))
}

/// `e^v` for `v <= 0`: relative error below 2.5e-7, never less than 2^-126.
#[inline(always)]
fn exp_not_positive<V: Lanes>(v: V) -> V {
    let v = v.max(v.splat(LEAST_EXPONENT * std::f32::consts::LN_2));
    let exponent = (v * v.splat(LOG2_E)).round();
    // The product with log2(e) alone would lose a digit where |v| is large.
    let rest = exponent.mul_add(v.splat(-LN_2_HIGH), v);
    let rest = exponent.mul_add(v.splat(-LN_2_LOW), rest);
    exp2_fraction(rest * v.splat(LOG2_E)).scale(exponent)
}

/// `sigmoid(v)` and `sigmoid(-v)`, both to full relative precision.
#[inline(always)]
pub(crate) fn sigmoids<V: Lanes>(v: V) -> (V, V) {
    let (_, greater, smaller) = tail(v);
    (v.select_not_negative(greater, smaller), v.select_not_negative(smaller, greater))
}

/// `softplus(v) = ln(1 + e^v)` and its derivative `sigmoid(v)`, both to full relative precision.
#[inline(always)]
pub(crate) fn softplus_sigmoid<V: Lanes>(v: V) -> (V, V) {
    let (e, greater, smaller) = tail(v);
    // ln(1 + e) = 2 atanh(e / (2 + e)): no cancellation however small e is.
    let q = e / (e + v.splat(2.0));
    let q2 = q * q;
    let p = v.splat(0.281_783_34);
    let p = p.mul_add(q2, v.splat(0.279_606));
    let p = p.mul_add(q2, v.splat(0.400_249_1));
    let p = p.mul_add(q2, v.splat(0.666_663_2));
    let p = p.mul_add(q2, v.splat(2.0));
    // The order of the operands lets NaN through.
    let softplus = q.mul_add(p, v.splat(0.0).max(v));
    (softplus, v.select_not_negative(greater, smaller))
}

/// `e^-|v|`, and the two sigmoids of `±|v|`.
#[inline(always)]
fn tail<V: Lanes>(v: V) -> (V, V, V) {
    let e = exp_not_positive(v.neg_abs());
    let greater = v.splat(1.0) / (e + v.splat(1.0));
    (e, greater, e * greater)
}
