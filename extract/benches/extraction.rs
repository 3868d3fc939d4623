//! Extraction beside the bare forward pass of the same teacher, in one process: `cargo bench -p cab-extract`.
//!
//! The bare forward runs the same batches of stored-size pixels and keeps nothing; extraction also decodes, augments, copies
//! q and k out, compresses, checksums and syncs to disk.

#![allow(clippy::print_stdout, reason = "a bench prints its table")]

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use cab_extract::cli::Cli;
use cab_extract::job::Job;
use cab_extract::run::{Outcome, extract};
use clap::Parser;
use safetensors::tensor::{Dtype, TensorView};
use tch::{Device, Kind, Tensor};

fn main() {
    cab_pipelines::memory::keep_freed_memory();
    let folder = tempfile::tempdir().expect("a temporary directory");
    let tiny = folder.path().join("deit_tiny");
    random_deit_tiny(&tiny);
    let tiny = tiny.to_str().expect("UTF-8");
    println!("{} threads", tch::get_num_threads());
    println!("case                 records   bare forward/s   extraction/s   of bare   cache MB");
    for (name, arguments) in [
        ("nano_28_f32", vec!["--views", "8"]),
        ("nano_28_f16", vec!["--views", "8", "--codec", "exact:f16"]),
        ("deit_tiny_224_f32", vec!["--teacher", tiny, "--views", "1", "--limit", "64"]),
        ("deit_tiny_224_f16", vec!["--teacher", tiny, "--views", "1", "--limit", "64", "--codec", "exact:f16"]),
    ] {
        let out = folder.path().join(name);
        let fixed = ["cab-extract", "--device", "cpu", "--out", out.to_str().expect("UTF-8")];
        let args = Cli::parse_from(fixed.into_iter().chain(arguments)).extract;
        let (job, teacher) = Job::prepare(&args).expect("a plan");
        let views = &job.plan.description.views;
        let records = job.plan.train_records() + job.plan.val_samples.len() as u64;
        let shape = [job.batch_size, views.channels, views.height, views.width].map(|n| n as i64);
        let pixels = Tensor::randint(256, shape, (Kind::Uint8, Device::Cpu));
        let batches = (records as usize).div_ceil(job.batch_size);
        for _ in 0..batches.min(8) {
            teacher.forward(&pixels, &[]); // warm-up
        }
        let clock = Instant::now();
        for _ in 0..batches {
            teacher.forward(&pixels, &[]);
        }
        let bare = (batches * job.batch_size) as f64 / clock.elapsed().as_secs_f64();
        drop((job, teacher));

        let clock = Instant::now();
        let Outcome::Sealed { manifest, .. } = extract(&args, &AtomicBool::new(false)).expect("an extraction") else {
            panic!("the extraction was not sealed");
        };
        let rate = records as f64 / clock.elapsed().as_secs_f64();
        let megabytes = manifest.shards.iter().map(|shard| shard.bytes).sum::<u64>() as f64 / 1e6;
        println!("{name:<20} {records:>7} {bare:>16.0} {rate:>14.0} {:>8.0} % {megabytes:>9.1}", 100.0 * rate / bare);
    }
}

/// A DeiT-Tiny with random weights in timm's form.
fn random_deit_tiny(folder: &Path) {
    fs::create_dir_all(folder).expect("writable");
    let config = r#"{"architecture": "deit_tiny_patch16_224", "num_classes": 1000, "pretrained_cfg": {"input_size": [3, 224, 224],
        "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "crop_pct": 0.9, "interpolation": "bicubic"}}"#;
    fs::write(folder.join("config.json"), config).expect("writable");
    let mut shapes: HashMap<String, Vec<usize>> = HashMap::from([
        ("cls_token".into(), vec![1, 1, 192]),
        ("pos_embed".into(), vec![1, 197, 192]),
        ("patch_embed.proj.weight".into(), vec![192, 3, 16, 16]),
        ("patch_embed.proj.bias".into(), vec![192]),
        ("norm.weight".into(), vec![192]),
        ("norm.bias".into(), vec![192]),
        ("head.weight".into(), vec![1000, 192]),
        ("head.bias".into(), vec![1000]),
    ]);
    for block in 0..12 {
        for (part, out, inputs) in [
            ("norm1", 192, None),
            ("attn.qkv", 576, Some(192)),
            ("attn.proj", 192, Some(192)),
            ("norm2", 192, None),
            ("mlp.fc1", 768, Some(192)),
            ("mlp.fc2", 192, Some(768)),
        ] {
            let weight = std::iter::once(out).chain(inputs).collect();
            shapes.insert(format!("blocks.{block}.{part}.weight"), weight);
            shapes.insert(format!("blocks.{block}.{part}.bias"), vec![out]);
        }
    }
    tch::manual_seed(0);
    let values: HashMap<String, (Vec<usize>, Vec<u8>)> = shapes
        .into_iter()
        .map(|(name, shape)| {
            let size: Vec<i64> = shape.iter().map(|&n| n as i64).collect();
            let values = Vec::<f32>::try_from((Tensor::randn(&size, (Kind::Float, Device::Cpu)) * 0.05).flatten(0, -1));
            let bytes = values.expect("f32").iter().flat_map(|value| value.to_le_bytes()).collect();
            (name, (shape, bytes))
        })
        .collect();
    let views = values
        .iter()
        .map(|(name, (shape, bytes))| (name, TensorView::new(Dtype::F32, shape.clone(), bytes).expect("a tensor")));
    safetensors::serialize_to_file(views, None, &folder.join("model.safetensors")).expect("writable");
}
