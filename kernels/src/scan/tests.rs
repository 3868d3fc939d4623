//! The chain of trust: finite differences and the plain recurrence hold the oracle, the oracle holds the kernels.
#![allow(unsafe_code, reason = "calls the kernels of every instruction set directly")]

use tch::{Kind, Tensor};

use super::reference::{Inputs, selective_scan as recurrence};
use super::{Gradients, Problem, backward, forward, selective_scan, selective_scan_oracle};
use crate::Direction;
use crate::rows::Rows;
use crate::simd::Level;
use crate::testing::{Random, assert_close, assert_same_bits, doubles, relative_error, value_and_gradients};

const NAMES: [&str; 9] = ["y", "dx", "ddt", "da_log", "db", "dc", "dd_skip", "dz", "ddt_bias"];
const DIRECTIONS: [Direction; 2] = [Direction::Forward, Direction::Backward];

/// `[batch, len, d_inner, d_state]`
type Shape = [i64; 4];

const SHAPES: [Shape; 12] = [
    [1, 1, 1, 1],
    [2, 1, 40, 16],
    [1, 17, 15, 5],
    [3, 17, 16, 16],
    [2, 50, 80, 16],
    [1, 50, 128, 64],
    [2, 197, 40, 5],
    [1, 197, 128, 16],
    [3, 16, 1, 64],
    [2, 32, 15, 1],
    [1, 33, 144, 16],
    [2, 5, 300, 7],
];

/// The eight inputs in the order of the operator; `a_log` as S4D starts it.
fn inputs(shape: Shape, seed: u64) -> Vec<Tensor> {
    let [batch, len, d_inner, d_state] = shape;
    let mut random = Random::new(seed);
    let a_log = Tensor::arange_start(1, d_state + 1, (Kind::Float, tch::Device::Cpu)).log();
    vec![
        random.tensor(&[batch, len, d_inner], 0.0, 2.0),
        random.tensor(&[batch, len, d_inner], -2.0, 2.0),
        a_log + random.tensor(&[d_inner, d_state], 0.0, 0.5),
        random.tensor(&[batch, len, d_state], 0.0, 2.0),
        random.tensor(&[batch, len, d_state], 0.0, 2.0),
        random.tensor(&[d_inner], 0.0, 1.0),
        random.tensor(&[batch, len, d_inner], 0.0, 3.0),
        random.tensor(&[d_inner], -1.0, 1.0),
    ]
}

/// The same numbers laid out as a student's projections leave them: x and z halves of one array, b and c slices of
/// another.
fn strided(inputs: &[Tensor]) -> Vec<Tensor> {
    let mut inputs: Vec<Tensor> = inputs.iter().map(Tensor::shallow_clone).collect();
    let (d_inner, d_state) = (inputs[0].size()[2], inputs[3].size()[2]);
    let xz = Tensor::cat(&[&inputs[0], &inputs[6]], 2);
    inputs[0] = xz.narrow(2, 0, d_inner);
    inputs[6] = xz.narrow(2, d_inner, d_inner);
    let projected = Tensor::cat(&[&inputs[3].narrow(2, 0, 1), &inputs[3], &inputs[4]], 2);
    inputs[3] = projected.narrow(2, 1, d_state);
    inputs[4] = projected.narrow(2, 1 + d_state, d_state);
    // len before batch
    inputs[1] = inputs[1].transpose(0, 1).contiguous().transpose(0, 1);
    inputs
}

fn fast(t: &[Tensor], direction: Direction) -> Tensor {
    selective_scan(&t[0], &t[1], &t[2], &t[3], &t[4], &t[5], &t[6], &t[7], direction)
}

fn oracle(t: &[Tensor], direction: Direction) -> Tensor {
    selective_scan_oracle(&t[0], &t[1], &t[2], &t[3], &t[4], &t[5], &t[6], &t[7], direction)
}

/// A gradient of the output.
fn output_gradient(inputs: &[Tensor]) -> Tensor {
    Random::new(99).tensor(&inputs[0].size(), 0.0, 1.0)
}

/// Value and gradients by the kernels of one instruction set, without autograd.
fn by_kernels(level: Level, inputs: &[Tensor], dy: &Tensor, direction: Direction) -> Vec<Tensor> {
    let pointer = |t: &Tensor| t.data_ptr().cast_const().cast::<f32>();
    let rows = |t: &Tensor| Rows {
        start: pointer(t),
        batch_stride: t.stride()[0] as isize,
        row_stride: t.stride()[1] as isize,
    };
    let inputs: Vec<Tensor> = inputs.iter().map(Tensor::contiguous).collect();
    let [batch, len, d_inner] = inputs[0].size()[..] else { unreachable!() };
    let problem = Problem {
        batch: batch as usize,
        len: len as usize,
        d_inner: d_inner as usize,
        d_state: inputs[2].size()[1] as usize,
        backward: usize::from(direction == Direction::Backward),
        x: rows(&inputs[0]),
        dt: rows(&inputs[1]),
        z: rows(&inputs[6]),
        b: rows(&inputs[3]),
        c: rows(&inputs[4]),
        a_log: pointer(&inputs[2]),
        d_skip: pointer(&inputs[5]),
        dt_bias: pointer(&inputs[7]),
    };
    // Filled with NaN, so that nothing is left unwritten.
    let mut results: Vec<Tensor> = [&inputs[0]].into_iter().chain(&inputs).map(|t| t.full_like(f64::NAN)).collect();
    let mut kept = vec![f32::NAN; problem.kept_states()];
    let mut out = results.iter_mut().map(|t| t.data_ptr().cast::<f32>());
    let y = out.next().unwrap();
    let mut next = || out.next().unwrap();
    let gradients = Gradients {
        x: next(),
        dt: next(),
        a_log: next(),
        b: next(),
        c: next(),
        d_skip: next(),
        z: next(),
        dt_bias: next(),
    };
    // SAFETY: all tensors live and have the shapes that `problem` names.
    unsafe {
        forward(level, &problem, y, kept.as_mut_ptr());
        backward(level, &problem, kept.as_ptr(), rows(dy), &gradients);
    }
    results
}

#[test]
fn oracle_equals_the_plain_recurrence() {
    for shape in [[1, 1, 1, 1], [2, 17, 5, 3], [3, 50, 4, 16]] {
        let inputs = doubles(&inputs(shape, 1));
        let values: Vec<Vec<f64>> = inputs.iter().map(|t| t.reshape([-1]).try_into().unwrap()).collect();
        let [batch, len, d_inner, d_state] = shape.map(|size| size as usize);
        for direction in DIRECTIONS {
            let y = recurrence(
                &Inputs {
                    batch,
                    len,
                    d_inner,
                    d_state,
                    x: &values[0],
                    dt: &values[1],
                    a_log: &values[2],
                    b: &values[3],
                    c: &values[4],
                    d_skip: &values[5],
                    z: &values[6],
                    dt_bias: &values[7],
                },
                direction,
            );
            let expected = Tensor::from_slice(&y).reshape(&shape[..3]);
            let error = relative_error(&oracle(&inputs, direction), &expected);
            assert!(error < 1e-13, "{shape:?} {direction:?}: {error:e}");
        }
    }
}

#[test]
fn oracle_gradients_equal_finite_differences() {
    let inputs = doubles(&inputs([2, 3, 2, 2], 2));
    let dy = output_gradient(&inputs).to_kind(Kind::Double);
    for direction in DIRECTIONS {
        let gradients = &value_and_gradients(&inputs, &dy, |t| oracle(t, direction))[1..];
        for (which, gradient) in gradients.iter().enumerate() {
            let gradient: Vec<f64> = gradient.reshape([-1]).try_into().unwrap();
            for (i, gradient) in gradient.into_iter().enumerate() {
                let loss = |shift: f64| {
                    let moved: Vec<Tensor> = inputs.iter().map(Tensor::copy).collect();
                    let _ = moved[which].view([-1]).get(i as i64).g_add_scalar_(shift);
                    (oracle(&moved, direction) * &dy).sum(Kind::Double).double_value(&[])
                };
                let step = 1e-5;
                let difference = (loss(step) - loss(-step)) / (2.0 * step);
                assert!(
                    (gradient - difference).abs() < 1e-8 * (1.0 + gradient.abs()),
                    "{direction:?} {} [{i}]: {gradient} against {difference}",
                    NAMES[which + 1]
                );
            }
        }
    }
}

#[test]
fn fast_equals_oracle_in_value_and_every_gradient() {
    let mut random = Random::new(3);
    let odd = (0..8).map(|_| {
        [1 + random.below(3), 1 + random.below(60), 1 + random.below(150), 1 + random.below(40)].map(|n| n as i64)
    });
    for (i, shape) in SHAPES.into_iter().chain(odd).enumerate() {
        let inputs = inputs(shape, 10 + i as u64);
        let dy = output_gradient(&inputs);
        for direction in DIRECTIONS {
            let case = format!("{shape:?} {direction:?}");
            let ours = value_and_gradients(&inputs, &dy, |t| fast(t, direction));
            let single = value_and_gradients(&inputs, &dy, |t| oracle(t, direction));
            let double = value_and_gradients(&doubles(&inputs), &dy.to_kind(Kind::Double), |t| oracle(t, direction));
            assert_close(&case, &NAMES, &ours, &double, 3e-6);
            assert_close(&case, &NAMES, &ours, &single, 1e-5);
        }
    }
}

#[test]
fn every_instruction_set_equals_the_oracle() {
    for level in Level::available() {
        for (i, shape) in SHAPES.into_iter().enumerate() {
            let inputs = inputs(shape, 30 + i as u64);
            let dy = output_gradient(&inputs);
            for direction in DIRECTIONS {
                let ours = by_kernels(level, &inputs, &dy, direction);
                let double =
                    value_and_gradients(&doubles(&inputs), &dy.to_kind(Kind::Double), |t| oracle(t, direction));
                assert_close(&format!("{level:?} {shape:?} {direction:?}"), &NAMES, &ours, &double, 3e-6);
            }
        }
    }
}

#[test]
fn strides_change_nothing() {
    for shape in [[3, 17, 40, 5], [2, 33, 144, 16], [1, 1, 16, 16]] {
        let inputs = inputs(shape, 50);
        let dy = output_gradient(&inputs);
        // The same gradient with channels apart, and an expanded one as `sum` makes it.
        let dy_apart = dy.transpose(0, 2).contiguous().transpose(0, 2);
        for direction in DIRECTIONS {
            let plain = value_and_gradients(&inputs, &dy, |t| fast(t, direction));
            let views = strided(&inputs);
            assert!(!views[0].is_contiguous() || shape[1] == 1);
            let viewed = value_and_gradients(&views, &dy_apart, |t| fast(t, direction));
            assert_same_bits(&format!("{shape:?} {direction:?}"), &NAMES, &plain, &viewed);

            let ones = Tensor::ones([1i64; 3], (Kind::Float, tch::Device::Cpu)).expand(&shape[..3], false);
            let ours = value_and_gradients(&inputs, &ones, |t| fast(t, direction));
            let expected = value_and_gradients(&inputs, &ones, |t| oracle(t, direction));
            assert_close(&format!("{shape:?} {direction:?}, ones"), &NAMES, &ours, &expected, 1e-5);
        }
    }
}

#[test]
fn channels_apart_are_copied() {
    let inputs = inputs([2, 9, 20, 6], 51);
    let dy = output_gradient(&inputs);
    // The same numbers, the last axis with gaps.
    let apart: Vec<Tensor> = inputs.iter().map(|t| Tensor::stack(&[t, t], -1).select(-1, 0)).collect();
    assert!(apart.iter().all(|t| t.stride().last() == Some(&2)));
    let plain = value_and_gradients(&inputs, &dy, |t| fast(t, Direction::Forward));
    let copied = value_and_gradients(&apart, &dy, |t| fast(t, Direction::Forward));
    assert_same_bits("gaps", &NAMES, &plain, &copied);
}

#[test]
fn extreme_steps_and_decays() {
    // Before bias and softplus: steps of 0, about 1e-8, and 50.
    let steps = Tensor::from_slice(&[-200.0f32, -18.420_68, 50.0]);
    for (case, a_log) in [("decay 1", -20.0), ("decay 0", 6.0), ("ordinary", 0.5)] {
        let mut inputs = inputs([2, 50, 20, 16], 60);
        let pick = (inputs[1].abs() * 1e4).to_kind(Kind::Int64).remainder(3);
        inputs[1] = steps.take(&pick);
        inputs[2] = inputs[2].full_like(a_log);
        inputs[7] = inputs[7].zeros_like();
        let dy = output_gradient(&inputs);
        for direction in DIRECTIONS {
            let double = value_and_gradients(&doubles(&inputs), &dy.to_kind(Kind::Double), |t| oracle(t, direction));
            for level in Level::available() {
                let ours = by_kernels(level, &inputs, &dy, direction);
                assert_close(&format!("{case} {level:?} {direction:?}"), &NAMES, &ours, &double, 1e-5);
            }
        }
    }
}

#[test]
fn one_kind_of_step_at_a_time() {
    for dt in [-200.0, -18.420_68, -5.0, 50.0] {
        for a_log in [-20.0, 0.0, 6.0] {
            let mut inputs = inputs([1, 40, 16, 4], 61);
            inputs[1] = inputs[1].full_like(dt);
            inputs[2] = inputs[2].full_like(a_log);
            inputs[7] = inputs[7].zeros_like();
            let dy = output_gradient(&inputs);
            let ours = value_and_gradients(&inputs, &dy, |t| fast(t, Direction::Forward));
            let double =
                value_and_gradients(&doubles(&inputs), &dy.to_kind(Kind::Double), |t| oracle(t, Direction::Forward));
            for ((name, ours), double) in NAMES.iter().zip(&ours).zip(&double) {
                let case = format!("dt {dt}, a_log {a_log}, {name}");
                assert!(bool::try_from(ours.isfinite().all()).unwrap(), "{case} is not finite");
                // Where the true value is below f32's normal numbers, zero is right enough.
                let size = double.abs().max().double_value(&[]);
                if size > 1e-30 {
                    let error = relative_error(ours, double);
                    assert!(error < 1e-5, "{case}: relative error {error:e}");
                } else {
                    assert!(ours.abs().max().double_value(&[]) < 1e-30, "{case} should vanish");
                }
            }
        }
    }
}

#[test]
fn a_nan_reaches_every_later_output_and_no_other_channel() {
    for which in [0, 1] {
        let inputs = inputs([1, 40, 20, 16], 70);
        let _ = inputs[which].get(0).get(21).get(3).fill_(f64::NAN);
        let y = fast(&inputs, Direction::Forward);
        let later = y.isnan().narrow(1, 21, 19).select(2, 3);
        assert!(bool::try_from(later.all()).unwrap(), "{which}");
        assert_eq!(y.isnan().sum(Kind::Int64).int64_value(&[]), 19, "{which}");
    }
}

#[test]
fn threads_change_no_bit() {
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let inputs = inputs([3, 50, 300, 16], 80);
            value_and_gradients(&inputs, &output_gradient(&inputs), |t| fast(t, Direction::Backward))
        })
    };
    let one = run(1);
    for threads in [2, 5] {
        assert_same_bits(&format!("{threads} threads"), &NAMES, &one, &run(threads));
    }
}

#[test]
fn b_and_c_pass_their_gradients_on_unless_cut() {
    let inputs = inputs([2, 17, 24, 8], 90);
    let dy = output_gradient(&inputs);
    let gradient = |scan: fn(&[Tensor], Direction) -> Tensor, cut: bool| {
        // What a student's projection would be: b and c are slices of something with a gradient of its own.
        let projected = Tensor::cat(&[&inputs[3], &inputs[4]], 2).set_requires_grad(true);
        let [b, c] = [0, 8].map(|start| (&projected * 2.0).narrow(2, start, 8));
        let mut t: Vec<Tensor> = inputs.iter().map(Tensor::shallow_clone).collect();
        t[0] = t[0].detach().set_requires_grad(true);
        (t[3], t[4]) = if cut { (b.detach(), c.detach()) } else { (b, c) };
        (scan(&t, Direction::Forward) * &dy).sum(Kind::Float).backward();
        assert!(t[0].grad().defined(), "the scan itself was differentiated");
        projected.grad()
    };
    assert!(!gradient(fast, true).defined());
    let (ours, expected) = (gradient(fast, false), gradient(oracle, false));
    assert!(expected.norm().double_value(&[]) > 1.0);
    assert!(relative_error(&ours, &expected) < 1e-5);

    // A loss on b itself (the bridge) adds to what the scan hands back.
    let b = inputs[3].detach().set_requires_grad(true);
    let mut t: Vec<Tensor> = inputs.iter().map(Tensor::shallow_clone).collect();
    t[3] = b.shallow_clone();
    let scanned = (fast(&t, Direction::Forward) * &dy).sum(Kind::Float);
    let bridge = b.square().sum(Kind::Float);
    let apart = Tensor::run_backward(&[&scanned], &[&b], true, false).remove(0) + &b * 2.0;
    let together = Tensor::run_backward(&[scanned + bridge], &[&b], false, false).remove(0);
    assert!(relative_error(&together, &apart) < 1e-6);
}

#[test]
fn without_gradients_nothing_hangs_on_the_output() {
    let inputs = inputs([1, 20, 8, 4], 100);
    let plain = fast(&inputs, Direction::Forward);
    assert!(!plain.requires_grad());
    let leaves: Vec<Tensor> = inputs.iter().map(|t| t.detach().set_requires_grad(true)).collect();
    assert!(fast(&leaves, Direction::Forward).requires_grad());
    let silent = tch::no_grad(|| fast(&leaves, Direction::Forward));
    assert!(!silent.requires_grad());
    assert_same_bits("no_grad", &["y"], &[plain], &[silent]);
}

#[test]
fn other_types_take_the_oracle() {
    let inputs = doubles(&inputs([2, 6, 5, 3], 110));
    let ours = fast(&inputs, Direction::Backward);
    assert_eq!(ours.kind(), Kind::Double);
    assert_eq!(relative_error(&ours, &oracle(&inputs, Direction::Backward)), 0.0);
}

#[test]
fn a_second_derivative_is_refused() {
    let inputs = inputs([1, 4, 3, 2], 120);
    let leaves: Vec<Tensor> = inputs.iter().map(|t| t.detach().set_requires_grad(true)).collect();
    let y = fast(&leaves, Direction::Forward).sum(Kind::Float);
    let error = Tensor::f_run_backward(&[y], &leaves, true, true).unwrap_err();
    assert!(error.to_string().contains("no second derivative"), "{error}");
}

#[test]
#[should_panic(expected = "shape of c")]
fn wrong_shapes_panic() {
    let mut inputs = inputs([1, 4, 3, 2], 130);
    inputs[4] = inputs[4].narrow(1, 0, 3);
    let _ = fast(&inputs, Direction::Forward);
}
