//! The numbers of a Vision Transformer teacher (ViT, DeiT) in timm's naming: sizes, normalisation, evaluation transform.
//!
//! This module reads configurations and shapes; it never touches weights and computes nothing. Whatever would change a plain ViT's forward
//! pass is refused by name, so that no teacher silently runs as another one.

mod config;
mod names;
mod weights;

use serde::{Deserialize, Serialize};

use crate::view::Interpolation;
use crate::{Error, Result};

pub use names::{ARCHITECTURES, TEACHERS, TeacherSpec};

/// The sizes of a plain ViT: pre-LN blocks (eps 1e-6), exact GELU, tokens `[class, patches]` with learned positions, logits from the class
/// token after the last norm.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VitConfig {
    /// timm's name of the architecture, or `inferred`.
    pub architecture: String,
    /// Rows and columns of the input that the position embeddings are for.
    pub img_size: [usize; 2],
    /// Side of a square patch, which is also the stride.
    pub patch: usize,
    /// Input channels: 1 or 3.
    pub in_chans: usize,
    /// Number of logits.
    pub num_classes: usize,
    /// Width of a token.
    pub embed_dim: usize,
    /// Number of blocks.
    pub depth: usize,
    /// Attention heads per block.
    pub heads: usize,
    /// Width of the MLP's hidden layer over `embed_dim`.
    pub mlp_ratio: f64,
    /// Per channel, subtracted from pixels in `[0, 1]`.
    pub mean: Vec<f64>,
    /// Per channel, divides after the mean is subtracted.
    pub std: Vec<f64>,
    /// Part of the resized side that the evaluation transform's centre crop keeps.
    pub crop_pct: f64,
    /// Filter of the evaluation transform's resize.
    pub interpolation: Interpolation,
}

impl VitConfig {
    /// Width of one attention head.
    pub fn head_dim(&self) -> usize {
        self.embed_dim / self.heads
    }

    /// Patches down and across.
    pub fn grid(&self) -> [usize; 2] {
        self.img_size.map(|side| side / self.patch)
    }

    /// Number of patches.
    pub fn n_patches(&self) -> usize {
        self.grid().iter().product()
    }

    /// Number of tokens: the class token, at position 0, and the patches.
    pub fn tokens(&self) -> usize {
        1 + self.n_patches()
    }

    /// Width of the MLP's hidden layer, `floor(embed_dim * mlp_ratio)`.
    pub fn mlp_dim(&self) -> usize {
        // A ratio that was itself a quotient of whole numbers must give its numerator back.
        (self.embed_dim as f64 * self.mlp_ratio * (1.0 + 1e-12)) as usize
    }

    /// The same teacher for another input size; its position embeddings are then interpolated from this one's [`grid`](Self::grid).
    ///
    /// # Errors
    /// [`Error::Teacher`] when a side is no positive multiple of the patch.
    pub fn with_img_size(&self, img_size: [usize; 2]) -> Result<Self> {
        let config = Self { img_size, ..self.clone() };
        config.check()?;
        Ok(config)
    }

    /// `Ok` when the numbers are those of a ViT that can run.
    ///
    /// # Errors
    /// [`Error::Teacher`] naming the first number that is not.
    pub fn check(&self) -> Result<()> {
        self.check_in("teacher")
    }

    fn check_in(&self, file: &str) -> Result<()> {
        let require = |holds: bool, field: &str, expected: &str, found: String| {
            let fault = || Error::Teacher { file: file.into(), field: field.into(), expected: expected.into(), found };
            if holds { Ok(()) } else { Err(fault()) }
        };
        // Bounds far above every published model: they keep products of sizes from overflowing on a damaged file.
        for (field, value, max) in [
            ("patch_size", self.patch, 1 << 10),
            ("embed_dim", self.embed_dim, 1 << 16),
            ("depth", self.depth, 1 << 10),
            ("num_heads", self.heads, 1 << 10),
            ("num_classes", self.num_classes, 1 << 24),
        ] {
            require((1..=max).contains(&value), field, &format!("1 to {max}"), value.to_string())?;
        }
        require(matches!(self.in_chans, 1 | 3), "in_chans", "1 or 3", self.in_chans.to_string())?;
        for side in self.img_size {
            let holds = (1..=1 << 14).contains(&side) && side % self.patch == 0;
            let expected = format!("sides of at most 16384 that are multiples of the patch, {}", self.patch);
            require(holds, "img_size", &expected, format!("{:?}", self.img_size))?;
        }
        let (dim, heads) = (self.embed_dim, self.heads);
        require(dim % heads == 0, "num_heads", &format!("a divisor of embed_dim {dim}"), heads.to_string())?;
        let ratio = self.mlp_ratio;
        require(
            ratio > 0.0 && ratio <= 64.0 && self.mlp_dim() > 0,
            "mlp_ratio",
            "above 0, at most 64",
            ratio.to_string(),
        )?;
        for (field, values) in [("mean", &self.mean), ("std", &self.std)] {
            let expected = format!("{} finite numbers, one per channel", self.in_chans);
            let holds = values.len() == self.in_chans && values.iter().all(|v| v.is_finite());
            require(holds, field, &expected, format!("{values:?}"))?;
        }
        require(self.std.iter().all(|&s| s > 0.0), "std", "numbers above 0", format!("{:?}", self.std))?;
        let crop = self.crop_pct;
        require((0.01..=1.0).contains(&crop), "crop_pct", "0.01 to 1", crop.to_string())
    }
}

#[cfg(test)]
mod tests;
