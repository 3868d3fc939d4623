//! A training run on one screen: cache → order → batches → student → bridge → loss → update → checkpoint.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use cab_format::{Cache, Split};
use cab_pipelines::description::Description;
use cab_pipelines::recipe::TrainRecipe;
use indicatif::{ProgressBar, ProgressStyle};
use tch::Device;

use crate::checkpoint::{self, State};
use crate::cli::{TrainArgs, device};
use crate::eval;
use crate::load::{Loader, normalise};
use crate::metrics::{Meter, MetricsWriter};
use crate::objective::{Trainee, initial_values, teacher_dim};
use crate::optim::{AdamW, AdamWConfig, Gradients};
use crate::order::Order;
use crate::params::ParamStore;
use crate::schedule::learning_rate;
use crate::student::vim::DropPath;

/// How a run ended.
#[derive(Debug)]
pub enum Outcome {
    /// All steps were made; the metrics of the last evaluation, if the cache can evaluate.
    Done {
        /// The run directory.
        out: PathBuf,
        /// Metrics of the last evaluation.
        metrics: Option<BTreeMap<String, f64>>,
    },
    /// Stopped at a step on request, with a checkpoint.
    Stopped {
        /// The run directory.
        out: PathBuf,
        /// Updates made.
        step: u64,
    },
}

/// Trains the student that `args` ask for, or continues the run that its directory holds.
///
/// `stop` is looked at after each step.
///
/// # Errors
/// When the cache cannot be read, a setting does not suit it, a file cannot be written, or a loss is not finite.
pub fn train(args: &TrainArgs, stop: &AtomicBool) -> Result<Outcome> {
    let device = device(args.device)?;
    let cache = Arc::new(Cache::open(&args.cache)?);
    let description = Description::from_map(&cache.manifest().about)?;
    let recipe = args.recipe(cache.manifest(), &description)?;
    let out = args.out.clone().unwrap_or_else(|| {
        PathBuf::from(format!("runs/{}-{}-{}", recipe.student_name, recipe.objective.name(), recipe.seed))
    });
    let resumed = prepare(&out, &recipe, args.overwrite)?;
    if args.threads.is_none() && is_small(&recipe) {
        tch::set_num_threads(1);
    }

    let store = ParamStore::new(initial_values(&recipe, teacher_dim(cache.manifest(), &description)), device);
    let trainee = Trainee::new(&recipe, &store);
    let mut optim = AdamW::new(&store, adamw(&recipe));
    let mut meter = Meter::default();
    let mut start = 0;
    if let Some(path) = &resumed {
        let state = checkpoint::read_state(path)?;
        checkpoint::restore(path, &state, &store, &mut optim).with_context(|| format!("{}", path.display()))?;
        (start, meter) = (state.step, state.meter);
    }

    let window = recipe.window_bytes as usize;
    let loader = Loader::new(Arc::clone(&cache), Split::Train, &trainee.fields(), 2 * window, device);
    let order = Order::new(cache.locations(Split::Train), &recipe, loader.record_bytes());
    ensure!(!order.is_empty(), "--fraction {} of this cache selects no record", recipe.fraction);
    announce(&args.cache, &out, &recipe, &order, &store, device, start);

    let can_evaluate = cache.locations(Split::Val).iter().any(|location| location.label.is_some());
    let tenth = (recipe.steps / 10).max(1);
    let eval_every = args.eval_every.unwrap_or(tenth).max(1);
    let checkpoint_every = args.checkpoint_every.unwrap_or(tenth).max(1);
    let last_step = args.stop_at.unwrap_or(recipe.steps).min(recipe.steps);
    let mut metrics = MetricsWriter::open(&out, start)?;
    let progress = progress_bar(recipe.steps, start);
    let batches = order.batches(start, recipe.batch_size).take((last_step.saturating_sub(start)) as usize);
    let mut batches = loader.stream(batches, 3);
    let mut evaluated = None;
    let mut last_good = resumed;
    let (mut data_secs, started) = (0.0, Instant::now());

    let mut step = start;
    while step < last_step {
        let mut clock = Clock::start();
        let batch = batches.next().context("the stream of batches ended early")??;
        let images = normalise(&batch.input, &description.teacher.config.mean, &description.teacher.config.std);
        data_secs += clock.lap(&mut meter, "secs_data");
        let drop_path = DropPath { rate: recipe.drop_path, seed: recipe.seed, step };
        let output = trainee.model.forward(&images, Some(drop_path));
        let terms = trainee.logit_terms(&output, &batch);
        clock.lap(&mut meter, "secs_forward");
        let bridge = trainee.bridge_term(&output, &batch, step);
        let loss = trainee.total(terms, bridge, step);
        clock.lap(&mut meter, "secs_bridge");
        let values = finite_terms(&loss, step, last_good.as_deref())?;
        let gradients = Gradients::of(&loss.total, &store);
        clock.lap(&mut meter, "secs_backward");
        let lr = learning_rate(recipe.lr, step, recipe.warmup_steps, recipe.steps);
        let grad_norm = optim.step(&store, &gradients, lr);
        clock.lap(&mut meter, "secs_optimizer");
        ensure!(
            grad_norm.is_finite(),
            "the gradient's norm is {grad_norm} at step {step}: {}",
            advice(last_good.as_deref())
        );

        meter.step();
        values.iter().for_each(|(name, value)| meter.add(name, *value));
        meter.add("grad_norm", grad_norm);
        meter.add("lr", lr);
        step += 1;
        progress.set_position(step);
        let stopping = stop.load(Ordering::Relaxed) || step == last_step;
        if step.is_multiple_of(args.log_every.max(1)) || step == recipe.steps {
            let elapsed = started.elapsed().as_secs_f64();
            let images_per_sec = (step - start) as f64 * recipe.batch_size as f64 / elapsed;
            progress.set_message(message(&values, images_per_sec, data_secs / elapsed));
            metrics.write(step, "train", &meter.take())?;
        }
        if can_evaluate && (step.is_multiple_of(eval_every) || step == recipe.steps) {
            let values = optim.with_average(&store, || {
                eval::evaluate(&trainee.model, &cache, &description, recipe.batch_size.max(128), device)
            })?;
            metrics.write(step, "val", &values)?;
            progress.println(format!("step {step}: val top-1 {:.2} %, loss {:.4}", values["top1"], values["loss"]));
            if progress.is_hidden() {
                eprintln!(
                    "step {step}/{}: val top-1 {:.2} %, loss {:.4}",
                    recipe.steps, values["top1"], values["loss"]
                );
            }
            evaluated = Some(values);
        }
        if step.is_multiple_of(checkpoint_every) || stopping {
            let state = state_at(step, &order, &recipe, &meter);
            last_good = Some(checkpoint::write(&out, state, &store, &optim, args.keep)?);
        }
        if stopping {
            break;
        }
    }
    progress.finish_and_clear();
    if step < recipe.steps {
        return Ok(Outcome::Stopped { out, step });
    }
    if evaluated.is_none() && can_evaluate {
        let batch_size = recipe.batch_size.max(128);
        let evaluation = || eval::evaluate(&trainee.model, &cache, &description, batch_size, device);
        evaluated = Some(optim.with_average(&store, evaluation)?);
    }
    Ok(Outcome::Done { out, metrics: evaluated })
}

/// Whether libtorch's operations are so short that waking a second thread costs more than it does (vim-nano: 1.6 x a step);
/// the scan keeps its threads.
fn is_small(recipe: &TrainRecipe) -> bool {
    recipe.batch_size * recipe.student.tokens() * recipe.student.d_model < 1 << 18
}

fn adamw(recipe: &TrainRecipe) -> AdamWConfig {
    AdamWConfig {
        betas: recipe.betas,
        eps: 1e-8,
        weight_decay: recipe.weight_decay,
        clip_norm: recipe.clip_norm,
        ema: recipe.ema,
    }
}

/// Makes the run directory, or finds the checkpoint to continue from when it holds the same run.
fn prepare(out: &Path, recipe: &TrainRecipe, overwrite: bool) -> Result<Option<PathBuf>> {
    let config = out.join("config.json");
    if overwrite && config.exists() {
        fs::remove_dir_all(out).with_context(|| format!("removing {}", out.display()))?;
    }
    if config.exists() {
        let text = fs::read_to_string(&config).with_context(|| format!("reading {}", config.display()))?;
        let found: TrainRecipe = serde_json::from_str(&text).with_context(|| {
            format!("{} is no recipe of this version; use another --out or --overwrite", config.display())
        })?;
        if found.digest() != recipe.digest() {
            bail!(
                "{} holds another run: {}; use another --out, or --overwrite to discard it",
                out.display(),
                difference(&found, recipe)
            );
        }
        return Ok(checkpoint::list(out)?.pop());
    }
    let empty =
        !out.exists() || fs::read_dir(out).with_context(|| format!("reading {}", out.display()))?.next().is_none();
    ensure!(empty, "{} is not empty and holds no run: use another --out", out.display());
    fs::create_dir_all(out).with_context(|| format!("creating {}", out.display()))?;
    fs::write(&config, serde_json::to_string_pretty(recipe)? + "\n")
        .with_context(|| format!("writing {}", config.display()))?;
    Ok(None)
}

/// The settings in which two recipes differ, as `name: old → new`.
fn difference(found: &TrainRecipe, asked: &TrainRecipe) -> String {
    let (found, asked) = (serde_json::json!(found), serde_json::json!(asked));
    let fields = found.as_object().into_iter().flatten();
    let changed: Vec<String> = fields
        .filter(|(name, value)| asked.get(name.as_str()) != Some(value))
        .map(|(name, value)| {
            format!("{name} was {value}, is {}", asked.get(name.as_str()).unwrap_or(&serde_json::Value::Null))
        })
        .collect();
    changed.join("; ")
}

/// The loss terms as numbers, `loss` being the total.
fn finite_terms(
    loss: &crate::objective::StepLoss,
    step: u64,
    last_good: Option<&Path>,
) -> Result<BTreeMap<&'static str, f64>> {
    let mut values: BTreeMap<&'static str, f64> =
        loss.terms.iter().map(|(name, term)| (*name, term.double_value(&[]))).collect();
    for (name, value) in &values {
        ensure!(value.is_finite(), "the {name} term of the loss is {value} at step {step}: {}", advice(last_good));
    }
    let total = loss.total.double_value(&[]);
    ensure!(total.is_finite(), "the loss is {total} at step {step}: {}", advice(last_good));
    values.insert("loss", total);
    Ok(values)
}

fn advice(last_good: Option<&Path>) -> String {
    match last_good {
        Some(path) => format!("the last good checkpoint is {}; a lower --lr or --clip-norm may help", path.display()),
        None => "no checkpoint was written yet; a lower --lr or --clip-norm may help".into(),
    }
}

fn state_at(step: u64, order: &Order<'_>, recipe: &TrainRecipe, meter: &Meter) -> State {
    let records = step * recipe.batch_size as u64;
    State {
        step,
        epoch: records / order.len() as u64,
        position: records % order.len() as u64,
        cache_digest: recipe.cache_digest.clone(),
        recipe_digest: recipe.digest(),
        recipe: recipe.clone(),
        meter: meter.clone(),
        files: BTreeMap::new(),
    }
}

/// Says what was chosen, on stderr.
fn announce(
    cache: &Path,
    out: &Path,
    recipe: &TrainRecipe,
    order: &Order<'_>,
    store: &ParamStore,
    device: Device,
    start: u64,
) {
    let student = &recipe.student;
    eprintln!(
        "cab-train: {} ({} x {}, d_state {}, patch {}, {:.2} M parameters), objective {}, seed {}",
        recipe.student_name,
        student.depth,
        student.d_model,
        student.d_state,
        student.patch,
        store.count("student.") as f64 / 1e6,
        recipe.objective.name(),
        recipe.seed
    );
    let epochs = recipe.steps as f64 * recipe.batch_size as f64 / order.len() as f64;
    eprintln!(
        "cab-train: {} steps of {} records ({epochs:.1} epochs of {}), peak lr {}, on {device:?}, {} threads, scan {} on {}",
        recipe.steps,
        recipe.batch_size,
        order.len(),
        recipe.lr,
        tch::get_num_threads(),
        cab_kernels::simd_level(),
        rayon::current_num_threads()
    );
    if recipe.objective.has_bridge() {
        eprintln!(
            "cab-train: bridge weight {} ({:?}), kernel {:?}, layer map {:?}",
            recipe.bridge_weight, recipe.bridge_schedule, recipe.kernel, recipe.layer_map
        );
    }
    let from = if start > 0 { format!(", continuing at step {start}") } else { String::new() };
    eprintln!("cab-train: {} → {}{from}", cache.display(), out.display());
}

fn progress_bar(steps: u64, start: u64) -> ProgressBar {
    let bar = ProgressBar::new(steps);
    let style = "{bar:24} {pos}/{len} steps, {msg}, {eta} left";
    bar.set_style(ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.set_position(start);
    bar.reset_eta();
    bar
}

fn message(values: &BTreeMap<&'static str, f64>, images_per_sec: f64, wait_share: f64) -> String {
    let terms: Vec<String> = values.iter().map(|(name, value)| format!("{name} {value:.3}")).collect();
    format!("{}, {images_per_sec:.0} images/s, {:.1} % waiting for data", terms.join(" "), 100.0 * wait_share)
}

/// Splits a step's time by part.
struct Clock(Instant);

impl Clock {
    fn start() -> Clock {
        Clock(Instant::now())
    }

    /// Adds the seconds since the last lap to the meter's `name`, and returns them.
    fn lap(&mut self, meter: &mut Meter, name: &str) -> f64 {
        let now = Instant::now();
        let secs = now.duration_since(self.0).as_secs_f64();
        self.0 = now;
        meter.add(name, secs);
        secs
    }
}
