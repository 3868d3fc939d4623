//! Vision Mamba: a bidirectional Mamba-1 image classifier.
//!
//! # Source
//! Vision Mamba, arXiv 2401.09417; Mamba, arXiv 2312.00752; the start of `A_log` for bridged training: CAB, arXiv 2510.19266.

use cab_kernels::{Direction, causal_conv_silu, selective_scan};
use cab_pipelines::random::{self, Stream};
use cab_pipelines::recipe::ALogStart;
use cab_pipelines::student::VimConfig;
use tch::{Kind, Tensor};

use crate::params::ParamStore;

/// Epsilon of every RMSNorm of a Vim.
const NORM_EPS: f64 = 1e-5;

/// What one block computes for the bridges: each `[batch, len, d_state]`, in natural token order, carrying gradient.
#[derive(Debug)]
pub struct BlockProjections {
    /// Input projection of the forward scan.
    pub b: Tensor,
    /// Output projection of the forward scan.
    pub c: Tensor,
    /// Input projection of the backward scan.
    pub b_b: Tensor,
    /// Output projection of the backward scan.
    pub c_b: Tensor,
}

/// What a forward pass returns.
#[derive(Debug)]
pub struct VimOutput {
    /// `[batch, classes]`.
    pub logits: Tensor,
    /// One entry a block.
    pub blocks: Vec<BlockProjections>,
}

/// One direction's parameters of a mixer.
#[derive(Debug)]
struct ScanParams {
    direction: Direction,
    conv_weight: Tensor,
    conv_bias: Tensor,
    x_proj: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    a_log: Tensor,
    d_skip: Tensor,
}

#[derive(Debug)]
struct Block {
    norm: Tensor,
    in_proj: Tensor,
    scans: [ScanParams; 2],
    out_proj: Tensor,
}

/// A Vision Mamba over parameters of a [`ParamStore`].
#[derive(Debug)]
pub struct Vim {
    config: VimConfig,
    patch_weight: Tensor,
    patch_bias: Tensor,
    cls_token: Tensor,
    pos_embed: Tensor,
    blocks: Vec<Block>,
    norm_f: Tensor,
    head_weight: Tensor,
    head_bias: Tensor,
}

/// Which residual branches of which samples are dropped in one training step.
#[derive(Debug, Clone, Copy)]
pub struct DropPath {
    /// Rate at the last block; earlier blocks have proportionally smaller ones.
    pub rate: f64,
    /// Seed of the run.
    pub seed: u64,
    /// Training step.
    pub step: u64,
}

impl Vim {
    /// The model over `store`'s parameters named `prefix` + Vim's names.
    pub fn new(config: &VimConfig, store: &ParamStore, prefix: &str) -> Vim {
        let get = |name: &str| store.get(&format!("{prefix}{name}"));
        let blocks = (0..config.depth)
            .map(|layer| {
                let mixer = |name: &str| get(&format!("layers.{layer}.mixer.{name}"));
                let scan = |direction, suffix: &str, a_log: &str| ScanParams {
                    direction,
                    conv_weight: mixer(&format!("conv1d{suffix}.weight")),
                    conv_bias: mixer(&format!("conv1d{suffix}.bias")),
                    x_proj: mixer(&format!("x_proj{suffix}.weight")),
                    dt_weight: mixer(&format!("dt_proj{suffix}.weight")),
                    dt_bias: mixer(&format!("dt_proj{suffix}.bias")),
                    a_log: mixer(a_log),
                    d_skip: mixer(&format!("D{suffix}")),
                };
                Block {
                    norm: get(&format!("layers.{layer}.norm.weight")),
                    in_proj: mixer("in_proj.weight"),
                    scans: [scan(Direction::Forward, "", "A_log"), scan(Direction::Backward, "_b", "A_b_log")],
                    out_proj: mixer("out_proj.weight"),
                }
            })
            .collect();
        Vim {
            config: config.clone(),
            patch_weight: get("patch_embed.proj.weight"),
            patch_bias: get("patch_embed.proj.bias"),
            cls_token: get("cls_token"),
            pos_embed: get("pos_embed"),
            blocks,
            norm_f: get("norm_f.weight"),
            head_weight: get("head.weight"),
            head_bias: get("head.bias"),
        }
    }

    /// Logits and the bridges' inputs for normalised images `[batch, channels, height, width]`.
    pub fn forward(&self, images: &Tensor, drop_path: Option<DropPath>) -> VimOutput {
        let batch = images.size()[0];
        let stride = self.config.stride as i64;
        let d_model = self.config.d_model as i64;
        let patches = images
            .conv2d(&self.patch_weight, Some(&self.patch_bias), [stride, stride], [0, 0], [1, 1], 1)
            .flatten(2, 3)
            .transpose(1, 2);
        // The class token stands in the middle, so that both scans have read half of the image when they reach it.
        let middle = self.config.class_position() as i64;
        let rest = patches.size()[1] - middle;
        let cls = self.cls_token.expand([batch, 1, d_model], false);
        let mut hidden =
            Tensor::cat(&[patches.narrow(1, 0, middle), cls, patches.narrow(1, middle, rest)], 1) + &self.pos_embed;

        let mut residual: Option<Tensor> = None;
        let mut blocks = Vec::with_capacity(self.blocks.len());
        for (layer, block) in self.blocks.iter().enumerate() {
            let sum = match residual {
                None => hidden,
                Some(residual) => residual + self.drop_branch(hidden, layer, drop_path),
            };
            let (mixed, projections) = self.mix(block, &rms_norm(&sum, &block.norm));
            residual = Some(sum);
            hidden = mixed;
            blocks.push(projections);
        }
        if let Some(residual) = residual {
            hidden = residual + self.drop_branch(hidden, self.blocks.len(), drop_path);
        }
        // RMSNorm works token by token: only the class token's is needed.
        let pooled = rms_norm(&hidden.select(1, middle), &self.norm_f);
        VimOutput { logits: pooled.linear(&self.head_weight, Some(&self.head_bias)), blocks }
    }

    /// The bidirectional mixer on `hidden` `[batch, len, d_model]`: its output and what the bridges read.
    fn mix(&self, block: &Block, hidden: &Tensor) -> (Tensor, BlockProjections) {
        let d_inner = self.config.d_inner() as i64;
        let (dt_rank, d_state) = (self.config.dt_rank() as i64, self.config.d_state as i64);
        let xz = hidden.linear(&block.in_proj, None::<&Tensor>);
        let (x, z) = (xz.narrow(-1, 0, d_inner), xz.narrow(-1, d_inner, d_inner));
        let [forward, backward] = block.scans.each_ref().map(|p| {
            let x = causal_conv_silu(&x, &p.conv_weight, &p.conv_bias, p.direction);
            let projected = x.linear(&p.x_proj, None::<&Tensor>);
            let dt = projected.narrow(-1, 0, dt_rank).linear(&p.dt_weight, None::<&Tensor>);
            let b = projected.narrow(-1, dt_rank, d_state);
            let c = projected.narrow(-1, dt_rank + d_state, d_state);
            let y = selective_scan(&x, &dt, &p.a_log, &b, &c, &p.d_skip, &z, &p.dt_bias, p.direction);
            (y, b, c)
        });
        let mixed = ((forward.0 + backward.0) / 2.0).linear(&block.out_proj, None::<&Tensor>);
        (mixed, BlockProjections { b: forward.1, c: forward.2, b_b: backward.1, c_b: backward.2 })
    }

    /// Stochastic depth: whole branches of some samples are zeroed, the kept ones scaled up.
    ///
    /// `layer` is the block that reads the sum; its branch was made by the block before, so layer 1 is the first dropped.
    fn drop_branch(&self, hidden: Tensor, layer: usize, drop_path: Option<DropPath>) -> Tensor {
        let Some(DropPath { rate, seed, step }) = drop_path.filter(|drop| drop.rate > 0.0) else { return hidden };
        let rate = rate * layer as f64 / self.blocks.len() as f64;
        let batch = hidden.size()[0];
        let mut stream = Stream::new(seed, step, layer as u32, random::Purpose::Drop);
        let kept: Vec<f32> =
            (0..batch).map(|_| if stream.uniform() < rate { 0.0 } else { (1.0 / (1.0 - rate)) as f32 }).collect();
        hidden * Tensor::from_slice(&kept).to_device(self.cls_token.device()).view([batch, 1, 1])
    }
}

fn rms_norm(x: &Tensor, weight: &Tensor) -> Tensor {
    let mean_square = (x * x).mean_dim([-1i64].as_slice(), true, Kind::Float);
    x * (mean_square + NORM_EPS).rsqrt() * weight
}

/// Initial parameter values of a Vim, named with `prefix`.
///
/// Linear layers start uniform in ±1/sqrt(inputs), `out_proj` divided by sqrt(depth); `dt_proj` so that the step size is
/// log-uniform in 0.001…0.1; positions, class token and head normal with deviation 0.02.
pub fn initial_values(config: &VimConfig, a_log: ALogStart, seed: u64, prefix: &str) -> Vec<(String, Tensor)> {
    let (d_model, d_inner) = (config.d_model as i64, config.d_inner() as i64);
    let (d_state, dt_rank, d_conv) = (config.d_state as i64, config.dt_rank() as i64, config.d_conv as i64);
    let (patch, channels, classes) = (config.patch as i64, config.channels as i64, config.classes as i64);
    let mut init = Init { seed, prefix, values: Vec::new() };
    let patch_bound = 1.0 / ((channels * patch * patch) as f64).sqrt();
    init.uniform("patch_embed.proj.weight", &[d_model, channels, patch, patch], patch_bound);
    init.uniform("patch_embed.proj.bias", &[d_model], patch_bound);
    init.normal("cls_token", &[1, 1, d_model], 0.02);
    init.normal("pos_embed", &[1, config.tokens() as i64, d_model], 0.02);
    init.constant("norm_f.weight", &[d_model], 1.0);
    init.normal("head.weight", &[classes, d_model], 0.02);
    init.constant("head.bias", &[classes], 0.0);
    let decay_start = match a_log {
        ALogStart::Bridge => Tensor::full([d_inner, d_state], -20.0, (Kind::Float, tch::Device::Cpu)),
        ALogStart::S4d => {
            let rows: Vec<f32> = (1..=d_state).map(|n| (n as f32).ln()).collect();
            Tensor::from_slice(&rows).expand([d_inner, d_state], false).copy()
        }
    };
    for layer in 0..config.depth {
        let name = |rest: &str| format!("layers.{layer}.{rest}");
        init.constant(&name("norm.weight"), &[d_model], 1.0);
        init.uniform(&name("mixer.in_proj.weight"), &[2 * d_inner, d_model], 1.0 / (d_model as f64).sqrt());
        let out_bound = 1.0 / (d_inner as f64 * config.depth as f64).sqrt();
        init.uniform(&name("mixer.out_proj.weight"), &[d_model, d_inner], out_bound);
        for (suffix, a_name) in [("", "A_log"), ("_b", "A_b_log")] {
            let conv_bound = 1.0 / (d_conv as f64).sqrt();
            init.uniform(&name(&format!("mixer.conv1d{suffix}.weight")), &[d_inner, 1, d_conv], conv_bound);
            init.uniform(&name(&format!("mixer.conv1d{suffix}.bias")), &[d_inner], conv_bound);
            let x_bound = 1.0 / (d_inner as f64).sqrt();
            init.uniform(&name(&format!("mixer.x_proj{suffix}.weight")), &[dt_rank + 2 * d_state, d_inner], x_bound);
            let dt_bound = 1.0 / (dt_rank as f64).sqrt();
            init.uniform(&name(&format!("mixer.dt_proj{suffix}.weight")), &[d_inner, dt_rank], dt_bound);
            init.step_sizes(&name(&format!("mixer.dt_proj{suffix}.bias")), d_inner);
            init.values.push((format!("{prefix}{}", name(&format!("mixer.{a_name}"))), decay_start.copy()));
            init.constant(&name(&format!("mixer.D{suffix}")), &[d_inner], 1.0);
        }
    }
    init.values
}

/// Draws initial values; each tensor's numbers depend on the seed and its own name alone.
#[derive(Debug)]
pub(crate) struct Init<'a> {
    pub(crate) seed: u64,
    pub(crate) prefix: &'a str,
    pub(crate) values: Vec<(String, Tensor)>,
}

impl Init<'_> {
    fn push(&mut self, name: &str, shape: &[i64], mut draw: impl FnMut(&mut Stream) -> f64) {
        let name = format!("{}{name}", self.prefix);
        let mut stream = Stream::new(self.seed, random::sample_key(&name), 0, random::Purpose::Init);
        let values: Vec<f32> = (0..shape.iter().product::<i64>()).map(|_| draw(&mut stream) as f32).collect();
        self.values.push((name, Tensor::from_slice(&values).view(shape)));
    }

    pub(crate) fn uniform(&mut self, name: &str, shape: &[i64], bound: f64) {
        self.push(name, shape, |stream| (2.0 * stream.uniform() - 1.0) * bound);
    }

    fn normal(&mut self, name: &str, shape: &[i64], deviation: f64) {
        self.push(name, shape, |stream| stream.normal() * deviation);
    }

    fn constant(&mut self, name: &str, shape: &[i64], value: f64) {
        self.push(name, shape, |_| value);
    }

    /// Bias of `dt_proj`: the inverse softplus of step sizes log-uniform in 0.001…0.1 (Mamba, section 3.6).
    fn step_sizes(&mut self, name: &str, d_inner: i64) {
        self.push(name, &[d_inner], |stream| {
            let dt = (0.001f64.ln() + stream.uniform() * (0.1f64.ln() - 0.001f64.ln())).exp();
            dt + (-(-dt).exp_m1()).ln()
        });
    }
}
