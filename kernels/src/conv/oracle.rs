//! The convolution in tensor operations: what the operator means.

use tch::Tensor;

use super::check_shapes;
use crate::Direction;

/// The causal depthwise convolution of `x` followed by SiLU, `[batch, len, d_inner]`, in tensor operations.
///
/// Forward: `y_t = silu(bias + Σ_j weight[j] x_{t - (d_conv - 1) + j})`, tokens before the first count as 0.
/// Backward is the same on the reversed tokens: `x_{t + (d_conv - 1) - j}`, tokens after the last count as 0.
///
/// | argument | shape                   |
/// |----------|-------------------------|
/// | `x`      | `[batch, len, d_inner]` |
/// | `weight` | `[d_inner, 1, d_conv]`  |
/// | `bias`   | `[d_inner]`             |
///
/// # Panics
/// If the shapes do not fit together.
pub fn causal_conv_silu_oracle(x: &Tensor, weight: &Tensor, bias: &Tensor, direction: Direction) -> Tensor {
    check_shapes(x, weight, bias);
    let (d_inner, d_conv) = (weight.size()[0], weight.size()[2]);
    let (padding, weight) = match direction {
        Direction::Forward => ([d_conv - 1, 0], weight.shallow_clone()),
        Direction::Backward => ([0, d_conv - 1], weight.flip([2])),
    };
    x.transpose(1, 2).constant_pad_nd(padding).conv1d(&weight, Some(bias), 1, 0, 1, d_inner).silu().transpose(1, 2)
}
