//! The convolution's kernels: row after row of a block of channels, so that memory is read in long runs.
#![allow(unsafe_code, reason = "raw pointers from the autograd glue")]

use crate::Direction;
use crate::parallel::{Shared, Task, for_each_task, sum_parts, widest_block};
use crate::rows::{Rows, Steps};
use crate::simd::math::sigmoids;
use crate::simd::{Aligned, Kernel, Lanes, Level, dispatch};

/// The inputs of a convolution. The same structure stands in `autograd.cpp`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Problem {
    pub(crate) batch: usize,
    pub(crate) len: usize,
    pub(crate) d_inner: usize,
    pub(crate) d_conv: usize,
    /// 0 from the first token to the last, 1 the other way.
    pub(crate) backward: usize,
    pub(crate) x: Rows<*const f32>,
    /// `[d_inner, 1, d_conv]` without gaps
    pub(crate) weight: *const f32,
    /// `[d_inner]`
    pub(crate) bias: *const f32,
}

// SAFETY: kernels only read through these pointers; who starts them keeps the arrays alive meanwhile.
unsafe impl Send for Problem {}
// SAFETY: as above.
unsafe impl Sync for Problem {}

/// Where the gradients go, each without gaps and in the shape of its input. The same structure stands in `autograd.cpp`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Gradients {
    pub(crate) x: *mut f32,
    pub(crate) weight: *mut f32,
    pub(crate) bias: *mut f32,
}

impl Problem {
    fn direction(&self) -> Direction {
        if self.backward == 0 { Direction::Forward } else { Direction::Backward }
    }

    /// The weight as `[d_conv, padded channels]`, tap by tap.
    ///
    /// # Safety
    /// `weight` is readable.
    unsafe fn pack_weight(&self, lanes: usize) -> Aligned {
        let padded = self.d_inner.next_multiple_of(lanes);
        let mut packed = Aligned::zeros(padded * self.d_conv);
        for channel in 0..self.d_inner {
            for tap in 0..self.d_conv {
                // SAFETY: within `[d_inner, 1, d_conv]`.
                packed.set(tap * padded + channel, unsafe { *self.weight.add(channel * self.d_conv + tap) });
            }
        }
        packed
    }
}

/// What both kernels compute first.
#[derive(Clone, Copy)]
struct Taps {
    x: Steps<*const f32>,
    weight: *const f32,
    bias: *const f32,
    d_conv: usize,
    padded: usize,
}

impl Taps {
    /// The convolution before SiLU, for the `count` channels from `channel` on.
    ///
    /// # Safety
    /// Step and channels exist, and the CPU has the instructions of `V`.
    #[inline(always)]
    unsafe fn at<V: Lanes>(&self, step: usize, channel: usize, count: usize) -> V {
        // SAFETY: the caller's promise; taps before the first step are left out.
        unsafe {
            let mut sum = V::load_part(self.bias.add(channel), count);
            for tap in self.d_conv.saturating_sub(step + 1)..self.d_conv {
                let x = V::load_part(self.x.row(step + tap + 1 - self.d_conv).add(channel), count);
                sum = x.mul_add(V::load(self.weight.add(tap * self.padded + channel)), sum);
            }
            sum
        }
    }
}

/// Writes `y`, `[batch, len, d_inner]` without gaps.
///
/// # Safety
/// The pointers lead to arrays of the sizes of `problem`; `level` is available on this CPU.
pub(crate) unsafe fn forward(level: Level, problem: &Problem, y: *mut f32) {
    // SAFETY: the caller vouches for `weight`.
    let weight = unsafe { problem.pack_weight(level.lanes()) };
    let y = Rows::<*mut f32>::contiguous(y, problem.len, problem.d_inner);
    for_each_task(
        problem.batch,
        problem.d_inner,
        || (),
        |(), task| {
            let kernel = Forward { problem, task, weight: weight.as_ptr(), y };
            // SAFETY: the caller vouches for everything; every task has its own channels of its own batch item.
            unsafe { dispatch(level, kernel) }
        },
    );
}

struct Forward<'a> {
    problem: &'a Problem,
    task: Task,
    weight: *const f32,
    y: Rows<*mut f32>,
}

impl Kernel for Forward<'_> {
    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        let Forward { problem, task, weight, y } = self;
        let direction = problem.direction();
        // SAFETY: every row and channel below lies within the sizes of `problem`.
        unsafe {
            let taps = Taps {
                x: problem.x.steps(task.batch, problem.len, direction),
                weight,
                bias: problem.bias,
                d_conv: problem.d_conv,
                padded: problem.d_inner.next_multiple_of(V::LANES),
            };
            let y = y.steps(task.batch, problem.len, direction);
            for step in 0..problem.len {
                for offset in (0..task.channels).step_by(V::LANES) {
                    let (channel, count) = (task.first + offset, V::LANES.min(task.channels - offset));
                    let sum = taps.at::<V>(step, channel, count);
                    (sum * sigmoids(sum).0).store_part(y.row(step).add(channel), count);
                }
            }
        }
    }
}

/// Writes the gradients of all three inputs, given the gradient `y` of the output.
///
/// # Safety
/// The pointers lead to arrays of the sizes of `problem`; `level` is available on this CPU.
pub(crate) unsafe fn backward(level: Level, problem: &Problem, y: Rows<*const f32>, gradients: &Gradients) {
    let &Problem { batch, len, d_inner, d_conv, .. } = problem;
    // SAFETY: the caller vouches for `weight`.
    let weight = unsafe { problem.pack_weight(level.lanes()) };
    let mut part_weight = vec![0.0; batch * d_conv * d_inner];
    let mut part_bias = vec![0.0; batch * d_inner];
    let x = Rows::<*mut f32>::contiguous(gradients.x, len, d_inner);
    let (shared_weight, shared_bias) = (Shared(part_weight.as_mut_ptr()), Shared(part_bias.as_mut_ptr()));
    let widest = widest_block(d_inner).next_multiple_of(level.lanes());
    let scratch = || Aligned::zeros((2 * d_conv + 1) * widest);
    for_each_task(batch, d_inner, scratch, |scratch, task| {
        let (part_weight, part_bias) = (shared_weight.get(), shared_bias.get());
        let kernel = Backward { problem, task, weight: weight.as_ptr(), y, x, part_weight, part_bias, widest, scratch };
        // SAFETY: the caller vouches for everything; every task has its own channels of its own batch item.
        unsafe { dispatch(level, kernel) }
    });

    let mut by_tap = vec![0.0; d_conv * d_inner];
    sum_parts(&part_weight, &mut by_tap);
    // SAFETY: the caller vouches for the gradients' sizes.
    unsafe {
        sum_parts(&part_bias, std::slice::from_raw_parts_mut(gradients.bias, d_inner));
        for channel in 0..d_inner {
            for tap in 0..d_conv {
                gradients.weight.add(channel * d_conv + tap).write(by_tap[tap * d_inner + channel]);
            }
        }
    }
}

struct Backward<'a> {
    problem: &'a Problem,
    task: Task,
    weight: *const f32,
    y: Rows<*const f32>,
    x: Rows<*mut f32>,
    /// `[batch, d_conv, d_inner]`
    part_weight: *mut f32,
    /// `[batch, d_inner]`
    part_bias: *mut f32,
    /// floats of one row of the scratch
    widest: usize,
    scratch: &'a mut Aligned,
}

impl Kernel for Backward<'_> {
    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        let Backward { problem, task, weight, y, x, part_weight, part_bias, widest, scratch } = self;
        let (len, d_inner, d_conv) = (problem.len, problem.d_inner, problem.d_conv);
        let direction = problem.direction();
        // SAFETY: every row and channel below lies within the sizes of `problem`; the scratch has the size that
        // `backward` gave it.
        unsafe {
            let taps = Taps {
                x: problem.x.steps(task.batch, len, direction),
                weight,
                bias: problem.bias,
                d_conv,
                padded: d_inner.next_multiple_of(V::LANES),
            };
            let dy = y.steps(task.batch, len, direction);
            let out_x = x.steps(task.batch, len, direction);

            // Rows of the scratch: the gradients before SiLU of the last `d_conv` steps, as a ring; the sums of the
            // taps; the sum of the bias.
            let ring = scratch.as_mut_ptr();
            let sums = ring.add(d_conv * widest);
            for offset in (0..(2 * d_conv + 1) * widest).step_by(V::LANES) {
                V::zero().store(ring.add(offset));
            }

            for step in (0..len).rev() {
                for offset in (0..task.channels).step_by(V::LANES) {
                    let (channel, count) = (task.first + offset, V::LANES.min(task.channels - offset));
                    let sum = taps.at::<V>(step, channel, count);
                    let (gate, rest) = sigmoids(sum);
                    let dy = V::load_part(dy.row(step).add(channel), count);
                    let g = dy * (sum * gate).mul_add(rest, gate);
                    g.store(ring.add(step % d_conv * widest + offset));

                    let mut dx = V::zero();
                    for tap in 0..d_conv {
                        // Step `later` saw this step through `tap`.
                        let later = step + d_conv - 1 - tap;
                        if later < len {
                            let g = V::load(ring.add(later % d_conv * widest + offset));
                            dx = g.mul_add(V::load(weight.add(tap * taps.padded + channel)), dx);
                        }
                        if step + tap + 1 >= d_conv {
                            let x = V::load_part(taps.x.row(step + tap + 1 - d_conv).add(channel), count);
                            let sum = sums.add(tap * widest + offset);
                            x.mul_add(g, V::load(sum)).store(sum);
                        }
                    }
                    dx.store_part(out_x.row(step).add(channel), count);
                    let sum = sums.add(d_conv * widest + offset);
                    (V::load(sum) + g).store(sum);
                }
            }

            for offset in (0..task.channels).step_by(V::LANES) {
                let (channel, count) = (task.first + offset, V::LANES.min(task.channels - offset));
                for tap in 0..d_conv {
                    let target = part_weight.add((task.batch * d_conv + tap) * d_inner + channel);
                    V::load(sums.add(tap * widest + offset)).store_part(target, count);
                }
                let target = part_bias.add(task.batch * d_inner + channel);
                V::load(sums.add(d_conv * widest + offset)).store_part(target, count);
            }
        }
    }
}
