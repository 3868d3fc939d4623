//! Every instruction set computes the same functions, within their bounds.
#![allow(unsafe_code, reason = "runs kernels directly")]

use super::math::{exp2_not_positive, sigmoids, softplus_sigmoid};
use super::{Kernel, Lanes, Level, dispatch, simd_level};

#[derive(Clone, Copy, Debug)]
enum Function {
    Exp2,
    Sigmoid,
    SigmoidOfNegative,
    Softplus,
    SoftplusSlope,
}

/// Applies a function to every number, `V::LANES` at a time, tails included.
struct Map<'a>(Function, &'a mut [f32]);

impl Kernel for Map<'_> {
    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        for piece in self.1.chunks_mut(V::LANES) {
            // SAFETY: exactly the numbers of the piece are read and written.
            unsafe {
                let v = V::load_part(piece.as_ptr(), piece.len());
                let v = match self.0 {
                    Function::Exp2 => exp2_not_positive(v),
                    Function::Sigmoid => sigmoids(v).0,
                    Function::SigmoidOfNegative => sigmoids(v).1,
                    Function::Softplus => softplus_sigmoid(v).0,
                    Function::SoftplusSlope => softplus_sigmoid(v).1,
                };
                v.store_part(piece.as_mut_ptr(), piece.len());
            }
        }
    }
}

fn map(level: Level, function: Function, inputs: &[f32]) -> Vec<f32> {
    let mut values = inputs.to_vec();
    // SAFETY: an available level.
    unsafe { dispatch(level, Map(function, &mut values)) };
    values
}

fn exact(function: Function, v: f64) -> f64 {
    match function {
        Function::Exp2 => v.exp2(),
        Function::Sigmoid | Function::SoftplusSlope => 1.0 / (1.0 + (-v).exp()),
        Function::SigmoidOfNegative => 1.0 / (1.0 + v.exp()),
        Function::Softplus => v.max(0.0) + (-v.abs()).exp().ln_1p(),
    }
}

#[test]
fn functions_keep_their_bounds_over_the_whole_range() {
    let range = |low: f64, high: f64, n: u32| -> Vec<f32> {
        (0..=n).map(|i| (low + (high - low) * f64::from(i) / f64::from(n)) as f32).collect()
    };
    let mut signed = range(-87.0, 87.0, 200_003);
    signed.extend(range(-2.0, 2.0, 100_003));
    signed.extend((0..120).flat_map(|i| [1.0, -1.0].map(|sign| sign * 0.5f32.powi(i))));
    let mut negative = range(-126.0, 0.0, 200_003);
    negative.extend(range(-1.0, 0.0, 100_003));
    for level in Level::available() {
        for (function, inputs, bound) in [
            (Function::Exp2, &negative, 2.5e-7),
            (Function::Sigmoid, &signed, 3.5e-7),
            (Function::SigmoidOfNegative, &signed, 3.5e-7),
            (Function::Softplus, &signed, 3.5e-7),
            (Function::SoftplusSlope, &signed, 3.5e-7),
        ] {
            let mut worst = (0.0, 0.0);
            for (&v, ours) in inputs.iter().zip(map(level, function, inputs)) {
                let expected = exact(function, f64::from(v));
                let error = ((f64::from(ours) - expected) / expected).abs();
                assert!(error < bound, "{level:?} {function:?}({v}) = {ours}, expected {expected}, error {error:e}");
                if error > worst.0 {
                    worst = (error, v);
                }
            }
            eprintln!("{level:?} {function:?}: worst {worst:?}");
        }
    }
}

#[test]
fn ends_of_the_range() {
    for level in Level::available() {
        let at = |function, v| map(level, function, &[v])[0];
        assert_eq!(at(Function::Exp2, 0.0), 1.0);
        assert_eq!(at(Function::Exp2, -0.0), 1.0);
        for far in [-150.0, -1e30, f32::NEG_INFINITY] {
            assert!((0.0..1.2e-38).contains(&at(Function::Exp2, far)), "{level:?} {far}");
            assert!((0.0..1.2e-38).contains(&at(Function::Sigmoid, far)), "{level:?} {far}");
            assert!((0.0..1.2e-38).contains(&at(Function::Softplus, far)), "{level:?} {far}");
            assert_eq!(at(Function::Sigmoid, -far), 1.0);
            assert_eq!(at(Function::Softplus, -far), -far);
        }
        assert!(at(Function::Softplus, f32::NAN).is_nan());
    }
}

/// Loads and stores parts of vectors between guards.
struct Copy<'a>(&'a [f32], &'a mut [f32], usize);

impl Kernel for Copy<'_> {
    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        let count = self.2.min(V::LANES);
        // SAFETY: the slices are longer than any vector.
        unsafe { V::load_part(self.0.as_ptr(), count).store_part(self.1.as_mut_ptr(), count) }
    }
}

/// Sums the lanes of part of a vector: the missing ones must be 0.
struct Sum<'a>(&'a [f32], &'a mut f32);

impl Kernel for Sum<'_> {
    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        // SAFETY: as many floats as the slice and the vector have.
        unsafe { *self.1 = V::load_part(self.0.as_ptr(), self.0.len().min(V::LANES)).sum() }
    }
}

#[test]
fn parts_of_vectors_touch_nothing_else() {
    let source: Vec<f32> = (1..=20).map(|i| i as f32).collect();
    for level in Level::available() {
        for count in 0..=level.lanes() {
            let mut target = [-1.0; 20];
            // SAFETY: an available level.
            unsafe { dispatch(level, Copy(&source, &mut target, count)) };
            assert_eq!(target[..count], source[..count]);
            assert!(target[count..].iter().all(|&v| v == -1.0), "{level:?} {count}");

            let mut sum = 0.0;
            // SAFETY: an available level.
            unsafe { dispatch(level, Sum(&source[..count], &mut sum)) };
            assert_eq!(sum, (count * (count + 1) / 2) as f32, "{level:?} {count}");
        }
    }
}

#[test]
fn the_best_level_has_a_name() {
    assert_eq!(simd_level(), Level::available()[0].name());
    assert_eq!(Level::available().last(), Some(&Level::Portable));
}
