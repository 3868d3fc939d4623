//! The selective scan of Mamba-1 with everything around it that is no matrix product: the `dt` bias and softplus, the
//! recurrence, the skip connection and the gate.

mod backward;
mod forward;
mod oracle;
mod problem;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

use tch::Tensor;

use crate::{Direction, glue};
pub(crate) use backward::{Gradients, backward};
pub(crate) use forward::forward;
pub use oracle::selective_scan_oracle;
pub(crate) use problem::Problem;

/// The output of the selective scan, `[batch, len, d_inner]`: what [`selective_scan_oracle`] computes, much faster on a CPU.
///
/// Arguments, shapes and gradients are the oracle's. Tensors whose last axis lies side by side are read where they are,
/// whatever their strides over batch and tokens. With gradients wanted, it keeps its inputs and the state of every
/// 32nd token, `[batch, (len - 1) / 32, d_state, d_inner]`; without, nothing. It differentiates once: a gradient of its gradient
/// is refused. If any tensor is not f32 on the CPU, the oracle computes it.
///
/// # Panics
/// If the shapes do not fit together.
///
/// # Source
/// As [`selective_scan_oracle`].
#[allow(clippy::too_many_arguments, reason = "these are the inputs of the operator")]
pub fn selective_scan(
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
    if !glue::suits_kernels(&[x, dt, a_log, b, c, d_skip, z, dt_bias]) {
        return selective_scan_oracle(x, dt, a_log, b, c, d_skip, z, dt_bias, direction);
    }
    check_shapes(x, dt, a_log, b, c, d_skip, z, dt_bias);
    glue::selective_scan(x, dt, a_log, b, c, d_skip, z, dt_bias, direction)
}

/// Panics unless the eight inputs of a scan fit together.
#[allow(clippy::too_many_arguments, reason = "these are the inputs of the operator")]
fn check_shapes(
    x: &Tensor,
    dt: &Tensor,
    a_log: &Tensor,
    b: &Tensor,
    c: &Tensor,
    d_skip: &Tensor,
    z: &Tensor,
    dt_bias: &Tensor,
) {
    let [batch, len, d_inner] = x.size()[..] else { panic!("x is [batch, len, d_inner], not {:?}", x.size()) };
    let d_state = a_log.size().get(1).copied().unwrap_or(0);
    assert!(
        batch > 0 && len > 0 && d_inner > 0 && d_state > 0,
        "a scan has no empty axis: x {:?}, a_log {:?}",
        x.size(),
        a_log.size()
    );
    for (name, tensor, expected) in [
        ("dt", dt, vec![batch, len, d_inner]),
        ("z", z, vec![batch, len, d_inner]),
        ("b", b, vec![batch, len, d_state]),
        ("c", c, vec![batch, len, d_state]),
        ("a_log", a_log, vec![d_inner, d_state]),
        ("d_skip", d_skip, vec![d_inner]),
        ("dt_bias", dt_bias, vec![d_inner]),
    ] {
        assert_eq!(tensor.size(), expected, "shape of {name} in a scan with x {:?}", x.size());
    }
}
