//! Vision Transformer and DeiT, in timm's naming.
//!
//! # Source
//! ViT, arXiv 2010.11929; DeiT, arXiv 2012.12877: pre-LN blocks, exact GELU, class token first, learned positions.

use std::collections::HashMap;

use anyhow::{Context, Result};
use cab_pipelines::recipe::Precision;
use cab_pipelines::teacher::VitConfig;
use tch::{Device, Kind, Tensor};

use super::Captured;

/// Epsilon of every LayerNorm of timm's ViTs.
const NORM_EPS: f64 = 1e-6;

/// A linear or normalisation layer.
#[derive(Debug)]
struct Affine {
    weight: Tensor,
    bias: Tensor,
}

#[derive(Debug)]
struct Block {
    norm1: Affine,
    qkv: Affine,
    proj: Affine,
    norm2: Affine,
    fc1: Affine,
    fc2: Affine,
}

/// A Vision Transformer ready to run.
#[derive(Debug)]
pub struct Vit {
    config: VitConfig,
    kind: Kind,
    device: Device,
    patch: Affine,
    cls_token: Tensor,
    pos_embed: Tensor,
    blocks: Vec<Block>,
    norm: Affine,
    head: Affine,
    scale: Tensor,
    shift: Tensor,
}

impl Vit {
    /// The model of `config` with `weights` (timm names, f32); positions are interpolated when the grid is another.
    ///
    /// # Errors
    /// When a tensor is missing.
    pub fn new(
        config: &VitConfig,
        weights: &HashMap<String, Tensor>,
        precision: Precision,
        device: Device,
    ) -> Result<Vit> {
        let kind = match precision {
            Precision::F32 => Kind::Float,
            Precision::Bf16 => Kind::BFloat16,
        };
        let raw = |name: &str| weights.get(name).with_context(|| format!("the teacher's weights lack {name}"));
        let get = |name: &str| Ok::<_, anyhow::Error>(raw(name)?.to_kind(kind).to_device(device));
        let affine = |name: &str| {
            Ok::<_, anyhow::Error>(Affine {
                weight: get(&format!("{name}.weight"))?,
                bias: get(&format!("{name}.bias"))?,
            })
        };
        let blocks = (0..config.depth)
            .map(|layer| {
                let part = |name: &str| affine(&format!("blocks.{layer}.{name}"));
                Ok(Block {
                    norm1: part("norm1")?,
                    qkv: part("attn.qkv")?,
                    proj: part("attn.proj")?,
                    norm2: part("norm2")?,
                    fc1: part("mlp.fc1")?,
                    fc2: part("mlp.fc2")?,
                })
            })
            .collect::<Result<_>>()?;
        let by_channel = |values: Vec<f32>| {
            let channels = values.len() as i64;
            Tensor::from_slice(&values).to_device(device).view([1, channels, 1, 1])
        };
        Ok(Vit {
            config: config.clone(),
            kind,
            device,
            patch: affine("patch_embed.proj")?,
            cls_token: get("cls_token")?,
            pos_embed: positions(raw("pos_embed")?, config.grid()).to_kind(kind).to_device(device),
            blocks,
            norm: affine("norm")?,
            head: affine("head")?,
            scale: by_channel(config.std.iter().map(|s| (1.0 / (255.0 * s)) as f32).collect()),
            shift: by_channel(config.mean.iter().zip(&config.std).map(|(m, s)| (m / s) as f32).collect()),
        })
    }

    /// Runs the teacher on stored pixels u8 `[batch, channels, height, width]`, capturing q and k of the layers `captured`
    /// (ascending).
    pub fn forward(&self, pixels: &Tensor, captured: &[usize]) -> Captured {
        tch::no_grad(|| self.forward_normalised(&self.normalise(pixels), captured))
    }

    /// `(x / 255 - mean) / std` by channel, f32.
    fn normalise(&self, pixels: &Tensor) -> Tensor {
        pixels.to_device(self.device).to_kind(Kind::Float) * &self.scale - &self.shift
    }

    /// [`Vit::forward`] for images that are normalised already, f32 `[batch, channels, height, width]`.
    pub fn forward_normalised(&self, images: &Tensor, captured: &[usize]) -> Captured {
        let (heads, head_dim) = (self.config.heads as i64, self.config.head_dim() as i64);
        let patch = self.config.patch as i64;
        let batch = images.size()[0];
        let images = images.to_kind(self.kind);
        let patches = images
            .conv2d(&self.patch.weight, Some(&self.patch.bias), [patch, patch], [0, 0], [1, 1], 1)
            .flatten(2, 3)
            .transpose(1, 2);
        let cls = self.cls_token.expand([batch, 1, -1], false);
        let mut x = Tensor::cat(&[cls, patches], 1) + &self.pos_embed;
        let len = x.size()[1];
        let (mut q_all, mut k_all) = (Vec::new(), Vec::new());
        for (layer, block) in self.blocks.iter().enumerate() {
            let qkv = linear(&layer_norm(&x, &block.norm1), &block.qkv).view([batch, len, 3, heads, head_dim]);
            let (q, k, v) = (qkv.select(2, 0), qkv.select(2, 1), qkv.select(2, 2));
            let by_head = |t: &Tensor| t.transpose(1, 2);
            let attended = Tensor::scaled_dot_product_attention(
                &by_head(&q),
                &by_head(&k),
                &by_head(&v),
                None::<&Tensor>,
                0.0,
                false,
                None,
                false,
            );
            x += linear(&attended.transpose(1, 2).reshape([batch, len, -1]), &block.proj);
            let hidden = linear(&layer_norm(&x, &block.norm2), &block.fc1).gelu("none");
            x += linear(&hidden, &block.fc2);
            if captured.contains(&layer) {
                q_all.push(q);
                k_all.push(k);
            }
        }
        let class = layer_norm(&x.select(1, 0), &self.norm);
        Captured { q: q_all, k: k_all, logits: linear(&class, &self.head).to_kind(Kind::Float) }
    }
}

fn linear(x: &Tensor, layer: &Affine) -> Tensor {
    x.linear(&layer.weight, Some(&layer.bias))
}

fn layer_norm(x: &Tensor, layer: &Affine) -> Tensor {
    let width = layer.weight.size()[0];
    x.layer_norm([width], Some(&layer.weight), Some(&layer.bias), NORM_EPS, true)
}

/// Position embeddings `[1, 1 + patches, dim]` for `grid`: the class token's as it is, the patches' interpolated bicubically
/// with antialiasing from the square grid they were trained on, as timm does.
fn positions(trained: &Tensor, grid: [usize; 2]) -> Tensor {
    let [rows, columns] = grid.map(|n| n as i64);
    let (len, dim) = (trained.size()[1], trained.size()[2]);
    let side = ((len - 1) as f64).sqrt().round() as i64;
    if len - 1 == rows * columns && (side, side) == (rows, columns) {
        return trained.shallow_clone();
    }
    let patches = trained.narrow(1, 1, len - 1).view([1, side, side, dim]).permute([0, 3, 1, 2]);
    let resized = patches.internal_upsample_bicubic2d_aa([rows, columns], false, None, None);
    let resized = resized.permute([0, 2, 3, 1]).reshape([1, rows * columns, dim]);
    Tensor::cat(&[trained.narrow(1, 0, 1), resized], 1)
}
