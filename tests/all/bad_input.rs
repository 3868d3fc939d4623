//! What people get wrong: one clear line, the right exit code, no panic.

use std::fs;
use std::path::Path;

use crate::support::{cab_extract, cab_train, fail_with, files, fixtures, small_cache, succeed};

#[test]
fn wrong_values_of_flags_are_bad_usage_or_named_errors() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let extract = |arguments: &[&str], code| fail_with(cab_extract(folder.path(), arguments), code);
    for (arguments, code, says) in [
        (&["--codec", "zip"][..], 2, "exact"),
        (&["--layers", "one"], 2, "no layer"),
        (&["--image-size", "0"], 2, "no size"),
        (&["--views", "0"], 1, "--views"),
        (&["--fraction", "0"], 1, "--fraction"),
        (&["--fraction", "1.5"], 1, "--fraction"),
        (&["--limit", "0"], 1, "--limit"),
        (&["--layers", "0,17"], 1, "layer 17"),
        (&["--image-size", "30"], 1, "patch"),
        (&["--student", "vim-huge"], 1, "vim-tiny"),
        (&["--teacher", "vit-x"], 1, "vit-"),
        (&["--data", "./nowhere"], 1, "nowhere"),
        (&["--device", "tpu"], 2, "cuda:N"),
        (&["--max-skipped", "2"], 1, "--max-skipped"),
        (&["info", "--cache", "nowhere"], 1, "nowhere"),
        (&["dump", "--records", "5..5", "--to", "x"], 2, "empty"),
    ] {
        let stderr = extract(arguments, code);
        assert!(stderr.contains(says), "{arguments:?}: {stderr}");
        assert!(!folder.path().join("qk_cache/shards").exists(), "{arguments:?} wrote something");
    }
}

#[test]
fn training_refuses_what_does_not_fit_the_cache() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    small_cache(folder.path(), &["--layers", "0,5"]);
    let train = |arguments: &[&str]| {
        let mut all = vec!["--cache", "cache", "--steps", "1", "--out", "run"];
        all.extend_from_slice(arguments);
        fail_with(cab_train(folder.path(), &all), 1)
    };
    for (arguments, says) in [
        (&[][..], "needs teacher layer 1"),
        (&["--layer-map", "0,5"], "the student has 6"),
        (&["--layer-map", "0,0,0,5,5,5", "--patch-size", "14", "--stride", "14"], "token by token"),
        (&["--objective", "soft", "--views", "3"], "--views"),
        (&["--objective", "soft", "--fraction", "0"], "--fraction"),
        (&["--objective", "soft", "--lr", "0"], "--lr"),
        (&["--objective", "soft", "--batch-size", "0"], "--batch-size"),
        (&["--student", "vim-enormous"], "vim-"),
        (&["--device", "cuda:99"], "cuda:99"),
    ] {
        let stderr = train(arguments);
        assert!(stderr.contains(says), "{arguments:?}: {stderr}");
    }
    let stderr = fail_with(cab_train(folder.path(), &["--bridge-schedule", "stop:2"]), 2);
    assert!(stderr.contains("(0, 1]"), "{stderr}");
    let stderr = fail_with(cab_train(folder.path(), &["--cache", "nowhere"]), 1);
    assert!(stderr.contains("nowhere"), "{stderr}");
    let stderr = fail_with(cab_train(folder.path(), &["eval", "--cache", "cache", "--checkpoint", "nowhere"]), 1);
    assert!(stderr.contains("no checkpoint"), "{stderr}");
}

#[test]
fn damaged_cache_is_named_by_verify_and_never_trained_on() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let cache = small_cache(folder.path(), &[]);
    let train = |out: &str| cab_train(folder.path(), &["--cache", "cache", "--steps", "6", "--out", out]);
    let shard = cache.join("shards/00000.arrow");
    let whole = fs::read(&shard).expect("a shard");
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 0x10;
    fs::write(&shard, &flipped).expect("writable");
    let output = cab_extract(folder.path(), &["verify", "--cache", "cache"]).output().expect("the binary runs");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stdout).contains("00000.arrow"));
    let stderr = fail_with(train("a"), 1);
    assert!(stderr.contains("00000.arrow"), "{stderr}");
    fs::write(&shard, &whole[..whole.len() - 1]).expect("writable");
    let stderr = fail_with(train("b"), 1);
    assert!(stderr.contains("00000.arrow"), "{stderr}");
    fs::remove_file(&shard).expect("removable");
    let stderr = fail_with(train("c"), 1);
    assert!(stderr.contains("00000.arrow"), "{stderr}");
    fs::write(&shard, &whole).expect("writable");
    fs::remove_file(cache.join("manifest.json")).expect("removable");
    let stderr = fail_with(train("d"), 1);
    assert!(stderr.contains("cab-extract"), "{stderr}");
}

#[test]
fn loss_that_is_not_finite_stops_with_step_term_and_last_good_checkpoint() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    small_cache(folder.path(), &[]);
    let arguments = ["--cache", "cache", "--lr", "1e30", "--steps", "9", "--checkpoint-every", "1", "--out", "run"];
    let stderr = fail_with(cab_train(folder.path(), &arguments), 1);
    assert!(stderr.contains("term of the loss is") && stderr.contains("at step"), "{stderr}");
    assert!(stderr.contains("the last good checkpoint is run/checkpoints/step-"), "{stderr}");
}

#[test]
fn damaged_checkpoint_is_named() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    small_cache(folder.path(), &[]);
    let train = ["--cache", "cache", "--steps", "2", "--out", "run"];
    let eval = ["eval", "--cache", "cache", "--checkpoint", "run"];
    succeed(cab_train(folder.path(), &train));
    let checkpoint = folder.path().join("run/checkpoints/step-00000002");
    for (name, bytes) in files(&checkpoint) {
        let path = checkpoint.join(&name);
        let evaluated = matches!(name.to_str(), Some("student.safetensors" | "state.json"));
        for broken in [bytes[..bytes.len() / 2].to_vec(), Vec::new()] {
            fs::write(&path, &broken).expect("writable");
            // The student is read by evaluation, bridge and optimizer when the run is taken up again.
            let command = if evaluated { &eval[..] } else { &train[..] };
            let stderr = fail_with(cab_train(folder.path(), command), 1);
            assert!(stderr.contains(&*name.to_string_lossy()), "{stderr}");
        }
        fs::write(&path, &bytes).expect("writable");
    }
    succeed(cab_train(folder.path(), &eval));
}

#[test]
fn unreadable_images_are_skipped_named_and_bounded() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let data = folder.path().join("photos");
    for class in ["cat", "dog"] {
        fs::create_dir_all(data.join(class)).expect("a directory");
        for index in 0..6u8 {
            let picture = image::RgbImage::from_fn(30, 26, |x, y| image::Rgb([x as u8 * 8, y as u8 * 9, index * 40]));
            picture.save(data.join(class).join(format!("{index}.png"))).expect("writable");
        }
    }
    fs::write(data.join("dog/3.png"), b"not an image").expect("writable");
    let teacher = fixtures().join("timm");
    let extract = |more: &[&str]| {
        let mut arguments = vec!["--teacher", teacher.to_str().expect("UTF-8"), "--data", "photos", "--views", "2"];
        arguments.extend(["--layers", "all", "--out", "cache"]);
        arguments.extend_from_slice(more);
        cab_extract(folder.path(), &arguments)
    };
    let stderr = fail_with(extract(&[]), 1);
    assert!(stderr.contains("--max-skipped") && stderr.contains("dog/3.png"), "{stderr}");
    let output = succeed(extract(&["--max-skipped", "0.1"]));
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(stderr.contains("2 records skipped"), "{stderr}");
    assert!(folder.path().join("cache/skipped.parquet").exists());
    succeed(cab_extract(folder.path(), &["verify", "cache"]));
    let info = succeed(cab_extract(folder.path(), &["info", "cache", "--json"]));
    let info: serde_json::Value = serde_json::from_slice(&info.stdout).expect("JSON");
    assert_eq!(info["records"], 22);
}

#[test]
fn teacher_files_that_are_broken_or_unsupported_are_refused_by_name() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let teacher = folder.path().join("teacher");
    fs::create_dir(&teacher).expect("a directory");
    let (config, weights) = (
        fs::read_to_string(fixtures().join("timm/config.json")).expect("a file"),
        fs::read(fixtures().join("timm/model.safetensors")).expect("a file"),
    );
    let run = |config: &str, weights: &[u8], says: &str| {
        fs::write(teacher.join("config.json"), config).expect("writable");
        fs::write(teacher.join("model.safetensors"), weights).expect("writable");
        let stderr = fail_with(cab_extract(folder.path(), &["--teacher", "./teacher", "--out", "cache"]), 1);
        assert!(stderr.contains(says), "expected {says}: {stderr}");
    };
    run(&config, &weights[..weights.len() - 10], "safetensors");
    run(&config, b"", "safetensors");
    run("{", &weights, "config");
    run(&config.replace("\"depth\": 2", "\"depth\": 3"), &weights, "blocks.2");
    run(&config.replace("\"depth\": 2", "\"depth\": 2, \"qk_norm\": true"), &weights, "qk_norm");
    run(&config.replace("\"embed_dim\": 20", "\"embed_dim\": 40"), &weights, "[");
    fs::remove_file(teacher.join("model.safetensors")).expect("removable");
    let stderr = fail_with(cab_extract(folder.path(), &["--teacher", "./teacher", "--out", "cache"]), 1);
    assert!(stderr.contains("model.safetensors"), "{stderr}");
    assert!(!Path::new(&folder.path().join("cache")).exists());
}
