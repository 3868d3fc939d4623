//! The command line of `cab-train`, and the recipe its flags make.

use std::path::PathBuf;

use anyhow::{Result, bail};
use cab_format::Manifest;
use cab_pipelines::description::Description;
use cab_pipelines::device::DeviceName;
use cab_pipelines::layer_map;
use cab_pipelines::recipe::{ALogStart, BridgeSchedule, Kernel, Objective, TrainRecipe};
use cab_pipelines::student::VimConfig;
use clap::{Args, Parser, Subcommand, ValueEnum};
use tch::Device;

/// Trains a Mamba student from a cache of a Transformer teacher's queries, keys and logits.
///
/// Without a subcommand it trains. A run is a directory: config.json, metrics.jsonl, TensorBoard events, checkpoints/.
/// Running the same command again continues a run that was stopped.
#[derive(Debug, Parser)]
#[command(
    name = "cab-train",
    version,
    args_conflicts_with_subcommands = true,
    after_help = "Examples:
  cab-train --cache ./qk_cache                                     a student that fits the cache, objective cab
  cab-train --cache ./qk_cache --student vim-tiny --objective soft --seed 1 --out runs/soft-1
  cab-train eval --cache ./qk_cache --checkpoint runs/soft-1       top-1, top-5 and loss on the held-out split
  cab-train report runs/* --out report.html                        curves and table of several runs
  cab-train doctor                                                 what this machine and build offer

Exit codes: 0 done, 1 the run failed, 2 bad usage, 3 stopped by a signal or --stop-at after a checkpoint."
)]
pub struct Cli {
    /// What to do instead of training.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Flags of training.
    #[command(flatten)]
    pub train: TrainArgs,
}

/// What to do instead of training.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Evaluate a trained student on the cache's held-out split
    #[command(after_help = "Example:\n  cab-train eval --cache ./qk_cache --checkpoint runs/cab")]
    Eval(EvalArgs),
    /// Write one page with the curves and the table of several runs
    #[command(after_help = "Example:\n  cab-train report runs/* --out report.html --summary summary.json")]
    Report(ReportArgs),
    /// Print what was found: libtorch, devices, threads, SIMD level, disk room
    #[command(after_help = "Example:\n  cab-train doctor")]
    Doctor,
}

/// Names of objectives on the command line.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum ObjectiveArg {
    /// Cross-entropy on labels; the teacher is not used
    Vanilla,
    /// Soft distillation on the teacher's logits
    Soft,
    /// The attention bridge alone
    Bridge,
    /// Soft distillation and the attention bridge
    Cab,
}

/// Names of kernel maps on the command line.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum KernelArg {
    /// The raw projections
    None,
    /// q over features, k over tokens (shrinks targets to about 1/len)
    Softmax,
    /// Rectified
    Relu,
    /// Exponential
    Exp,
}

/// Names of decay starts on the command line.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum ALogArg {
    /// -20 everywhere: the decay starts at 1
    Bridge,
    /// ln(1..d_state)
    S4d,
}

/// Flags of training.
#[derive(Debug, Args)]
pub struct TrainArgs {
    /// Sealed cache that cab-extract wrote
    #[arg(long, default_value = "./qk_cache")]
    pub cache: PathBuf,
    /// Directory of the run [default: runs/STUDENT-OBJECTIVE-SEED]
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// Student preset: vim-nano, vim-tiny, vim-small, vim-base [default: the one the cache was made for]
    #[arg(long, help_heading = "Student")]
    pub student: Option<String>,
    /// Width of the residual stream [default: the preset's]
    #[arg(long, help_heading = "Student")]
    pub d_model: Option<usize>,
    /// Number of blocks [default: the preset's]
    #[arg(long, help_heading = "Student")]
    pub depth: Option<usize>,
    /// State size a channel [default: the preset's]
    #[arg(long, help_heading = "Student")]
    pub d_state: Option<usize>,
    /// Patch height and width in pixels [default: the teacher's]
    #[arg(long, help_heading = "Student")]
    pub patch_size: Option<usize>,
    /// Pixels between patches [default: the teacher's patch size]
    #[arg(long, help_heading = "Student")]
    pub stride: Option<usize>,
    /// Start of the decay parameters
    #[arg(long, value_enum, default_value = "bridge", help_heading = "Student")]
    pub a_log: ALogArg,
    /// Rate of stochastic depth at the last block
    #[arg(long, default_value_t = 0.0, help_heading = "Student")]
    pub drop_path: f64,
    /// What the student is trained towards
    #[arg(long, value_enum, default_value = "cab", help_heading = "Objective")]
    pub objective: ObjectiveArg,
    /// Weight of the bridge loss
    #[arg(long, default_value_t = 3.0, help_heading = "Objective")]
    pub bridge_weight: f64,
    /// How that weight changes: constant, linear or linear:F, cosine or cosine:F (0 at fraction F of the run), stop:F
    #[arg(long, default_value = "constant", help_heading = "Objective")]
    pub bridge_schedule: BridgeSchedule,
    /// Kernel map on the teacher's q and k
    #[arg(long, value_enum, default_value = "none", help_heading = "Objective")]
    pub kernel: KernelArg,
    /// Weight of the cross-entropy on labels [default: 1 with vanilla, else 0]
    #[arg(long, help_heading = "Objective")]
    pub label_weight: Option<f64>,
    /// Teacher layer of each student layer, as a list 0,0,1,… [default: floor(i * T / S)]
    #[arg(long, value_delimiter = ',', help_heading = "Objective")]
    pub layer_map: Option<Vec<usize>>,
    /// Parameter updates [default: vim-nano 400, else by --epochs]
    #[arg(long, conflicts_with = "epochs", help_heading = "Optimisation")]
    pub steps: Option<u64>,
    /// Passes over the selected records, every view counted [default: 30 unless --steps]
    #[arg(long, help_heading = "Optimisation")]
    pub epochs: Option<f64>,
    /// Records an update
    #[arg(long, default_value_t = 32, help_heading = "Optimisation")]
    pub batch_size: usize,
    /// Peak learning rate [default: vim-nano 3e-3, else 1e-3]
    #[arg(long, help_heading = "Optimisation")]
    pub lr: Option<f64>,
    /// Updates of linear warm-up [default: a twentieth of the run]
    #[arg(long, help_heading = "Optimisation")]
    pub warmup_steps: Option<u64>,
    /// Decoupled weight decay of matrices
    #[arg(long, default_value_t = 0.05, help_heading = "Optimisation")]
    pub weight_decay: f64,
    /// Largest gradient norm; 0 turns clipping off
    #[arg(long, default_value_t = 1.0, help_heading = "Optimisation")]
    pub clip_norm: f64,
    /// Decay of a moving average of the weights, evaluated in their place; 0 keeps none
    #[arg(long, default_value_t = 0.0, help_heading = "Optimisation")]
    pub ema: f64,
    /// Seed of the start, the order of records and stochastic depth
    #[arg(long, default_value_t = 0, help_heading = "Optimisation")]
    pub seed: u64,
    /// Class-balanced fraction of the cache's samples to train on
    #[arg(long, default_value_t = 1.0, help_heading = "Data")]
    pub fraction: f64,
    /// Views read of each sample [default: all the cache has]
    #[arg(long, help_heading = "Data")]
    pub views: Option<u32>,
    /// Decoded megabytes within which records are mixed; twice that is held in memory
    #[arg(long, default_value_t = 512, help_heading = "Data")]
    pub window_mb: u64,
    /// Steps between lines of metrics.jsonl
    #[arg(long, default_value_t = 20, help_heading = "Run")]
    pub log_every: u64,
    /// Steps between evaluations on the held-out split [default: a tenth of the run]
    #[arg(long, help_heading = "Run")]
    pub eval_every: Option<u64>,
    /// Steps between checkpoints [default: a tenth of the run]
    #[arg(long, help_heading = "Run")]
    pub checkpoint_every: Option<u64>,
    /// Checkpoints kept
    #[arg(long, default_value_t = 2, help_heading = "Run")]
    pub keep: usize,
    /// Write a checkpoint at this step and stop; the same command without it continues
    #[arg(long, help_heading = "Run")]
    pub stop_at: Option<u64>,
    /// Discard what the run directory holds and start again
    #[arg(long, help_heading = "Run")]
    pub overwrite: bool,
    /// Device: cpu, cuda, cuda:N [default: cuda where there is one, else cpu]
    #[arg(long, help_heading = "Run")]
    pub device: Option<DeviceName>,
    /// Threads of arithmetic and of loading [default: all cores; 1 for the matrix products of very small students]
    #[arg(long, help_heading = "Run")]
    pub threads: Option<usize>,
}

/// Flags of evaluation.
#[derive(Debug, Args)]
pub struct EvalArgs {
    /// Sealed cache with a held-out split
    #[arg(long, default_value = "./qk_cache")]
    pub cache: PathBuf,
    /// Run directory (its newest checkpoint is taken) or one checkpoint
    #[arg(long)]
    pub checkpoint: PathBuf,
    /// Evaluate on a cache other than the one the student was trained on
    #[arg(long)]
    pub any_cache: bool,
    /// Images a forward pass
    #[arg(long, default_value_t = 128)]
    pub batch_size: usize,
    /// Device: cpu, cuda, cuda:N [default: cuda where there is one, else cpu]
    #[arg(long)]
    pub device: Option<DeviceName>,
    /// Threads of arithmetic [default: all cores]
    #[arg(long)]
    pub threads: Option<usize>,
}

/// Flags of the report.
#[derive(Debug, Args)]
pub struct ReportArgs {
    /// Run directories
    #[arg(required = true)]
    pub runs: Vec<PathBuf>,
    /// Page to write
    #[arg(long, default_value = "report.html")]
    pub out: PathBuf,
    /// Also write the final top-1 by objective and seed as JSON
    #[arg(long)]
    pub summary: Option<PathBuf>,
}

impl TrainArgs {
    /// The recipe these flags make for a cache, checked.
    ///
    /// # Errors
    /// When a flag does not suit the cache.
    pub fn recipe(&self, manifest: &Manifest, description: &Description) -> Result<TrainRecipe> {
        let objective = match self.objective {
            ObjectiveArg::Vanilla => Objective::Vanilla,
            ObjectiveArg::Soft => Objective::Soft,
            ObjectiveArg::Bridge => Objective::Bridge,
            ObjectiveArg::Cab => Objective::Cab,
        };
        let teacher = &description.teacher.config;
        let student_name = self.student.clone().unwrap_or_else(|| description.layer_map.student.clone());
        let mut student = VimConfig::for_teacher(
            student_name.parse()?,
            teacher.img_size,
            teacher.in_chans,
            classes(description, objective),
            teacher.grid(),
        )?;
        for (size, flag) in [
            (&mut student.d_model, self.d_model),
            (&mut student.depth, self.depth),
            (&mut student.d_state, self.d_state),
            (&mut student.patch, self.patch_size),
            (&mut student.stride, self.stride),
        ] {
            *size = flag.unwrap_or(*size);
        }
        let layer_map = match &self.layer_map {
            Some(list) => list.clone(),
            None => layer_map::proportional(student.depth, teacher.depth),
        };
        let fraction = self.fraction.clamp(f64::MIN_POSITIVE, 1.0);
        let views = self.views.unwrap_or(description.views.views);
        let records = description.data.train.samples as f64 * f64::from(views) * fraction;
        let nano = student_name == "vim-nano";
        let steps = match (self.steps, self.epochs) {
            (Some(steps), _) => steps,
            (None, None) if nano => 400,
            (None, epochs) => {
                let epochs = epochs.unwrap_or(30.0);
                if !(epochs > 0.0 && epochs.is_finite()) {
                    bail!("--epochs must be above 0");
                }
                (epochs * records / self.batch_size.max(1) as f64).ceil() as u64
            }
        };
        let recipe = TrainRecipe {
            cache_digest: manifest.plan_digest.clone(),
            student_name,
            student,
            objective,
            label_weight: self.label_weight.unwrap_or(if objective == Objective::Vanilla { 1.0 } else { 0.0 }),
            bridge_weight: self.bridge_weight,
            bridge_schedule: self.bridge_schedule,
            kernel: match self.kernel {
                KernelArg::None => Kernel::None,
                KernelArg::Softmax => Kernel::Softmax,
                KernelArg::Relu => Kernel::Relu,
                KernelArg::Exp => Kernel::Exp,
            },
            a_log_start: match self.a_log {
                ALogArg::S4d => ALogStart::S4d,
                ALogArg::Bridge => ALogStart::Bridge,
            },
            layer_map,
            steps,
            batch_size: self.batch_size,
            lr: self.lr.unwrap_or(if nano { 3e-3 } else { 1e-3 }),
            warmup_steps: self.warmup_steps.unwrap_or(steps / 20),
            weight_decay: self.weight_decay,
            betas: (0.9, 0.999),
            clip_norm: self.clip_norm,
            ema: self.ema,
            drop_path: self.drop_path,
            seed: self.seed,
            fraction: self.fraction,
            views,
            window_bytes: self.window_mb << 20,
        };
        recipe.check(manifest, description)?;
        Ok(recipe)
    }
}

/// Classes of the student's head: the teacher's, or the data's when the teacher's logits are not learned from.
fn classes(description: &Description, objective: Objective) -> usize {
    let teacher = description.teacher.config.num_classes;
    if objective.has_soft() { teacher } else { description.classes.as_ref().map_or(teacher, Vec::len) }
}

/// The device a flag names; cuda where there is one when it names none.
///
/// # Errors
/// When libtorch has no such device.
pub fn device(name: Option<DeviceName>) -> Result<Device> {
    let found = tch::Cuda::device_count();
    match name {
        None => Ok(Device::cuda_if_available()),
        Some(DeviceName::Cpu) => Ok(Device::Cpu),
        Some(DeviceName::Cuda(index)) if (index as i64) < found => Ok(Device::Cuda(index)),
        Some(DeviceName::Cuda(index)) => {
            bail!(
                "--device cuda:{index}: libtorch sees {found} CUDA devices; use --device cpu, or a libtorch with CUDA"
            )
        }
    }
}
