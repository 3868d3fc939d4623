//! Stored bytes to tensors: the only place of this crate where that happens.

use cab_format::Dtype;
use tch::{Kind, Tensor};

/// The libtorch kind of a stored dtype.
///
/// # Panics
/// For `u32`, which libtorch has no arithmetic for; no field of an image cache is stored so.
pub fn kind_of(dtype: Dtype) -> Kind {
    match dtype {
        Dtype::U8 => Kind::Uint8,
        Dtype::F16 => Kind::Half,
        Dtype::F32 => Kind::Float,
        other => panic!("no tensor kind for stored dtype {other:?}"),
    }
}

/// A tensor of `shape` that owns a copy of `bytes` (little-endian, row-major), on the CPU.
///
/// # Panics
/// When `bytes` is not exactly as long as `shape` and `kind` say: libtorch itself would read out of bounds.
pub fn from_bytes(bytes: &[u8], shape: &[i64], kind: Kind) -> Tensor {
    let expect = shape.iter().product::<i64>() as usize * kind.elt_size_in_bytes();
    assert_eq!(bytes.len(), expect, "bytes of a {kind:?} tensor {shape:?}");
    Tensor::from_data_size(bytes, shape, kind)
}

/// The row-major bytes of a CPU tensor of any float or integer kind; checkpoints are written from them.
pub fn to_bytes(tensor: &Tensor) -> Vec<u8> {
    let tensor = tensor.contiguous();
    let mut bytes = vec![0; tensor.numel() * tensor.kind().elt_size_in_bytes()];
    tensor.copy_data_u8(&mut bytes, tensor.numel());
    bytes
}
