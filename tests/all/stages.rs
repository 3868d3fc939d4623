//! Both stages from the command line: what is extracted is what the teacher saw and computed; what is trained evaluates.

use cab_extract::teacher::vit::Vit;
use cab_extract::teacher::weights::TeacherFiles;
use cab_pipelines::recipe::Precision;
use serde_json::Value;
use tch::{Device, Kind};

use crate::support::{assert_close, cab_extract, cab_train, read_safetensors, small_cache, succeed};

fn json(output: std::process::Output) -> Value {
    serde_json::from_slice(&output.stdout).expect("stdout is JSON")
}

#[test]
fn dumped_records_hold_what_the_teacher_makes_of_the_stored_input() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    small_cache(folder.path(), &[]);
    succeed(cab_extract(folder.path(), &["dump", "--cache", "cache", "--records", "35..45", "--to", "x.safetensors"]));
    let (tensors, _) = read_safetensors(&folder.path().join("x.safetensors"));
    let records: Vec<i64> = Vec::try_from(&tensors["record"]).expect("integers");
    assert_eq!(records, (35..45).collect::<Vec<_>>());
    let files = TeacherFiles::open("vit-nano", None).expect("the embedded teacher");
    let teacher =
        Vit::new(&files.config, &files.tensors().expect("weights"), Precision::F32, Device::Cpu).expect("a model");
    let layers: Vec<usize> = (0..files.config.depth).collect();
    let captured = teacher.forward(&tensors["input"], &layers);
    assert_close(&tensors["logits"], &captured.logits, 1e-5, "logits");
    for layer in layers {
        assert_close(&tensors[&format!("q.{layer:02}")], &captured.q[layer], 1e-5, "q");
        assert_close(&tensors[&format!("k.{layer:02}")], &captured.k[layer], 1e-5, "k");
    }
    // Records 35..40 are view 0 of samples 35..40, 40..45 the augmented view 1 of samples 0..5.
    assert_eq!(tensors["label"].size(), [10]);
    assert!(tensors["label"].min().int64_value(&[]) >= 0 && tensors["label"].max().int64_value(&[]) < 10);
}

#[test]
fn default_commands_extract_train_evaluate_and_report() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let cache = small_cache(folder.path(), &["--codec", "exact:f16"]);
    assert!(cache.join("manifest.json").exists() && cache.join("catalog.parquet").exists());

    let info = json(succeed(cab_extract(folder.path(), &["info", "--cache", "cache", "--json"])));
    assert_eq!(info["records_by_split"]["train"], 80);
    assert_eq!(info["records_by_split"]["val"], 40);
    assert_eq!(info["records"], 120);
    let by_field = info["bytes"]["by_field"].as_object().expect("bytes by field");
    assert!(by_field.values().all(|bytes| bytes.as_u64() > Some(0)), "{by_field:?}");
    let qk = info["qk_bytes_per_record"].as_f64().expect("a number");
    let raw = info["qk_f16_bytes_per_record"].as_f64().expect("a number");
    assert!(qk > 0.5 * raw && qk < 1.1 * raw, "{qk} bytes of {raw}");
    succeed(cab_extract(folder.path(), &["verify", "cache"]));

    let mut results = Vec::new();
    for objective in ["vanilla", "soft", "bridge", "cab"] {
        let out = format!("runs/{objective}");
        let arguments =
            ["--cache", "cache", "--objective", objective, "--steps", "12", "--log-every", "4", "--out", &out];
        let trained = json(succeed(cab_train(folder.path(), &arguments)));
        let evaluated = json(succeed(cab_train(folder.path(), &["eval", "--cache", "cache", "--checkpoint", &out])));
        assert_eq!(evaluated["step"], 12);
        assert_eq!(evaluated["val"], trained["val"], "{objective}: the saved student is the trained one");
        assert_eq!(evaluated["val"]["records"], 40.0);
        let lines = cab_train::metrics::read(&folder.path().join(&out).join("metrics.jsonl")).expect("metrics");
        let train: Vec<_> = lines.iter().filter(|line| line["split"] == "train").collect();
        assert_eq!(train.iter().map(|line| line["step"].as_u64().expect("a step")).collect::<Vec<_>>(), [4, 8, 12]);
        for line in &train {
            assert!(line["loss"].as_f64().expect("a loss").is_finite());
            assert_eq!(line.contains_key("bridge"), matches!(objective, "bridge" | "cab"), "{objective}");
            assert_eq!(line.contains_key("soft"), matches!(objective, "soft" | "cab"), "{objective}");
            assert_eq!(line.contains_key("label"), objective == "vanilla", "{objective}");
        }
        assert!(lines.iter().any(|line| line["split"] == "val" && line.contains_key("top1")));
        results.push(out);
    }
    let mut arguments = vec!["report"];
    arguments.extend(results.iter().map(String::as_str));
    arguments.extend(["--out", "report.html", "--summary", "summary.json"]);
    succeed(cab_train(folder.path(), &arguments));
    let page = std::fs::read_to_string(folder.path().join("report.html")).expect("a page");
    assert!(page.matches("<svg").count() >= 4);
    // The namespace of SVG is a name, not a place: nothing else may point to the network.
    let elsewhere = page.replace("http://www.w3.org/2000/svg", "");
    assert!(!elsewhere.contains("http://") && !elsewhere.contains("https://"));
    let summary: Value =
        serde_json::from_str(&std::fs::read_to_string(folder.path().join("summary.json")).expect("a summary"))
            .expect("JSON");
    for objective in ["vanilla", "soft", "bridge", "cab"] {
        assert!(summary["objectives"][objective]["0"].as_f64().is_some(), "{summary}");
    }
}

#[test]
fn views_are_pure_functions_of_seed_sample_and_view() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let pixels = |name: &str, arguments: &[&str]| {
        let path = folder.path().join(name);
        std::fs::create_dir(&path).expect("a directory");
        small_cache(&path, arguments);
        succeed(cab_extract(&path, &["dump", "--cache", "cache", "--records", "0..80", "--to", "x.safetensors"]));
        read_safetensors(&path.join("x.safetensors")).0["input"].to_kind(Kind::Int64)
    };
    let two = pixels("two", &[]);
    let three = pixels("three", &["--views", "3"]);
    let other = pixels("other", &["--seed", "1"]);
    assert_eq!(two, three, "the number of views changes none of them");
    assert_ne!(two, other, "the seed does");
    assert_ne!(two.narrow(0, 0, 40), two.narrow(0, 40, 40), "view 1 is not view 0");
}
