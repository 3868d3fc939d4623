//! The convolution against its oracle, and the oracle against its definition.
#![allow(unsafe_code, reason = "calls the kernels of every instruction set directly")]

use tch::{Kind, Tensor};

use super::{Gradients, Problem, backward, causal_conv_silu, causal_conv_silu_oracle, forward};
use crate::Direction;
use crate::rows::Rows;
use crate::simd::Level;
use crate::testing::{Random, assert_close, assert_same_bits, doubles, relative_error, value_and_gradients};

const NAMES: [&str; 4] = ["y", "dx", "dweight", "dbias"];
const DIRECTIONS: [Direction; 2] = [Direction::Forward, Direction::Backward];

/// `[batch, len, d_inner, d_conv]`
const SHAPES: [[i64; 4]; 9] = [
    [1, 1, 1, 1],
    [1, 1, 16, 4],
    [2, 2, 15, 4],
    [3, 17, 40, 4],
    [2, 50, 128, 4],
    [1, 197, 144, 4],
    [2, 9, 300, 2],
    [2, 20, 80, 7],
    [1, 3, 5, 9],
];

fn inputs([batch, len, d_inner, d_conv]: [i64; 4], seed: u64) -> Vec<Tensor> {
    let mut random = Random::new(seed);
    vec![
        random.tensor(&[batch, len, d_inner], 0.0, 3.0),
        random.tensor(&[d_inner, 1, d_conv], 0.0, 1.0),
        random.tensor(&[d_inner], 0.0, 1.0),
    ]
}

fn fast(t: &[Tensor], direction: Direction) -> Tensor {
    causal_conv_silu(&t[0], &t[1], &t[2], direction)
}

fn oracle(t: &[Tensor], direction: Direction) -> Tensor {
    causal_conv_silu_oracle(&t[0], &t[1], &t[2], direction)
}

fn output_gradient(inputs: &[Tensor]) -> Tensor {
    Random::new(98).tensor(&inputs[0].size(), 0.0, 1.0)
}

fn by_kernels(level: Level, inputs: &[Tensor], dy: &Tensor, direction: Direction) -> Vec<Tensor> {
    let pointer = |t: &Tensor| t.data_ptr().cast_const().cast::<f32>();
    let rows = |t: &Tensor| Rows {
        start: pointer(t),
        batch_stride: t.stride()[0] as isize,
        row_stride: t.stride()[1] as isize,
    };
    let [batch, len, d_inner] = inputs[0].size()[..] else { unreachable!() };
    let problem = Problem {
        batch: batch as usize,
        len: len as usize,
        d_inner: d_inner as usize,
        d_conv: inputs[1].size()[2] as usize,
        backward: usize::from(direction == Direction::Backward),
        x: rows(&inputs[0]),
        weight: pointer(&inputs[1]),
        bias: pointer(&inputs[2]),
    };
    // Filled with NaN, so that nothing is left unwritten.
    let results: Vec<Tensor> = [&inputs[0]].into_iter().chain(inputs).map(|t| t.full_like(f64::NAN)).collect();
    let out = |i: usize| results[i].data_ptr().cast::<f32>();
    let gradients = Gradients { x: out(1), weight: out(2), bias: out(3) };
    // SAFETY: all tensors live and have the shapes that `problem` names.
    unsafe {
        forward(level, &problem, out(0));
        backward(level, &problem, rows(dy), &gradients);
    }
    results
}

#[test]
fn oracle_equals_its_definition() {
    let [batch, len, d_inner, d_conv] = [2i64, 6, 3, 4];
    let inputs = doubles(&inputs([batch, len, d_inner, d_conv], 1));
    for direction in DIRECTIONS {
        let y = oracle(&inputs, direction);
        for item in 0..batch {
            for t in 0..len {
                for channel in 0..d_inner {
                    let mut sum = inputs[2].double_value(&[channel]);
                    for tap in 0..d_conv {
                        let back = d_conv - 1 - tap;
                        let token = if direction == Direction::Forward { t - back } else { t + back };
                        if (0..len).contains(&token) {
                            let x = inputs[0].double_value(&[item, token, channel]);
                            sum += inputs[1].double_value(&[channel, 0, tap]) * x;
                        }
                    }
                    let expected = sum / (1.0 + (-sum).exp());
                    let ours = y.double_value(&[item, t, channel]);
                    assert!((ours - expected).abs() < 1e-12, "{direction:?} [{item}, {t}, {channel}]");
                }
            }
        }
    }
}

#[test]
fn fast_equals_oracle_in_value_and_every_gradient() {
    for (i, shape) in SHAPES.into_iter().enumerate() {
        let inputs = inputs(shape, 10 + i as u64);
        let dy = output_gradient(&inputs);
        for direction in DIRECTIONS {
            let case = format!("{shape:?} {direction:?}");
            let double = value_and_gradients(&doubles(&inputs), &dy.to_kind(Kind::Double), |t| oracle(t, direction));
            let single = value_and_gradients(&inputs, &dy, |t| oracle(t, direction));
            let ours = value_and_gradients(&inputs, &dy, |t| fast(t, direction));
            assert_close(&case, &NAMES, &ours, &double, 2e-6);
            assert_close(&case, &NAMES, &ours, &single, 1e-5);
            for level in Level::available() {
                let ours = by_kernels(level, &inputs, &dy, direction);
                assert_close(&format!("{case} {level:?}"), &NAMES, &ours, &double, 2e-6);
            }
        }
    }
}

#[test]
fn strides_change_nothing() {
    let mut views = inputs([3, 17, 40, 4], 30);
    let dy = output_gradient(&views);
    let plain = value_and_gradients(&views, &dy, |t| fast(t, Direction::Backward));
    let wide = Tensor::cat(&[&views[0].ones_like(), &views[0]], 2);
    views[0] = wide.narrow(2, 40, 40);
    let dy_apart = dy.transpose(1, 2).contiguous().transpose(1, 2);
    let viewed = value_and_gradients(&views, &dy_apart, |t| fast(t, Direction::Backward));
    assert_same_bits("views", &NAMES, &plain, &viewed);

    // The same numbers, the last axis with gaps.
    let apart: Vec<Tensor> = views.iter().map(|t| Tensor::stack(&[t, t], -1).select(-1, 0)).collect();
    let copied = value_and_gradients(&apart, &dy, |t| fast(t, Direction::Backward));
    assert_same_bits("gaps", &NAMES, &plain, &copied);
}

#[test]
fn large_inputs_stay_finite() {
    let mut inputs = inputs([1, 8, 16, 4], 31);
    inputs[0] = &inputs[0] * 1e4;
    let dy = output_gradient(&inputs);
    let ours = value_and_gradients(&inputs, &dy, |t| fast(t, Direction::Forward));
    let double = value_and_gradients(&doubles(&inputs), &dy.to_kind(Kind::Double), |t| oracle(t, Direction::Forward));
    assert_close("large", &NAMES, &ours, &double, 2e-6);
}

#[test]
fn threads_change_no_bit() {
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let inputs = inputs([5, 50, 300, 4], 40);
            value_and_gradients(&inputs, &output_gradient(&inputs), |t| fast(t, Direction::Forward))
        })
    };
    assert_same_bits("2 threads", &NAMES, &run(1), &run(2));
}

#[test]
fn the_gradient_passes_through_unless_cut() {
    let inputs = inputs([2, 9, 20, 4], 50);
    let gradient = |conv: fn(&[Tensor], Direction) -> Tensor, cut: bool| {
        let source = inputs[0].detach().set_requires_grad(true);
        let doubled = &source * 2.0;
        let x = if cut { doubled.detach() } else { doubled };
        let weight = inputs[1].detach().set_requires_grad(true);
        conv(&[x, weight, inputs[2].shallow_clone()], Direction::Forward).square().sum(Kind::Float).backward();
        source.grad()
    };
    assert!(!gradient(fast, true).defined());
    assert!(relative_error(&gradient(fast, false), &gradient(oracle, false)) < 1e-5);
}

#[test]
fn other_types_take_the_oracle() {
    let inputs = doubles(&inputs([2, 6, 5, 3], 60));
    let ours = fast(&inputs, Direction::Backward);
    assert_eq!(ours.kind(), Kind::Double);
    assert_eq!(relative_error(&ours, &oracle(&inputs, Direction::Backward)), 0.0);
}

#[test]
#[should_panic(expected = "shape of bias")]
fn wrong_shapes_panic() {
    let mut inputs = inputs([1, 4, 3, 2], 70);
    inputs[2] = inputs[2].narrow(0, 0, 2);
    let _ = fast(&inputs, Direction::Forward);
}
