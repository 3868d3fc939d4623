//! The scan's backward pass: chunks from the last to the first, each with its states computed again.
#![allow(unsafe_code, reason = "raw pointers from the autograd glue")]

use std::f32::consts::LN_2;

use super::problem::{CHUNK, Carver, Problem};
use crate::parallel::{Shared, Task, for_each_task, n_blocks, sum_parts, widest_block};
use crate::rows::{Rows, Steps};
use crate::simd::math::{exp2_not_positive, sigmoids, softplus_sigmoid};
use crate::simd::{Aligned, Kernel, Lanes, Level, dispatch};

/// States whose gradients and rates are carried in registers at a time.
const WIDEST_TILE: usize = 8;

/// Where the gradients go, each without gaps and in the shape of its input. The same structure stands in `autograd.cpp`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Gradients {
    pub(crate) x: *mut f32,
    pub(crate) dt: *mut f32,
    pub(crate) a_log: *mut f32,
    pub(crate) b: *mut f32,
    pub(crate) c: *mut f32,
    pub(crate) d_skip: *mut f32,
    pub(crate) z: *mut f32,
    pub(crate) dt_bias: *mut f32,
}

/// Writes the gradients of all eight inputs, given the gradient `y` of the output and the states the forward pass kept.
///
/// # Safety
/// The pointers lead to arrays of the sizes of `problem` and of [`Problem::kept_states`]; `level` is available.
pub(crate) unsafe fn backward(
    level: Level,
    problem: &Problem,
    kept: *const f32,
    y: Rows<*const f32>,
    gradients: &Gradients,
) {
    let &Problem { batch, len, d_inner, d_state, .. } = problem;
    let (lanes, blocks) = (level.lanes(), n_blocks(d_inner));
    // SAFETY: the caller vouches for `a_log`.
    let rates = unsafe { problem.pack_rates(level) };

    // b and c are shared by all channels, the parameters by all batch items: every task leaves its own sums, which
    // are added up afterwards. A single block writes to the result itself.
    let shared_len = batch * len * d_state;
    let shared_parts = if blocks > 1 { blocks * shared_len } else { 0 };
    let (mut part_b, mut part_c) = (vec![0.0; shared_parts], vec![0.0; shared_parts]);
    let mut part_a = vec![0.0; batch * d_state * d_inner];
    let mut part_skip = vec![0.0; batch * d_inner];
    let mut part_bias = vec![0.0; batch * d_inner];

    let rows = |start| Rows::<*mut f32>::contiguous(start, len, d_inner);
    let outputs = Outputs {
        x: rows(gradients.x),
        dt: rows(gradients.dt),
        z: rows(gradients.z),
        b: Shared(if blocks > 1 { part_b.as_mut_ptr() } else { gradients.b }),
        c: Shared(if blocks > 1 { part_c.as_mut_ptr() } else { gradients.c }),
        a: Shared(part_a.as_mut_ptr()),
        d_skip: Shared(part_skip.as_mut_ptr()),
        dt_bias: Shared(part_bias.as_mut_ptr()),
    };
    let kept = Shared(kept.cast_mut());
    let vectors = widest_block(d_inner).div_ceil(lanes) * (2 * d_state + 2)
        + 2 * CHUNK * d_state
        + STEP_ARRAYS * CHUNK
        + (2 * CHUNK + 1) * WIDEST_TILE;
    let scratch = || Aligned::zeros(vectors * lanes);
    for_each_task(batch, d_inner, scratch, |scratch, task| {
        let kernel = Backward { problem, task, rates: rates.as_ptr(), kept: kept.get(), y, outputs: &outputs, scratch };
        // SAFETY: the caller vouches for everything; every task has its own channels of its own batch item, and its
        // own part of each sum.
        unsafe { dispatch(level, kernel) }
    });

    // SAFETY: the caller vouches for the gradients' sizes.
    unsafe {
        if blocks > 1 {
            sum_parts(&part_b, std::slice::from_raw_parts_mut(gradients.b, shared_len));
            sum_parts(&part_c, std::slice::from_raw_parts_mut(gradients.c, shared_len));
        }
        sum_parts(&part_skip, std::slice::from_raw_parts_mut(gradients.d_skip, d_inner));
        sum_parts(&part_bias, std::slice::from_raw_parts_mut(gradients.dt_bias, d_inner));
        let mut a = vec![0.0; d_state * d_inner];
        sum_parts(&part_a, &mut a);
        for channel in 0..d_inner {
            for n in 0..d_state {
                gradients.a_log.add(channel * d_state + n).write(a[n * d_inner + channel]);
            }
        }
    }
}

struct Outputs {
    x: Rows<*mut f32>,
    dt: Rows<*mut f32>,
    z: Rows<*mut f32>,
    /// `[block, batch, len, d_state]`
    b: Shared<f32>,
    c: Shared<f32>,
    /// `[batch, d_state, d_inner]`
    a: Shared<f32>,
    /// `[batch, d_inner]`
    d_skip: Shared<f32>,
    dt_bias: Shared<f32>,
}

struct Backward<'a> {
    problem: &'a Problem,
    task: Task,
    rates: *const f32,
    kept: *const f32,
    y: Rows<*const f32>,
    outputs: &'a Outputs,
    scratch: &'a mut Aligned,
}

const STEP_ARRAYS: usize = 9;

/// What one group of channels knows of every step of a chunk.
#[derive(Clone, Copy)]
struct StepArrays<V> {
    /// softplus(dt + dt_bias), its derivative, and its product with x
    dt: *mut V,
    dt_slope: *mut V,
    dx: *mut V,
    x: *mut V,
    /// gradient of the ungated output, and what makes dz of the ungated output
    g: *mut V,
    dz_factor: *mut V,
    /// the ungated output
    y: *mut V,
    /// Σ_n of the state's gradient times b, and of the decay's logarithm's gradient times the rate
    along_b: *mut V,
    along_rate: *mut V,
}

impl Kernel for Backward<'_> {
    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        let Backward { problem, task, rates, kept, y, outputs, scratch } = self;
        let (len, d_state, d_inner) = (problem.len, problem.d_state, problem.d_inner);
        let direction = problem.direction();
        // SAFETY: every row, channel and state below lies within the sizes of `problem`; the scratch has the size
        // that `backward` gave it.
        unsafe {
            let x = problem.x.steps(task.batch, len, direction);
            let dt = problem.dt.steps(task.batch, len, direction);
            let z = problem.z.steps(task.batch, len, direction);
            let b = problem.b.steps(task.batch, len, direction);
            let c = problem.c.steps(task.batch, len, direction);
            let dy = y.steps(task.batch, len, direction);
            let out_x = outputs.x.steps(task.batch, len, direction);
            let out_dt = outputs.dt.steps(task.batch, len, direction);
            let out_z = outputs.z.steps(task.batch, len, direction);
            let part = task.block * problem.batch * len * d_state;
            let out_b = Rows::<*mut f32>::contiguous(outputs.b.get().add(part), len, d_state);
            let out_b = out_b.steps(task.batch, len, direction);
            let out_c = Rows::<*mut f32>::contiguous(outputs.c.get().add(part), len, d_state);
            let out_c = out_c.steps(task.batch, len, direction);

            let n_groups = task.channels.div_ceil(V::LANES);
            let mut carver = Carver(scratch.as_mut_ptr());
            let zeroed = scratch_zeros::<V>(&mut carver, n_groups * (2 * d_state + 2));
            let carried = zeroed;
            let sums_a = zeroed.add(n_groups * d_state);
            let sums_skip = zeroed.add(2 * n_groups * d_state);
            let sums_bias = sums_skip.add(n_groups);
            let sums_b = carver.take::<V>(CHUNK * d_state);
            let sums_c = carver.take::<V>(CHUNK * d_state);
            let steps = StepArrays {
                dt: carver.take::<V>(CHUNK),
                dt_slope: carver.take::<V>(CHUNK),
                dx: carver.take::<V>(CHUNK),
                x: carver.take::<V>(CHUNK),
                g: carver.take::<V>(CHUNK),
                dz_factor: carver.take::<V>(CHUNK),
                y: carver.take::<V>(CHUNK),
                along_b: carver.take::<V>(CHUNK),
                along_rate: carver.take::<V>(CHUNK),
            };
            let decays = carver.take::<V>(CHUNK * WIDEST_TILE);
            let states = carver.take::<V>((CHUNK + 1) * WIDEST_TILE);

            for chunk in (0..problem.n_chunks()).rev() {
                let start = chunk * CHUNK;
                let n_steps = CHUNK.min(len - start);
                for i in 0..n_steps * d_state {
                    sums_b.add(i).write(V::zero());
                    sums_c.add(i).write(V::zero());
                }
                for group in 0..n_groups {
                    let channel = task.first + group * V::LANES;
                    let count = V::LANES.min(task.first + task.channels - channel);
                    let bias = V::load_part(problem.dt_bias.add(channel), count);
                    let skip = V::load_part(problem.d_skip.add(channel), count);
                    for i in 0..n_steps {
                        let (dt, slope) = softplus_sigmoid(V::load_part(dt.row(start + i).add(channel), count) + bias);
                        let x = V::load_part(x.row(start + i).add(channel), count);
                        let z = V::load_part(z.row(start + i).add(channel), count);
                        let dy = V::load_part(dy.row(start + i).add(channel), count);
                        let (gate, rest) = sigmoids(z);
                        let silu = z * gate;
                        steps.dt.add(i).write(dt);
                        steps.dt_slope.add(i).write(slope);
                        steps.dx.add(i).write(dt * x);
                        steps.x.add(i).write(x);
                        steps.g.add(i).write(dy * silu);
                        steps.dz_factor.add(i).write(dy * silu.mul_add(rest, gate));
                        steps.y.add(i).write(skip * x);
                        steps.along_b.add(i).write(V::zero());
                        steps.along_rate.add(i).write(V::zero());
                    }

                    let mut n = 0;
                    while n < d_state {
                        let mut tile = Tile {
                            n_steps,
                            start,
                            n,
                            d_state,
                            steps,
                            kept: (chunk > 0).then(|| kept.add(problem.kept_offset(task.batch, chunk) + channel)),
                            d_inner,
                            count,
                            rates: rates.cast::<V>().add(channel / V::LANES * d_state + n),
                            carried: carried.add(group * d_state + n),
                            sums_a: sums_a.add(group * d_state + n),
                            sums_b: sums_b.add(n),
                            sums_c: sums_c.add(n),
                            decays,
                            states,
                            b: &b,
                            c: &c,
                        };
                        let left = d_state - n;
                        n += if V::MANY_REGISTERS && left >= 8 {
                            tile.run::<8>()
                        } else if left >= 4 {
                            tile.run::<4>()
                        } else {
                            tile.run::<1>()
                        };
                    }

                    let (mut sum_skip, mut sum_bias) = (*sums_skip.add(group), *sums_bias.add(group));
                    for i in 0..n_steps {
                        let (x, g, along_b) = (*steps.x.add(i), *steps.g.add(i), *steps.along_b.add(i));
                        let along_rate = *steps.along_rate.add(i);
                        let dx = (*steps.dt.add(i)).mul_add(along_b, g * skip);
                        let ddt = along_rate.mul_add(x.splat(LN_2), x * along_b) * *steps.dt_slope.add(i);
                        let dz = *steps.dz_factor.add(i) * *steps.y.add(i);
                        dx.store_part(out_x.row(start + i).add(channel), count);
                        ddt.store_part(out_dt.row(start + i).add(channel), count);
                        dz.store_part(out_z.row(start + i).add(channel), count);
                        sum_skip = g.mul_add(x, sum_skip);
                        sum_bias = sum_bias + ddt;
                    }
                    sums_skip.add(group).write(sum_skip);
                    sums_bias.add(group).write(sum_bias);
                }
                for i in 0..n_steps {
                    let (out_b, out_c) = (out_b.row(start + i), out_c.row(start + i));
                    for n in 0..d_state {
                        out_b.add(n).write((*sums_b.add(i * d_state + n)).sum());
                        out_c.add(n).write((*sums_c.add(i * d_state + n)).sum());
                    }
                }
            }

            for group in 0..n_groups {
                let channel = task.first + group * V::LANES;
                let count = V::LANES.min(task.first + task.channels - channel);
                let item = task.batch * d_inner + channel;
                (*sums_skip.add(group)).store_part(outputs.d_skip.get().add(item), count);
                (*sums_bias.add(group)).store_part(outputs.dt_bias.get().add(item), count);
                for n in 0..d_state {
                    // dA/da_log = A
                    let rate = *rates.cast::<V>().add(channel / V::LANES * d_state + n);
                    let sum = *sums_a.add(group * d_state + n) * (rate * rate.splat(LN_2));
                    let item = (task.batch * d_state + n) * d_inner + channel;
                    sum.store_part(outputs.a.get().add(item), count);
                }
            }
        }
    }
}

/// The next `count` vectors of the scratch, set to 0.
///
/// # Safety
/// The scratch is large enough, and the CPU has the instructions of `V`.
#[inline(always)]
unsafe fn scratch_zeros<V: Lanes>(carver: &mut Carver, count: usize) -> *mut V {
    // SAFETY: the caller's promise.
    unsafe {
        let start = carver.take::<V>(count);
        for i in 0..count {
            start.add(i).write(V::zero());
        }
        start
    }
}

/// Some states of one group of channels over one chunk of steps; its pointers begin at state `n`.
struct Tile<'a, V> {
    n_steps: usize,
    start: usize,
    n: usize,
    d_state: usize,
    steps: StepArrays<V>,
    /// the state before the chunk, `[d_state, d_inner]` from the group's channel on; nothing before the first
    kept: Option<*const f32>,
    d_inner: usize,
    count: usize,
    rates: *const V,
    carried: *mut V,
    sums_a: *mut V,
    sums_b: *mut V,
    sums_c: *mut V,
    decays: *mut V,
    states: *mut V,
    b: &'a Steps<*const f32>,
    c: &'a Steps<*const f32>,
}

impl<V: Lanes> Tile<'_, V> {
    /// Computes `N` states again, then walks back over them; returns `N`.
    ///
    /// # Safety
    /// The states `n..n + N` and the steps exist, and the CPU has the instructions of `V`.
    #[inline(always)]
    unsafe fn run<const N: usize>(&mut self) -> usize {
        // SAFETY: the caller's promise.
        unsafe {
            let mut rates = [V::zero(); N];
            let mut state = [V::zero(); N];
            for n in 0..N {
                rates[n] = *self.rates.add(n);
                if let Some(kept) = self.kept {
                    state[n] = V::load_part(kept.add((self.n + n) * self.d_inner), self.count);
                }
                self.states.add(n).write(state[n]);
            }
            for i in 0..self.n_steps {
                let b = self.b.row(self.start + i).add(self.n);
                let c = self.c.row(self.start + i).add(self.n);
                let (dt, dx) = (*self.steps.dt.add(i), *self.steps.dx.add(i));
                let mut sums = [*self.steps.y.add(i), V::zero()];
                for n in 0..N {
                    let decay = exp2_not_positive(dt * rates[n]);
                    state[n] = decay.mul_add(state[n], dx * dx.splat(*b.add(n)));
                    sums[n % 2] = state[n].mul_add(dx.splat(*c.add(n)), sums[n % 2]);
                    self.decays.add(i * N + n).write(decay);
                    self.states.add((i + 1) * N + n).write(state[n]);
                }
                self.steps.y.add(i).write(sums[0] + sums[1]);
            }

            // From here on `carried` is the gradient that the next step's state hands to this one's.
            let mut carried = [V::zero(); N];
            let mut sums_a = [V::zero(); N];
            for n in 0..N {
                carried[n] = *self.carried.add(n);
                sums_a[n] = *self.sums_a.add(n);
            }
            for i in (0..self.n_steps).rev() {
                let b = self.b.row(self.start + i).add(self.n);
                let c = self.c.row(self.start + i).add(self.n);
                let (dt, dx, g) = (*self.steps.dt.add(i), *self.steps.dx.add(i), *self.steps.g.add(i));
                let mut along_b = *self.steps.along_b.add(i);
                let mut along_rate = *self.steps.along_rate.add(i);
                let (sums_b, sums_c) = (self.sums_b.add(i * self.d_state), self.sums_c.add(i * self.d_state));
                for n in 0..N {
                    let gradient = g.mul_add(g.splat(*c.add(n)), carried[n]);
                    sums_c.add(n).write(g.mul_add(*self.states.add((i + 1) * N + n), *sums_c.add(n)));
                    sums_b.add(n).write(gradient.mul_add(dx, *sums_b.add(n)));
                    along_b = gradient.mul_add(g.splat(*b.add(n)), along_b);
                    carried[n] = gradient * *self.decays.add(i * N + n);
                    // gradient of the decay's logarithm
                    let exponent = carried[n] * *self.states.add(i * N + n);
                    along_rate = exponent.mul_add(rates[n], along_rate);
                    sums_a[n] = exponent.mul_add(dt, sums_a[n]);
                }
                self.steps.along_b.add(i).write(along_b);
                self.steps.along_rate.add(i).write(along_rate);
            }
            for n in 0..N {
                self.carried.add(n).write(carried[n]);
                self.sums_a.add(n).write(sums_a[n]);
            }
        }
        N
    }
}
