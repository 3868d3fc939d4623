//! Damage: every truncation fails `open`, every altered byte is found, nothing panics, no other data comes back.

use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

use cab_format::{Cache, Error, verify};

use crate::common::*;

/// Lengths to try: all of a small file, the ends and a dense sample of a larger one.
fn lengths(bytes: usize) -> impl Iterator<Item = usize> {
    let step = (bytes / 600).max(1);
    (0..bytes).filter(move |n| n % step == 0 || *n < 64 || bytes - n < 64)
}

fn put(path: &Path, bytes: &[u8]) {
    fs::write(path, bytes).unwrap();
}

/// Changes one byte in place: rewriting the whole file each time would wait for the disk.
fn put_byte(path: &Path, at: usize, byte: u8) {
    let mut file = File::options().write(true).open(path).unwrap();
    file.seek(SeekFrom::Start(at as u64)).unwrap();
    file.write_all(&[byte]).unwrap();
}

#[test]
fn every_truncation_fails_open() {
    let dir = tempfile::tempdir().unwrap();
    complete(dir.path());
    let files = files(dir.path());
    assert_eq!(files.len(), SHARDS.len() + 3, "{:?}", files.keys());
    for (name, bytes) in &files {
        let path = dir.path().join(name);
        for length in lengths(bytes.len()) {
            put(&path, &bytes[..length]);
            let error = Cache::open(dir.path()).unwrap_err();
            assert!(matches!(error, Error::Truncated { .. }), "{name} {length}: {error}");
            assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
        }
        put(&path, &[&bytes[..], b"\n"].concat());
        Cache::open(dir.path()).unwrap_err();
        fs::remove_file(&path).unwrap();
        let error = Cache::open(dir.path()).unwrap_err();
        assert!(matches!(error, Error::Missing { .. } | Error::NotACache { .. }), "{name}: {error}");
        put(&path, bytes);
    }
    Cache::open(dir.path()).unwrap();
}

#[test]
fn every_altered_byte_is_found_and_none_is_read() {
    let dir = tempfile::tempdir().unwrap();
    complete(dir.path());
    let whole = read_all(dir.path()).unwrap();
    for (name, bytes) in files(dir.path()) {
        let path = dir.path().join(&name);
        for (i, byte) in bytes.iter().enumerate() {
            // Every bit gets its turn, and so does a change of all of them.
            put_byte(&path, i, byte ^ [1, 2, 4, 8, 16, 32, 64, 128, 255][i % 9]);
            let faults = verify(dir.path()).unwrap();
            let found = faults.iter().any(|f| f.path == path);
            assert!(found, "{name}, byte {i}: {faults:?}");
            match read_all(dir.path()) {
                Ok(read) => assert_eq!(read, whole, "{name}, byte {i}"),
                Err(error) => {
                    let text = error.to_string();
                    let named = text.contains(path.to_str().unwrap());
                    assert!(named, "{name}, byte {i}: {text}");
                }
            }
            put_byte(&path, i, *byte);
        }
    }
    assert!(verify(dir.path()).unwrap().is_empty());
}

#[test]
fn an_altered_shard_names_file_and_block() {
    let dir = tempfile::tempdir().unwrap();
    complete(dir.path());
    let block = Cache::open(dir.path()).unwrap().blocks(0)[1];
    let path = dir.path().join("shards/00000.arrow");
    let mut bytes = fs::read(&path).unwrap();
    bytes[(block.offset + block.bytes / 2) as usize] ^= 16;
    put(&path, &bytes);
    let cache = Cache::open(dir.path()).unwrap();
    cache.read_block(0, 0, &["input"]).unwrap();
    let altered = cache.read_block(0, 1, &["input"]).unwrap_err();
    let named = format!("{}, block 1: altered", path.display());
    assert!(altered.to_string().starts_with(&named), "{altered}");
    assert!(verify(dir.path()).unwrap().iter().any(|f| f.problem.starts_with(&named)));
}

#[test]
fn strangers_among_the_shards_are_reported() {
    let dir = tempfile::tempdir().unwrap();
    complete(dir.path());
    let stranger = dir.path().join("shards/00009.arrow");
    put(&stranger, b"ARROW1");
    let faults = verify(dir.path()).unwrap();
    assert_eq!(faults.len(), 1);
    assert_eq!(faults[0].path, stranger);
    assert!(faults[0].to_string().contains("foreign"));
    Cache::open(dir.path()).unwrap();
}
