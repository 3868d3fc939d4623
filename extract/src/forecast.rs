//! `cab-extract plan`: what an extraction would take, before any work.

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use cab_format::{FieldSpec, RecordRow, RowMeta, Split, encode_block};
use cab_pipelines::random;
use indicatif::HumanBytes;
use rayon::prelude::*;
use serde_json::json;
use tch::{Kind, Tensor};

use crate::capture::capture;
use crate::cli::PlanArgs;
use crate::job::Job;
use crate::teacher::vit::Vit;

/// Samples decoded, run and compressed to estimate time and size.
const CALIBRATION_SAMPLES: usize = 64;

/// What a short calibration measured.
#[derive(Debug)]
struct Calibration {
    samples: usize,
    view_secs: f64,
    teacher_secs: f64,
    encode_secs: f64,
    /// Compressed over raw bytes.
    ratio: f64,
}

/// Prints the forecast of an extraction; exits with 0.
///
/// # Errors
/// When the extraction cannot be planned, or a calibration sample cannot be read.
pub fn print(args: &PlanArgs) -> Result<ExitCode> {
    let (job, teacher) = Job::prepare(&args.extract)?;
    let plan = &job.plan;
    let calibration = calibrate(&job, &teacher)?;
    let (train, val) = (plan.train_records(), plan.val_samples.len() as u64);
    let raw = plan.raw_bytes();
    let bytes = (raw as f64 * calibration.ratio) as u64;
    let per_record =
        (calibration.view_secs + calibration.teacher_secs + calibration.encode_secs) / calibration.samples as f64;
    let secs = per_record * (train + val) as f64;
    let free = free_bytes(&args.extract.out);
    let fits = free.map(|free| free > bytes);
    let facts = json!({
        "records": {"train": train, "val": val},
        "fields": plan.fields.len(),
        "captured_layers": plan.description.captured_layers,
        "layer_map": plan.description.layer_map,
        "shards": plan.shards.len(),
        "bytes_raw": raw,
        "bytes": bytes,
        "qk_bytes_per_record": qk_bytes(&plan.fields),
        "secs": secs,
        "calibration": {
            "samples": calibration.samples,
            "views_per_sec": calibration.samples as f64 / calibration.view_secs,
            "teacher_images_per_sec": calibration.samples as f64 / calibration.teacher_secs,
            "compressed_bytes_per_raw_byte": calibration.ratio,
        },
        "free_bytes": free,
        "fits": fits,
        "plan_digest": plan.digest,
    });
    if args.json {
        println!("{}", serde_json::to_string_pretty(&facts)?);
        return Ok(ExitCode::SUCCESS);
    }
    println!(
        "records      {train} train ({} samples x {} views) + {val} val",
        plan.train_samples.len(),
        plan.description.views.views
    );
    println!("layers       {:?} of {}", plan.description.captured_layers, plan.description.teacher.config.depth);
    println!("q and k      {} a record before compression", HumanBytes(qk_bytes(&plan.fields)));
    println!(
        "bytes        about {} ({} before compression) in {} shards",
        HumanBytes(bytes),
        HumanBytes(raw),
        plan.shards.len()
    );
    println!(
        "time         about {} (teacher {:.0} images/s here)",
        human_secs(secs),
        calibration.samples as f64 / calibration.teacher_secs
    );
    match (free, fits) {
        (Some(free), Some(true)) => {
            println!("room         {} free at {}: enough", HumanBytes(free), args.extract.out.display())
        }
        (Some(free), _) => println!(
            "room         {} free at {}: NOT ENOUGH; fewer --views, --layers or a smaller --fraction, or --codec exact:f16",
            HumanBytes(free),
            args.extract.out.display()
        ),
        (None, _) => println!("room         unknown at {}", args.extract.out.display()),
    }
    Ok(ExitCode::SUCCESS)
}

fn qk_bytes(fields: &[FieldSpec]) -> u64 {
    fields
        .iter()
        .filter(|f| f.name.starts_with("q.") || f.name.starts_with("k."))
        .map(|f| f.record_bytes() as u64)
        .sum()
}

/// Seconds for the views, the teacher and the compression of the first training samples, and how far they compress.
fn calibrate(job: &Job, teacher: &Vit) -> Result<Calibration> {
    let samples: Vec<usize> = job.plan.train_samples.iter().copied().take(CALIBRATION_SAMPLES).collect();
    let recipe = &job.plan.description.views;
    let view = recipe.views - 1;
    let clock = Instant::now();
    let pixels = samples
        .par_iter()
        .map(|&sample| {
            let key = random::sample_key(&job.train.sample(sample).id);
            Ok(recipe.make(&job.train.read(sample)?, key, view))
        })
        .collect::<Result<Vec<Vec<u8>>>>()?;
    let view_secs = clock.elapsed().as_secs_f64();

    let layers = &job.plan.description.captured_layers;
    let shape = |count: usize| [count, recipe.channels, recipe.height, recipe.width].map(|n| n as i64);
    let mut captured_bytes = Vec::new();
    let mut teacher_secs = 0.0;
    for (index, chunk) in pixels.chunks(job.batch_size).enumerate() {
        let flat: Vec<u8> = chunk.concat();
        let batch = Tensor::from_data_size(&flat, &shape(chunk.len()), Kind::Uint8);
        if index == 0 {
            teacher.forward(&batch, layers); // the first pass also allocates
        }
        let clock = Instant::now();
        let captured = teacher.forward(&batch, layers);
        let bytes = capture(&captured, layers, job.recipe.qk_dtype, true, |i| format!("calibration sample {i}"))?;
        teacher_secs += clock.elapsed().as_secs_f64();
        captured_bytes.extend(bytes.rows);
    }

    let fields = job.plan.split_fields(Split::Train);
    let clock = Instant::now();
    let rows = pixels
        .into_iter()
        .zip(captured_bytes)
        .enumerate()
        .map(|(index, (pixels, bytes))| RecordRow {
            record: index as u64,
            label: None,
            fields: std::iter::once(pixels).chain(bytes).collect(),
            meta: RowMeta {
                sample_id: String::new(),
                source: String::new(),
                view,
                seed: 0,
                mix_partner: None,
                mix_weight: None,
            },
        })
        .collect();
    let block = encode_block(&fields, rows)?;
    let encode_secs = clock.elapsed().as_secs_f64() / rayon::current_num_threads() as f64;
    let raw: usize = fields.iter().map(FieldSpec::record_bytes).sum::<usize>() * samples.len();
    let ratio = block.bytes() as f64 / raw as f64;
    Ok(Calibration { samples: samples.len(), view_secs, teacher_secs, encode_secs, ratio })
}

/// Bytes an ordinary user can still write at `path` or its nearest existing parent.
fn free_bytes(path: &Path) -> Option<u64> {
    let absolute = std::path::absolute(path).ok()?;
    let existing = absolute.ancestors().find(|folder| folder.exists())?;
    let stat = rustix::fs::statvfs(existing).ok()?;
    Some(stat.f_bavail * stat.f_frsize)
}

/// Seconds as a person says them.
pub fn human_secs(secs: f64) -> String {
    match secs {
        s if s < 90.0 => format!("{s:.1} s"),
        s if s < 5400.0 => format!("{:.1} min", s / 60.0),
        s if s < 172_800.0 => format!("{:.1} h", s / 3600.0),
        s => format!("{:.1} days", s / 86_400.0),
    }
}
