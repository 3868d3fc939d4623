//! Whatever the order of writing and wherever it stopped, the finished cache has the same bytes.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use cab_format::{Cache, Split};

use crate::common::*;

/// The files of an uninterrupted cache, and a digest for its manifest.
fn reference() -> BTreeMap<String, Vec<u8>> {
    let dir = tempfile::tempdir().unwrap();
    complete(dir.path());
    comparable(dir.path())
}

/// The files of a sealed cache, the time of sealing taken out of the manifest.
fn comparable(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = files(dir);
    let manifest = Cache::open(dir).unwrap().manifest().clone();
    let text = String::from_utf8(files["manifest.json"].clone()).unwrap();
    let timeless = text.replace(&format!("{}", manifest.created_unix_secs), "TIME").replace(&manifest.digest, "DIGEST");
    files.insert("manifest.json".into(), timeless.into_bytes());
    files.insert("digest".into(), manifest.content_digest().into_bytes());
    files
}

/// Finishes shards 0 and 3, then leaves.
fn begin(dir: &Path) {
    let writer = open(dir).unwrap();
    write_shard(&writer, 3);
    write_shard(&writer, 0);
}

/// What the disk looks like after a run that `stop` ends, then a run that finishes it.
fn stopped(stop: impl FnOnce(&Path)) {
    let dir = tempfile::tempdir().unwrap();
    stop(dir.path());
    complete(dir.path());
    let (found, expected) = (comparable(dir.path()), reference());
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    for (name, bytes) in expected {
        assert!(found[&name] == bytes, "{name} differs");
    }
}

#[test]
fn nothing_but_the_lock_was_made() {
    stopped(|dir| {
        fs::create_dir(dir.join(".partial")).unwrap();
        fs::write(dir.join(".partial/lock"), b"").unwrap();
    });
}

#[test]
fn stopped_between_shards() {
    stopped(|dir| {
        begin(dir);
        let writer = open(dir).unwrap();
        assert_eq!(writer.finished(3).unwrap().extra["right"], 3);
        assert_eq!(writer.finished(0).unwrap().skipped_records, 1);
        assert!(writer.finished(1).is_none());
        let finished: Vec<_> = writer.summaries().into_iter().map(|(s, _)| s).collect();
        assert_eq!(finished, [0, 3]);
    });
}

#[test]
fn stopped_inside_a_shard() {
    stopped(|dir| {
        let writer = open(dir).unwrap();
        let mut shard = writer.shard(0, Split::Train).unwrap();
        append(0, &mut shard, 1);
        drop(writer);
        drop(shard);
        assert!(dir.join(".partial/00000.arrow").exists());
    });
}

#[test]
fn a_shard_given_up_can_be_begun_again() {
    stopped(|dir| {
        let writer = open(dir).unwrap();
        let mut shard = writer.shard(0, Split::Train).unwrap();
        append(0, &mut shard, 1);
        drop(shard);
        write_shard(&writer, 0);
    });
}

#[test]
fn stopped_before_the_shard_moved_into_place() {
    stopped(|dir| {
        begin(dir);
        fs::rename(dir.join("shards/00000.arrow"), dir.join(".partial/00000.arrow")).unwrap();
        assert!(open(dir).unwrap().finished(0).is_some());
    });
}

#[test]
fn a_shard_without_account_is_made_again() {
    stopped(|dir| {
        begin(dir);
        fs::remove_file(dir.join(".partial/00000.json")).unwrap();
        assert!(open(dir).unwrap().finished(0).is_none());
        assert!(!dir.join("shards/00000.arrow").exists());
    });
}

#[test]
fn a_shard_cut_short_is_made_again() {
    stopped(|dir| {
        begin(dir);
        let path = dir.join("shards/00003.arrow");
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
        assert!(open(dir).unwrap().finished(3).is_none());
    });
}

#[test]
fn an_altered_account_is_not_believed() {
    stopped(|dir| {
        begin(dir);
        let path = dir.join(".partial/00003.json");
        let mut bytes = fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&path, &bytes).unwrap();
        fs::write(dir.join(".partial/00001.json.tmp"), b"{").unwrap();
        let writer = open(dir).unwrap();
        assert!(writer.finished(3).is_none() && writer.finished(0).is_some());
    });
}

#[test]
fn stopped_before_the_manifest() {
    stopped(|dir| {
        begin(dir);
        fs::write(dir.join("catalog.parquet"), b"half a catal").unwrap();
        fs::write(dir.join("skipped.parquet"), b"").unwrap();
        fs::write(dir.join(".partial/manifest.json"), b"{").unwrap();
    });
}

#[test]
fn order_and_threads_do_not_show() {
    stopped(|dir| {
        let writer = open(dir).unwrap();
        std::thread::scope(|scope| {
            for shard in [2, 0, 1] {
                let writer = &writer;
                scope.spawn(move || write_shard(writer, shard));
            }
        });
        write_shard(&writer, 3);
    });
}
