//! How fast the selective scan is, against the oracle in tensor operations, in the same process:
//! `cargo bench -p cab-kernels`.
#![allow(clippy::print_stdout, reason = "the table is what this program is for")]

use std::time::Instant;

use cab_kernels::{Direction, libtorch_version, selective_scan, selective_scan_oracle, simd_level};
use tch::{Device, Kind, Tensor, no_grad};

/// Name, batch, len, d_inner, d_state.
const SHAPES: [(&str, i64, i64, i64, i64); 4] = [
    ("quickstart_17", 32, 17, 128, 16),
    ("quickstart_50", 32, 50, 128, 16),
    ("issue_shape_50", 32, 50, 384, 16),
    ("vim_tiny_197", 32, 197, 384, 16),
];

type Scan = fn(&Tensor, &Tensor, &Tensor, &Tensor, &Tensor, &Tensor, &Tensor, &Tensor, Direction) -> Tensor;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let named = |name: &str| args.iter().any(|arg| arg == name);
    // All shapes, or those named on the command line; without `--bench`, `cargo test` only asks whether it runs.
    let any_named = SHAPES.iter().any(|shape| named(shape.0));
    let wanted = |name: &str| if any_named { named(name) } else { named("--bench") || name == SHAPES[0].0 };
    tch::manual_seed(0);
    println!(
        "selective scan, f32, SIMD {}, libtorch {} with {} threads, kernels with {} threads",
        simd_level(),
        libtorch_version(),
        tch::get_num_threads(),
        rayon::current_num_threads()
    );
    println!("elements are batch x len x d_inner x d_state; times are the best of many\n");
    println!(
        "{:<16} {:>22} {:<18} {:>11} {:>11} {:>14} {:>9}",
        "shape", "[batch,len,inner,state]", "pass", "oracle ms", "ours ms", "ours Melem/s", "speed-up"
    );
    for (name, batch, len, d_inner, d_state) in SHAPES.into_iter().filter(|shape| wanted(shape.0)) {
        let inputs = inputs(batch, len, d_inner, d_state);
        let elements = (batch * len * d_inner * d_state) as f64;
        let shape = format!("[{batch},{len},{d_inner},{d_state}]");
        for (pass, gradients) in [("forward", false), ("forward+backward", true)] {
            let oracle = best_secs(selective_scan_oracle, &inputs, gradients);
            let ours = best_secs(selective_scan, &inputs, gradients);
            println!(
                "{name:<16} {shape:>22} {pass:<18} {:>11.3} {:>11.3} {:>14.0} {:>8.1}x",
                oracle * 1e3,
                ours * 1e3,
                elements / ours / 1e6,
                oracle / ours
            );
        }
    }
}

/// Inputs as a student's layers leave them: `x` and `z` halves of one projection, `b` and `c` slices of another.
fn inputs(batch: i64, len: i64, d_inner: i64, d_state: i64) -> [Tensor; 8] {
    let random = |shape: &[i64]| Tensor::randn(shape, (Kind::Float, Device::Cpu));
    let xz = random(&[batch, len, 2 * d_inner]);
    let bc = random(&[batch, len, 2 * d_state]);
    let a_log = Tensor::arange_start(1, d_state + 1, (Kind::Float, Device::Cpu)).log();
    [
        xz.narrow(2, 0, d_inner),
        random(&[batch, len, d_inner]) - 3.0,
        a_log.repeat([d_inner, 1]),
        bc.narrow(2, 0, d_state),
        bc.narrow(2, d_state, d_state),
        random(&[d_inner]),
        xz.narrow(2, d_inner, d_inner),
        random(&[d_inner]),
    ]
    .map(|t| t.detach().set_requires_grad(true))
}

/// The shortest time of one pass, after warming up: the one that whatever else runs on the machine disturbed least.
fn best_secs(scan: Scan, inputs: &[Tensor; 8], gradients: bool) -> f64 {
    let once = || {
        let [x, dt, a_log, b, c, d_skip, z, dt_bias] = inputs;
        let forward = || scan(x, dt, a_log, b, c, d_skip, z, dt_bias, Direction::Forward);
        if gradients {
            let y = forward();
            // The output as its own gradient: no other operator in the measured time.
            let dy = y.detach();
            let loss = (y * dy).sum(Kind::Float);
            drop(std::hint::black_box(Tensor::run_backward(&[loss], inputs, false, false)));
        } else {
            drop(std::hint::black_box(no_grad(forward)));
        }
    };
    let start = Instant::now();
    once();
    once();
    let estimate = start.elapsed().as_secs_f64() / 2.0;
    let repeats = ((1.5 / estimate) as usize).clamp(5, 300);
    (0..repeats)
        .map(|_| {
            let start = Instant::now();
            once();
            start.elapsed().as_secs_f64()
        })
        .fold(f64::INFINITY, f64::min)
}
