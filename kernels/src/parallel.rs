//! How a kernel is cut into tasks, and how their partial sums are put together: both depend on shapes alone, so that the
//! number of threads never shows in a result.
#![allow(unsafe_code, reason = "tasks write disjoint parts of one array")]

use rayon::prelude::*;

/// Channels of one task. A multiple of every vector width; few enough to make several tasks of one sequence, enough
/// to spread the cost of summing over the lanes of a vector.
const BLOCK_CHANNELS: usize = 128;

/// A pointer that tasks share.
#[derive(Clone, Copy)]
pub(crate) struct Shared<T>(pub(crate) *mut T);

// SAFETY: every task writes its own part of what the pointer leads to; who starts the tasks keeps it alive meanwhile.
unsafe impl<T> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Shared<T> {}

impl<T> Shared<T> {
    /// The pointer. (A method, so that closures capture the whole structure.)
    pub(crate) fn get(self) -> *mut T {
        self.0
    }
}

/// One task: the channels `first..first + channels` of one batch item.
#[derive(Clone, Copy)]
pub(crate) struct Task {
    pub(crate) batch: usize,
    pub(crate) block: usize,
    pub(crate) first: usize,
    pub(crate) channels: usize,
}

/// How many blocks the channels are cut into.
pub(crate) fn n_blocks(channels: usize) -> usize {
    channels.div_ceil(BLOCK_CHANNELS)
}

/// The widest block that occurs.
pub(crate) fn widest_block(channels: usize) -> usize {
    channels.min(BLOCK_CHANNELS)
}

/// Runs `work` for every batch item and block of channels, with a scratch made once per worker.
pub(crate) fn for_each_task<S>(
    batch: usize,
    channels: usize,
    scratch: impl Fn() -> S + Sync + Send,
    work: impl Fn(&mut S, Task) + Sync + Send,
) {
    let blocks = n_blocks(channels);
    (0..batch * blocks).into_par_iter().for_each_init(scratch, |scratch, index| {
        let (batch, block) = (index / blocks, index % blocks);
        let first = block * BLOCK_CHANNELS;
        work(scratch, Task { batch, block, first, channels: BLOCK_CHANNELS.min(channels - first) });
    });
}

/// `target[i] = Σ_k parts[k * target.len() + i]`, summed in the order of `k`.
pub(crate) fn sum_parts(parts: &[f32], target: &mut [f32]) {
    assert_eq!(parts.len() % target.len(), 0, "parts are whole");
    const PIECE: usize = 2048;
    let width = target.len();
    target.par_chunks_mut(PIECE).enumerate().for_each(|(piece, target)| {
        let start = piece * PIECE;
        target.copy_from_slice(&parts[start..start + target.len()]);
        for part in parts.chunks_exact(width).skip(1) {
            for (sum, value) in target.iter_mut().zip(&part[start..]) {
                *sum += value;
            }
        }
    });
}
