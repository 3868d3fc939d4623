//! The sequential operators of a Vision Mamba block: the selective scan and the causal depthwise convolution.
//!
//! Every operator stands here twice. The *oracle* is a handful of tensor operations that says what the operator
//! means: it runs on any device and float type and libtorch differentiates it. The *fast* form is Rust with explicit
//! SIMD, forward and backward, behind a C++ `torch::autograd::Function`; it takes CPU tensors in f32 and hands
//! everything else to the oracle. Both have the same signature, layout and gradients.
//!
//! | operator                                   | fast                 | oracle                      |
//! |--------------------------------------------|----------------------|-----------------------------|
//! | selective scan with `softplus`, skip, gate | [`selective_scan`]   | [`selective_scan_oracle`]   |
//! | causal depthwise convolution + SiLU        | [`causal_conv_silu`] | [`causal_conv_silu_oracle`] |
//!
//! Tensors are channel-last, `[batch, len, d_inner]`, as a linear layer leaves them, and stay in natural token order:
//! [`Direction::Backward`] walks the tokens from last to first, it does not reverse copies. A row may be part of a
//! wider one (any stride over batch and tokens), so that halves of one projection need no copy.
//!
//! The fast kernels give the same bits for any number of rayon threads: what is summed across tasks is summed in an
//! order that only the shapes decide.
//!
//! This crate knows no files and no configurations. A shape that does not fit is a bug of the caller and panics.

mod conv;
mod glue;
mod parallel;
mod rows;
mod scan;
mod simd;
#[cfg(test)]
mod testing;

pub use conv::{causal_conv_silu, causal_conv_silu_oracle};
pub use glue::libtorch_version;
pub use scan::{selective_scan, selective_scan_oracle};
pub use simd::simd_level;

/// The order in which a recurrence or a causal convolution visits the tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the first token to the last: token `t` sees tokens `0..=t`.
    Forward,
    /// From the last token to the first: token `t` sees tokens `t..len`.
    Backward,
}
