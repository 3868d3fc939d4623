//! The scan in tensor operations: what the operator means. Clarity before speed.

use tch::Tensor;

use super::check_shapes;
use crate::Direction;

/// The output of the selective scan, `[batch, len, d_inner]`, computed token by token with tensor operations.
///
/// With `dt' = softplus(dt + dt_bias)` and `A = -exp(a_log)`, for every channel
/// `s_t = exp(dt'_t A) ⊙ s_{t-1} + dt'_t x_t b_t`, `y_t = (Σ_n s_t[n] c_t[n] + d_skip x_t) silu(z_t)`, `s` starting at 0.
///
/// | argument            | shape                   | note                                     |
/// |---------------------|-------------------------|------------------------------------------|
/// | `x`, `z`            | `[batch, len, d_inner]` | input after convolution, gate            |
/// | `dt`                | `[batch, len, d_inner]` | step before bias and softplus            |
/// | `a_log`             | `[d_inner, d_state]`    |                                          |
/// | `b`, `c`            | `[batch, len, d_state]` | shared by all channels                   |
/// | `d_skip`, `dt_bias` | `[d_inner]`             |                                          |
///
/// Any device, any float type; libtorch differentiates it with respect to every input, and keeps a
/// `[batch, d_inner, d_state]` tensor or more per token to do so.
///
/// # Panics
/// If the shapes do not fit together.
///
/// # Source
/// Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", equation 2 and algorithm 2.
#[allow(clippy::too_many_arguments, reason = "these are the inputs of the operator")]
pub fn selective_scan_oracle(
    x: &Tensor,
    dt: &Tensor,
    a_log: &Tensor,
    b: &Tensor,
    c: &Tensor,
    d_skip: &Tensor,
    z: &Tensor,
    dt_bias: &Tensor,
    direction: Direction,
) -> Tensor {
    check_shapes(x, dt, a_log, b, c, d_skip, z, dt_bias);
    let [batch, len, d_inner] = x.size()[..] else { unreachable!("checked above") };
    let a = -a_log.exp();
    let dt = (dt + dt_bias).softplus();
    let dt_x = &dt * x;
    let mut state = Tensor::zeros([batch, d_inner, a.size()[1]], (x.kind(), x.device()));
    let mut outputs = Vec::with_capacity(len as usize);
    for step in 0..len {
        let token = match direction {
            Direction::Forward => step,
            Direction::Backward => len - 1 - step,
        };
        let decay = (dt.select(1, token).unsqueeze(-1) * &a).exp();
        let input = dt_x.select(1, token).unsqueeze(-1) * b.select(1, token).unsqueeze(1);
        state = decay * state + input;
        outputs.push(state.matmul(&c.select(1, token).unsqueeze(-1)).squeeze_dim(-1));
    }
    if direction == Direction::Backward {
        outputs.reverse();
    }
    (Tensor::stack(&outputs, 1) + d_skip * x) * z.silu()
}
