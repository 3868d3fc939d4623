//! Tensor → bytes (extraction) and bytes → tensor (training) are inverse.

use cab_format::Dtype;
use tch::{Device, Kind, Tensor};

#[test]
fn tensor_to_bytes_to_tensor_is_the_identity_for_every_stored_dtype() {
    tch::manual_seed(1);
    for (dtype, kind) in [(Dtype::F32, Kind::Float), (Dtype::F16, Kind::Half), (Dtype::U8, Kind::Uint8)] {
        for shape in [[1, 1, 1], [3, 5, 7], [2, 1, 33]] {
            let values = (Tensor::randn(shape, (Kind::Float, Device::Cpu)) * 40.0).abs().to_kind(kind);
            // A strided view, as q and k are inside a fused projection.
            let strided = Tensor::cat(&[&values, &values], 2).narrow(2, 0, shape[2]);
            let rows = cab_extract::capture::to_bytes(&strided, dtype);
            assert_eq!(rows.len() as i64, shape[0]);
            let back = cab_train::tensor::from_bytes(&rows.concat(), &shape, cab_train::tensor::kind_of(dtype));
            assert_eq!(back, values, "{dtype:?} {shape:?}");
        }
    }
}

#[test]
#[should_panic(expected = "bytes of a Float tensor")]
fn wrong_length_never_reaches_libtorch() {
    let _ = cab_train::tensor::from_bytes(&[0; 15], &[2, 2], Kind::Float);
}
