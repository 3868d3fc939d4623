//! AdamW over the flat buffers of a [`ParamStore`], with gradient clipping and an optional moving average of the weights.

use anyhow::{Context, Result, ensure};
use tch::{Kind, Tensor};

use crate::params::ParamStore;

/// Constants of AdamW.
#[derive(Debug, Clone, Copy)]
pub struct AdamWConfig {
    /// Decay rates of the first and second moment.
    pub betas: (f64, f64),
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay of the decaying group.
    pub weight_decay: f64,
    /// Largest allowed global gradient norm; 0 turns clipping off.
    pub clip_norm: f64,
    /// Decay of the moving average of the weights; 0 keeps none.
    pub ema: f64,
}

/// State of one parameter group.
#[derive(Debug)]
struct Moments {
    first: Tensor,
    second: Tensor,
    ema: Option<Tensor>,
}

/// AdamW with decoupled weight decay.
///
/// # Source
/// Loshchilov & Hutter, arXiv 1711.05101, algorithm 2, in PyTorch's order of operations.
#[derive(Debug)]
pub struct AdamW {
    config: AdamWConfig,
    moments: Vec<Moments>,
    step: u64,
}

impl AdamW {
    /// An optimizer at step 0 for `store`.
    pub fn new(store: &ParamStore, config: AdamWConfig) -> AdamW {
        let moments = store
            .groups()
            .iter()
            .map(|group| Moments {
                first: group.flat.zeros_like(),
                second: group.flat.zeros_like(),
                ema: (config.ema > 0.0).then(|| group.flat.copy()),
            })
            .collect();
        AdamW { config, moments, step: 0 }
    }

    /// Number of updates made.
    pub fn steps(&self) -> u64 {
        self.step
    }

    /// Updates every parameter of `store` with `grads`; returns the gradient's norm before clipping.
    pub fn step(&mut self, store: &ParamStore, grads: &Gradients, lr: f64) -> f64 {
        let AdamWConfig { betas: (beta1, beta2), eps, weight_decay, clip_norm, ema } = self.config;
        self.step += 1;
        let correction1 = 1.0 - beta1.powf(self.step as f64);
        let correction2 = 1.0 - beta2.powf(self.step as f64);
        tch::no_grad(|| {
            let norm = grads.norm();
            let scale = if clip_norm > 0.0 && norm > clip_norm { clip_norm / norm } else { 1.0 };
            for ((group, moments), grad) in store.groups().iter().zip(&mut self.moments).zip(&grads.flat) {
                let grad = if scale == 1.0 { grad.shallow_clone() } else { grad * scale };
                let mut flat = group.flat.shallow_clone();
                if group.decay && weight_decay > 0.0 {
                    flat *= 1.0 - lr * weight_decay;
                }
                let _ = moments.first.lerp_(&grad, 1.0 - beta1);
                let _ = moments.second.lerp_(&(&grad * &grad), 1.0 - beta2);
                let mut denominator = moments.second.sqrt();
                denominator /= correction2.sqrt();
                denominator += eps;
                flat -= &moments.first / denominator * (lr / correction1);
                if let Some(average) = &mut moments.ema {
                    let _ = average.lerp_(&flat, 1.0 - ema);
                }
            }
            norm
        })
    }

    /// Runs `body` with the averaged weights in place of the trained ones, when an average is kept.
    pub fn with_average<T>(&self, store: &ParamStore, body: impl FnOnce() -> T) -> T {
        let swap = |from_average: bool, kept: &[Tensor]| {
            tch::no_grad(|| {
                for ((group, moments), kept) in store.groups().iter().zip(&self.moments).zip(kept) {
                    if let Some(average) = &moments.ema {
                        group.flat.shallow_clone().copy_(if from_average { average } else { kept });
                    }
                }
            });
        };
        if self.config.ema <= 0.0 {
            return body();
        }
        let kept: Vec<Tensor> = store.groups().iter().map(|group| group.flat.copy()).collect();
        swap(true, &kept);
        let result = body();
        swap(false, &kept);
        result
    }

    /// The state as named tensors: flat moments (and averages) of both groups.
    pub fn state(&self) -> Vec<(String, Tensor)> {
        let mut state = Vec::new();
        for (index, moments) in self.moments.iter().enumerate() {
            state.push((format!("{index}.first"), moments.first.copy()));
            state.push((format!("{index}.second"), moments.second.copy()));
            if let Some(average) = &moments.ema {
                state.push((format!("{index}.ema"), average.copy()));
            }
        }
        state
    }

    /// Takes up a state written by [`AdamW::state`] after `step` updates.
    ///
    /// # Errors
    /// When a tensor is missing or has another size than this configuration's.
    pub fn load(&mut self, state: Vec<(String, Tensor)>, step: u64) -> Result<()> {
        let state: std::collections::BTreeMap<String, Tensor> = state.into_iter().collect();
        let fill = |name: String, into: &mut Tensor| -> Result<()> {
            let value = state.get(&name).with_context(|| format!("optimizer state {name} is missing"))?;
            ensure!(
                value.size() == into.size() && value.kind() == Kind::Float,
                "optimizer state {name} has shape {:?}, the configuration makes it {:?}",
                value.size(),
                into.size()
            );
            into.copy_(value);
            Ok(())
        };
        for (index, moments) in self.moments.iter_mut().enumerate() {
            fill(format!("{index}.first"), &mut moments.first)?;
            fill(format!("{index}.second"), &mut moments.second)?;
            if let Some(average) = &mut moments.ema {
                fill(format!("{index}.ema"), average)?;
            }
        }
        self.step = step;
        Ok(())
    }
}

/// The gradient of a loss with respect to every parameter, in the layout of the store's flat buffers.
#[derive(Debug)]
pub struct Gradients {
    flat: Vec<Tensor>,
}

impl Gradients {
    /// Backpropagates `loss`; parameters it does not depend on get zeros.
    pub fn of(loss: &Tensor, store: &ParamStore) -> Gradients {
        let params: Vec<&Tensor> = store.iter().map(|param| &param.tensor).collect();
        let mut grads = Tensor::run_backward(&[loss], &params, false, false).into_iter();
        let flat = store
            .groups()
            .iter()
            .map(|group| {
                let pieces: Vec<Tensor> = group
                    .params
                    .iter()
                    .zip(&mut grads)
                    .map(|(param, grad)| if grad.defined() { grad } else { param.tensor.zeros_like() }.reshape([-1]))
                    .collect();
                if pieces.is_empty() { group.flat.zeros_like() } else { Tensor::cat(&pieces, 0) }
            })
            .collect();
        Gradients { flat }
    }

    /// Euclidean norm over all parameters.
    pub fn norm(&self) -> f64 {
        self.flat.iter().map(|flat| (flat * flat).sum(Kind::Double).double_value(&[])).sum::<f64>().sqrt()
    }

    /// Copies of the gradients by parameter name.
    pub fn by_name(&self, store: &ParamStore) -> Vec<(String, Tensor)> {
        let mut named = Vec::new();
        for (group, flat) in store.groups().iter().zip(&self.flat) {
            let mut start = 0;
            for param in &group.params {
                let elements = param.tensor.numel() as i64;
                named.push((param.name.clone(), flat.narrow(0, start, elements).view(param.tensor.size().as_slice())));
                start += elements;
            }
        }
        named
    }
}
