//! The causal depthwise convolution in front of the scan, with its SiLU.

mod kernel;
mod oracle;
#[cfg(test)]
mod tests;

use tch::Tensor;

use crate::{Direction, glue};
pub(crate) use kernel::{Gradients, Problem, backward, forward};
pub use oracle::causal_conv_silu_oracle;

/// The causal depthwise convolution of `x` followed by SiLU: what [`causal_conv_silu_oracle`] computes, faster on a CPU.
///
/// Arguments, shapes and gradients are the oracle's. An `x` whose channels lie side by side is read where it is. It
/// differentiates once: a gradient of its gradient is refused. If any tensor is not f32 on the CPU, the oracle
/// computes it.
///
/// # Panics
/// If the shapes do not fit together.
pub fn causal_conv_silu(x: &Tensor, weight: &Tensor, bias: &Tensor, direction: Direction) -> Tensor {
    if !glue::suits_kernels(&[x, weight, bias]) {
        return causal_conv_silu_oracle(x, weight, bias, direction);
    }
    check_shapes(x, weight, bias);
    glue::causal_conv(x, weight, bias, direction)
}

/// Panics unless the inputs of a convolution fit together.
fn check_shapes(x: &Tensor, weight: &Tensor, bias: &Tensor) {
    let ([batch, len, d_inner], [_, _, d_conv]) = (&x.size()[..], &weight.size()[..]) else {
        panic!("x is [batch, len, d_inner] and weight [d_inner, 1, d_conv], not {:?} and {:?}", x.size(), weight.size())
    };
    assert!(
        *batch > 0 && *len > 0 && *d_inner > 0 && *d_conv > 0,
        "a convolution has no empty axis: x {:?}, weight {:?}",
        x.size(),
        weight.size()
    );
    assert_eq!(weight.size(), [*d_inner, 1, *d_conv], "shape of weight in a convolution with x {:?}", x.size());
    assert_eq!(bias.size(), [*d_inner], "shape of bias in a convolution with x {:?}", x.size());
}
