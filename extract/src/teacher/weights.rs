//! A teacher's weight file and configuration: embedded, local, or from the Hugging Face hub.

use std::collections::HashMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use cab_pipelines::assets;
use cab_pipelines::teacher::{TeacherSpec, VitConfig};
use memmap2::Mmap;
use safetensors::SafeTensors;
use safetensors::tensor::Dtype;
use tch::{Kind, Tensor};

/// A teacher as found: its numbers, checked against its weights, and the bytes of its weight file.
#[derive(Debug)]
pub struct TeacherFiles {
    /// Sizes and normalisation.
    pub config: VitConfig,
    /// BLAKE3 of the weight file.
    pub weights_blake3: String,
    bytes: WeightBytes,
    place: String,
}

#[derive(Debug)]
enum WeightBytes {
    Embedded(&'static [u8]),
    Mapped(Mmap),
}

impl TeacherFiles {
    /// Finds the teacher called `name`; `heads` is for a bare weight file whose heads are not 64 wide.
    ///
    /// # Errors
    /// When the name is unknown, a file is missing or cannot be downloaded, or configuration and weights disagree.
    pub fn open(name: &str, heads: Option<usize>) -> Result<TeacherFiles> {
        match TeacherSpec::parse(name)? {
            TeacherSpec::Nano => {
                let bytes = WeightBytes::Embedded(assets::VIT_NANO_WEIGHTS);
                Self::checked(Some(assets::VIT_NANO_CONFIG), bytes, "the embedded vit-nano".into(), heads)
            }
            TeacherSpec::File(path) => {
                let config = path.parent().map(|folder| folder.join("config.json")).filter(|config| config.exists());
                Self::from_files(config.as_deref(), &path, heads)
            }
            TeacherSpec::Dir(path) => {
                let (config, weights) = (path.join("config.json"), path.join("model.safetensors"));
                if !weights.exists() {
                    bail!(
                        "{} holds no model.safetensors: save the model with safetensors (timm: save_for_hf)",
                        path.display()
                    );
                }
                Self::from_files(config.exists().then_some(config.as_path()), &weights, heads)
            }
            TeacherSpec::Hub { repo } => {
                let (config, weights) = from_hub(&repo)?;
                Self::from_files(Some(&config), &weights, heads)
            }
        }
    }

    fn from_files(config: Option<&Path>, weights: &Path, heads: Option<usize>) -> Result<TeacherFiles> {
        let text = match config {
            Some(path) => Some(fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?),
            None => None,
        };
        let file = File::open(weights).with_context(|| format!("opening {}", weights.display()))?;
        #[allow(unsafe_code, reason = "a memory map of a file that nobody may change while the teacher is read")]
        // SAFETY: the map is read-only; a weight file that is rewritten during extraction would give a wrong teacher in any case.
        let map = unsafe { Mmap::map(&file) }.with_context(|| format!("mapping {}", weights.display()))?;
        Self::checked(text.as_deref(), WeightBytes::Mapped(map), weights.display().to_string(), heads)
    }

    fn checked(config: Option<&str>, bytes: WeightBytes, place: String, heads: Option<usize>) -> Result<TeacherFiles> {
        let slice = match &bytes {
            WeightBytes::Embedded(bytes) => *bytes,
            WeightBytes::Mapped(map) => map,
        };
        let file =
            SafeTensors::deserialize(slice).with_context(|| format!("{place} is not a whole safetensors file"))?;
        let shape_of = |name: &str| file.tensor(name).ok().map(|view| view.shape().to_vec());
        let config = match config {
            Some(text) => VitConfig::parse(text, &format!("the config.json of {place}"))?,
            None => VitConfig::infer(shape_of, heads).with_context(|| format!("inferring the sizes of {place}"))?,
        };
        config.check_weights(shape_of).with_context(|| place.clone())?;
        let weights_blake3 = blake3::hash(slice).to_hex().to_string();
        Ok(TeacherFiles { config, weights_blake3, bytes, place })
    }

    /// All tensors of the weight file as f32, by name.
    ///
    /// # Errors
    /// When a tensor has a type that is no float.
    pub fn tensors(&self) -> Result<HashMap<String, Tensor>> {
        let slice = match &self.bytes {
            WeightBytes::Embedded(bytes) => *bytes,
            WeightBytes::Mapped(map) => map,
        };
        let file = SafeTensors::deserialize(slice)
            .with_context(|| format!("{} is not a whole safetensors file", self.place))?;
        file.iter()
            .map(|(name, view)| {
                let kind = match view.dtype() {
                    Dtype::F32 => Kind::Float,
                    Dtype::F16 => Kind::Half,
                    Dtype::BF16 => Kind::BFloat16,
                    other => bail!("{}: tensor {name} has type {other:?}, not f32, f16 or bf16", self.place),
                };
                let shape: Vec<i64> = view.shape().iter().map(|&n| n as i64).collect();
                let elements: i64 = shape.iter().product();
                assert_eq!(
                    view.data().len(),
                    elements as usize * kind.elt_size_in_bytes(),
                    "safetensors checks lengths"
                );
                let tensor = Tensor::from_data_size(view.data(), &shape, kind);
                Ok((name.to_owned(), tensor.to_kind(Kind::Float)))
            })
            .collect()
    }
}

/// `config.json` and `model.safetensors` of a hub repository, from the local hub cache or downloaded.
fn from_hub(repo: &str) -> Result<(PathBuf, PathBuf)> {
    let api = hf_hub::api::sync::ApiBuilder::from_env().build().context("setting up the Hugging Face hub client")?;
    let files = api.model(repo.to_owned());
    let get = |file: &str| {
        files.get(file).with_context(|| {
            format!(
                "{file} of {repo} is neither in the local hub cache nor can it be downloaded: connect to the network (or set \
                 HF_ENDPOINT), or give --teacher a directory with config.json and model.safetensors"
            )
        })
    };
    Ok((get("config.json")?, get("model.safetensors")?))
}
