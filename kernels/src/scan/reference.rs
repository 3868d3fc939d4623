//! The recurrence as the paper writes it, one number at a time in f64: the oracle of the oracle.

use crate::Direction;

/// The inputs of a scan, each in row-major order.
pub(super) struct Inputs<'a> {
    pub(super) batch: usize,
    pub(super) len: usize,
    pub(super) d_inner: usize,
    pub(super) d_state: usize,
    pub(super) x: &'a [f64],
    pub(super) dt: &'a [f64],
    pub(super) a_log: &'a [f64],
    pub(super) b: &'a [f64],
    pub(super) c: &'a [f64],
    pub(super) d_skip: &'a [f64],
    pub(super) z: &'a [f64],
    pub(super) dt_bias: &'a [f64],
}

/// The output `[batch, len, d_inner]`.
pub(super) fn selective_scan(i: &Inputs, direction: Direction) -> Vec<f64> {
    let mut y = vec![0.0; i.batch * i.len * i.d_inner];
    for batch in 0..i.batch {
        for channel in 0..i.d_inner {
            let mut states = vec![0.0; i.d_state];
            for step in 0..i.len {
                let token = if direction == Direction::Forward { step } else { i.len - 1 - step };
                let row = batch * i.len + token;
                let at = row * i.d_inner + channel;
                let (x, z) = (i.x[at], i.z[at]);
                let u = i.dt[at] + i.dt_bias[channel];
                let dt = u.max(0.0) + (-u.abs()).exp().ln_1p();
                let mut sum = i.d_skip[channel] * x;
                for (n, state) in states.iter_mut().enumerate() {
                    let a = -i.a_log[channel * i.d_state + n].exp();
                    *state = (dt * a).exp() * *state + dt * x * i.b[row * i.d_state + n];
                    sum += *state * i.c[row * i.d_state + n];
                }
                y[at] = sum * z / (1.0 + (-z).exp());
            }
        }
    }
    y
}
