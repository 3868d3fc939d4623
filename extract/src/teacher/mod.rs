//! Teachers: where their weights come from and what a forward pass captures.

pub mod vit;
pub mod weights;

use tch::Tensor;

/// What one forward pass of a batch captures.
#[derive(Debug)]
pub struct Captured {
    /// Queries of each captured layer, ascending, `[batch, len, heads, head_dim]`, before scaling.
    pub q: Vec<Tensor>,
    /// Keys of each captured layer, `[batch, len, heads, head_dim]`.
    pub k: Vec<Tensor>,
    /// `[batch, classes]`, f32.
    pub logits: Tensor,
}
