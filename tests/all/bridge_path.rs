//! What goes wrong silently when a bridge is trained: its gradient must reach the student, and its weights must move.

use std::collections::HashMap;

use cab_pipelines::recipe::{ALogStart, BridgeSchedule, Kernel, Objective, TrainRecipe};
use cab_pipelines::record;
use cab_pipelines::student::VimConfig;
use cab_train::load::Batch;
use cab_train::objective::{Trainee, initial_values};
use cab_train::optim::{AdamW, AdamWConfig, Gradients};
use cab_train::params::ParamStore;
use cab_train::student::vim::{BlockProjections, VimOutput};
use tch::{Device, Kind, Tensor};

const TEACHER_DIM: usize = 24;

fn recipe(objective: Objective) -> TrainRecipe {
    TrainRecipe {
        cache_digest: String::new(),
        student_name: "test".into(),
        student: VimConfig {
            d_model: 16,
            depth: 3,
            d_state: 8,
            expand: 2,
            d_conv: 4,
            patch: 4,
            stride: 4,
            height: 16,
            width: 12,
            channels: 1,
            classes: 5,
        },
        objective,
        label_weight: 0.0,
        bridge_weight: 3.0,
        bridge_schedule: BridgeSchedule::Constant,
        kernel: Kernel::None,
        a_log_start: ALogStart::Bridge,
        layer_map: vec![0, 0, 1],
        steps: 10,
        batch_size: 4,
        lr: 1e-2,
        warmup_steps: 0,
        weight_decay: 0.05,
        betas: (0.9, 0.999),
        clip_norm: 0.0,
        ema: 0.0,
        drop_path: 0.0,
        seed: 3,
        fraction: 1.0,
        views: 1,
        window_bytes: 1 << 20,
    }
}

fn batch() -> Batch {
    tch::manual_seed(5);
    let random = |shape: &[i64]| Tensor::randn(shape, (Kind::Float, Device::Cpu));
    let mut fields = HashMap::from([(record::LOGITS.to_owned(), random(&[4, 5]))]);
    for layer in [0, 1] {
        fields.insert(record::q_name(layer), random(&[4, 13, 3, 8]));
        fields.insert(record::k_name(layer), random(&[4, 13, 3, 8]));
    }
    Batch { input: random(&[4, 1, 16, 12]), labels: Tensor::from_slice(&[0i64, 1, 2, 3]), fields }
}

fn optimizer(store: &ParamStore) -> AdamW {
    AdamW::new(store, AdamWConfig { betas: (0.9, 0.999), eps: 1e-8, weight_decay: 0.05, clip_norm: 0.0, ema: 0.0 })
}

/// `output` with the bridges' inputs cut off from the student.
fn cut(output: VimOutput) -> VimOutput {
    let detached = |p: &BlockProjections| BlockProjections {
        b: p.b.detach(),
        c: p.c.detach(),
        b_b: p.b_b.detach(),
        c_b: p.c_b.detach(),
    };
    VimOutput { blocks: output.blocks.iter().map(detached).collect(), logits: output.logits }
}

/// Trains five steps and returns the student's weights.
fn trained(objective: Objective, cut_bridge: bool) -> Vec<(String, Tensor)> {
    let recipe = recipe(objective);
    let store = ParamStore::new(initial_values(&recipe, TEACHER_DIM), Device::Cpu);
    let trainee = Trainee::new(&recipe, &store);
    let mut optim = optimizer(&store);
    let batch = batch();
    for step in 0..5 {
        let mut output = trainee.model.forward(&batch.input, None);
        let terms = trainee.logit_terms(&output, &batch);
        if cut_bridge {
            output = cut(output);
        }
        let loss = trainee.total(terms, trainee.bridge_term(&output, &batch, step), step);
        optim.step(&store, &Gradients::of(&loss.total, &store), recipe.lr);
    }
    store.values("student.")
}

#[test]
fn bridge_gradient_reaches_every_layers_projections_convolutions_and_input() {
    let recipe = recipe(Objective::Bridge);
    let store = ParamStore::new(initial_values(&recipe, TEACHER_DIM), Device::Cpu);
    let trainee = Trainee::new(&recipe, &store);
    let batch = batch();
    let output = trainee.model.forward(&batch.input, None);
    let loss = trainee.total(trainee.logit_terms(&output, &batch), trainee.bridge_term(&output, &batch, 0), 0);
    assert_eq!(loss.terms.keys().copied().collect::<Vec<_>>(), ["bridge"]);
    let gradients: HashMap<String, Tensor> = Gradients::of(&loss.total, &store).by_name(&store).into_iter().collect();
    for layer in 0..3 {
        for part in ["in_proj.weight", "conv1d.weight", "conv1d_b.weight", "conv1d.bias", "conv1d_b.bias"] {
            let name = format!("student.layers.{layer}.mixer.{part}");
            assert!(gradients[&name].abs().max().double_value(&[]) > 0.0, "{name}");
        }
        for part in ["x_proj.weight", "x_proj_b.weight"] {
            // Rows: dt_rank = 1, then b, then c; the bridge speaks to each row of b and c.
            let rows =
                gradients[&format!("student.layers.{layer}.mixer.{part}")].narrow(0, 1, 16).abs().amax([1], false);
            assert!(rows.min().double_value(&[]) > 0.0, "{part} of layer {layer}");
        }
    }
    for (name, gradient) in gradients.iter().filter(|(name, _)| name.starts_with("bridge.")) {
        assert!(gradient.abs().max().double_value(&[]) > 0.0, "{name}");
    }
    // The head is not part of this objective.
    assert_eq!(gradients["student.head.weight"].abs().max().double_value(&[]), 0.0);
}

#[test]
fn cut_bridge_equals_soft_distillation_bit_for_bit_and_an_uncut_one_does_not() {
    let soft = trained(Objective::Soft, false);
    let cut = trained(Objective::Cab, true);
    let cab = trained(Objective::Cab, false);
    let mut moved = 0;
    for (((name, soft), (_, cut)), (_, cab)) in soft.iter().zip(&cut).zip(&cab) {
        assert_eq!(soft, cut, "{name}");
        moved += usize::from(soft != cab);
    }
    assert!(moved > soft.len() / 2, "the bridge changed {moved} of {} tensors", soft.len());
}

#[test]
fn bridge_weights_are_trained() {
    let recipe = recipe(Objective::Cab);
    let store = ParamStore::new(initial_values(&recipe, TEACHER_DIM), Device::Cpu);
    let before = store.values("bridge.");
    assert_eq!(before.len(), 3 * 4 * 4);
    let trainee = Trainee::new(&recipe, &store);
    let batch = batch();
    let output = trainee.model.forward(&batch.input, None);
    let loss = trainee.total(trainee.logit_terms(&output, &batch), trainee.bridge_term(&output, &batch, 0), 0);
    optimizer(&store).step(&store, &Gradients::of(&loss.total, &store), 1e-2);
    for ((name, before), (_, after)) in before.iter().zip(store.values("bridge.")) {
        assert_ne!(*before, after, "{name}");
    }
}

#[test]
fn stopped_bridge_schedule_leaves_the_term_out() {
    let mut recipe = recipe(Objective::Cab);
    recipe.bridge_schedule = BridgeSchedule::Stop { after: 0.5 };
    let store = ParamStore::new(initial_values(&recipe, TEACHER_DIM), Device::Cpu);
    let trainee = Trainee::new(&recipe, &store);
    let batch = batch();
    let output = trainee.model.forward(&batch.input, None);
    assert!(trainee.bridge_term(&output, &batch, 4).is_some());
    assert!(trainee.bridge_term(&output, &batch, 5).is_none());
}
