//! A `[batch, len, channels]` array in memory, seen as rows of channels: where the row of a token starts.
#![allow(unsafe_code, reason = "raw pointers from the autograd glue")]

use crate::Direction;

/// A borrowed array `[batch, len, channels]` with channels side by side and any stride over the rest, in floats.
/// The same structure stands in `autograd.cpp`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Rows<T> {
    pub(crate) start: T,
    pub(crate) batch_stride: isize,
    pub(crate) row_stride: isize,
}

// SAFETY: kernels on several threads read through `Rows<*const f32>`, and write disjoint rows or channels through
// `Rows<*mut f32>`; who starts them keeps the arrays alive meanwhile.
unsafe impl<T> Send for Rows<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Rows<T> {}

impl<T> Rows<T> {
    /// An array without gaps.
    pub(crate) fn contiguous(start: T, len: usize, channels: usize) -> Self {
        Rows { start, batch_stride: (len * channels) as isize, row_stride: channels as isize }
    }
}

/// The rows of one batch item in the order of a [`Direction`]: step 0 is the first token that is visited.
#[derive(Clone, Copy)]
pub(crate) struct Steps<T> {
    first: T,
    stride: isize,
}

macro_rules! walk {
    ($pointer:ty) => {
        impl Rows<$pointer> {
            /// One batch item, step by step.
            ///
            /// # Safety
            /// The array has `batch + 1` items or more, of `len` rows.
            #[inline(always)]
            pub(crate) unsafe fn steps(&self, batch: usize, len: usize, direction: Direction) -> Steps<$pointer> {
                // SAFETY: the first and the last row of an item that exists.
                unsafe {
                    let item = self.start.offset(batch as isize * self.batch_stride);
                    match direction {
                        Direction::Forward => Steps { first: item, stride: self.row_stride },
                        Direction::Backward => {
                            Steps { first: item.offset((len as isize - 1) * self.row_stride), stride: -self.row_stride }
                        }
                    }
                }
            }
        }

        impl Steps<$pointer> {
            /// The row of a step.
            ///
            /// # Safety
            /// The item has more than `step` rows.
            #[inline(always)]
            pub(crate) unsafe fn row(&self, step: usize) -> $pointer {
                // SAFETY: the row exists.
                unsafe { self.first.offset(step as isize * self.stride) }
            }
        }
    };
}
walk!(*const f32);
walk!(*mut f32);
