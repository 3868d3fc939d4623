//! One training step's loss: the terms an objective asks for, weighted.

use std::collections::BTreeMap;

use cab_format::Manifest;
use cab_pipelines::description::Description;
use cab_pipelines::recipe::TrainRecipe;
use cab_pipelines::{layer_map, record};
use tch::{Kind, Tensor};

use crate::bridge::{self, Bridge, Target};
use crate::load::Batch;
use crate::loss;
use crate::params::ParamStore;
use crate::schedule;
use crate::student::vim::{self, Vim, VimOutput};

/// Student, bridges and what the recipe wants of them.
#[derive(Debug)]
pub struct Trainee {
    /// The student.
    pub model: Vim,
    bridge: Option<Bridge>,
    recipe: TrainRecipe,
    /// Teacher layers read, ascending, and for each student layer its position among them.
    teacher_layers: Vec<usize>,
    layer_to_target: Vec<usize>,
}

/// The loss of a step and its unweighted terms.
#[derive(Debug)]
pub struct StepLoss {
    /// Scalar with gradient.
    pub total: Tensor,
    /// `soft`, `bridge`, `label`: scalars.
    pub terms: BTreeMap<&'static str, Tensor>,
}

/// Initial parameter values of a run: `student.…`, and `bridge.…` when the objective has a bridge.
pub fn initial_values(recipe: &TrainRecipe, teacher_dim: usize) -> Vec<(String, Tensor)> {
    let mut values = vim::initial_values(&recipe.student, recipe.a_log_start, recipe.seed, "student.");
    if recipe.objective.has_bridge() {
        let student = &recipe.student;
        values.extend(bridge::initial_values(student.depth, student.d_state, teacher_dim, recipe.seed, "bridge."));
    }
    values
}

impl Trainee {
    /// The models of `recipe` over the parameters in `store`.
    pub fn new(recipe: &TrainRecipe, store: &ParamStore) -> Trainee {
        let has_bridge = recipe.objective.has_bridge();
        let teacher_layers = if has_bridge { layer_map::captured(&recipe.layer_map) } else { Vec::new() };
        let layer_to_target =
            recipe.layer_map.iter().filter_map(|l| teacher_layers.iter().position(|t| t == l)).collect();
        Trainee {
            model: Vim::new(&recipe.student, store, "student."),
            bridge: has_bridge.then(|| Bridge::new(recipe.student.depth, store, "bridge.")),
            recipe: recipe.clone(),
            teacher_layers,
            layer_to_target,
        }
    }

    /// Names of the cache's fields that training reads.
    pub fn fields(&self) -> Vec<String> {
        let mut fields = vec![record::INPUT.to_owned()];
        if self.recipe.objective.has_soft() {
            fields.push(record::LOGITS.to_owned());
        }
        for &layer in &self.teacher_layers {
            fields.extend([record::q_name(layer), record::k_name(layer)]);
        }
        fields
    }

    /// The terms on logits, unweighted: `soft` and `label` as the objective asks.
    pub fn logit_terms(&self, output: &VimOutput, batch: &Batch) -> BTreeMap<&'static str, Tensor> {
        let mut terms = BTreeMap::new();
        if let Some(teacher) = batch.fields.get(record::LOGITS).filter(|_| self.recipe.objective.has_soft()) {
            terms.insert("soft", loss::soft(&output.logits, teacher));
        }
        if self.recipe.label_weight > 0.0 {
            terms.insert("label", loss::label(&output.logits, &batch.labels));
        }
        terms
    }

    /// The bridge term, unweighted, when the objective has one and `step`'s weight is above 0.
    pub fn bridge_term(&self, output: &VimOutput, batch: &Batch, step: u64) -> Option<Tensor> {
        let bridge = self.bridge.as_ref().filter(|_| self.bridge_weight(step) > 0.0)?;
        let field = |name: String| match batch.fields.get(&name) {
            Some(value) => value,
            None => panic!("the loader was not asked for {name}"),
        };
        let position = self.recipe.student.class_position();
        let targets: Vec<Target> = self
            .teacher_layers
            .iter()
            .map(|&layer| {
                let (q, k) = (field(record::q_name(layer)), field(record::k_name(layer)));
                Target::new(q, k, self.recipe.kernel, position)
            })
            .collect();
        Some(bridge.loss(&output.blocks, &targets, &self.layer_to_target))
    }

    /// The weighted sum of `terms` at `step`.
    pub fn total(&self, mut terms: BTreeMap<&'static str, Tensor>, bridge: Option<Tensor>, step: u64) -> StepLoss {
        if let Some(bridge) = bridge {
            terms.insert("bridge", bridge);
        }
        let weighted: Vec<Tensor> = terms.iter().map(|(name, term)| term * self.weight(name, step)).collect();
        assert!(!weighted.is_empty(), "an objective has at least one term");
        StepLoss { total: Tensor::stack(&weighted, 0).sum(Kind::Float), terms }
    }

    /// Weight of the bridge loss at `step`.
    pub fn bridge_weight(&self, step: u64) -> f64 {
        schedule::bridge_weight(self.recipe.bridge_weight, self.recipe.bridge_schedule, step, self.recipe.steps)
    }

    fn weight(&self, term: &str, step: u64) -> f64 {
        match term {
            "label" => self.recipe.label_weight,
            "bridge" => self.bridge_weight(step),
            _ => 1.0,
        }
    }
}

/// Width of the teacher's flattened q and k, from the cache.
pub fn teacher_dim(manifest: &Manifest, description: &Description) -> usize {
    let name = description.captured_layers.first().map(|&layer| record::q_name(layer));
    let field = manifest.fields.iter().find(|field| Some(&field.name) == name.as_ref());
    field.map_or(0, |field| field.shape.iter().skip(1).product())
}
