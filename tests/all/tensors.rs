//! Tensor → bytes (extraction) and bytes → tensor (training) are inverse.

use cab_extract::capture::capture;
use cab_extract::teacher::Captured;
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
fn captured_nan_and_infinity_are_refused_by_sample_and_layer() {
    let run = |value: f64, dtype| {
        let q = Tensor::zeros([3, 5, 2, 4], (Kind::Float, Device::Cpu));
        let k = q.copy();
        let _ = k.get(1).get(4).get(0).get(2).fill_(value);
        let logits = Tensor::zeros([3, 7], (Kind::Float, Device::Cpu));
        capture(&Captured { q: vec![q], k: vec![k], logits }, &[9], dtype, true, |i| format!("sample {i}"))
    };
    assert_eq!(run(60000.0, Dtype::F16).expect("finite").rows.len(), 3);
    assert_eq!(run(70000.0, Dtype::F32).expect("finite in f32").rows.len(), 3);
    for (value, dtype) in
        [(f64::NAN, Dtype::F32), (f64::INFINITY, Dtype::F32), (f64::NEG_INFINITY, Dtype::F16), (70000.0, Dtype::F16)]
    {
        let error = run(value, dtype).expect_err("not finite").to_string();
        assert!(error.contains("k of layer 9") && error.contains("sample 1"), "{value}: {error}");
    }
}

#[test]
#[should_panic(expected = "bytes of a Float tensor")]
fn wrong_length_never_reaches_libtorch() {
    let _ = cab_train::tensor::from_bytes(&[0; 15], &[2, 2], Kind::Float);
}
