//! Which fields a record has: the one thing extraction and training must agree on to the byte.

use cab_format::{Codec, Dtype, FieldSpec, Split};

use crate::teacher::VitConfig;
use crate::view::ViewRecipe;

/// Field of the pixels the teacher saw, u8 `[channels, height, width]`.
pub const INPUT: &str = "input";
/// Field of the teacher's logits, f32 `[classes]`.
pub const LOGITS: &str = "logits";

/// Field of the queries of teacher layer `layer`, `[len, heads, head_dim]`, before scaling.
pub fn q_name(layer: usize) -> String {
    format!("q.{layer:02}")
}

/// Field of the keys of teacher layer `layer`, `[len, heads, head_dim]`.
pub fn k_name(layer: usize) -> String {
    format!("k.{layer:02}")
}

/// The fields of a vision cache: inputs and logits of every record; q and k of the captured layers of training records.
pub fn vision_fields(teacher: &VitConfig, views: &ViewRecipe, captured: &[usize], qk: Dtype) -> Vec<FieldSpec> {
    let field = |name: String, dtype, shape: Vec<usize>, splits: &[Split]| FieldSpec {
        name,
        dtype,
        shape,
        codec: Codec::Exact,
        splits: splits.to_vec(),
    };
    let both = [Split::Train, Split::Val];
    let mut fields = vec![
        field(INPUT.into(), Dtype::U8, vec![views.channels, views.height, views.width], &both),
        field(LOGITS.into(), Dtype::F32, vec![teacher.num_classes], &both),
    ];
    let shape = vec![teacher.tokens(), teacher.heads, teacher.head_dim()];
    for &layer in captured {
        for name in [q_name(layer), k_name(layer)] {
            fields.push(field(name, qk, shape.clone(), &[Split::Train]));
        }
    }
    fields
}
