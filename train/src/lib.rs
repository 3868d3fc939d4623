//! Training of Mamba students from a sealed cache: manifest → order → batches → student → bridge → loss → checkpoint → report.
//!
//! [`run::train`] is the whole on one screen. This crate knows nothing of the teacher's code: all it has of the teacher is
//! in the cache.

#![allow(clippy::print_stdout, reason = "stdout carries the result of a command; progress goes to stderr")]

pub mod bridge;
pub mod checkpoint;
pub mod cli;
pub mod doctor;
pub mod eval;
pub mod load;
pub mod loss;
pub mod metrics;
pub mod objective;
pub mod optim;
pub mod order;
pub mod params;
pub mod report;
pub mod run;
pub mod schedule;
pub mod student;
pub mod tensor;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result, bail, ensure};
use cab_format::Cache;
use cab_pipelines::description::Description;
use clap::Parser;
use serde_json::json;

use crate::cli::{Cli, Command, EvalArgs, ReportArgs, TrainArgs};
use crate::params::ParamStore;
use crate::run::Outcome;
use crate::student::vim::Vim;

/// Exit code of a run that stopped on request after a checkpoint.
pub const EXIT_STOPPED: u8 = 3;

/// Runs the command line; what the binary does.
pub fn main() -> ExitCode {
    cab_pipelines::memory::keep_freed_memory();
    let cli = Cli::parse();
    let result = match cli.command {
        None => train(&cli.train),
        Some(Command::Eval(args)) => evaluate(&args),
        Some(Command::Report(args)) => report(&args),
        Some(Command::Doctor) => doctor::print(),
    };
    result.unwrap_or_else(|error| {
        eprintln!("cab-train: error: {error:#}");
        ExitCode::FAILURE
    })
}

fn train(args: &TrainArgs) -> Result<ExitCode> {
    set_threads(args.threads)?;
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        // The first signal asks for a checkpoint; a second one ends the process at once.
        signal_hook::flag::register_conditional_shutdown(signal, 1, Arc::clone(&stop))
            .context("installing a signal handler")?;
        signal_hook::flag::register(signal, Arc::clone(&stop)).context("installing a signal handler")?;
    }
    match run::train(args, &stop)? {
        Outcome::Done { out, metrics } => {
            println!("{}", json!({"out": out, "val": metrics}));
            Ok(ExitCode::SUCCESS)
        }
        Outcome::Stopped { out, step } => {
            eprintln!(
                "cab-train: stopped at step {step} with a checkpoint in {}; run the same command to go on",
                out.display()
            );
            Ok(ExitCode::from(EXIT_STOPPED))
        }
    }
}

fn evaluate(args: &EvalArgs) -> Result<ExitCode> {
    set_threads(args.threads)?;
    ensure!(args.batch_size >= 1, "--batch-size must be at least 1");
    let device = cli::device(args.device)?;
    let cache = Arc::new(Cache::open(&args.cache)?);
    let description = Description::from_map(&cache.manifest().about)?;
    let checkpoint = checkpoint::find(&args.checkpoint)?;
    let state = checkpoint::read_state(&checkpoint)?;
    if state.cache_digest != cache.manifest().plan_digest && !args.any_cache {
        bail!(
            "{} was trained on the cache with digest {}, {} has {}: give the other cache, or --any-cache if you mean it",
            checkpoint.display(),
            state.cache_digest,
            args.cache.display(),
            cache.manifest().plan_digest
        );
    }
    let student = &state.recipe.student;
    let views = &description.views;
    ensure!(
        (student.channels, student.height, student.width) == (views.channels, views.height, views.width),
        "the student takes {} x {} x {} inputs, the cache holds {} x {} x {}",
        student.channels,
        student.height,
        student.width,
        views.channels,
        views.height,
        views.width
    );
    let weights = checkpoint::student_weights(&checkpoint, &state)?;
    let values = weights.into_iter().map(|(name, value)| (format!("student.{name}"), value)).collect();
    let expected = student::vim::initial_values(student, state.recipe.a_log_start, 0, "student.");
    let store = ParamStore::new(expected, device);
    let named: Vec<(String, tch::Tensor)> = values;
    store.load("", named).with_context(|| format!("{}", checkpoint.display()))?;
    let model = Vim::new(student, &store, "student.");
    let metrics = eval::evaluate(&model, &cache, &description, args.batch_size, device)?;
    println!("{}", json!({"checkpoint": checkpoint, "step": state.step, "val": metrics}));
    Ok(ExitCode::SUCCESS)
}

fn report(args: &ReportArgs) -> Result<ExitCode> {
    let runs = report::read_runs(&args.runs)?;
    report::write_page(&runs, &args.out)?;
    eprintln!("cab-train: wrote {}", args.out.display());
    if let Some(path) = &args.summary {
        report::write_summary(&runs, path)?;
        eprintln!("cab-train: wrote {}", path.display());
    }
    print!("{}", report::table(&runs));
    Ok(ExitCode::SUCCESS)
}

fn set_threads(threads: Option<usize>) -> Result<()> {
    if let Some(threads) = threads {
        ensure!(threads >= 1, "--threads must be at least 1");
        tch::set_num_threads(threads as i32);
        rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().context("setting the number of threads")?;
    }
    Ok(())
}
