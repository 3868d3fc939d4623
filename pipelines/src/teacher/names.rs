//! Names of teachers that are known, and what a name given by a person means.

use std::path::PathBuf;

use crate::nearest::unknown;
use crate::{Error, Result};

/// Short teacher names, and the Hugging Face repositories behind them; `vit-nano` is embedded.
pub const TEACHERS: [(&str, &str); 8] = [
    ("vit-nano", ""),
    ("vit-t", "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k"),
    ("vit-s", "timm/vit_small_patch16_224.augreg_in21k_ft_in1k"),
    ("vit-b", "timm/vit_base_patch16_224.augreg2_in21k_ft_in1k"),
    ("vit-l", "timm/vit_large_patch16_224.augreg_in21k_ft_in1k"),
    ("deit-t", "timm/deit_tiny_patch16_224.fb_in1k"),
    ("deit-s", "timm/deit_small_patch16_224.fb_in1k"),
    ("deit-b", "timm/deit_base_patch16_224.fb_in1k"),
];

/// Where a teacher's weights and configuration are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TeacherSpec {
    /// The embedded teacher for 28 x 28 grey images.
    Nano,
    /// A repository of the Hugging Face hub with `config.json` and `model.safetensors`.
    Hub {
        /// `organisation/name`.
        repo: String,
    },
    /// A safetensors file; a `config.json` beside it is used.
    File(PathBuf),
    /// A folder with `config.json` and `model.safetensors`.
    Dir(PathBuf),
}

impl TeacherSpec {
    /// What `text` names: an existing folder or file, one of [`TEACHERS`], `hf-hub:organisation/name`, or `organisation/name` when no such
    /// path exists.
    ///
    /// # Errors
    /// [`Error::UnknownName`] when it is none of these, with the nearest known name; [`Error::Io`] when it looks like a path and is not there.
    pub fn parse(text: &str) -> Result<Self> {
        // Known names win over paths, so that a folder which happens to be called `vit-b` does not change what a command means.
        if let Some((name, repo)) = TEACHERS.iter().find(|(name, _)| *name == text) {
            return Ok(if *name == "vit-nano" { Self::Nano } else { Self::Hub { repo: (*repo).to_owned() } });
        }
        let path = PathBuf::from(text);
        if path.is_dir() {
            return Ok(Self::Dir(path));
        }
        if path.is_file() {
            return Ok(Self::File(path));
        }
        let repo = ["hf-hub:", "hf_hub:"].iter().find_map(|prefix| text.strip_prefix(prefix)).unwrap_or(text);
        if is_repo(repo) && !repo.ends_with(".safetensors") {
            return Ok(Self::Hub { repo: repo.to_owned() });
        }
        if text.contains(std::path::MAIN_SEPARATOR) || text.ends_with(".safetensors") {
            return Err(Error::Io { path, source: std::io::ErrorKind::NotFound.into() });
        }
        Err(unknown("teacher", text, &TEACHERS.map(|(name, _)| name)))
    }
}

/// Whether `text` can be `organisation/name` on the hub.
fn is_repo(text: &str) -> bool {
    let part = |p: &str| {
        let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        (1..=96).contains(&p.len())
            && p.chars().all(known)
            && p.chars().any(|c| c.is_ascii_alphanumeric())
            && !p.starts_with('.')
    };
    text.split_once('/').is_some_and(|(organisation, name)| part(organisation) && part(name))
}

/// Sizes that follow from an architecture's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sizes {
    pub img_size: usize,
    pub patch: usize,
    pub embed_dim: usize,
    pub depth: usize,
    pub heads: usize,
}

/// timm's names of the architectures whose sizes are known. Others are read when their configuration states every size.
pub const ARCHITECTURES: [&str; 29] = [
    "vit_tiny_patch8_224",
    "vit_tiny_patch14_224",
    "vit_tiny_patch16_224",
    "vit_tiny_patch16_384",
    "vit_tiny_patch32_224",
    "vit_small_patch8_224",
    "vit_small_patch14_224",
    "vit_small_patch16_224",
    "vit_small_patch16_384",
    "vit_small_patch32_224",
    "vit_small_patch32_384",
    "vit_base_patch8_224",
    "vit_base_patch14_224",
    "vit_base_patch16_224",
    "vit_base_patch16_384",
    "vit_base_patch32_224",
    "vit_base_patch32_384",
    "vit_large_patch8_224",
    "vit_large_patch14_224",
    "vit_large_patch16_224",
    "vit_large_patch16_384",
    "vit_large_patch32_224",
    "vit_large_patch32_384",
    "vit_huge_patch14_224",
    "deit_tiny_patch16_224",
    "deit_small_patch16_224",
    "deit_small_patch16_384",
    "deit_base_patch16_224",
    "deit_base_patch16_384",
];

/// The sizes of one of [`ARCHITECTURES`], which speak for themselves: `{vit,deit}_{size}_patch{patch}_{img_size}`.
pub(super) fn sizes(architecture: &str) -> Option<Sizes> {
    ARCHITECTURES.iter().find(|name| **name == architecture)?;
    let mut parts = architecture.split('_').skip(1);
    let (embed_dim, depth, heads) = match parts.next()? {
        "tiny" => (192, 12, 3),
        "small" => (384, 12, 6),
        "base" => (768, 12, 12),
        "large" => (1024, 24, 16),
        "huge" => (1280, 32, 16),
        _ => return None,
    };
    let patch = parts.next()?.strip_prefix("patch")?.parse().ok()?;
    let img_size = parts.next()?.parse().ok()?;
    Some(Sizes { img_size, patch, embed_dim, depth, heads })
}
