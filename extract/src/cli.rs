//! The command line of `cab-extract`, and the recipe its flags make.

use std::ops::Range;
use std::path::PathBuf;

use cab_format::Dtype;
use cab_pipelines::device::DeviceName;
use cab_pipelines::recipe::{AugmentChoice, ExtractRecipe, Layers, Precision};
use clap::{Args, Parser, Subcommand, ValueEnum};

/// Runs a Transformer teacher once over a data set and writes its queries, keys, logits and inputs into a cache.
///
/// Without a subcommand it extracts. Running the same command again continues an extraction that was stopped.
#[derive(Debug, Parser)]
#[command(
    name = "cab-extract",
    version,
    args_conflicts_with_subcommands = true,
    after_help = "Examples:
  cab-extract                                                       the embedded teacher on the embedded images
  cab-extract --teacher vit-b --data ./imagenet/train --val-data ./imagenet/val --out ./qk_cache
  cab-extract plan --teacher vit-b --data ./imagenet/train          records, bytes and hours before any work
  cab-extract info --cache ./qk_cache                               what a cache holds
  cab-extract verify --cache ./qk_cache                             every hash and checksum
  cab-extract dump --cache ./qk_cache --records 0..8 --to x.safetensors

Exit codes: 0 done, 1 the run failed, 2 bad usage, 3 stopped by a signal (the same command continues)."
)]
pub struct Cli {
    /// What to do instead of extracting.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Flags of extraction.
    #[command(flatten)]
    pub extract: ExtractArgs,
}

/// What to do instead of extracting.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Say how many records, bytes and minutes an extraction takes, and whether the disk has room
    #[command(
        after_help = "Example:\n  cab-extract plan --teacher deit-s --data ./imagenet/train --fraction 0.1 --out ./qk_cache"
    )]
    Plan(Box<PlanArgs>),
    /// Print what a cache holds
    #[command(after_help = "Example:\n  cab-extract info --cache ./qk_cache --json")]
    Info(InfoArgs),
    /// Check every hash and checksum of a cache; exit 1 and a list when something is wrong
    #[command(after_help = "Example:\n  cab-extract verify --cache ./qk_cache")]
    Verify(CacheArgs),
    /// Write records, decoded, into a safetensors file
    #[command(after_help = "Example:\n  cab-extract dump --cache ./qk_cache --records 0..8 --to x.safetensors")]
    Dump(DumpArgs),
}

/// Names of stored types on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CodecArg {
    /// Bit-exact f32
    Exact,
    /// Rounded to f16, then exact
    #[value(name = "exact:f16")]
    ExactF16,
}

/// Names of precisions on the command line.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum PrecisionArg {
    /// 32-bit floats
    F32,
    /// bfloat16 weights and activations
    Bf16,
}

/// Names of augmentations on the command line.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum AugmentArg {
    /// affine for small grey images, crop for photographs
    Auto,
    /// Every view is the evaluation transform
    None,
    /// Random resized crop and horizontal flip
    Crop,
    /// Light scaling, rotation and shift
    Affine,
}

/// Flags of extraction.
#[derive(Debug, Clone, Args)]
pub struct ExtractArgs {
    /// vit-nano (embedded), vit-t|s|b|l, deit-t|s|b, a hub repository, a directory, a .safetensors file
    #[arg(long, default_value = "vit-nano", help_heading = "Teacher")]
    pub teacher: String,
    /// Attention heads, for a bare .safetensors file whose heads are not 64 wide
    #[arg(long, help_heading = "Teacher")]
    pub teacher_heads: Option<usize>,
    /// Input size, N or HxW; position embeddings are interpolated [default: the teacher's]
    #[arg(long, value_parser = parse_size, help_heading = "Teacher")]
    pub image_size: Option<[usize; 2]>,
    /// Arithmetic of the teacher
    #[arg(long, value_enum, default_value = "f32", help_heading = "Teacher")]
    pub precision: PrecisionArg,
    /// Device: cpu, cuda, cuda:N [default: cuda where there is one, else cpu]
    #[arg(long, help_heading = "Teacher")]
    pub device: Option<DeviceName>,
    /// Images a forward pass [default: as many as make 256 MB of records, 8 to 256]
    #[arg(long, help_heading = "Teacher")]
    pub batch_size: Option<usize>,
    /// Image folder (class = subfolder), or a folder or file of IDX images [default: the embedded sample]
    #[arg(long, help_heading = "Data")]
    pub data: Option<PathBuf>,
    /// Held-out images, stored as split val [default: the data's own test split, if it has one]
    #[arg(long, help_heading = "Data")]
    pub val_data: Option<PathBuf>,
    /// Class-balanced fraction of the training images
    #[arg(long, default_value_t = 1.0, help_heading = "Data")]
    pub fraction: f64,
    /// At most this many images a split
    #[arg(long, help_heading = "Data")]
    pub limit: Option<usize>,
    /// Seed of the subset, the order and the views
    #[arg(long, default_value_t = 0, help_heading = "Data")]
    pub seed: u64,
    /// Views a training image; view 0 is the evaluation transform
    #[arg(long, default_value_t = 4, help_heading = "Data")]
    pub views: u32,
    /// Augmentation of the other views
    #[arg(long, value_enum, default_value = "auto", help_heading = "Data")]
    pub augment: AugmentArg,
    /// Largest share of unreadable images; more stop the run
    #[arg(long, default_value_t = 0.001, help_heading = "Data")]
    pub max_skipped: f64,
    /// Cache directory to write
    #[arg(long, default_value = "./qk_cache", help_heading = "Cache")]
    pub out: PathBuf,
    /// Student preset the layer map is made for [default: vim-nano for vit-nano, else vim-tiny, -small, -base by width]
    #[arg(long, help_heading = "Cache")]
    pub student: Option<String>,
    /// Teacher layers to capture: mapped (what the student needs), all, or a list 0,2,4
    #[arg(long, default_value = "mapped", value_parser = parse_layers, help_heading = "Cache")]
    pub layers: Layers,
    /// How q and k are stored
    #[arg(long, value_enum, default_value = "exact", help_heading = "Cache")]
    pub codec: CodecArg,
    /// Megabytes a shard aims at; an interrupted run repeats at most the shards in work
    #[arg(long, default_value_t = 256, help_heading = "Cache")]
    pub shard_mb: u64,
    /// Replace the cache, or the unfinished extraction, that --out holds
    #[arg(long, help_heading = "Cache")]
    pub overwrite: bool,
    /// Threads of arithmetic and of decoding [default: all cores]
    #[arg(long, help_heading = "Cache")]
    pub threads: Option<usize>,
}

/// Flags of `plan`.
#[derive(Debug, Args)]
pub struct PlanArgs {
    /// The extraction to plan.
    #[command(flatten)]
    pub extract: ExtractArgs,
    /// Print as JSON
    #[arg(long)]
    pub json: bool,
}

/// Which cache.
#[derive(Debug, Args)]
pub struct CacheArgs {
    /// Cache directory [default: ./qk_cache]
    #[arg(value_name = "CACHE", conflicts_with = "cache")]
    pub path: Option<PathBuf>,
    /// The same as a flag
    #[arg(long, alias = "out")]
    pub cache: Option<PathBuf>,
}

impl CacheArgs {
    /// The cache directory meant.
    pub fn dir(&self) -> PathBuf {
        self.path.clone().or_else(|| self.cache.clone()).unwrap_or_else(|| PathBuf::from("./qk_cache"))
    }
}

/// Flags of `info`.
#[derive(Debug, Args)]
pub struct InfoArgs {
    /// Which cache.
    #[command(flatten)]
    pub cache: CacheArgs,
    /// Print as JSON
    #[arg(long)]
    pub json: bool,
}

/// Flags of `dump`.
#[derive(Debug, Args)]
pub struct DumpArgs {
    /// Which cache.
    #[command(flatten)]
    pub cache: CacheArgs,
    /// Record ids, FIRST..END (END not included) or one id
    #[arg(long, default_value = "0..8", value_parser = parse_records)]
    pub records: Range<u64>,
    /// File to write
    #[arg(long)]
    pub to: PathBuf,
}

impl ExtractArgs {
    /// The recipe these flags make.
    pub fn recipe(&self) -> ExtractRecipe {
        ExtractRecipe {
            teacher: self.teacher.clone(),
            image_size: self.image_size,
            fraction: self.fraction,
            limit: self.limit,
            seed: self.seed,
            views: self.views,
            augment: match self.augment {
                AugmentArg::Auto => AugmentChoice::Auto,
                AugmentArg::None => AugmentChoice::None,
                AugmentArg::Crop => AugmentChoice::Crop,
                AugmentArg::Affine => AugmentChoice::Affine,
            },
            layers: self.layers.clone(),
            student: self.student.clone(),
            qk_dtype: match self.codec {
                CodecArg::Exact => Dtype::F32,
                CodecArg::ExactF16 => Dtype::F16,
            },
            precision: match self.precision {
                PrecisionArg::F32 => Precision::F32,
                PrecisionArg::Bf16 => Precision::Bf16,
            },
            shard_bytes: self.shard_mb << 20,
        }
    }
}

fn parse_size(text: &str) -> Result<[usize; 2], String> {
    let side =
        |text: &str| text.parse::<usize>().ok().filter(|&n| n > 0).ok_or(format!("`{text}` is no size in pixels"));
    match text.split_once('x') {
        Some((height, width)) => Ok([side(height)?, side(width)?]),
        None => side(text).map(|n| [n, n]),
    }
}

fn parse_layers(text: &str) -> Result<Layers, String> {
    match text {
        "mapped" => Ok(Layers::Mapped),
        "all" => Ok(Layers::All),
        list => list
            .split(',')
            .map(|layer| {
                layer.trim().parse().map_err(|_| format!("`{layer}` is no layer: give mapped, all or a list 0,2,4"))
            })
            .collect::<Result<_, _>>()
            .map(Layers::List),
    }
}

fn parse_records(text: &str) -> Result<Range<u64>, String> {
    let number = |text: &str| text.parse::<u64>().map_err(|_| format!("`{text}` is no record id"));
    let range = match text.split_once("..") {
        Some((first, end)) => number(first)?..number(end)?,
        None => number(text)?..number(text)?.saturating_add(1),
    };
    if range.is_empty() { Err(format!("{text} is an empty range")) } else { Ok(range) }
}
