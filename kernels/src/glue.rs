//! The border to C++: Rust calls `autograd.cpp` with tensors, and libtorch's autograd calls the kernels back with
//! pointers.
#![allow(unsafe_code, reason = "calls across the border to C++")]

use std::ffi::{CStr, c_char, c_int};

use tch::{Device, Kind, Tensor};
use torch_sys::C_tensor;

use crate::rows::Rows;
use crate::simd::Level;
use crate::{Direction, conv, scan};

unsafe extern "C" {
    fn cab_libtorch_version() -> *const c_char;
    fn cab_last_error() -> *const c_char;
    fn cab_selective_scan(
        x: *const C_tensor,
        dt: *const C_tensor,
        a_log: *const C_tensor,
        b: *const C_tensor,
        c: *const C_tensor,
        d_skip: *const C_tensor,
        z: *const C_tensor,
        dt_bias: *const C_tensor,
        backward: c_int,
    ) -> *mut C_tensor;
    fn cab_causal_conv(
        x: *const C_tensor,
        weight: *const C_tensor,
        bias: *const C_tensor,
        backward: c_int,
    ) -> *mut C_tensor;
}

/// The version of libtorch whose headers this crate was compiled against, such as `2.13.0`.
pub fn libtorch_version() -> String {
    // SAFETY: the function returns a string literal.
    unsafe { CStr::from_ptr(cab_libtorch_version()) }.to_string_lossy().into_owned()
}

/// Whether the fast kernels can take these tensors.
pub(crate) fn suits_kernels(tensors: &[&Tensor]) -> bool {
    tensors.iter().all(|t| t.device() == Device::Cpu && t.kind() == Kind::Float && !t.is_sparse() && !t.is_mkldnn())
}

/// The scan through the kernels. Shapes are checked and every tensor suits the kernels.
#[allow(clippy::too_many_arguments, reason = "these are the inputs of the operator")]
pub(crate) fn selective_scan(
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
    // SAFETY: eight live tensors, whose shapes, type and device the caller has checked.
    let y = unsafe {
        cab_selective_scan(
            x.as_ptr(),
            dt.as_ptr(),
            a_log.as_ptr(),
            b.as_ptr(),
            c.as_ptr(),
            d_skip.as_ptr(),
            z.as_ptr(),
            dt_bias.as_ptr(),
            c_int::from(direction == Direction::Backward),
        )
    };
    received(y)
}

/// The convolution through the kernels. Shapes are checked and every tensor suits the kernels.
pub(crate) fn causal_conv(x: &Tensor, weight: &Tensor, bias: &Tensor, direction: Direction) -> Tensor {
    let backward = c_int::from(direction == Direction::Backward);
    // SAFETY: three live tensors, whose shapes, type and device the caller has checked.
    received(unsafe { cab_causal_conv(x.as_ptr(), weight.as_ptr(), bias.as_ptr(), backward) })
}

/// Takes over a tensor that C++ allocated; null means that it failed.
fn received(tensor: *mut C_tensor) -> Tensor {
    if tensor.is_null() {
        // SAFETY: the message of this thread's last failure lives until the next one.
        let message = unsafe { CStr::from_ptr(cab_last_error()) };
        panic!("libtorch: {}", message.to_string_lossy());
    }
    // SAFETY: a tensor on the heap that nobody else owns.
    unsafe { Tensor::from_ptr(tensor) }
}

// What autograd.cpp calls. A panic in here ends the process, as it cannot pass through C++.

#[unsafe(no_mangle)]
extern "C" fn cab_scan_kept_states(problem: &scan::Problem) -> usize {
    problem.kept_states()
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cab_scan_forward(problem: &scan::Problem, y: *mut f32, kept: *mut f32) {
    // SAFETY: autograd.cpp passes pointers into tensors of these shapes.
    unsafe { scan::forward(Level::best(), problem, y, kept) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cab_scan_backward(
    problem: &scan::Problem,
    kept: *const f32,
    y: &Rows<*const f32>,
    gradients: &scan::Gradients,
) {
    // SAFETY: autograd.cpp passes pointers into tensors of these shapes.
    unsafe { scan::backward(Level::best(), problem, kept, *y, gradients) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cab_conv_forward(problem: &conv::Problem, y: *mut f32) {
    // SAFETY: autograd.cpp passes pointers into tensors of these shapes.
    unsafe { conv::forward(Level::best(), problem, y) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cab_conv_backward(problem: &conv::Problem, y: &Rows<*const f32>, gradients: &conv::Gradients) {
    // SAFETY: autograd.cpp passes pointers into tensors of these shapes.
    unsafe { conv::backward(Level::best(), problem, *y, gradients) }
}
