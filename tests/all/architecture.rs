//! Which crate may know which: the arrows of the design, read from `cargo metadata`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use cargo_metadata::{DependencyKind, MetadataCommand};

use crate::support::root;

#[test]
fn crates_depend_only_on_what_the_design_allows() {
    let metadata = MetadataCommand::new().current_dir(root()).no_deps().exec().expect("cargo metadata");
    let allowed: BTreeMap<&str, &[&str]> = BTreeMap::from([
        ("cab-format", &[][..]),
        ("cab-pipelines", &["cab-format"]),
        ("cab-kernels", &[]),
        ("cab-extract", &["cab-format", "cab-pipelines"]),
        ("cab-train", &["cab-format", "cab-pipelines", "cab-kernels"]),
        ("cab-tests", &[]),
    ]);
    let members: BTreeSet<&str> = metadata.packages.iter().map(|package| package.name.as_str()).collect();
    assert_eq!(members, allowed.keys().copied().collect(), "the list above names every crate");
    for package in &metadata.packages {
        let may = allowed[package.name.as_str()];
        for dependency in package.dependencies.iter().filter(|d| d.kind != DependencyKind::Development) {
            let name = dependency.name.as_str();
            assert!(!members.contains(name) || may.contains(&name), "{} must not depend on {name}", package.name);
            let without_tensors = matches!(package.name.as_str(), "cab-format" | "cab-pipelines");
            assert!(
                !(without_tensors && matches!(name, "tch" | "torch-sys")),
                "{} must not know libtorch",
                package.name
            );
        }
    }
}

#[test]
fn bytes_become_tensors_in_one_place_of_training() {
    for entry in walk("train/src") {
        let text = fs::read_to_string(&entry).expect("a source file");
        let allowed = entry.ends_with("train/src/tensor.rs");
        assert!(allowed || !text.contains("from_data_size"), "{} calls from_data_size", entry.display());
    }
}

#[test]
fn top_level_holds_what_the_design_names() {
    let expected: BTreeSet<&str> = [
        "Cargo.toml",
        "Cargo.lock",
        "README.md",
        "LICENSE",
        "extract",
        "train",
        "format",
        "kernels",
        "pipelines",
        "tests",
    ]
    .into_iter()
    .collect();
    let listed = std::process::Command::new("git").current_dir(root()).args(["ls-files"]).output().expect("git runs");
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    let tops: BTreeSet<&str> =
        listed.lines().filter_map(|path| path.split('/').next()).filter(|top| !top.starts_with('.')).collect();
    assert!(tops.is_subset(&expected), "{:?}", tops.difference(&expected));
}

fn walk(folder: &str) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![root().join(folder)];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(directory).expect("a readable directory") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    assert!(!found.is_empty());
    found
}
