//! What the tests share: numbers that depend on a seed alone, gradients as a list, and relative errors.

use tch::{Kind, Tensor};

/// A small generator of random numbers.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        Random(seed)
    }

    fn next(&mut self) -> u64 {
        // SplitMix64
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number in `0..n`.
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// A number in `-1.0..1.0`, in f32 precision.
    pub(crate) fn signed(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    /// A tensor of numbers in `-scale..scale` around `centre`.
    pub(crate) fn tensor(&mut self, shape: &[i64], centre: f32, scale: f32) -> Tensor {
        let n = shape.iter().product::<i64>();
        let values: Vec<f32> = (0..n).map(|_| centre + scale * self.signed()).collect();
        Tensor::from_slice(&values).reshape(shape)
    }
}

/// The output of `f` and its gradients with respect to every input, where `dy` is the gradient of the output.
pub(crate) fn value_and_gradients(inputs: &[Tensor], dy: &Tensor, f: impl Fn(&[Tensor]) -> Tensor) -> Vec<Tensor> {
    let leaves: Vec<Tensor> = inputs.iter().map(|t| t.detach().set_requires_grad(true)).collect();
    let y = f(&leaves);
    let mut results = Tensor::run_backward(&[(&y * dy).sum(y.kind())], &leaves, false, false);
    results.insert(0, y.detach());
    results
}

/// The same tensors in f64.
pub(crate) fn doubles(tensors: &[Tensor]) -> Vec<Tensor> {
    tensors.iter().map(|t| t.to_kind(Kind::Double)).collect()
}

/// `‖ours - expected‖ / ‖expected‖`; two zeros agree.
pub(crate) fn relative_error(ours: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(ours.size(), expected.size());
    let expected = expected.to_kind(Kind::Double);
    let difference = (ours.to_kind(Kind::Double) - &expected).norm().double_value(&[]);
    let norm = expected.norm().double_value(&[]);
    if difference == 0.0 { 0.0 } else { difference / norm }
}

/// Panics unless every tensor agrees with what is expected of it.
pub(crate) fn assert_close(case: &str, names: &[&str], ours: &[Tensor], expected: &[Tensor], tolerance: f64) {
    assert_eq!((ours.len(), expected.len()), (names.len(), names.len()));
    for ((name, ours), expected) in names.iter().zip(ours).zip(expected) {
        let error = relative_error(ours, expected);
        // Written so that NaN fails.
        assert!(error <= tolerance, "{case}: relative error of {name} is {error:e}, allowed {tolerance:e}");
    }
}

/// Panics unless all numbers of all tensors agree bit for bit.
pub(crate) fn assert_same_bits(case: &str, names: &[&str], left: &[Tensor], right: &[Tensor]) {
    assert_eq!((left.len(), right.len()), (names.len(), names.len()));
    for ((name, left), right) in names.iter().zip(left).zip(right) {
        assert_eq!(left.size(), right.size());
        let [left, right] = [left, right].map(|t| Vec::<f32>::try_from(t.reshape([-1])).unwrap());
        let differ = |&i: &usize| left[i].to_bits() != right[i].to_bits();
        let different: Vec<usize> = (0..left.len()).filter(differ).collect();
        if let Some(&first) = different.first() {
            panic!(
                "{case}: {} of {} numbers of {name} differ, the first at {first}: {:e} against {:e}",
                different.len(),
                left.len(),
                left[first],
                right[first]
            );
        }
    }
}
