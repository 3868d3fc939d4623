//! One scan as the kernels see it: sizes, pointers, and what both passes prepare from `a_log`.
#![allow(unsafe_code, reason = "raw pointers from the autograd glue")]

use std::f64::consts::LOG2_E;

use crate::Direction;
use crate::rows::Rows;
use crate::simd::{Aligned, Level};

/// Tokens between two states that the forward pass keeps. The backward pass holds the decays and states of one such
/// chunk at a time, for 8 states x one vector of channels: 32 KiB. Measured a little faster than 16, and than 8.
pub(crate) const CHUNK: usize = 32;

/// The inputs of a scan. The same structure stands in `autograd.cpp`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Problem {
    pub(crate) batch: usize,
    pub(crate) len: usize,
    pub(crate) d_inner: usize,
    pub(crate) d_state: usize,
    /// 0 from the first token to the last, 1 the other way.
    pub(crate) backward: usize,
    pub(crate) x: Rows<*const f32>,
    pub(crate) dt: Rows<*const f32>,
    pub(crate) z: Rows<*const f32>,
    pub(crate) b: Rows<*const f32>,
    pub(crate) c: Rows<*const f32>,
    /// `[d_inner, d_state]` without gaps
    pub(crate) a_log: *const f32,
    /// `[d_inner]`
    pub(crate) d_skip: *const f32,
    /// `[d_inner]`
    pub(crate) dt_bias: *const f32,
}

// SAFETY: kernels only read through these pointers; who starts them keeps the arrays alive meanwhile.
unsafe impl Send for Problem {}
// SAFETY: as above.
unsafe impl Sync for Problem {}

impl Problem {
    pub(crate) fn direction(&self) -> Direction {
        if self.backward == 0 { Direction::Forward } else { Direction::Backward }
    }

    /// How many chunks the tokens make.
    pub(crate) fn n_chunks(&self) -> usize {
        self.len.div_ceil(CHUNK)
    }

    /// Floats of the states the forward pass leaves to the backward pass: `[batch, n_chunks - 1, d_state, d_inner]`,
    /// the state before every chunk but the first.
    pub(crate) fn kept_states(&self) -> usize {
        self.batch * (self.n_chunks() - 1) * self.d_state * self.d_inner
    }

    /// Where the kept state before `chunk` (1 or more) begins.
    pub(crate) fn kept_offset(&self, batch: usize, chunk: usize) -> usize {
        (batch * (self.n_chunks() - 1) + chunk - 1) * self.d_state * self.d_inner
    }

    /// `A log2(e)` as `[group of channels, d_state, lanes]`, so that a decay is `2^(dt' A log2(e))`. Missing channels
    /// have 0.
    ///
    /// # Safety
    /// `a_log` is readable.
    pub(crate) unsafe fn pack_rates(&self, level: Level) -> Aligned {
        let lanes = level.lanes();
        let mut rates = Aligned::zeros(self.d_inner.next_multiple_of(lanes) * self.d_state);
        for channel in 0..self.d_inner {
            let (group, lane) = (channel / lanes, channel % lanes);
            for n in 0..self.d_state {
                // SAFETY: within `[d_inner, d_state]`.
                let a_log = unsafe { *self.a_log.add(channel * self.d_state + n) };
                // Bounded, so that no rate times a step is infinite times zero.
                let rate = (-f64::from(a_log).exp() * LOG2_E).max(-1e30);
                rates.set((group * self.d_state + n) * lanes + lane, rate as f32);
            }
        }
        rates
    }
}

/// Cuts aligned scratch memory into arrays.
pub(crate) struct Carver(pub(crate) *mut f32);

impl Carver {
    /// The next `count` vectors of type `V`.
    ///
    /// # Safety
    /// The memory is large enough.
    #[inline(always)]
    pub(crate) unsafe fn take<V>(&mut self, count: usize) -> *mut V {
        let start = self.0;
        // SAFETY: the caller vouches for the size.
        self.0 = unsafe { start.add(count * (size_of::<V>() / size_of::<f32>())) };
        start.cast()
    }
}
