//! Interrupted work: an extraction killed anywhere ends with the same bytes, a stopped training run with the same weights.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::support::{cab_extract, cab_train, fail_with, files, small_cache, succeed};

const EXTRACT: [&str; 8] = ["--limit", "300", "--views", "4", "--shard-mb", "1", "--out", "cache"];

/// The files of a cache with the manifest's date taken out.
fn undated(cache: &Path) -> std::collections::BTreeMap<std::path::PathBuf, Vec<u8>> {
    let mut found = files(cache);
    let manifest = found.remove(Path::new("manifest.json")).expect("a sealed cache");
    let mut manifest: Value = serde_json::from_slice(&manifest).expect("JSON");
    for key in ["created_unix_secs", "digest"] {
        assert!(manifest.as_object_mut().expect("an object").remove(key).is_some(), "{key}");
    }
    found.insert("manifest.json".into(), manifest.to_string().into_bytes());
    found
}

#[test]
fn killed_extraction_resumes_to_the_same_bytes() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let (whole, killed) = (folder.path().join("whole"), folder.path().join("killed"));
    fs::create_dir_all(&whole).expect("a directory");
    fs::create_dir_all(&killed).expect("a directory");
    succeed(cab_extract(&whole, &EXTRACT));
    let shards = fs::read_dir(whole.join("cache/shards")).expect("shards").count();
    assert!(shards > 8, "{shards} shards: enough places to be killed between");

    let mut kills = 0;
    for millis in [60, 120, 180, 240, 300, 400, 500, 700, 1000] {
        let mut child = cab_extract(&killed, &EXTRACT)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the binary starts");
        std::thread::sleep(Duration::from_millis(millis));
        let finished = child.try_wait().expect("a child").is_some();
        child.kill().expect("a child can be killed");
        child.wait().expect("a child ends");
        if finished {
            break;
        }
        kills += 1;
        if !killed.join("cache/manifest.json").exists() {
            let stderr = fail_with(cab_train(&killed, &["--cache", "cache", "--steps", "1"]), 1);
            assert!(stderr.contains("cache"), "{stderr}");
        }
    }
    assert!(kills > 0, "the extraction ended before it could be killed once");
    succeed(cab_extract(&killed, &EXTRACT));
    assert_eq!(undated(&whole.join("cache")), undated(&killed.join("cache")));
    succeed(cab_extract(&killed, &["verify", "cache"]));
}

#[test]
fn extraction_killed_after_sealing_is_tidied_up_by_the_next() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let cache = small_cache(folder.path(), &[]);
    let whole = files(&cache);
    fs::create_dir(cache.join(".partial")).expect("writable");
    fs::write(cache.join(".partial/00000.json"), "{}").expect("writable");
    let output = succeed(cab_extract(folder.path(), &["--limit", "40", "--views", "2", "--out", "cache"]));
    assert!(String::from_utf8_lossy(&output.stderr).contains("holds this cache already"));
    assert_eq!(files(&cache), whole);
}

/// Starts `command`, sends it `signal` once `started` exists, and returns its exit code.
fn interrupt(mut command: Command, started: &Path, signal: &str) -> Option<i32> {
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the binary starts");
    for _ in 0..2000 {
        if started.exists() {
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let sent = Command::new("kill").args([signal, &child.id().to_string()]).status().expect("kill runs");
    assert!(sent.success(), "the process ended before it could be interrupted");
    child.wait().expect("a child ends").code()
}

#[test]
fn interrupted_extraction_ends_with_3_and_continues() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    // 9,600 records in shards of 1 MB: some seconds of work.
    let arguments = ["--views", "16", "--shard-mb", "1", "--out", "cache"];
    let started = folder.path().join("cache/shards/00000.arrow");
    let code = interrupt(cab_extract(folder.path(), &arguments), &started, "-INT");
    assert_eq!(code, Some(3));
    assert!(!folder.path().join("cache/manifest.json").exists());
    let output = succeed(cab_extract(folder.path(), &arguments));
    assert!(String::from_utf8_lossy(&output.stderr).contains("left from an interrupted run"));
    succeed(cab_extract(folder.path(), &["verify", "cache"]));
}

#[test]
fn interrupted_training_writes_a_checkpoint_ends_with_3_and_continues() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    small_cache(folder.path(), &[]);
    let arguments =
        ["--cache", "cache", "--steps", "60", "--checkpoint-every", "50", "--eval-every", "60", "--out", "run"];
    let started = folder.path().join("run/metrics.jsonl");
    let code = interrupt(cab_train(folder.path(), &arguments), &started, "-TERM");
    assert_eq!(code, Some(3));
    assert_eq!(cab_train::checkpoint::list(&folder.path().join("run")).expect("a run").len(), 1);
    let output = succeed(cab_train(folder.path(), &arguments));
    assert!(String::from_utf8_lossy(&output.stderr).contains("continuing at step"));
}

#[test]
fn extraction_of_another_plan_into_the_same_directory_is_refused() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    small_cache(folder.path(), &[]);
    let stderr = fail_with(cab_extract(folder.path(), &["--limit", "40", "--views", "3", "--out", "cache"]), 1);
    assert!(stderr.contains("--overwrite"), "{stderr}");
    succeed(cab_extract(folder.path(), &["--limit", "40", "--views", "3", "--out", "cache", "--overwrite"]));
}

#[test]
fn stopped_training_resumes_to_the_same_bits() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    small_cache(folder.path(), &[]);
    // 80 records in batches of 13: steps end in the middle of epochs; a log line spans the stop.
    let arguments = |out: &'static str| {
        vec![
            "--cache",
            "cache",
            "--steps",
            "14",
            "--batch-size",
            "13",
            "--log-every",
            "4",
            "--ema",
            "0.9",
            "--drop-path",
            "0.2",
        ]
        .into_iter()
        .chain(["--views", "2", "--out", out])
        .collect::<Vec<_>>()
    };
    succeed(cab_train(folder.path(), &arguments("whole")));
    for stop in ["5", "10", "10"] {
        let mut stopped = arguments("parts");
        stopped.extend(["--stop-at", stop]);
        let stderr = fail_with(cab_train(folder.path(), &stopped), 3);
        assert!(stderr.contains(&format!("stopped at step {stop}")), "{stderr}");
    }
    succeed(cab_train(folder.path(), &arguments("parts")));
    let last = |run: &str| files(&folder.path().join(run).join("checkpoints/step-00000014"));
    let (whole, parts) = (last("whole"), last("parts"));
    assert_eq!(whole.len(), 5);
    for (name, bytes) in &whole {
        if name.as_path() != Path::new("state.json") {
            assert!(bytes == &parts[name], "{} differs", name.display());
        }
    }
    let lines = |run: &str| {
        let lines = cab_train::metrics::read(&folder.path().join(run).join("metrics.jsonl")).expect("metrics");
        let untimed = |mut line: serde_json::Map<String, Value>| {
            line.retain(|name, _| !name.contains("secs"));
            line
        };
        lines.into_iter().filter(|line| line["split"] == "train").map(untimed).collect::<Vec<_>>()
    };
    assert_eq!(lines("whole"), lines("parts"));
}

#[test]
fn training_directory_of_another_recipe_is_refused_with_the_difference() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    small_cache(folder.path(), &[]);
    let run = |lr: &str| cab_train(folder.path(), &["--cache", "cache", "--steps", "2", "--lr", lr, "--out", "run"]);
    succeed(run("0.001"));
    let stderr = fail_with(run("0.002"), 1);
    assert!(stderr.contains("lr was 0.001, is 0.002"), "{stderr}");
}

#[test]
fn checkpoint_of_another_cache_is_refused_unless_asked() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    small_cache(folder.path(), &[]);
    succeed(cab_extract(folder.path(), &["--limit", "40", "--views", "1", "--out", "other"]));
    succeed(cab_train(folder.path(), &["--cache", "cache", "--steps", "2", "--out", "run"]));
    let eval = |more: &[&'static str]| {
        let mut arguments = vec!["eval", "--cache", "other", "--checkpoint", "run"];
        arguments.extend(more);
        cab_train(folder.path(), &arguments)
    };
    let stderr = fail_with(eval(&[]), 1);
    assert!(stderr.contains("--any-cache"), "{stderr}");
    succeed(eval(&["--any-cache"]));
}
