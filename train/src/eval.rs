//! Accuracy of a student on the held-out split.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Result, ensure};
use cab_format::{Cache, Split};
use cab_pipelines::{description::Description, record};
use tch::{Device, Kind, Tensor};

use crate::load::{Loader, normalise};
use crate::student::vim::Vim;
use crate::{loss, order};

/// Means over the labelled held-out records: `loss` (cross-entropy), `top1` and `top5` in percent, `records`; and, where
/// the cache holds the teacher's logits for them, `teacher_top1` in percent and `agreement` (same top-1 as the teacher).
///
/// # Errors
/// When the cache has no labelled held-out record, or reading fails.
pub fn evaluate(
    model: &Vim,
    cache: &Arc<Cache>,
    description: &Description,
    batch_size: usize,
    device: Device,
) -> Result<BTreeMap<String, f64>> {
    let fields = [record::INPUT.to_owned(), record::LOGITS.to_owned()];
    let loader = Loader::new(Arc::clone(cache), Split::Val, &fields, 256 << 20, device);
    let teacher = &description.teacher.config;
    let (mut records, mut loss_sum, mut top1, mut top5) = (0i64, 0.0, 0.0, 0.0);
    let (mut teacher_top1, mut agreement) = (0.0, 0.0);
    for batch in loader.stream(order::evaluation(cache, batch_size), 2) {
        let batch = batch?;
        let known = batch.labels.ge(0).nonzero().squeeze_dim(-1);
        if known.numel() == 0 {
            continue;
        }
        let labels = batch.labels.index_select(0, &known);
        let input = batch.input.index_select(0, &known);
        let logits = tch::no_grad(|| model.forward(&normalise(&input, &teacher.mean, &teacher.std), None).logits);
        let count = labels.size()[0];
        let hits = |a: &Tensor, b: &Tensor| a.eq_tensor(b).sum(Kind::Float).double_value(&[]);
        let predicted = logits.argmax(-1, false);
        records += count;
        loss_sum += loss::label(&logits, &labels).double_value(&[]) * count as f64;
        top1 += hits(&predicted, &labels);
        let (_, best) = logits.topk(logits.size()[1].min(5), -1, true, false);
        top5 += hits(&best, &labels.unsqueeze(-1));
        if let Some(teacher_logits) = batch.fields.get(record::LOGITS)
            && teacher_logits.size()[1] == logits.size()[1]
        {
            let teacher_predicted = teacher_logits.index_select(0, &known).argmax(-1, false);
            teacher_top1 += hits(&teacher_predicted, &labels);
            agreement += hits(&teacher_predicted, &predicted);
        }
    }
    ensure!(records > 0, "the cache holds no labelled held-out record: extract with --val-data to evaluate");
    let mean = |sum: f64| sum / records as f64;
    let percent = |sum: f64| 100.0 * mean(sum);
    Ok(BTreeMap::from([
        ("loss".to_owned(), mean(loss_sum)),
        ("top1".to_owned(), percent(top1)),
        ("top5".to_owned(), percent(top5)),
        ("records".to_owned(), records as f64),
        ("teacher_top1".to_owned(), percent(teacher_top1)),
        ("agreement".to_owned(), percent(agreement)),
    ]))
}
