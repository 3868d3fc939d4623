//! The attention bridge: small MLPs from the student's `b` and `c` to the teacher's `k` and `q`, and their targets.
//!
//! # Source
//! CAB, arXiv 2510.19266.

use cab_pipelines::recipe::Kernel;
use tch::{Kind, Tensor};

use crate::params::ParamStore;
use crate::student::vim::{BlockProjections, Init};

/// Width of a bridge's hidden layer.
pub const HIDDEN: i64 = 128;

/// The four roles of a student layer's bridges, by the names their weights carry.
const ROLES: [&str; 4] = ["proj_B", "proj_B_b", "proj_C", "proj_C_b"];

/// `Linear(d_state → 128), SiLU, Linear(128 → teacher_dim)`.
#[derive(Debug)]
struct Mlp {
    weight0: Tensor,
    bias0: Tensor,
    weight2: Tensor,
    bias2: Tensor,
}

impl Mlp {
    fn map(&self, x: &Tensor) -> Tensor {
        x.linear(&self.weight0, Some(&self.bias0)).silu().linear(&self.weight2, Some(&self.bias2))
    }
}

/// The bridges of every student layer.
#[derive(Debug)]
pub struct Bridge {
    layers: Vec<[Mlp; 4]>,
}

/// What one teacher layer asks of the student: kernel-mapped, class token in the middle.
#[derive(Debug)]
pub struct Target {
    /// `[batch, len, teacher_dim]`.
    pub q: Tensor,
    /// `[batch, len, teacher_dim]`.
    pub k: Tensor,
}

impl Target {
    /// The target of raw projections `q`, `k` `[batch, len, heads, head_dim]` with the class token at position 0.
    ///
    /// Heads are flattened, the kernel map applied (softmax: `q` over features, `k` over tokens), then the class token
    /// moved to `class_position`, where the student has it.
    pub fn new(q: &Tensor, k: &Tensor, kernel: Kernel, class_position: usize) -> Target {
        let prepare = |x: &Tensor, softmax_dim: i64| {
            let x = x.to_kind(Kind::Float).flatten(2, 3);
            let x = match kernel {
                Kernel::None => x,
                Kernel::Relu => x.relu(),
                Kernel::Exp => x.exp(),
                Kernel::Softmax => x.softmax(softmax_dim, Kind::Float),
            };
            class_token_to(&x, class_position as i64)
        };
        Target { q: prepare(q, -1), k: prepare(k, 1) }
    }
}

/// `x` `[batch, len, dim]` with token 0 moved to `position` and the others kept in order.
fn class_token_to(x: &Tensor, position: i64) -> Tensor {
    let len = x.size()[1];
    let rest = len - 1 - position;
    Tensor::cat(&[x.narrow(1, 1, position), x.narrow(1, 0, 1), x.narrow(1, 1 + position, rest)], 1)
}

impl Bridge {
    /// The bridges over `store`'s parameters named `prefix` + `proj_B.N.0.weight` and so on.
    pub fn new(n_layers: usize, store: &ParamStore, prefix: &str) -> Bridge {
        let layers = (0..n_layers)
            .map(|layer| {
                ROLES.map(|role| {
                    let get = |rest: &str| store.get(&format!("{prefix}{role}.{layer}.{rest}"));
                    Mlp {
                        weight0: get("0.weight"),
                        bias0: get("0.bias"),
                        weight2: get("2.weight"),
                        bias2: get("2.bias"),
                    }
                })
            })
            .collect();
        Bridge { layers }
    }

    /// The bridge loss: mean over student layers of the four mean squared errors.
    ///
    /// `blocks[i]` is matched with `targets[layer_to_target[i]]`. The published formulation reverses student and target of
    /// the backward scan alike; a mean over tokens does not see that, so both stay in natural order here.
    ///
    /// # Panics
    /// When the lists' lengths disagree.
    pub fn loss(&self, blocks: &[BlockProjections], targets: &[Target], layer_to_target: &[usize]) -> Tensor {
        assert_eq!(blocks.len(), self.layers.len(), "student layers and bridges");
        assert_eq!(blocks.len(), layer_to_target.len(), "student layers and layer map");
        let mut terms = Vec::with_capacity(4 * blocks.len());
        for ((block, mlps), &target) in blocks.iter().zip(&self.layers).zip(layer_to_target) {
            let Target { q, k } = &targets[target];
            let pairs = [(&block.b, k), (&block.b_b, k), (&block.c, q), (&block.c_b, q)];
            for (mlp, (from, to)) in mlps.iter().zip(pairs) {
                terms.push(mlp.map(from).mse_loss(to, tch::Reduction::Mean));
            }
        }
        Tensor::stack(&terms, 0).sum(Kind::Float) / blocks.len() as f64
    }
}

/// Initial values of the bridges, uniform in ±1/sqrt(inputs), named with `prefix`.
pub fn initial_values(
    n_layers: usize,
    d_state: usize,
    teacher_dim: usize,
    seed: u64,
    prefix: &str,
) -> Vec<(String, Tensor)> {
    let (d_state, teacher_dim) = (d_state as i64, teacher_dim as i64);
    let mut init = Init { seed, prefix, values: Vec::new() };
    for layer in 0..n_layers {
        for role in ROLES {
            for (index, inputs, outputs) in [(0, d_state, HIDDEN), (2, HIDDEN, teacher_dim)] {
                let bound = 1.0 / (inputs as f64).sqrt();
                init.uniform(&format!("{role}.{layer}.{index}.weight"), &[outputs, inputs], bound);
                init.uniform(&format!("{role}.{layer}.{index}.bias"), &[outputs], bound);
            }
        }
    }
    init.values
}
