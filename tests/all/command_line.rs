//! Help texts as snapshots, exit codes, and what `doctor` and `plan` print.

use clap::CommandFactory;
use serde_json::Value;

use crate::support::{cab_extract, cab_train, fixtures, succeed};

/// Compares `text` with the snapshot `name`; `UPDATE_SNAPSHOTS=1` writes it.
fn snapshot(name: &str, text: &str) {
    let path = fixtures().join("help").join(name);
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("writable");
        std::fs::write(&path, text).expect("writable");
    }
    let expect = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, expect, "{} differs; UPDATE_SNAPSHOTS=1 writes it anew", path.display());
}

fn help_of_all(mut command: clap::Command, name: &str) {
    command.build();
    let mut text = command.render_long_help().to_string();
    for sub in command.get_subcommands_mut().filter(|sub| sub.get_name() != "help") {
        let name = sub.get_name().to_owned();
        text += &format!("\n==== {name}\n\n{}", sub.render_long_help());
    }
    assert!(text.contains("Example"), "help shows examples");
    snapshot(&format!("{name}.txt"), &text);
}

#[test]
fn help_texts_are_the_snapshots() {
    help_of_all(cab_extract::cli::Cli::command(), "cab-extract");
    help_of_all(cab_train::cli::Cli::command(), "cab-train");
}

#[test]
fn exit_codes_of_help_version_and_bad_usage() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    for make in [cab_extract, cab_train] {
        for (arguments, code) in
            [(&["--help"][..], 0), (&["--version"], 0), (&["--no-such-flag"], 2), (&["nonsense"], 2)]
        {
            let output = make(folder.path(), arguments).output().expect("the binary runs");
            assert_eq!(output.status.code(), Some(code), "{arguments:?}");
        }
    }
}

#[test]
fn doctor_names_libtorch_threads_simd_and_disk() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let output = succeed(cab_train(folder.path(), &["doctor"]));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    for word in ["libtorch", "libtorch_cpu.so", "devices", "threads", "SIMD", "disk room"] {
        assert!(text.contains(word), "{word} is missing from:\n{text}");
    }
}

#[test]
fn plan_foretells_the_bytes_of_the_cache() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let flags = ["--limit", "100", "--views", "3", "--out", "cache"];
    let plan = succeed(cab_extract(folder.path(), &[&["plan", "--json"], &flags[..]].concat()));
    let plan: Value = serde_json::from_slice(&plan.stdout).expect("JSON");
    assert!(!folder.path().join("cache").exists(), "a plan writes nothing");
    succeed(cab_extract(folder.path(), &flags));
    let info = succeed(cab_extract(folder.path(), &["info", "--json", "--cache", "cache"]));
    let info: Value = serde_json::from_slice(&info.stdout).expect("JSON");
    assert_eq!(plan["records"]["train"], info["records_by_split"]["train"]);
    assert_eq!(plan["plan_digest"], info["plan_digest"]);
    let (foretold, found) = (plan["bytes"].as_f64().expect("bytes"), info["bytes"]["total"].as_f64().expect("bytes"));
    assert!((foretold / found - 1.0).abs() < 0.1, "foretold {foretold}, found {found}");
}
