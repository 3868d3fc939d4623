//! Checkpoints: directories that are whole or not there.
//!
//! `RUN/checkpoints/step-00000400/` holds `student.safetensors` (Vim's names), `bridge.safetensors` when there is a bridge,
//! `optim.safetensors`, `student_ema.safetensors` when an average is kept, and `state.json`, which names the others with
//! their hashes. A directory is written under another name, synced and renamed; a half-written one is never picked up.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use cab_pipelines::recipe::TrainRecipe;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::metrics::Meter;
use crate::optim::AdamW;
use crate::params::ParamStore;
use crate::tensor;

/// What `state.json` says.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Updates made.
    pub step: u64,
    /// Epoch the next record belongs to.
    pub epoch: u64,
    /// Position of the next record in that epoch.
    pub position: u64,
    /// Plan digest of the cache trained on.
    pub cache_digest: String,
    /// Digest of the recipe.
    pub recipe_digest: String,
    /// The recipe.
    pub recipe: TrainRecipe,
    /// Sums since the last log line.
    pub meter: Meter,
    /// BLAKE3 of each file beside this one.
    pub files: BTreeMap<String, String>,
}

const STUDENT: &str = "student.safetensors";
const STUDENT_EMA: &str = "student_ema.safetensors";
const BRIDGE: &str = "bridge.safetensors";
const OPTIM: &str = "optim.safetensors";

/// Writes the checkpoint of `state.step` into `run_dir` and removes all but the newest `keep`.
///
/// # Errors
/// When a file cannot be written; earlier checkpoints are then untouched.
pub fn write(run_dir: &Path, mut state: State, store: &ParamStore, optim: &AdamW, keep: usize) -> Result<PathBuf> {
    let folder = run_dir.join("checkpoints");
    let path = folder.join(format!("step-{:08}", state.step));
    let aside = folder.join(format!(".step-{:08}.partial", state.step));
    let mut write_all = || -> Result<()> {
        if aside.exists() {
            fs::remove_dir_all(&aside)?;
        }
        fs::create_dir_all(&aside)?;
        let mut parts = vec![(STUDENT, store.values("student."))];
        let bridge = store.values("bridge.");
        if !bridge.is_empty() {
            parts.push((BRIDGE, bridge));
        }
        if state.recipe.ema > 0.0 {
            parts.push((STUDENT_EMA, optim.with_average(store, || store.values("student."))));
        }
        parts.push((OPTIM, optim.state()));
        for (name, tensors) in parts {
            let bytes = encode(&tensors)?;
            state.files.insert(name.to_owned(), blake3::hash(&bytes).to_hex().to_string());
            write_synced(&aside.join(name), &bytes)?;
        }
        write_synced(&aside.join("state.json"), serde_json::to_string_pretty(&state)?.as_bytes())?;
        if path.exists() {
            fs::remove_dir_all(&path)?;
        }
        fs::rename(&aside, &path)?;
        File::open(&folder)?.sync_all()?;
        Ok(())
    };
    write_all().with_context(|| format!("writing checkpoint {}", path.display()))?;
    let all = list(run_dir)?;
    for old in &all[..all.len().saturating_sub(keep.max(1))] {
        fs::remove_dir_all(old).with_context(|| format!("removing old checkpoint {}", old.display()))?;
    }
    Ok(path)
}

/// The checkpoints of a run, oldest first.
///
/// # Errors
/// When the directory cannot be read.
pub fn list(run_dir: &Path) -> Result<Vec<PathBuf>> {
    let folder = run_dir.join("checkpoints");
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("reading {}", folder.display()))? {
        let path = entry?.path();
        let named = path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with("step-"));
        if named && path.join("state.json").exists() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// The checkpoint that `path` means: itself, or the newest of the run it is.
///
/// # Errors
/// When there is none.
pub fn find(path: &Path) -> Result<PathBuf> {
    if path.join("state.json").exists() {
        return Ok(path.to_owned());
    }
    list(path)?.pop().with_context(|| {
        format!(
            "{} holds no checkpoint: give a run directory of cab-train or one of its checkpoints/step-…",
            path.display()
        )
    })
}

/// Reads `state.json` of a checkpoint.
///
/// # Errors
/// When it is missing or not of this program's form.
pub fn read_state(checkpoint: &Path) -> Result<State> {
    let path = checkpoint.join("state.json");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is not a checkpoint's state", path.display()))
}

/// Restores parameters and optimizer from a checkpoint.
///
/// # Errors
/// When a file is missing, altered, or does not fit the recipe.
pub fn restore(checkpoint: &Path, state: &State, store: &ParamStore, optim: &mut AdamW) -> Result<()> {
    let load = |name: &str| read_tensors(checkpoint, state, name);
    store.load("student.", load(STUDENT)?).context(STUDENT)?;
    if state.files.contains_key(BRIDGE) {
        store.load("bridge.", load(BRIDGE)?).context(BRIDGE)?;
    }
    optim.load(load(OPTIM)?, state.step).context(OPTIM)
}

/// The student's weights to evaluate: the averaged ones when an average was kept.
///
/// # Errors
/// As [`restore`].
pub fn student_weights(checkpoint: &Path, state: &State) -> Result<Vec<(String, Tensor)>> {
    let name = if state.files.contains_key(STUDENT_EMA) { STUDENT_EMA } else { STUDENT };
    read_tensors(checkpoint, state, name)
}

fn read_tensors(checkpoint: &Path, state: &State, name: &str) -> Result<Vec<(String, Tensor)>> {
    let path = checkpoint.join(name);
    let bytes = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
    let expect = state.files.get(name).with_context(|| format!("state.json does not name {name}"))?;
    let found = blake3::hash(&bytes).to_hex();
    ensure!(
        found.as_str() == expect,
        "{} is altered: BLAKE3 {found}, state.json says {expect}; use another checkpoint",
        path.display()
    );
    decode(&bytes).with_context(|| format!("{}", path.display()))
}

/// Tensors of a safetensors file, on the CPU.
///
/// # Errors
/// When the bytes are no safetensors file or hold a type other than f32, f16, bf16, u8, i64.
pub fn decode(bytes: &[u8]) -> Result<Vec<(String, Tensor)>> {
    let file = SafeTensors::deserialize(bytes).context("not a safetensors file")?;
    file.iter()
        .map(|(name, view)| {
            let kind = match view.dtype() {
                Dtype::F32 => Kind::Float,
                Dtype::F16 => Kind::Half,
                Dtype::BF16 => Kind::BFloat16,
                Dtype::U8 => Kind::Uint8,
                Dtype::I64 => Kind::Int64,
                other => bail!("tensor {name} has type {other:?}"),
            };
            let shape: Vec<i64> = view.shape().iter().map(|&n| n as i64).collect();
            Ok((name.to_owned(), tensor::from_bytes(view.data(), &shape, kind)))
        })
        .collect()
}

fn encode(tensors: &[(String, Tensor)]) -> Result<Vec<u8>> {
    // One key: the map's order is random, and equal checkpoints are equal files.
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let stored: Vec<(&str, Vec<usize>, Vec<u8>)> = tensors
        .iter()
        .map(|(name, value)| {
            let shape = value.size().iter().map(|&n| n as usize).collect();
            (name.as_str(), shape, tensor::to_bytes(&value.to_kind(Kind::Float).to_device(tch::Device::Cpu)))
        })
        .collect();
    let views = stored
        .iter()
        .map(|(name, shape, bytes)| Ok((*name, TensorView::new(Dtype::F32, shape.clone(), bytes)?)))
        .collect::<Result<Vec<_>>>()?;
    Ok(safetensors::serialize(views, Some(metadata))?)
}

fn write_synced(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = File::create(path).with_context(|| format!("creating {}", path.display()))?;
    file.write_all(bytes).with_context(|| format!("writing {}", path.display()))?;
    file.sync_all().with_context(|| format!("syncing {}", path.display()))
}
