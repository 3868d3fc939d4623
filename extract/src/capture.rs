//! What a forward pass captured, as the stored bytes of records: the only place where tensors become bytes.

use anyhow::{Result, bail};
use cab_format::Dtype;
use tch::{Device, Kind, Tensor};

use crate::teacher::Captured;

/// The stored bytes of a batch, cut by record.
#[derive(Debug)]
pub struct CapturedBytes {
    /// `rows[i]`: logits, then q and k of each captured layer, of record `i` of the batch, in the order of the fields.
    pub rows: Vec<Vec<Vec<u8>>>,
    /// Class with the largest logit, by record.
    pub predicted: Vec<i64>,
}

/// The little-endian, row-major bytes of `tensor` `[batch, …]` in `dtype`, cut along the batch.
pub fn to_bytes(tensor: &Tensor, dtype: Dtype) -> Vec<Vec<u8>> {
    let kind = match dtype {
        Dtype::F16 => Kind::Half,
        Dtype::F32 => Kind::Float,
        Dtype::U8 => Kind::Uint8,
        other => panic!("no tensor is stored as {other:?}"),
    };
    let tensor = tensor.to_kind(kind).to_device(Device::Cpu).contiguous();
    let (batch, elements) = (tensor.size()[0] as usize, tensor.numel());
    let mut bytes = vec![0; elements * kind.elt_size_in_bytes()];
    tensor.copy_data_u8(&mut bytes, elements);
    bytes.chunks_exact(bytes.len() / batch).map(<[u8]>::to_vec).collect()
}

/// Turns a batch into stored bytes.
///
/// `with_qk` leaves q and k out for held-out records; `name` tells which sample a position of the batch is.
///
/// # Errors
/// When a value is NaN or infinite (also after rounding to f16), naming the sample and the layer.
pub fn capture(
    captured: &Captured,
    layers: &[usize],
    qk: Dtype,
    with_qk: bool,
    name: impl Fn(usize) -> String,
) -> Result<CapturedBytes> {
    finite(&captured.logits, "the logits", &name)?;
    let mut rows: Vec<Vec<Vec<u8>>> =
        to_bytes(&captured.logits, Dtype::F32).into_iter().map(|logits| vec![logits]).collect();
    if with_qk {
        for ((q, k), layer) in captured.q.iter().zip(&captured.k).zip(layers) {
            for (tensor, letter) in [(q, 'q'), (k, 'k')] {
                let stored = if qk == Dtype::F16 { tensor.to_kind(Kind::Half) } else { tensor.to_kind(Kind::Float) };
                finite(&stored, &format!("{letter} of layer {layer}"), &name)?;
                rows.iter_mut().zip(to_bytes(&stored, qk)).for_each(|(row, bytes)| row.push(bytes));
            }
        }
    }
    let predicted = captured.logits.argmax(-1, false).to_device(Device::Cpu);
    Ok(CapturedBytes { rows, predicted: Vec::try_from(&predicted)? })
}

fn finite(tensor: &Tensor, what: &str, name: &impl Fn(usize) -> String) -> Result<()> {
    // One pass that keeps NaN; which record it is matters only when there is one.
    let (low, high) = tensor.aminmax(None, false);
    if low.double_value(&[]).is_finite() && high.double_value(&[]).is_finite() {
        return Ok(());
    }
    let good = tensor.isfinite();
    let by_record = good.flatten(1, -1).all_dim(1, false);
    let first = by_record.logical_not().to_kind(Kind::Int64).argmax(0, false).int64_value(&[]) as usize;
    bail!(
        "{what} of {} holds NaN or infinity: check the image, the teacher's weights and --precision (f16 storage ends at 65504)",
        name(first)
    )
}
