//! Every formula against the reference numbers in `fixtures/parity` (or `$CAB_PARITY_DIR`).

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::PathBuf;

use cab_extract::teacher::vit::Vit;
use cab_pipelines::recipe::{ALogStart, BridgeSchedule, Kernel, Objective, Precision, TrainRecipe};
use cab_pipelines::student::VimConfig;
use cab_pipelines::teacher::VitConfig;
use cab_pipelines::{layer_map, record};
use cab_train::load::Batch;
use cab_train::objective::Trainee;
use cab_train::optim::{AdamW, AdamWConfig, Gradients};
use cab_train::params::ParamStore;
use tch::{Device, Kind, Tensor};

use crate::support::{assert_close, fixtures, read_safetensors};

const FORWARD: f64 = 1e-5;
const GRADIENT: f64 = 1e-4;
const LATER_STEPS: f64 = 1e-4;

/// One reference file.
struct Reference {
    name: String,
    tensors: BTreeMap<String, Tensor>,
    metadata: HashMap<String, String>,
}

impl Reference {
    fn number(&self, key: &str) -> usize {
        self.metadata[key].parse().unwrap_or_else(|_| panic!("{}: {key} is no number", self.name))
    }

    fn get(&self, key: &str) -> &Tensor {
        self.tensors.get(key).unwrap_or_else(|| panic!("{} has no {key}", self.name))
    }

    /// The tensors under `prefix`, the prefix removed.
    fn under(&self, prefix: &str) -> HashMap<String, Tensor> {
        let stripped =
            |(name, value): (&String, &Tensor)| Some((name.strip_prefix(prefix)?.to_owned(), value.shallow_clone()));
        self.tensors.iter().filter_map(stripped).collect()
    }

    fn teacher_config(&self) -> VitConfig {
        let weights = self.under("weight.teacher.");
        let shape = |name: &str| weights.get(name).map(|t| t.size().iter().map(|&n| n as usize).collect());
        let config = VitConfig::infer(shape, Some(self.number("teacher_heads"))).expect("a plain ViT");
        assert_eq!(config.depth, self.number("teacher_depth"));
        assert_eq!(config.embed_dim, self.number("teacher_embed_dim"));
        config
    }

    fn recipe(&self) -> TrainRecipe {
        let depth = self.number("student_depth");
        let size = self.number("img_size");
        TrainRecipe {
            cache_digest: String::new(),
            student_name: "reference".into(),
            student: VimConfig {
                d_model: self.number("student_embed_dim"),
                depth,
                d_state: self.number("d_state"),
                expand: 2,
                d_conv: 4,
                patch: self.number("patch_size"),
                stride: self.number("patch_size"),
                height: size,
                width: size,
                channels: self.get("input").size()[1] as usize,
                classes: self.number("num_classes"),
            },
            objective: Objective::Cab,
            label_weight: 0.0,
            bridge_weight: self.metadata["alignment_weight"].parse().expect("a weight"),
            bridge_schedule: BridgeSchedule::Constant,
            kernel: match self.metadata["kernel_type"].as_str() {
                "none" => Kernel::None,
                "softmax" => Kernel::Softmax,
                "relu" => Kernel::Relu,
                "exp" => Kernel::Exp,
                other => panic!("kernel {other}"),
            },
            a_log_start: ALogStart::Bridge,
            layer_map: layer_map::proportional(depth, self.number("teacher_depth")),
            steps: 5,
            batch_size: 2,
            lr: 1e-3,
            warmup_steps: 0,
            weight_decay: 0.05,
            betas: (0.9, 0.999),
            clip_norm: 0.0,
            ema: 0.0,
            drop_path: 0.0,
            seed: 0,
            fraction: 1.0,
            views: 1,
            window_bytes: 1 << 20,
        }
    }

    fn store(&self) -> ParamStore {
        let mut values = Vec::new();
        for (from, to) in [("weight.student.", "student."), ("weight.aligner.", "bridge.")] {
            values.extend(self.under(from).into_iter().map(|(name, value)| (format!("{to}{name}"), value)));
        }
        ParamStore::new(values, Device::Cpu)
    }

    /// The teacher's outputs as a batch of the cache, after comparing them with the file's.
    fn teacher_batch(&self) -> Batch {
        let config = self.teacher_config();
        let teacher =
            Vit::new(&config, &self.under("weight.teacher."), Precision::F32, Device::Cpu).expect("whole weights");
        let layers: Vec<usize> = (0..config.depth).collect();
        let captured = tch::no_grad(|| teacher.forward_normalised(self.get("input"), &layers));
        let mut fields = HashMap::new();
        for (layer, (q, k)) in captured.q.iter().zip(&captured.k).enumerate() {
            for (letter, found, name) in [("q", q, record::q_name(layer)), ("k", k, record::k_name(layer))] {
                let expect = self.get(&format!("expect.teacher.{letter}.{layer}"));
                assert_close(
                    &found.transpose(1, 2),
                    expect,
                    FORWARD,
                    &format!("{} teacher {letter} {layer}", self.name),
                );
                fields.insert(name, found.shallow_clone());
            }
        }
        assert_close(
            &captured.logits,
            self.get("expect.teacher.logits"),
            FORWARD,
            &format!("{} teacher logits", self.name),
        );
        fields.insert(record::LOGITS.to_owned(), captured.logits);
        let labels = Tensor::zeros([self.get("input").size()[0]], (Kind::Int64, Device::Cpu));
        Batch { input: self.get("input").shallow_clone(), labels, fields }
    }
}

fn references() -> Vec<Reference> {
    let folder = std::env::var_os("CAB_PARITY_DIR").map_or_else(|| fixtures().join("parity"), PathBuf::from);
    let mut found: Vec<Reference> = fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("vision_") && name.ends_with(".safetensors")
        })
        .map(|path| {
            let (tensors, metadata) = read_safetensors(&path);
            Reference { name: path.file_stem().expect("a name").to_string_lossy().into_owned(), tensors, metadata }
        })
        .collect();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    assert!(!found.is_empty(), "{} holds no vision_*.safetensors", folder.display());
    found
}

#[test]
fn parity_teacher_q_k_and_logits() {
    for reference in references() {
        let batch = reference.teacher_batch();
        assert_eq!(batch.fields.len(), 2 * reference.number("teacher_depth") + 1);
    }
}

#[test]
fn parity_student_b_c_and_logits() {
    for reference in references() {
        let store = reference.store();
        let trainee = Trainee::new(&reference.recipe(), &store);
        let output = tch::no_grad(|| trainee.model.forward(reference.get("input"), None));
        assert_close(
            &output.logits,
            reference.get("expect.student.logits"),
            FORWARD,
            &format!("{} logits", reference.name),
        );
        assert_eq!(output.blocks.len(), reference.number("student_depth"));
        for (layer, block) in output.blocks.iter().enumerate() {
            // The reference keeps the backward scan's projections in its own, reversed token order.
            let found = [
                ("B", block.b.copy()),
                ("C", block.c.copy()),
                ("B_b", block.b_b.flip([1])),
                ("C_b", block.c_b.flip([1])),
            ];
            for (letter, found) in found {
                let expect = reference.get(&format!("expect.student.{letter}.{layer}"));
                assert_close(&found, expect, FORWARD, &format!("{} {letter} {layer}", reference.name));
            }
        }
    }
}

#[test]
fn parity_losses_gradients_and_five_optimizer_steps() {
    for reference in references() {
        let recipe = reference.recipe();
        let store = reference.store();
        let trainee = Trainee::new(&recipe, &store);
        let batch = reference.teacher_batch();
        let config =
            AdamWConfig { betas: recipe.betas, eps: 1e-8, weight_decay: recipe.weight_decay, clip_norm: 0.0, ema: 0.0 };
        let mut optim = AdamW::new(&store, config);
        let steps = reference.get("expect.loss.total").size()[0];
        assert!(steps >= 5);
        for step in 0..steps {
            let output = trainee.model.forward(&batch.input, None);
            let terms = trainee.logit_terms(&output, &batch);
            let loss = trainee.total(terms, trainee.bridge_term(&output, &batch, 0), 0);
            for (name, found) in
                [("soft", &loss.terms["soft"]), ("distill", &loss.terms["bridge"]), ("total", &loss.total)]
            {
                let expect = reference.get(&format!("expect.loss.{name}")).get(step);
                let tolerance = if step == 0 { FORWARD } else { LATER_STEPS };
                assert_close(&found.detach(), &expect, tolerance, &format!("{} {name} at step {step}", reference.name));
            }
            let gradients = Gradients::of(&loss.total, &store);
            if step == 0 {
                let named = gradients.by_name(&store);
                let expected = reference.under("expect.grad.");
                assert_eq!(named.len(), expected.len(), "{}: every parameter has its gradient", reference.name);
                for (name, found) in &named {
                    let key = name.replace("bridge.", "aligner.");
                    assert_close(found, &expected[&key], GRADIENT, &format!("{} gradient of {name}", reference.name));
                }
            }
            optim.step(&store, &gradients, recipe.lr);
        }
    }
}
