//! Every trained tensor by name, laid out in two flat buffers so that the optimizer is a handful of vector operations.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use tch::{Device, Kind, Tensor};

/// One trained tensor.
#[derive(Debug)]
pub struct Param {
    /// Full name, `student.…` or `bridge.…`.
    pub name: String,
    /// Leaf tensor with gradient; its memory is a piece of the group's flat buffer.
    pub tensor: Tensor,
}

/// Parameters that share their weight decay.
#[derive(Debug)]
pub struct Group {
    /// Whether decoupled weight decay applies.
    pub decay: bool,
    /// The parameters in name order.
    pub params: Vec<Param>,
    /// All their values, one behind the other, `[elements]` f32.
    pub flat: Tensor,
}

/// All trained tensors of a run: student and bridges.
#[derive(Debug)]
pub struct ParamStore {
    groups: [Group; 2],
}

/// Whether weight decay applies to a parameter: matrices and larger, but not positions and the class token.
pub fn decays(name: &str, dim: usize) -> bool {
    dim >= 2 && !name.ends_with("pos_embed") && !name.ends_with("cls_token")
}

impl ParamStore {
    /// A store that holds copies of `values` on `device`.
    pub fn new(values: Vec<(String, Tensor)>, device: Device) -> ParamStore {
        let sorted: BTreeMap<String, Tensor> = values.into_iter().collect();
        let group = |decay: bool| {
            let members: Vec<(&String, &Tensor)> =
                sorted.iter().filter(|(name, value)| decays(name, value.dim()) == decay).collect();
            tch::no_grad(|| {
                let pieces: Vec<Tensor> = members
                    .iter()
                    .map(|(_, value)| value.to_kind(Kind::Float).to_device(device).reshape([-1]))
                    .collect();
                let flat =
                    if pieces.is_empty() { Tensor::zeros([0], (Kind::Float, device)) } else { Tensor::cat(&pieces, 0) };
                let mut start = 0;
                let params = members
                    .iter()
                    .map(|(name, value)| {
                        let elements = value.numel() as i64;
                        let view = flat.narrow(0, start, elements).view(value.size().as_slice());
                        start += elements;
                        Param { name: (*name).clone(), tensor: view.detach().set_requires_grad(true) }
                    })
                    .collect();
                Group { decay, params, flat }
            })
        };
        ParamStore { groups: [group(true), group(false)] }
    }

    /// The two groups: with weight decay, without.
    pub fn groups(&self) -> &[Group; 2] {
        &self.groups
    }

    /// Every parameter, group by group.
    pub fn iter(&self) -> impl Iterator<Item = &Param> {
        self.groups.iter().flat_map(|group| &group.params)
    }

    /// The parameter `name`, sharing memory with the store.
    ///
    /// # Panics
    /// When there is none: the model's code and its initialisation disagree.
    pub fn get(&self, name: &str) -> Tensor {
        match self.iter().find(|param| param.name == name) {
            Some(param) => param.tensor.shallow_clone(),
            None => panic!("no parameter is named {name}"),
        }
    }

    /// Number of trained scalars under `prefix`.
    pub fn count(&self, prefix: &str) -> usize {
        self.iter().filter(|param| param.name.starts_with(prefix)).map(|param| param.tensor.numel()).sum()
    }

    /// Copies of the values under `prefix`, the prefix removed, in name order.
    pub fn values(&self, prefix: &str) -> Vec<(String, Tensor)> {
        let mut values: Vec<(String, Tensor)> = self
            .iter()
            .filter_map(|param| Some((param.name.strip_prefix(prefix)?.to_owned(), param.tensor.detach().copy())))
            .collect();
        values.sort_by(|a, b| a.0.cmp(&b.0));
        values
    }

    /// Overwrites the parameters under `prefix` with `values`.
    ///
    /// # Errors
    /// When a parameter is missing among `values`, has another shape, or a value belongs to no parameter.
    pub fn load(&self, prefix: &str, values: Vec<(String, Tensor)>) -> Result<()> {
        let mut values: BTreeMap<String, Tensor> = values.into_iter().collect();
        for param in self.iter() {
            let Some(name) = param.name.strip_prefix(prefix) else { continue };
            let value = values.remove(name).with_context(|| format!("{name} is missing"))?;
            ensure!(
                value.size() == param.tensor.size(),
                "{name} has shape {:?}, the configuration makes it {:?}",
                value.size(),
                param.tensor.size()
            );
            tch::no_grad(|| param.tensor.shallow_clone().copy_(&value));
        }
        if let Some(name) = values.keys().next() {
            bail!("{name} belongs to no parameter of this configuration");
        }
        Ok(())
    }
}
