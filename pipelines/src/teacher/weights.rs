//! What the shapes of the weights say: do they agree with a configuration, and which configuration do they have.

use super::VitConfig;
use crate::view::Interpolation;
use crate::{Error, Result};

/// Tensors that a plain ViT does not have; `N` stands for a block. Each changes the forward pass.
const UNSUPPORTED: [(&str, &str); 21] = [
    ("dist_token", "a distillation token (distilled DeiT)"),
    ("head_dist.weight", "a distillation head (distilled DeiT)"),
    ("reg_token", "register tokens"),
    ("mask_token", "masked-image pretraining"),
    ("norm_pre.weight", "a norm before the blocks (pre_norm)"),
    ("fc_norm.weight", "a norm after pooling (fc_norm)"),
    ("attn_pool.latent", "attention pooling"),
    ("patch_embed.norm.weight", "a norm after the patch embedding"),
    ("patch_embed.backbone.stem.conv.weight", "a convolutional stem (hybrid ViT)"),
    ("rope.freqs", "rotary positions"),
    ("blocks.N.ls1.gamma", "LayerScale (init_values)"),
    ("blocks.N.ls2.gamma", "LayerScale (init_values)"),
    ("blocks.N.gamma_1", "LayerScale (init_values)"),
    ("blocks.N.attn.q_norm.weight", "normalised queries (qk_norm)"),
    ("blocks.N.attn.k_norm.weight", "normalised keys (qk_norm)"),
    ("blocks.N.attn.norm.weight", "a norm inside the attention (scale_attn_norm)"),
    ("blocks.N.attn.q_bias", "separate query and value biases (BEiT)"),
    ("blocks.N.attn.relative_position_bias_table", "relative positions (BEiT)"),
    ("blocks.N.mlp.norm.weight", "a norm inside the MLP (scale_mlp_norm)"),
    ("blocks.N.mlp.fc1_g.weight", "a gated MLP (SwiGLU)"),
    ("blocks.N.mlp.w12.weight", "a gated MLP (SwiGLU)"),
];

impl VitConfig {
    /// `Ok` when `shapes` (tensor name to shape) are those of this configuration's plain ViT.
    ///
    /// # Errors
    /// [`Error::UnsupportedTensor`] for a tensor that only another kind of ViT has, [`Error::TeacherTensor`] for one that is missing, has
    /// another shape, or belongs to a block beyond `depth`.
    pub fn check_weights(&self, shapes: impl Fn(&str) -> Option<Vec<usize>>) -> Result<()> {
        refuse_tensors(self.depth, &shapes)?;
        let (dim, mlp) = (self.embed_dim, self.mlp_dim());
        let expect = |tensor: &str, shape: &[usize]| match shapes(tensor) {
            Some(found) if found == shape => Ok(()),
            found => Err(fault(tensor, format!("{shape:?}"), found)),
        };
        expect("cls_token", &[1, 1, dim])?;
        expect("pos_embed", &[1, self.tokens(), dim])?;
        expect("patch_embed.proj.weight", &[dim, self.in_chans, self.patch, self.patch])?;
        expect("patch_embed.proj.bias", &[dim])?;
        for block in 0..self.depth {
            let layers =
                [("attn.qkv", 3 * dim, dim), ("attn.proj", dim, dim), ("mlp.fc1", mlp, dim), ("mlp.fc2", dim, mlp)];
            for (layer, out, input) in layers {
                expect(&format!("blocks.{block}.{layer}.weight"), &[out, input])?;
                expect(&format!("blocks.{block}.{layer}.bias"), &[out])?;
            }
            for norm in ["norm1", "norm2"] {
                expect(&format!("blocks.{block}.{norm}.weight"), &[dim])?;
                expect(&format!("blocks.{block}.{norm}.bias"), &[dim])?;
            }
        }
        let beyond = format!("blocks.{}.attn.qkv.weight", self.depth);
        if let Some(found) = shapes(&beyond) {
            return Err(fault(
                &beyond,
                format!("no block {} in a teacher of depth {}", self.depth, self.depth),
                Some(found),
            ));
        }
        expect("norm.weight", &[dim])?;
        expect("norm.bias", &[dim])?;
        expect("head.weight", &[self.num_classes, dim])?;
        expect("head.bias", &[self.num_classes])
    }

    /// The configuration that weights without a `config.json` have.
    ///
    /// Shapes tell everything but the number of heads, the normalisation and the evaluation transform. Heads are `heads`, or as many as give
    /// 64 numbers each (every published ViT and DeiT); mean and std are 0.5 and the crop 0.9, as for timm's `augreg` ViTs. Other teachers,
    /// DeiT among them, have other statistics: set `mean` and `std` afterwards or keep the `config.json` beside the weights.
    ///
    /// # Errors
    /// [`Error::TeacherTensor`] and [`Error::UnsupportedTensor`] when the shapes are no plain ViT's, [`Error::Teacher`] when the number of
    /// heads does not divide the width.
    pub fn infer(shapes: impl Fn(&str) -> Option<Vec<usize>>, heads: Option<usize>) -> Result<Self> {
        let get = |tensor: &str| shapes(tensor).ok_or_else(|| fault(tensor, "a tensor of timm's ViT".into(), None));
        let patch_shape = get("patch_embed.proj.weight")?;
        let &[embed_dim, in_chans, patch, patch_width] = &patch_shape[..] else {
            return Err(fault(
                "patch_embed.proj.weight",
                "[embed_dim, channels, patch, patch]".into(),
                Some(patch_shape),
            ));
        };
        if patch != patch_width || patch == 0 || embed_dim == 0 {
            return Err(fault("patch_embed.proj.weight", "square patches".into(), Some(patch_shape)));
        }
        let positions = get("pos_embed")?;
        let side = match positions[..] {
            [1, tokens, _] if tokens > 1 => (tokens - 1).isqrt(),
            _ => 0,
        };
        if side == 0 || positions[1] != side * side + 1 {
            let expected =
                "[1, 1 + side * side, embed_dim], one position for the class token and a square of patches".into();
            return Err(fault("pos_embed", expected, Some(positions)));
        }
        let depth = (0..).take_while(|block| shapes(&format!("blocks.{block}.norm1.weight")).is_some()).count();
        let first = |tensor: &str| get(tensor).map(|shape| shape.first().copied().unwrap_or(0));
        let config = Self {
            architecture: "inferred".into(),
            img_size: [side.saturating_mul(patch); 2],
            patch,
            in_chans,
            num_classes: first("head.weight")?,
            embed_dim,
            depth,
            heads: heads.unwrap_or((embed_dim / 64).max(1)),
            mlp_ratio: first("blocks.0.mlp.fc1.weight")? as f64 / embed_dim as f64,
            // The check below refuses more channels; a damaged shape must not allocate before.
            mean: vec![0.5; in_chans.min(3)],
            std: vec![0.5; in_chans.min(3)],
            crop_pct: 0.9,
            interpolation: Interpolation::Bicubic,
        };
        config.check_in("teacher weights")?;
        config.check_weights(shapes)?;
        Ok(config)
    }
}

fn fault(tensor: &str, expected: String, found: Option<Vec<usize>>) -> Error {
    let found = found.map_or("no such tensor".into(), |shape| format!("{shape:?}"));
    Error::TeacherTensor { tensor: tensor.into(), expected, found }
}

fn refuse_tensors(depth: usize, shapes: &impl Fn(&str) -> Option<Vec<usize>>) -> Result<()> {
    for (pattern, option) in UNSUPPORTED {
        let blocks = if pattern.contains(".N.") { depth } else { 1 };
        for block in 0..blocks {
            let tensor = pattern.replace(".N.", &format!(".{block}."));
            if shapes(&tensor).is_some() {
                return Err(Error::UnsupportedTensor { tensor, option });
            }
        }
    }
    Ok(())
}
