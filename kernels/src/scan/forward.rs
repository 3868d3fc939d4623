//! The scan's forward pass: time runs outside, states stay in registers, lanes are channels.
#![allow(unsafe_code, reason = "raw pointers from the autograd glue")]

use super::problem::{CHUNK, Carver, Problem};
use crate::parallel::{Shared, Task, for_each_task, widest_block};
use crate::rows::Rows;
use crate::simd::math::{exp2_not_positive, sigmoids, softplus_sigmoid};
use crate::simd::{Aligned, Kernel, Lanes, Level, dispatch};

/// Writes `y`, `[batch, len, d_inner]` without gaps, and, unless `kept` is null, the states the backward pass starts from.
///
/// # Safety
/// The pointers of `problem` lead to arrays of its sizes; `y` and `kept` are as large as [`Problem::kept_states`] and
/// the shape say; `level` is available on this CPU.
pub(crate) unsafe fn forward(level: Level, problem: &Problem, y: *mut f32, kept: *mut f32) {
    // SAFETY: the caller vouches for `a_log`.
    let rates = unsafe { problem.pack_rates(level) };
    let y = Rows::<*mut f32>::contiguous(y, problem.len, problem.d_inner);
    let kept = Shared(kept);
    // Per group of channels the carried states, then three arrays over the steps of a chunk.
    let vectors = widest_block(problem.d_inner).div_ceil(level.lanes()) * problem.d_state + 3 * CHUNK;
    let scratch = || Aligned::zeros(vectors * level.lanes());
    for_each_task(problem.batch, problem.d_inner, scratch, |scratch, task| {
        let kernel = Forward { problem, task, rates: rates.as_ptr(), y, kept: kept.get(), scratch };
        // SAFETY: the caller vouches for everything; every task has its own channels of its own batch item.
        unsafe { dispatch(level, kernel) }
    });
}

struct Forward<'a> {
    problem: &'a Problem,
    task: Task,
    rates: *const f32,
    y: Rows<*mut f32>,
    kept: *mut f32,
    scratch: &'a mut Aligned,
}

impl Kernel for Forward<'_> {
    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        let Forward { problem, task, rates, y, kept, scratch } = self;
        let (len, d_state) = (problem.len, problem.d_state);
        let direction = problem.direction();
        // SAFETY: every row, channel and state below lies within the sizes of `problem`; the scratch has the size
        // that `forward` gave it.
        unsafe {
            let x = problem.x.steps(task.batch, len, direction);
            let dt = problem.dt.steps(task.batch, len, direction);
            let z = problem.z.steps(task.batch, len, direction);
            let b = problem.b.steps(task.batch, len, direction);
            let c = problem.c.steps(task.batch, len, direction);
            let y = y.steps(task.batch, len, direction);

            let n_groups = task.channels.div_ceil(V::LANES);
            let mut carver = Carver(scratch.as_mut_ptr());
            let states = carver.take::<V>(n_groups * d_state);
            let steps_dt = carver.take::<V>(CHUNK);
            let steps_dx = carver.take::<V>(CHUNK);
            let sums = carver.take::<V>(CHUNK);
            for i in 0..n_groups * d_state {
                states.add(i).write(V::zero());
            }

            for chunk in 0..problem.n_chunks() {
                let start = chunk * CHUNK;
                let n_steps = CHUNK.min(len - start);
                for group in 0..n_groups {
                    let channel = task.first + group * V::LANES;
                    let count = V::LANES.min(task.first + task.channels - channel);
                    let states = states.add(group * d_state);
                    let rates = rates.cast::<V>().add(channel / V::LANES * d_state);
                    if chunk > 0 && !kept.is_null() {
                        let kept = kept.add(problem.kept_offset(task.batch, chunk) + channel);
                        for n in 0..d_state {
                            (*states.add(n)).store_part(kept.add(n * problem.d_inner), count);
                        }
                    }

                    let bias = V::load_part(problem.dt_bias.add(channel), count);
                    let skip = V::load_part(problem.d_skip.add(channel), count);
                    for i in 0..n_steps {
                        let (dt, _) = softplus_sigmoid(V::load_part(dt.row(start + i).add(channel), count) + bias);
                        let x = V::load_part(x.row(start + i).add(channel), count);
                        steps_dt.add(i).write(dt);
                        steps_dx.add(i).write(dt * x);
                        sums.add(i).write(skip * x);
                    }

                    let mut n = 0;
                    while n < d_state {
                        let left = d_state - n;
                        let mut tile =
                            Tile { n_steps, start, n, steps_dt, steps_dx, sums, rates, states, b: &b, c: &c };
                        n += if V::MANY_REGISTERS && left >= 16 {
                            tile.run::<16>()
                        } else if left >= 8 {
                            tile.run::<8>()
                        } else if left >= 4 {
                            tile.run::<4>()
                        } else {
                            tile.run::<1>()
                        };
                    }

                    for i in 0..n_steps {
                        let z = V::load_part(z.row(start + i).add(channel), count);
                        let out = *sums.add(i) * (z * sigmoids(z).0);
                        out.store_part(y.row(start + i).add(channel), count);
                    }
                }
            }
        }
    }
}

/// Some states of one group of channels over one chunk of steps.
struct Tile<'a, V> {
    n_steps: usize,
    start: usize,
    n: usize,
    steps_dt: *const V,
    steps_dx: *const V,
    sums: *mut V,
    rates: *const V,
    states: *mut V,
    b: &'a crate::rows::Steps<*const f32>,
    c: &'a crate::rows::Steps<*const f32>,
}

impl<V: Lanes> Tile<'_, V> {
    /// Advances `N` states, adds what they give to `sums`, and returns `N`.
    ///
    /// # Safety
    /// The states `n..n + N` and the steps exist, and the CPU has the instructions of `V`.
    #[inline(always)]
    unsafe fn run<const N: usize>(&mut self) -> usize {
        // SAFETY: the caller's promise.
        unsafe {
            let mut states = [V::zero(); N];
            let mut rates = [V::zero(); N];
            for n in 0..N {
                states[n] = *self.states.add(self.n + n);
                rates[n] = *self.rates.add(self.n + n);
            }
            for i in 0..self.n_steps {
                let b = self.b.row(self.start + i).add(self.n);
                let c = self.c.row(self.start + i).add(self.n);
                let (dt, dx) = (*self.steps_dt.add(i), *self.steps_dx.add(i));
                // Two sums: one would make a chain of N dependent additions.
                let mut sums = [*self.sums.add(i), V::zero()];
                for n in 0..N {
                    let decay = exp2_not_positive(dt * rates[n]);
                    states[n] = decay.mul_add(states[n], dx * dx.splat(*b.add(n)));
                    sums[n % 2] = states[n].mul_add(dx.splat(*c.add(n)), sums[n % 2]);
                }
                self.sums.add(i).write(sums[0] + sums[1]);
            }
            for (n, state) in states.into_iter().enumerate() {
                self.states.add(self.n + n).write(state);
            }
        }
        N
    }
}
