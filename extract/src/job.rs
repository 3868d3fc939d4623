//! Everything an extraction needs, found and checked before any work.

use std::path::Path;

use anyhow::{Result, bail, ensure};
use cab_pipelines::device::DeviceName;
use cab_pipelines::recipe::{ExtractInputs, ExtractPlan, ExtractRecipe, plan_extract};
use cab_pipelines::source::{Source, SourceSpec};
use tch::Device;

use crate::cli::ExtractArgs;
use crate::teacher::vit::Vit;
use crate::teacher::weights::TeacherFiles;

/// A planned extraction with its data. The teacher stands apart: its tensors stay on one thread, these parts are shared.
#[derive(Debug)]
pub struct Job {
    /// What the flags ask for.
    pub recipe: ExtractRecipe,
    /// What that means for this data and teacher.
    pub plan: ExtractPlan,
    /// Training samples.
    pub train: Source,
    /// Held-out samples.
    pub val: Option<Source>,
    /// Images a forward pass.
    pub batch_size: usize,
    /// Where the teacher runs.
    pub device: Device,
}

impl Job {
    /// Finds data and teacher, checks the recipe, loads the teacher.
    ///
    /// # Errors
    /// When something is missing, unreadable or does not fit together.
    pub fn prepare(args: &ExtractArgs) -> Result<(Job, Vit)> {
        ensure!((0.0..=1.0).contains(&args.max_skipped), "--max-skipped must lie in 0..=1");
        ensure!(args.batch_size != Some(0), "--batch-size must be at least 1");
        let device = device(args.device)?;
        let recipe = args.recipe();
        let files = TeacherFiles::open(&args.teacher, args.teacher_heads)?;
        let (train, train_name) = open_source(args.data.as_deref())?;
        let (val, val_name) = match &args.val_data {
            Some(path) => {
                let (val, name) = open_source(Some(path))?;
                let val = match train.classes() {
                    Some(classes) => val.with_classes(classes)?,
                    None => val,
                };
                (Some(val), name)
            }
            None => (train.test_split()?, format!("{train_name} (test split)")),
        };
        let inputs = ExtractInputs {
            teacher: &files.config,
            weights_blake3: &files.weights_blake3,
            train: (&train, &train_name),
            val: val.as_ref().map(|val| (val, val_name.as_str())),
        };
        let plan = plan_extract(&recipe, inputs)?;
        let config = &plan.description.teacher.config;
        let teacher = Vit::new(config, &files.tensors()?, recipe.precision, device)?;
        let record_bytes = plan.raw_bytes() / (plan.train_records() + plan.val_samples.len() as u64).max(1);
        let batch_size = args.batch_size.unwrap_or(((256 << 20) / record_bytes.max(1)).clamp(8, 256) as usize);
        Ok((Job { recipe, plan, train, val, batch_size, device }, teacher))
    }
}

fn open_source(path: Option<&Path>) -> Result<(Source, String)> {
    let path = path.unwrap_or(Path::new("embedded"));
    Ok((Source::open(&SourceSpec::parse(path)?)?, path.display().to_string()))
}

/// The device a flag names; cuda where there is one when it names none.
fn device(name: Option<DeviceName>) -> Result<Device> {
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
