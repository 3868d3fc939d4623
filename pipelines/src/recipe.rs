//! Recipes: everything that decides a result, as plain values; and the plans they become once checked.
//!
//! A recipe is data and never starts anything. A plan is made once, before any work, and its digest names the result.

use std::collections::BTreeMap;

use cab_format::{Dtype, FieldSpec, Manifest, Split};
use serde::{Deserialize, Serialize};

use crate::description::{
    DataDescription, Description, LayerMapDescription, SourceDescription, TeacherDescription, TokenDescription,
};
use crate::source::Source;
use crate::student::{Preset, VimConfig};
use crate::teacher::VitConfig;
use crate::view::{Augment, ViewRecipe};
use crate::{Error, Result};
use crate::{layer_map, record, subset};

/// Arithmetic of a forward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32-bit floats.
    F32,
    /// bfloat16 weights and activations.
    Bf16,
}

/// Which teacher layers are captured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layers {
    /// Those the layer map for the student needs.
    Mapped,
    /// Every layer.
    All,
    /// These.
    List(Vec<usize>),
}

/// Which augmentation the views beyond the first get.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AugmentChoice {
    /// `affine` for small grey images, `crop` for photographs.
    Auto,
    /// None: every view is the evaluation transform.
    None,
    /// Random resized crop and horizontal flip.
    Crop,
    /// Light scaling, rotation and shift.
    Affine,
}

/// Everything that decides what an extraction writes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExtractRecipe {
    /// Teacher as asked for: a name, a hub repository, a file, a directory.
    pub teacher: String,
    /// Input height and width, when not the teacher's own.
    pub image_size: Option<[usize; 2]>,
    /// Class-balanced fraction of the training samples, in (0, 1].
    pub fraction: f64,
    /// Largest number of samples a split.
    pub limit: Option<usize>,
    /// Seed of the subset, the order and the views.
    pub seed: u64,
    /// Views a training sample, at least 1.
    pub views: u32,
    /// Augmentation of the views beyond the first.
    pub augment: AugmentChoice,
    /// Captured teacher layers.
    pub layers: Layers,
    /// Preset of the student the layer map is made for; none: the one that suits the teacher.
    pub student: Option<String>,
    /// Stored type of q and k, `f32` or `f16`.
    pub qk_dtype: Dtype,
    /// Arithmetic of the teacher.
    pub precision: Precision,
    /// Uncompressed bytes a shard aims at.
    pub shard_bytes: u64,
}

/// Uncompressed bytes a block of records aims at.
const BLOCK_BYTES: usize = 4 << 20;

/// One shard of a planned cache: a fixed range of record ids.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ShardPlan {
    /// Position among all shards, and the file's number.
    pub index: u32,
    /// The split all its records belong to.
    pub split: Split,
    /// Id of the first record.
    pub first_record: u64,
    /// Number of record ids.
    pub records: u64,
    /// Records a block (the last block of a shard may have fewer).
    pub block_records: usize,
}

/// A checked extraction.
#[derive(Debug, Clone)]
pub struct ExtractPlan {
    /// What the manifest will say.
    pub description: Description,
    /// Fields of the records.
    pub fields: Vec<FieldSpec>,
    /// Shards in order: those of training records first.
    pub shards: Vec<ShardPlan>,
    /// Training samples as source positions, in record order.
    pub train_samples: Vec<usize>,
    /// Held-out samples as source positions, in record order.
    pub val_samples: Vec<usize>,
    /// Names the result: equal digests mean equal shards and catalogs.
    pub digest: String,
}

/// What a record id stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordId {
    /// Its split.
    pub split: Split,
    /// Position of the sample in its source.
    pub source_position: usize,
    /// The view.
    pub view: u32,
}

impl ExtractPlan {
    /// Number of training record ids: samples x views.
    pub fn train_records(&self) -> u64 {
        self.train_samples.len() as u64 * u64::from(self.description.views.views)
    }

    /// What record id `record` stands for: view-major over the shuffled training samples, then the held-out ones.
    pub fn record(&self, record: u64) -> RecordId {
        let train = self.train_records();
        if record < train {
            let samples = self.train_samples.len() as u64;
            let source_position = self.train_samples[(record % samples) as usize];
            RecordId { split: Split::Train, source_position, view: (record / samples) as u32 }
        } else {
            RecordId { split: Split::Val, source_position: self.val_samples[(record - train) as usize], view: 0 }
        }
    }

    /// Fields of the records of `split`.
    pub fn split_fields(&self, split: Split) -> Vec<FieldSpec> {
        self.fields.iter().filter(|field| field.splits.contains(&split)).cloned().collect()
    }

    /// Uncompressed bytes of all records: an upper bound of the cache's size on disk but for some kilobytes a shard.
    pub fn raw_bytes(&self) -> u64 {
        let bytes = |split| self.split_fields(split).iter().map(|field| field.record_bytes() as u64).sum::<u64>();
        bytes(Split::Train) * self.train_records() + bytes(Split::Val) * self.val_samples.len() as u64
    }
}

/// The loaded parts an extraction is planned for.
#[derive(Debug, Clone, Copy)]
pub struct ExtractInputs<'a> {
    /// The teacher's numbers at its own input size.
    pub teacher: &'a VitConfig,
    /// BLAKE3 of the teacher's weight file.
    pub weights_blake3: &'a str,
    /// Training samples and where they come from.
    pub train: (&'a Source, &'a str),
    /// Held-out samples and where they come from.
    pub val: Option<(&'a Source, &'a str)>,
}

/// Checks an extraction and lays out its records.
///
/// # Errors
/// [`Error::Recipe`] naming the setting that cannot be, and what it can be.
pub fn plan_extract(recipe: &ExtractRecipe, inputs: ExtractInputs<'_>) -> Result<ExtractPlan> {
    let (train_source, _) = inputs.train;
    check(recipe.views >= 1, "--views", "must be at least 1")?;
    check(recipe.fraction > 0.0 && recipe.fraction <= 1.0, "--fraction", "must lie in (0, 1]")?;
    check(recipe.limit != Some(0), "--limit", "must be at least 1")?;
    check(matches!(recipe.qk_dtype, Dtype::F32 | Dtype::F16), "--codec", "stores q and k as f32 or f16")?;
    check(!train_source.is_empty(), "--data", "holds no sample")?;

    let teacher = match recipe.image_size {
        None => inputs.teacher.clone(),
        Some(size) => inputs.teacher.with_img_size(size)?,
    };
    let student = match &recipe.student {
        Some(name) => name.parse()?,
        None => Preset::suited(&teacher),
    };
    let map = layer_map::proportional(student.depth(), teacher.depth);
    let captured = match &recipe.layers {
        Layers::Mapped => layer_map::captured(&map),
        Layers::All => (0..teacher.depth).collect(),
        Layers::List(list) => {
            if let Some(layer) = list.iter().find(|&&layer| layer >= teacher.depth) {
                return Err(recipe_error(
                    "--layers",
                    format!("names layer {layer}, the teacher has 0..{}", teacher.depth),
                ));
            }
            check(!list.is_empty(), "--layers", "names no layer")?;
            layer_map::captured(list)
        }
    };

    let augment = match recipe.augment {
        AugmentChoice::Auto => Augment::suited(teacher.in_chans, teacher.img_size[0], teacher.img_size[1]),
        AugmentChoice::None => Augment::None,
        AugmentChoice::Crop => Augment::CROP,
        AugmentChoice::Affine => Augment::AFFINE,
    };
    let views = ViewRecipe::for_teacher(&teacher, augment, recipe.views, recipe.seed);
    views.check()?;
    let fields = record::vision_fields(&teacher, &views, &captured, recipe.qk_dtype);

    let mut train_samples =
        shuffled(subset::balanced(&train_source.labels(), recipe.fraction, recipe.seed), recipe.seed);
    let mut val_samples: Vec<usize> = match inputs.val {
        Some((source, _)) => shuffled((0..source.len()).collect(), recipe.seed),
        None => Vec::new(),
    };
    if let Some(limit) = recipe.limit {
        train_samples.truncate(limit);
        val_samples.truncate(limit);
    }
    let describe = |(source, name): (&Source, &str), samples: usize| SourceDescription {
        source: name.to_owned(),
        fingerprint: source.fingerprint(),
        samples,
    };
    let description = Description {
        teacher: TeacherDescription {
            name: recipe.teacher.clone(),
            family: "vit".into(),
            weights_blake3: inputs.weights_blake3.into(),
            precision: recipe.precision,
            config: teacher.clone(),
        },
        data: DataDescription {
            train: describe(inputs.train, train_samples.len()),
            val: inputs.val.map(|val| describe(val, val_samples.len())),
            fraction: recipe.fraction,
            limit: recipe.limit,
            seed: recipe.seed,
        },
        views,
        layer_map: LayerMapDescription { student: student.name().into(), map },
        captured_layers: captured,
        tokens: TokenDescription { len: teacher.tokens(), prefix: vec!["class".into()], grid: teacher.grid() },
        classes: train_source.classes().map(<[String]>::to_vec),
    };
    let mut plan =
        ExtractPlan { description, fields, shards: Vec::new(), train_samples, val_samples, digest: String::new() };
    plan.shards = lay_out(&plan, recipe.shard_bytes);
    plan.digest = digest(&plan);
    Ok(plan)
}

/// `samples` in the order of the run: shuffled, so that a block of neighbours holds many classes.
fn shuffled(samples: Vec<usize>, seed: u64) -> Vec<usize> {
    subset::shuffle(samples.len(), seed).into_iter().map(|i| samples[i]).collect()
}

fn lay_out(plan: &ExtractPlan, shard_bytes: u64) -> Vec<ShardPlan> {
    let mut shards = Vec::new();
    let splits =
        [(Split::Train, 0, plan.train_records()), (Split::Val, plan.train_records(), plan.val_samples.len() as u64)];
    for (split, first, count) in splits {
        let record_bytes: usize = plan.split_fields(split).iter().map(FieldSpec::record_bytes).sum();
        let block_records = (BLOCK_BYTES / record_bytes).clamp(1, 4096);
        let blocks = (shard_bytes / (block_records * record_bytes) as u64).max(1);
        let shard_records = blocks * block_records as u64;
        let mut start = 0;
        while start < count {
            let records = shard_records.min(count - start);
            let index = shards.len() as u32;
            shards.push(ShardPlan { index, split, first_record: first + start, records, block_records });
            start += records;
        }
    }
    shards
}

/// BLAKE3 over everything that decides the shards' bytes; names and paths that only say where things lay stay out.
fn digest(plan: &ExtractPlan) -> String {
    let mut description = plan.description.clone();
    description.teacher.name.clear();
    description.data.train.source.clear();
    if let Some(val) = &mut description.data.val {
        val.source.clear();
    }
    let value = serde_json::json!({
        "format_version": cab_format::VERSION,
        "description": description,
        "fields": plan.fields,
        "shards": plan.shards,
    });
    blake3::hash(value.to_string().as_bytes()).to_hex().to_string()
}

/// What the student is trained towards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Objective {
    /// Cross-entropy on labels; the teacher is not used.
    Vanilla,
    /// Soft distillation on the teacher's logits.
    Soft,
    /// The attention bridge alone.
    Bridge,
    /// Soft distillation and the attention bridge (CAB).
    Cab,
}

impl Objective {
    /// Whether the bridge loss is part of it.
    pub fn has_bridge(self) -> bool {
        matches!(self, Objective::Bridge | Objective::Cab)
    }

    /// Whether the teacher's logits are part of it.
    pub fn has_soft(self) -> bool {
        matches!(self, Objective::Soft | Objective::Cab)
    }

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Objective::Vanilla => "vanilla",
            Objective::Soft => "soft",
            Objective::Bridge => "bridge",
            Objective::Cab => "cab",
        }
    }
}

/// Kernel map on the teacher's q and k.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kernel {
    /// The raw projections.
    None,
    /// Softmax: q over features, k over tokens. Shrinks targets to about 1/len.
    Softmax,
    /// Rectified.
    Relu,
    /// Exponential.
    Exp,
}

/// Start of the decay parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ALogStart {
    /// -20 everywhere: the decay starts at 1, like linear attention.
    Bridge,
    /// ln(1..d_state), the plain start of Mamba.
    S4d,
}

/// How the bridge weight changes over a run; fractions are of all steps.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum BridgeSchedule {
    /// The same throughout.
    Constant,
    /// Straight down to 0 at fraction `until`.
    Linear {
        /// Fraction in (0, 1].
        until: f64,
    },
    /// Half a cosine down to 0 at fraction `until`.
    Cosine {
        /// Fraction in (0, 1].
        until: f64,
    },
    /// Constant, then 0 from fraction `after` on.
    Stop {
        /// Fraction in (0, 1].
        after: f64,
    },
}

impl std::str::FromStr for BridgeSchedule {
    type Err = String;

    /// Reads `constant`, `linear`, `cosine`, `linear:0.5`, `cosine:0.5`, `stop:0.3`.
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let (kind, fraction) = match text.split_once(':') {
            None => (text, None),
            Some((kind, fraction)) => {
                let value: f64 = fraction.parse().map_err(|_| format!("`{fraction}` is not a number"))?;
                if !(value > 0.0 && value <= 1.0) {
                    return Err(format!("the fraction {fraction} must lie in (0, 1]"));
                }
                (kind, Some(value))
            }
        };
        match (kind, fraction) {
            ("constant", None) => Ok(BridgeSchedule::Constant),
            ("linear", fraction) => Ok(BridgeSchedule::Linear { until: fraction.unwrap_or(1.0) }),
            ("cosine", fraction) => Ok(BridgeSchedule::Cosine { until: fraction.unwrap_or(1.0) }),
            ("stop", Some(after)) => Ok(BridgeSchedule::Stop { after }),
            _ => Err("is one of constant, linear[:FRACTION], cosine[:FRACTION], stop:FRACTION".into()),
        }
    }
}

/// Everything that decides what a training run computes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainRecipe {
    /// Plan digest of the cache.
    pub cache_digest: String,
    /// Preset the student started from.
    pub student_name: String,
    /// The student's sizes.
    pub student: VimConfig,
    /// What it is trained towards.
    pub objective: Objective,
    /// Weight of the cross-entropy on labels (`vanilla`: 1).
    pub label_weight: f64,
    /// Weight of the bridge loss at the start.
    pub bridge_weight: f64,
    /// How that weight changes.
    pub bridge_schedule: BridgeSchedule,
    /// Kernel map on the targets.
    pub kernel: Kernel,
    /// Start of the decay parameters.
    pub a_log_start: ALogStart,
    /// Teacher layer of each student layer.
    pub layer_map: Vec<usize>,
    /// Parameter updates.
    pub steps: u64,
    /// Records an update.
    pub batch_size: usize,
    /// Peak learning rate.
    pub lr: f64,
    /// Updates of linear warm-up.
    pub warmup_steps: u64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Decay rates of AdamW's moments.
    pub betas: (f64, f64),
    /// Largest gradient norm; 0: no clipping.
    pub clip_norm: f64,
    /// Decay of the averaged weights; 0: none.
    pub ema: f64,
    /// Rate of stochastic depth at the last block.
    pub drop_path: f64,
    /// Seed of the start, the order and stochastic depth.
    pub seed: u64,
    /// Class-balanced fraction of the cache's samples, in (0, 1].
    pub fraction: f64,
    /// Views read of each sample.
    pub views: u32,
    /// Decoded bytes within which records are mixed.
    pub window_bytes: u64,
}

impl TrainRecipe {
    /// Checks the recipe against the cache it is for.
    ///
    /// # Errors
    /// [`Error::Recipe`] naming the setting that cannot be, and what it can be.
    pub fn check(&self, manifest: &Manifest, description: &Description) -> Result<()> {
        self.student.check()?;
        check(self.steps >= 1, "--steps", "must be at least 1")?;
        check(self.batch_size >= 1, "--batch-size", "must be at least 1")?;
        check(self.lr > 0.0 && self.lr.is_finite(), "--lr", "must be above 0")?;
        check(self.fraction > 0.0 && self.fraction <= 1.0, "--fraction", "must lie in (0, 1]")?;
        check((0.0..1.0).contains(&self.ema), "--ema", "must lie in [0, 1)")?;
        check((0.0..1.0).contains(&self.drop_path), "--drop-path", "must lie in [0, 1)")?;
        check(self.weight_decay >= 0.0, "--weight-decay", "must not be negative")?;
        check(self.bridge_weight >= 0.0, "--bridge-weight", "must not be negative")?;
        check(self.label_weight >= 0.0, "--label-weight", "must not be negative")?;
        check(self.clip_norm >= 0.0, "--clip-norm", "must not be negative")?;
        if self.views == 0 || self.views > description.views.views {
            return Err(recipe_error("--views", format!("must lie in 1..={}", description.views.views)));
        }
        let views = &description.views;
        let (channels, height, width) = (views.channels, views.height, views.width);
        if (self.student.channels, self.student.height, self.student.width) != (channels, height, width) {
            return Err(recipe_error(
                "--student",
                format!("must take the cache's {channels} x {height} x {width} inputs"),
            ));
        }
        if self.objective.has_soft() && self.student.classes != description.teacher.config.num_classes {
            let detail = format!("must have the teacher's {} classes", description.teacher.config.num_classes);
            return Err(recipe_error("--student", detail));
        }
        if !self.objective.has_bridge() {
            return Ok(());
        }
        if self.layer_map.len() != self.student.depth {
            let detail = format!("names {} layers, the student has {}", self.layer_map.len(), self.student.depth);
            return Err(recipe_error("--layer-map", detail));
        }
        let names: BTreeMap<&str, &FieldSpec> = manifest.fields.iter().map(|f| (f.name.as_str(), f)).collect();
        for &layer in &self.layer_map {
            if !names.contains_key(record::q_name(layer).as_str()) {
                let detail = format!(
                    "needs teacher layer {layer}, the cache holds {:?}: extract with --student {} or --layers all",
                    description.captured_layers, self.student_name
                );
                return Err(recipe_error("--layer-map", detail));
            }
        }
        let tokens = description.tokens.len;
        if self.student.tokens() != tokens {
            let detail = format!(
                "make {} tokens of an image, the teacher has {tokens}: the bridge works token by token",
                self.student.tokens()
            );
            return Err(recipe_error("--patch-size and --stride", detail));
        }
        Ok(())
    }

    /// BLAKE3 of the recipe: two runs with equal digests compute the same.
    pub fn digest(&self) -> String {
        let json = serde_json::json!(self).to_string();
        blake3::hash(json.as_bytes()).to_hex().to_string()
    }
}

fn recipe_error(setting: &str, detail: impl Into<String>) -> Error {
    Error::Recipe { setting: setting.to_owned(), detail: detail.into() }
}

fn check(holds: bool, setting: &str, detail: &str) -> Result<()> {
    if holds { Ok(()) } else { Err(recipe_error(setting, detail)) }
}
