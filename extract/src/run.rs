//! An extraction on one screen: records → views → teacher → captured bytes → blocks → shards → manifest.
//!
//! Three stages run at once, joined by short queues: rayon threads decode and augment ahead, the teacher runs on the calling
//! thread, rayon threads compress blocks while one thread writes them in order. Memory is bounded by the queues.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use cab_format::{
    CacheWriter, EncodedBlock, Manifest, OnExisting, RecordRow, RowMeta, ShardWriter, SkippedRow, Split, encode_block,
};
use cab_pipelines::random;
use cab_pipelines::recipe::{RecordId, ShardPlan};
use cab_pipelines::source::Source;
use crossbeam_channel::{Receiver, Sender, bounded};
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tch::{Kind, Tensor};

use crate::capture::{CapturedBytes, capture};
use crate::cli::ExtractArgs;
use crate::job::Job;
use crate::teacher::vit::Vit;

/// How an extraction ended.
#[derive(Debug)]
pub enum Outcome {
    /// The cache is sealed.
    Sealed {
        /// Its manifest.
        manifest: Box<Manifest>,
        /// What was seen on the way.
        summary: Summary,
    },
    /// Stopped on request; finished shards stay.
    Stopped,
    /// The directory holds this very cache already.
    AlreadySealed,
}

/// What an extraction saw.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Summary {
    /// The cache directory.
    pub out: PathBuf,
    /// Records written by this run (shards of an interrupted run before it not counted).
    pub new_records: u64,
    /// Seconds of this run.
    pub secs: f64,
    /// Seconds of this run in the teacher's forward pass.
    pub teacher_secs: f64,
    /// The teacher's hits on the evaluation view of training samples, the other views, and held-out samples.
    pub hits: Hits,
    /// Records left out because their image cannot be read.
    pub skipped: u64,
    /// Things a person should look at.
    pub warnings: Vec<String>,
}

/// Hits and labelled records of the teacher, by kind of view.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hits {
    /// View 0 of training samples: (hits, labelled).
    pub train_view_0: (u64, u64),
    /// The other views of training samples.
    pub train_augmented: (u64, u64),
    /// Held-out samples.
    pub val: (u64, u64),
}

/// A record's view, ready for the teacher.
struct View {
    record: u64,
    id: RecordId,
    pixels: Vec<u8>,
    meta: RowMeta,
    label: Option<u32>,
}

/// Neighbouring records of one shard.
struct Batch {
    shard: ShardPlan,
    views: Vec<View>,
    skipped: Vec<SkippedRow>,
    last_of_shard: bool,
}

/// What the writing thread is told, in order.
enum Written {
    Block(ShardPlan, Receiver<Result<EncodedBlock, cab_format::Error>>),
    EndOfShard(ShardPlan, serde_json::Value, Vec<SkippedRow>),
}

/// What a shard's sidecar keeps of the run's summary, so that a continued run can still tell all of it.
#[derive(Debug, Serialize, Deserialize)]
struct ShardNotes {
    hits: Hits,
}

/// Extracts what `args` ask for, or continues the extraction that the directory holds. `stop` is looked at between batches.
///
/// # Errors
/// When an input is missing or unreadable, a captured value is not finite, too many images are unreadable, or writing fails.
pub fn extract(args: &ExtractArgs, stop: &AtomicBool) -> Result<Outcome> {
    let (job, teacher) = Job::prepare(args)?;
    let plan = &job.plan;
    let existing = if args.overwrite { OnExisting::Overwrite } else { OnExisting::Resume };
    let writer = match CacheWriter::open(&args.out, &plan.digest, &plan.fields, existing) {
        Err(cab_format::Error::AlreadySealed { .. }) => return Ok(Outcome::AlreadySealed),
        opened => opened?,
    };
    let pending: Vec<&ShardPlan> = plan.shards.iter().filter(|shard| writer.finished(shard.index).is_none()).collect();
    let total: u64 = plan.shards.iter().map(|shard| shard.records).sum();
    let to_do: u64 = pending.iter().map(|shard| shard.records).sum();
    announce(&job, args, total, to_do);
    let mut hits = Hits::default();
    let mut skipped = 0;
    for summary in plan.shards.iter().filter_map(|shard| writer.finished(shard.index)) {
        let notes: ShardNotes = serde_json::from_value(summary.extra.clone()).context("notes of an interrupted run")?;
        hits.add(notes.hits);
        skipped += summary.skipped_records;
    }

    let progress = progress_bar(total, total - to_do);
    let (started, mut teacher_time) = (Instant::now(), Duration::ZERO);
    let (mut raw_bytes, stored_bytes) = (0, AtomicU64::new(0));
    let stopped = std::thread::scope(|scope| -> Result<bool> {
        let (send_batch, batches) = bounded::<Result<Batch>>(2);
        let (send_written, written) = bounded::<Written>(4);
        scope.spawn(|| make_views(&job, &pending, stop, send_batch));
        let writing = scope.spawn(|| write_shards(&writer, written, &stored_bytes));

        let run = || -> Result<bool> {
            let mut rows: Vec<RecordRow> = Vec::new();
            let (mut shard_hits, mut shard_skipped) = (Hits::default(), Vec::new());
            for batch in batches {
                let Batch { shard, views, skipped: unreadable, last_of_shard } = batch?;
                skipped += unreadable.len() as u64;
                shard_skipped.extend(unreadable);
                too_many_skipped(skipped, total, args.max_skipped, shard_skipped.last())?;
                let count = views.len();
                if count > 0 {
                    let clock = Instant::now();
                    let captured = run_teacher(&job, &teacher, &views)?;
                    teacher_time += clock.elapsed();
                    views.iter().zip(&captured.predicted).for_each(|(view, class)| shard_hits.count(view, *class));
                    rows.extend(to_rows(views, captured));
                }
                while rows.len() >= shard.block_records || (last_of_shard && !rows.is_empty()) {
                    let rest = rows.split_off(rows.len().min(shard.block_records));
                    let block = std::mem::replace(&mut rows, rest);
                    raw_bytes += block.iter().flat_map(|row| &row.fields).map(|bytes| bytes.len() as u64).sum::<u64>();
                    send(&send_written, Written::Block(shard.clone(), encode(&job, &shard, block)))?;
                }
                if last_of_shard {
                    hits.add(shard_hits);
                    let notes = json!(ShardNotes { hits: std::mem::take(&mut shard_hits) });
                    send(&send_written, Written::EndOfShard(shard, notes, std::mem::take(&mut shard_skipped)))?;
                }
                progress.inc(count as u64);
                let stored = stored_bytes.load(Ordering::Relaxed);
                progress.set_message(format!(
                    "{} ({:.2} of raw)",
                    HumanBytes(stored),
                    stored as f64 / raw_bytes.max(1) as f64
                ));
                if stop.load(Ordering::Relaxed) {
                    break;
                }
            }
            Ok(stop.load(Ordering::Relaxed))
        };
        let ran = run();
        drop(send_written);
        // The writer's error comes first: a teacher that cannot hand on blocks only knows that the writer is gone.
        writing.join().map_err(|_| anyhow!("the writing thread panicked"))??;
        ran
    })?;
    progress.finish_and_clear();
    if stopped {
        return Ok(Outcome::Stopped);
    }
    let mut summary = Summary {
        out: args.out.clone(),
        new_records: to_do,
        secs: started.elapsed().as_secs_f64(),
        teacher_secs: teacher_time.as_secs_f64(),
        hits,
        skipped,
        warnings: Vec::new(),
    };
    summary.warnings = warnings(&job, &hits);
    let mut about = plan.description.to_map();
    about.insert("teacher_hits".into(), json!(hits));
    let manifest = writer.seal(plan.shards.len() as u32, about)?;
    Ok(Outcome::Sealed { manifest: Box::new(manifest), summary })
}

/// Decodes and augments the records of `shards`, batch by batch, until done or the receiver is gone.
fn make_views(job: &Job, shards: &[&ShardPlan], stop: &AtomicBool, out: Sender<Result<Batch>>) {
    for shard in shards {
        let end = shard.first_record + shard.records;
        let mut first = shard.first_record;
        while first < end {
            let last = (first + job.batch_size as u64).min(end);
            let made: Vec<Result<View, SkippedRow>> =
                (first..last).into_par_iter().map(|record| make_view(job, record)).collect();
            let mut batch =
                Batch { shard: (*shard).clone(), views: Vec::new(), skipped: Vec::new(), last_of_shard: last == end };
            for result in made {
                match result {
                    Ok(view) => batch.views.push(view),
                    Err(row) => batch.skipped.push(row),
                }
            }
            if stop.load(Ordering::Relaxed) || out.send(Ok(batch)).is_err() {
                return;
            }
            first = last;
        }
    }
}

fn make_view(job: &Job, record: u64) -> Result<View, SkippedRow> {
    let id = job.plan.record(record);
    let source = match (id.split, &job.val) {
        (Split::Val, Some(val)) => val,
        _ => &job.train,
    };
    let sample = source.sample(id.source_position);
    let views = &job.plan.description.views;
    match source.read(id.source_position) {
        Ok(image) => Ok(View {
            record,
            id,
            pixels: views.make(&image, random::sample_key(&sample.id), id.view),
            meta: RowMeta {
                sample_id: sample.id.clone(),
                source: sample.source.clone(),
                view: id.view,
                seed: views.seed,
                mix_partner: None,
                mix_weight: None,
            },
            label: sample.label,
        }),
        Err(error) => Err(SkippedRow {
            record,
            sample_id: sample.id.clone(),
            source: sample.source.clone(),
            reason: error.to_string(),
        }),
    }
}

fn run_teacher(job: &Job, teacher: &Vit, views: &[View]) -> Result<CapturedBytes> {
    let recipe = &job.plan.description.views;
    let shape = [views.len(), recipe.channels, recipe.height, recipe.width].map(|n| n as i64);
    let pixels: Vec<u8> = views.iter().flat_map(|view| &view.pixels).copied().collect();
    assert_eq!(pixels.len() as i64, shape.iter().product::<i64>(), "views have the recipe's size");
    let pixels = Tensor::from_data_size(&pixels, &shape, Kind::Uint8);
    let with_qk = views[0].id.split == Split::Train;
    let layers: &[usize] = if with_qk { &job.plan.description.captured_layers } else { &[] };
    let captured = teacher.forward(&pixels, layers);
    capture(&captured, layers, job.recipe.qk_dtype, with_qk, |i| views[i].meta.sample_id.clone())
}

fn to_rows(views: Vec<View>, captured: CapturedBytes) -> impl Iterator<Item = RecordRow> {
    views.into_iter().zip(captured.rows).map(|(view, bytes)| {
        let mut fields = Vec::with_capacity(bytes.len() + 1);
        fields.push(view.pixels);
        fields.extend(bytes);
        RecordRow { record: view.record, label: view.label.map(i64::from), fields, meta: view.meta }
    })
}

/// Compresses a block on a rayon thread; what comes back is awaited by the writing thread.
fn encode(job: &Job, shard: &ShardPlan, rows: Vec<RecordRow>) -> Receiver<Result<EncodedBlock, cab_format::Error>> {
    let fields = job.plan.split_fields(shard.split);
    let (sender, receiver) = bounded(1);
    rayon::spawn_fifo(move || {
        // Nobody receives when the run failed meanwhile.
        let _ = sender.send(encode_block(&fields, rows));
    });
    receiver
}

fn write_shards(writer: &CacheWriter, written: Receiver<Written>, stored_bytes: &AtomicU64) -> Result<()> {
    let mut open = None;
    for message in written {
        match message {
            Written::Block(shard, block) => {
                let block = block.recv().context("a compressing thread ended without a block")??;
                stored_bytes.fetch_add(block.bytes() as u64, Ordering::Relaxed);
                let mut file = shard_file(writer, open.take(), &shard)?;
                file.append(block)?;
                open = Some(file);
            }
            Written::EndOfShard(shard, notes, skipped) => {
                shard_file(writer, open.take(), &shard)?.finish(notes, skipped)?;
            }
        }
    }
    Ok(())
}

/// The file of `shard`: the open one (blocks come shard by shard), or a new one.
fn shard_file(writer: &CacheWriter, open: Option<ShardWriter>, shard: &ShardPlan) -> Result<ShardWriter> {
    match open {
        Some(file) => Ok(file),
        None => Ok(writer.shard(shard.index, shard.split)?),
    }
}

fn send(to: &Sender<Written>, message: Written) -> Result<()> {
    to.send(message).map_err(|_| anyhow!("the writing thread ended early"))
}

fn too_many_skipped(skipped: u64, total: u64, allowed: f64, last: Option<&SkippedRow>) -> Result<()> {
    if skipped as f64 <= allowed * total as f64 {
        return Ok(());
    }
    let example = last.map_or_else(String::new, |row| format!("; the last: {}", row.reason));
    bail!("{skipped} of {total} records have unreadable images, more than --max-skipped {allowed} allows{example}")
}

impl Hits {
    fn add(&mut self, other: Hits) {
        for (sum, part) in [
            (&mut self.train_view_0, other.train_view_0),
            (&mut self.train_augmented, other.train_augmented),
            (&mut self.val, other.val),
        ] {
            sum.0 += part.0;
            sum.1 += part.1;
        }
    }

    fn count(&mut self, view: &View, predicted: i64) {
        let Some(label) = view.label else { return };
        let kind = match (view.id.split, view.id.view) {
            (Split::Val, _) => &mut self.val,
            (_, 0) => &mut self.train_view_0,
            _ => &mut self.train_augmented,
        };
        kind.0 += u64::from(predicted == i64::from(label));
        kind.1 += 1;
    }
}

/// Top-1 in percent, when anything was labelled.
pub fn percent((hits, labelled): (u64, u64)) -> Option<f64> {
    (labelled > 0).then(|| 100.0 * hits as f64 / labelled as f64)
}

fn warnings(job: &Job, hits: &Hits) -> Vec<String> {
    let mut warnings = Vec::new();
    let classes = job.plan.description.classes.as_ref().map(Vec::len);
    let teacher_classes = job.plan.description.teacher.config.num_classes;
    if classes.is_some_and(|classes| classes != teacher_classes) {
        warnings.push(format!(
            "the data has {} classes, the teacher {teacher_classes}: its top-1 on these labels means nothing",
            classes.unwrap_or(0)
        ));
        return warnings;
    }
    let reference = percent(hits.val).or_else(|| percent(hits.train_view_0));
    if let (Some(views), Some(reference)) = (percent(hits.train_augmented), reference)
        && views < reference - 15.0
    {
        warnings.push(format!(
            "the teacher is {views:.1} % right on augmented views and {reference:.1} % on evaluation views: the views are \
             stronger than it was trained on and teach little; try --augment none or affine"
        ));
    }
    if let Some(reference) = reference
        && reference < 200.0 / teacher_classes as f64
    {
        warnings.push(format!(
            "the teacher is {reference:.1} % right on evaluation views, close to guessing: check its normalisation (mean, std) \
             and the order of the classes"
        ));
    }
    warnings
}

/// Says what will be done, on stderr.
fn announce(job: &Job, args: &ExtractArgs, total: u64, to_do: u64) {
    let (description, config) = (&job.plan.description, &job.plan.description.teacher.config);
    eprintln!(
        "cab-extract: {} ({} layers x {}, {} heads, {} x {} pixels) on {:?}, batches of {}",
        description.teacher.name,
        config.depth,
        config.embed_dim,
        config.heads,
        description.views.height,
        description.views.width,
        job.device,
        job.batch_size
    );
    eprintln!(
        "cab-extract: {} samples x {} views + {} held out of {}; layers {:?} for student {}",
        description.data.train.samples,
        description.views.views,
        job.plan.val_samples.len(),
        description.data.train.source,
        description.captured_layers,
        description.layer_map.student
    );
    let links = job.train.ignored_links() + job.val.as_ref().map_or(0, Source::ignored_links);
    if links > 0 {
        eprintln!("cab-extract: warning: {links} symbolic links in the image folders were not followed");
    }
    let rest = if to_do < total { format!(", {to_do} of {total} left from an interrupted run") } else { String::new() };
    eprintln!("cab-extract: → {} ({} before compression{rest})", args.out.display(), HumanBytes(job.plan.raw_bytes()));
}

fn progress_bar(total: u64, done: u64) -> ProgressBar {
    let bar = ProgressBar::new(total);
    let style = "{bar:24} {pos}/{len} records, {per_sec}, {msg}, {eta} left";
    bar.set_style(ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.set_position(done);
    bar.reset_eta();
    bar
}
