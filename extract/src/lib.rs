//! Extraction: data → views → teacher → captured bytes → shards → manifest.
//!
//! [`run::extract`] is the whole on one screen. This crate knows nothing of students, losses or epochs.

#![allow(clippy::print_stdout, reason = "stdout carries the result of a command; progress goes to stderr")]

pub mod capture;
pub mod cli;
pub mod forecast;
pub mod inspect;
pub mod job;
pub mod run;
pub mod teacher;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use indicatif::HumanBytes;

use crate::cli::{Cli, Command, ExtractArgs};
use crate::run::{Outcome, percent};

/// Exit code of an extraction that stopped on request; the same command continues it.
pub const EXIT_STOPPED: u8 = 3;

/// Runs the command line; what the binary does.
pub fn main() -> ExitCode {
    cab_pipelines::memory::keep_freed_memory();
    let cli = Cli::parse();
    let result = match &cli.command {
        None => extract(&cli.extract),
        Some(Command::Plan(args)) => set_threads(args.extract.threads).and_then(|()| forecast::print(args)),
        Some(Command::Info(args)) => inspect::info(args),
        Some(Command::Verify(args)) => inspect::verify(args),
        Some(Command::Dump(args)) => inspect::dump(args),
    };
    result.unwrap_or_else(|error| {
        eprintln!("cab-extract: error: {error:#}");
        ExitCode::FAILURE
    })
}

fn extract(args: &ExtractArgs) -> Result<ExitCode> {
    set_threads(args.threads)?;
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        // The first signal lets the batch in work end; a second one ends the process at once.
        signal_hook::flag::register_conditional_shutdown(signal, 1, Arc::clone(&stop))
            .context("installing a signal handler")?;
        signal_hook::flag::register(signal, Arc::clone(&stop)).context("installing a signal handler")?;
    }
    match run::extract(args, &stop)? {
        Outcome::Stopped => {
            eprintln!(
                "cab-extract: stopped; finished shards are kept in {}: run the same command to go on",
                args.out.display()
            );
            Ok(ExitCode::from(EXIT_STOPPED))
        }
        Outcome::AlreadySealed => {
            eprintln!("cab-extract: {} holds this cache already; --overwrite extracts it again", args.out.display());
            Ok(ExitCode::SUCCESS)
        }
        Outcome::Sealed { manifest, summary } => {
            let bytes: u64 = manifest.shards.iter().map(|shard| shard.bytes).sum();
            eprintln!(
                "cab-extract: sealed {}: {} train + {} val records, {}",
                summary.out.display(),
                manifest.records.train,
                manifest.records.val,
                HumanBytes(bytes)
            );
            if summary.new_records > 0 {
                eprintln!(
                    "cab-extract: {:.1} s, {:.0} records/s; the teacher's forward took {:.1} s of it",
                    summary.secs,
                    summary.new_records as f64 / summary.secs,
                    summary.teacher_secs
                );
            }
            let shown: Vec<String> = [
                ("evaluation view of training images", summary.hits.train_view_0),
                ("augmented views", summary.hits.train_augmented),
                ("held-out images", summary.hits.val),
            ]
            .into_iter()
            .filter_map(|(name, pair)| percent(pair).map(|percent| format!("{percent:.2} % on {name}")))
            .collect();
            if !shown.is_empty() {
                eprintln!("cab-extract: the teacher's top-1: {}", shown.join(", "));
            }
            if summary.skipped > 0 {
                eprintln!(
                    "cab-extract: {} records skipped for unreadable images, listed in skipped.parquet",
                    summary.skipped
                );
            }
            for warning in &summary.warnings {
                eprintln!("cab-extract: warning: {warning}");
            }
            println!("{}", serde_json::to_string(&summary)?);
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn set_threads(threads: Option<usize>) -> Result<()> {
    if let Some(threads) = threads {
        ensure!(threads >= 1, "--threads must be at least 1");
        tch::set_num_threads(threads as i32);
        rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().context("setting the number of threads")?;
    }
    Ok(())
}
