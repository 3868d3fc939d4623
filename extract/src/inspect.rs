//! `cab-extract info`, `verify` and `dump`: a cache looked at.

use std::collections::BTreeMap;
use std::fs;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use cab_format::{Block, Cache, Dtype, FieldSpec, Location, Split};
use cab_pipelines::description::Description;
use indicatif::HumanBytes;
use safetensors::tensor::{Dtype as StDtype, TensorView};
use serde_json::json;

use crate::cli::{CacheArgs, DumpArgs, InfoArgs};
use crate::run::{Hits, percent};

/// Prints what a cache holds; exits with 0.
///
/// # Errors
/// When the cache cannot be opened.
pub fn info(args: &InfoArgs) -> Result<ExitCode> {
    let cache = Cache::open(args.cache.dir())?;
    let manifest = cache.manifest();
    let description = Description::from_map(&manifest.about)?;
    let mut by_field: BTreeMap<&str, u64> = BTreeMap::new();
    for shard in &manifest.shards {
        for (field, bytes) in &shard.field_bytes {
            *by_field.entry(field).or_default() += bytes;
        }
    }
    let is_qk = |name: &str| name.starts_with("q.") || name.starts_with("k.");
    let qk_bytes: u64 = by_field.iter().filter(|(name, _)| is_qk(name)).map(|(_, bytes)| bytes).sum();
    let train = manifest.records.train;
    let total: u64 = manifest.shards.iter().map(|shard| shard.bytes).sum::<u64>() + manifest.catalog.bytes;
    let per_record = if train > 0 { qk_bytes as f64 / train as f64 } else { 0.0 };
    let raw_f16: usize =
        manifest.fields.iter().filter(|f| is_qk(&f.name)).map(|f| f.shape.iter().product::<usize>() * 2).sum();
    let hits: Option<Hits> =
        manifest.about.get("teacher_hits").and_then(|value| serde_json::from_value(value.clone()).ok());
    if args.json {
        let facts = json!({
            "records": manifest.records.train + manifest.records.val,
            "records_by_split": {"train": train, "val": manifest.records.val},
            "bytes": {"total": total, "by_field": by_field},
            "qk_bytes_per_record": per_record,
            "qk_f16_bytes_per_record": raw_f16,
            "fields": manifest.fields,
            "shards": manifest.shards.len(),
            "plan_digest": manifest.plan_digest,
            "format_version": manifest.version,
            "teacher": description.teacher,
            "teacher_top1": hits.map(|h| json!({
                "train_view_0": percent(h.train_view_0), "train_augmented": percent(h.train_augmented), "val": percent(h.val),
            })),
            "data": description.data,
            "views": description.views,
            "layer_map": description.layer_map,
            "captured_layers": description.captured_layers,
            "classes": description.classes,
        });
        println!("{}", serde_json::to_string_pretty(&facts)?);
        return Ok(ExitCode::SUCCESS);
    }
    println!(
        "cache        {} (format {}, plan {})",
        cache.dir().display(),
        manifest.version,
        &manifest.plan_digest[..16.min(manifest.plan_digest.len())]
    );
    println!(
        "teacher      {} ({}, weights {})",
        description.teacher.name,
        description.teacher.family,
        &description.teacher.weights_blake3[..16.min(description.teacher.weights_blake3.len())]
    );
    if let Some(hits) = hits {
        let show = |name: &str, pair| percent(pair).map(|p| format!("{name} {p:.2} %"));
        let shown: Vec<String> =
            [("evaluation view", hits.train_view_0), ("augmented views", hits.train_augmented), ("val", hits.val)]
                .into_iter()
                .filter_map(|(name, pair)| show(name, pair))
                .collect();
        println!("teacher top-1 {}", shown.join(", "));
    }
    println!(
        "data         {} ({} samples x {} views)",
        description.data.train.source, description.data.train.samples, description.views.views
    );
    println!("records      {train} train + {} val in {} shards", manifest.records.val, manifest.shards.len());
    println!(
        "layers       {:?}, map for {}: {:?}",
        description.captured_layers, description.layer_map.student, description.layer_map.map
    );
    println!(
        "bytes        {} in all; q and k {} a record ({:.2} of raw f16)",
        HumanBytes(total),
        HumanBytes(per_record as u64),
        per_record / raw_f16.max(1) as f64
    );
    for field in &manifest.fields {
        let bytes = by_field.get(field.name.as_str()).copied().unwrap_or(0);
        println!("  {:<8} {:?} {:?} {:?}  {}", field.name, field.dtype, field.shape, field.codec, HumanBytes(bytes));
    }
    Ok(ExitCode::SUCCESS)
}

/// Checks every hash and checksum; prints what is wrong and exits with 1 when something is.
///
/// # Errors
/// When the cache is none, or not sealed.
pub fn verify(args: &CacheArgs) -> Result<ExitCode> {
    let dir = args.dir();
    let faults = cab_format::verify(&dir)?;
    for fault in &faults {
        println!("{fault}");
    }
    if faults.is_empty() {
        println!("{}: every hash and checksum agrees", dir.display());
        Ok(ExitCode::SUCCESS)
    } else {
        eprintln!(
            "cab-extract: {} faults in {}: extract it again, or restore the files named",
            faults.len(),
            dir.display()
        );
        Ok(ExitCode::FAILURE)
    }
}

/// Writes records, decoded, as `record`, `label` (i64, -1 without one), and every field they have in common.
///
/// # Errors
/// When no record is in the range, records of both splits are, or reading or writing fails.
pub fn dump(args: &DumpArgs) -> Result<ExitCode> {
    let cache = Cache::open(args.cache.dir())?;
    let both = [Split::Train, Split::Val];
    let chosen: Vec<(Split, Vec<Location>)> = both
        .into_iter()
        .map(|split| {
            let inside = cache.locations(split).iter().filter(|l| args.records.contains(&l.record)).copied();
            (split, inside.collect::<Vec<_>>())
        })
        .filter(|(_, locations)| !locations.is_empty())
        .collect();
    let last = both.iter().filter_map(|&split| cache.locations(split).last()).map(|l| l.record).max().unwrap_or(0);
    ensure!(!chosen.is_empty(), "--records {:?} holds no record: the cache has records up to {last}", args.records);
    ensure!(
        chosen.len() == 1,
        "--records {:?} spans both splits, whose fields differ: val begins at record {}",
        args.records,
        cache.locations(Split::Val).first().map_or(0, |l| l.record)
    );
    let (split, locations) = &chosen[0];
    let specs: Vec<&FieldSpec> = cache.manifest().fields.iter().filter(|spec| spec.splits.contains(split)).collect();
    let names: Vec<&str> = specs.iter().map(|spec| spec.name.as_str()).collect();

    let mut columns: Vec<Vec<u8>> = vec![Vec::new(); specs.len()];
    let mut open: Option<((u32, u32), Block)> = None;
    for location in locations {
        let place = (location.shard, location.block);
        if open.as_ref().is_none_or(|(at, _)| *at != place) {
            open = Some((place, cache.read_block(location.shard, location.block, &names)?));
        }
        if let Some((_, block)) = &open {
            for (spec, column) in specs.iter().zip(&mut columns) {
                column.extend(decoded(block.row(&spec.name, location.row as usize), spec.dtype));
            }
        }
    }
    let records: Vec<u8> = locations.iter().flat_map(|l| (l.record as i64).to_le_bytes()).collect();
    let labels: Vec<u8> = locations.iter().flat_map(|l| l.label.unwrap_or(-1).to_le_bytes()).collect();
    let count = locations.len();
    let mut tensors = vec![
        ("record".to_owned(), TensorView::new(StDtype::I64, vec![count], &records)?),
        ("label".to_owned(), TensorView::new(StDtype::I64, vec![count], &labels)?),
    ];
    for (spec, column) in specs.iter().zip(&columns) {
        let shape: Vec<usize> = std::iter::once(count).chain(spec.shape.iter().copied()).collect();
        let dtype = match spec.dtype {
            Dtype::U8 => StDtype::U8,
            Dtype::U32 => StDtype::U32,
            _ => StDtype::F32,
        };
        tensors.push((spec.name.clone(), TensorView::new(dtype, shape, column)?));
    }
    let bytes = safetensors::serialize(tensors, None)?;
    fs::write(&args.to, bytes).with_context(|| format!("writing {}", args.to.display()))?;
    eprintln!("cab-extract: wrote {count} records to {}", args.to.display());
    Ok(ExitCode::SUCCESS)
}

/// Stored bytes with f16 widened to f32.
fn decoded(bytes: &[u8], dtype: Dtype) -> Vec<u8> {
    match dtype {
        Dtype::F16 => bytes
            .chunks_exact(2)
            .flat_map(|pair| half::f16::from_le_bytes([pair[0], pair[1]]).to_f32().to_le_bytes())
            .collect(),
        _ => bytes.to_vec(),
    }
}
