//! What a directory may be opened for, by a writer and by a reader.

use std::fs;
use std::path::Path;

use cab_format::{Cache, CacheWriter, Error, OnExisting, Split, encode_block, verify};
use serde_json::{Map, Value, json};

use crate::common::*;

fn overwrite(dir: &Path, plan: &str) -> cab_format::Result<CacheWriter> {
    CacheWriter::open(dir, plan, &fields(), OnExisting::Overwrite)
}

#[test]
fn two_writers_exclude_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(dir.path()).unwrap();
    for second in [open(dir.path()), overwrite(dir.path(), PLAN)] {
        let error = second.unwrap_err();
        assert!(matches!(error, Error::Locked { .. }), "{error}");
    }
    let shard = first.shard(0, Split::Train).unwrap();
    drop(first);
    assert!(matches!(open(dir.path()).unwrap_err(), Error::Locked { .. }), "a shard still writes");
    drop(shard);
    open(dir.path()).unwrap();
}

#[test]
fn a_sealed_cache_is_not_overwritten_unasked() {
    let dir = tempfile::tempdir().unwrap();
    complete(dir.path());
    let before = files(dir.path());
    assert!(matches!(open(dir.path()).unwrap_err(), Error::AlreadySealed { .. }));
    let other = CacheWriter::open(dir.path(), "plan-two", &fields(), OnExisting::Resume);
    let error = other.unwrap_err();
    assert!(matches!(&error, Error::PlanMismatch { expected, found, .. }
        if expected == "plan-two" && found == PLAN));
    assert!(error.to_string().contains("--overwrite"));
    assert_eq!(files(dir.path()), before, "a refusal leaves nothing behind");
    assert!(!dir.path().join(".partial").exists());

    fs::write(dir.path().join("notes.txt"), b"mine").unwrap();
    fs::write(dir.path().join("shards/notes.txt"), b"mine").unwrap();
    drop(overwrite(dir.path(), "plan-two").unwrap());
    let left = files(dir.path());
    let names: Vec<_> = left.keys().map(String::as_str).collect();
    assert_eq!(names, [".partial/lock", ".partial/plan.json", "notes.txt", "shards/notes.txt"]);
    assert!(matches!(Cache::open(dir.path()).unwrap_err(), Error::Unsealed { .. }));
}

#[test]
fn an_overwriting_that_stopped_can_be_repeated() {
    let dir = tempfile::tempdir().unwrap();
    complete(dir.path());
    // The manifest goes first; everything else may still be there.
    fs::remove_file(dir.path().join("manifest.json")).unwrap();
    fs::create_dir(dir.path().join(".partial")).unwrap();
    fs::write(dir.path().join(".partial/lock"), b"").unwrap();
    let writer = overwrite(dir.path(), "plan-two").unwrap();
    assert!(writer.summaries().is_empty());
    assert!(!dir.path().join("shards/00000.arrow").exists());
}

#[test]
fn an_unsealed_cache_is_refused_by_readers_and_by_other_plans() {
    let dir = tempfile::tempdir().unwrap();
    let writer = open(dir.path()).unwrap();
    write_shard(&writer, 1);
    for error in [Cache::open(dir.path()).unwrap_err(), verify(dir.path()).unwrap_err()] {
        assert!(matches!(error, Error::Unsealed { .. }), "{error}");
        assert!(error.to_string().contains("rerun the same cab-extract command"));
    }
    drop(writer);
    let other = CacheWriter::open(dir.path(), "plan-two", &fields(), OnExisting::Resume);
    assert!(matches!(other.unwrap_err(), Error::PlanMismatch { .. }));
    let fewer = CacheWriter::open(dir.path(), PLAN, &fields()[..2], OnExisting::Resume);
    assert!(matches!(fewer.unwrap_err(), Error::PlanMismatch { .. }));
    assert!(overwrite(dir.path(), "plan-two").unwrap().finished(1).is_none());
}

#[test]
fn foreign_directories_are_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("none");
    for nothing in [dir.path(), &missing] {
        assert!(matches!(Cache::open(nothing).unwrap_err(), Error::NotACache { .. }));
        assert!(matches!(verify(nothing).unwrap_err(), Error::NotACache { .. }));
    }
    fs::write(dir.path().join("thesis.tex"), b"mine").unwrap();
    for refused in [open(dir.path()), overwrite(dir.path(), PLAN)] {
        let error = refused.unwrap_err();
        assert!(matches!(&error, Error::Foreign { found, .. } if found == "thesis.tex"), "{error}");
    }
    fs::write(dir.path().join("manifest.json"), br#"{"format":"web-app","version":3}"#).unwrap();
    for refused in
        [open(dir.path()).unwrap_err(), overwrite(dir.path(), PLAN).unwrap_err(), Cache::open(dir.path()).unwrap_err()]
    {
        assert!(matches!(refused, Error::Foreign { .. }), "{refused}");
    }
    assert_eq!(files(dir.path()).len(), 2);
    assert!(matches!(open(&dir.path().join("thesis.tex")).unwrap_err(), Error::Io { .. }));
}

#[test]
fn a_newer_version_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let newer = br#"{"format":"cab-cache","version":2,"everything":"else may differ"}"#;
    fs::write(dir.path().join("manifest.json"), newer).unwrap();
    for refused in [Cache::open(dir.path()).unwrap_err(), open(dir.path()).unwrap_err()] {
        assert!(matches!(refused, Error::NewerVersion { found: 2, known: 1, .. }), "{refused}");
    }
    assert_eq!(verify(dir.path()).unwrap().len(), 1);
}

#[test]
fn only_a_complete_cache_is_sealed() {
    let dir = tempfile::tempdir().unwrap();
    let writer = open(dir.path()).unwrap();
    write_shard(&writer, 0);
    write_shard(&writer, 2);
    let error = writer.seal(2, Map::new()).unwrap_err();
    assert!(
        matches!(&error, Error::UnfinishedShards { expected: 2, found, .. }
        if found == "1 missing, 2 too many"),
        "{error}"
    );
    assert!(matches!(Cache::open(dir.path()).unwrap_err(), Error::Unsealed { .. }));

    let writer = open(dir.path()).unwrap();
    let taken = writer.shard(0, Split::Train).err().unwrap();
    assert!(matches!(taken, Error::ShardTaken { shard: 0, state: "finished" }));
    let _one = writer.shard(1, Split::Train).unwrap();
    let taken = writer.shard(1, Split::Train).err().unwrap();
    assert!(matches!(taken, Error::ShardTaken { shard: 1, state: "being written" }));
    assert!(matches!(writer.seal(3, Map::new()).unwrap_err(), Error::UnfinishedShards { .. }));
}

#[test]
fn keys_of_the_format_and_records_twice_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let writer = open(dir.path()).unwrap();
    let about = json!({ "teacher": 1, "digest": "mine" });
    let error = writer.seal(0, about.as_object().unwrap().clone()).unwrap_err();
    assert!(matches!(&error, Error::ReservedKey { key } if key == "digest"));

    let writer = open(dir.path()).unwrap();
    for shard in [0, 1] {
        let mut file = writer.shard(shard, Split::Train).unwrap();
        append(1, &mut file, 0);
        file.finish(Value::Null, vec![]).unwrap();
    }
    let error = writer.seal(2, Map::new()).unwrap_err();
    assert!(matches!(error, Error::DuplicateRecord { record: 5, first: 0, second: 1, .. }), "{error}");
}

#[test]
fn a_block_of_another_split_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let writer = open(dir.path()).unwrap();
    let mut val = writer.shard(0, Split::Val).unwrap();
    assert_eq!(val.fields().len(), 2);
    let block = encode_block(&fields(), vec![row(&fields(), 1)]).unwrap();
    let error = val.append(block).unwrap_err();
    assert!(matches!(&error, Error::BlockMismatch { expected, .. } if expected == "input, logits"));
}

#[test]
fn a_cache_of_no_shards_is_a_cache() {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path()).unwrap().seal(0, Map::new()).unwrap();
    let cache = Cache::open(dir.path()).unwrap();
    assert!(cache.catalog_rows().unwrap().is_empty() && cache.skipped_rows().unwrap().is_empty());
    assert!(verify(dir.path()).unwrap().is_empty());
}
