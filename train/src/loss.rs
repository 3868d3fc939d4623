//! The terms of the objective apart from the bridge.

use tch::{Kind, Reduction, Tensor};

/// `KL(teacher ‖ student)` at temperature 1: summed over classes, mean over the batch. Both are logits `[batch, classes]`.
pub fn soft(student: &Tensor, teacher: &Tensor) -> Tensor {
    let batch = student.size()[0] as f64;
    let student = student.log_softmax(-1, Kind::Float);
    let teacher = teacher.log_softmax(-1, Kind::Float);
    (teacher.exp() * (&teacher - student)).sum(Kind::Float) / batch
}

/// Cross-entropy of `logits` `[batch, classes]` with `labels` `[batch]` (i64), mean over the batch; labels of -1 do not count.
pub fn label(logits: &Tensor, labels: &Tensor) -> Tensor {
    logits.cross_entropy_loss(labels, None::<&Tensor>, Reduction::Mean, -1, 0.0)
}
