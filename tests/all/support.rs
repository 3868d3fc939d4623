//! What several themes need: the built binaries, small caches, safetensors files, relative errors.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use safetensors::SafeTensors;
use safetensors::tensor::Dtype;
use serde_json::Value;
use tch::{Kind, Tensor};

/// `tests/fixtures/` of the checkout.
pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

/// The root of the checkout.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests lie in the workspace")
}

/// The two binaries, built once in the profile of the tests.
fn binary(name: &str) -> PathBuf {
    static BUILT: OnceLock<HashMap<String, PathBuf>> = OnceLock::new();
    let built = BUILT.get_or_init(|| {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.current_dir(root()).args([
            "build",
            "-p",
            "cab-extract",
            "-p",
            "cab-train",
            "--bins",
            "--message-format=json",
        ]);
        if !cfg!(debug_assertions) {
            cargo.arg("--release");
        }
        let output = cargo.output().expect("cargo runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout)
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter_map(|message| {
                let path = message.get("executable")?.as_str()?.to_owned();
                Some((message["target"]["name"].as_str()?.to_owned(), PathBuf::from(path)))
            })
            .collect()
    });
    built.get(name).unwrap_or_else(|| panic!("cargo built no {name}")).clone()
}

/// `cab-extract` with `arguments`, one thread less noisy for a two-core machine, in `folder`.
pub fn cab_extract(folder: &Path, arguments: &[&str]) -> Command {
    command("cab-extract", folder, arguments)
}

/// `cab-train` with `arguments`, in `folder`.
pub fn cab_train(folder: &Path, arguments: &[&str]) -> Command {
    command("cab-train", folder, arguments)
}

fn command(name: &str, folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(binary(name));
    // Tests run side by side: waiting threads of one process would take the cores of another.
    command.current_dir(folder).args(arguments).env("OMP_NUM_THREADS", "1");
    command
}

/// Runs `command`, which must end with 0, and returns what it said.
pub fn succeed(mut command: Command) -> Output {
    let output = command.output().expect("the binary runs");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?} ended with {:?}:\n{stderr}", output.status.code());
    output
}

/// Runs `command`, which must end with `code`, and returns its stderr.
pub fn fail_with(mut command: Command, code: i32) -> String {
    let output = command.output().expect("the binary runs");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{command:?}:\n{stderr}");
    assert!(!stderr.contains("panicked"), "{command:?} panicked:\n{stderr}");
    stderr
}

/// A sealed cache of the embedded teacher on a few embedded images, at `folder/cache`.
pub fn small_cache(folder: &Path, arguments: &[&str]) -> PathBuf {
    let mut all = vec!["--limit", "40", "--out", "cache"];
    if !arguments.contains(&"--views") {
        all.extend(["--views", "2"]);
    }
    all.extend_from_slice(arguments);
    succeed(cab_extract(folder, &all));
    folder.join("cache")
}

/// Tensors and metadata of a safetensors file.
pub fn read_safetensors(path: &Path) -> (BTreeMap<String, Tensor>, HashMap<String, String>) {
    let bytes = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let (_, header) = SafeTensors::read_metadata(&bytes).expect("a safetensors header");
    let metadata = header.metadata().clone().unwrap_or_default();
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let tensors = file
        .iter()
        .map(|(name, view)| {
            let kind = match view.dtype() {
                Dtype::F32 => Kind::Float,
                Dtype::I64 => Kind::Int64,
                Dtype::U8 => Kind::Uint8,
                other => panic!("{name} has type {other:?}"),
            };
            let shape: Vec<i64> = view.shape().iter().map(|&n| n as i64).collect();
            (name.to_owned(), cab_train::tensor::from_bytes(view.data(), &shape, kind))
        })
        .collect();
    (tensors, metadata)
}

/// `‖found − expect‖ / ‖expect‖` in f64.
pub fn relative_error(found: &Tensor, expect: &Tensor) -> f64 {
    assert_eq!(found.size(), expect.size());
    let (found, expect) = (found.to_kind(Kind::Double), expect.to_kind(Kind::Double));
    let norm = |x: &Tensor| (x * x).sum(Kind::Double).sqrt().double_value(&[]);
    norm(&(found - &expect)) / norm(&expect).max(f64::MIN_POSITIVE)
}

/// Panics unless `found` is within `tolerance` of `expect`.
pub fn assert_close(found: &Tensor, expect: &Tensor, tolerance: f64, what: &str) {
    let error = relative_error(found, expect);
    assert!(error < tolerance, "{what}: relative error {error:e}, allowed {tolerance:e}");
}

/// Every file below `folder` with its bytes, by relative path.
pub fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut open = vec![folder.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(&directory).expect("a readable directory") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                open.push(path);
            } else {
                let bytes = fs::read(&path).expect("a readable file");
                found.insert(path.strip_prefix(folder).expect("below").to_owned(), bytes);
            }
        }
    }
    found
}
