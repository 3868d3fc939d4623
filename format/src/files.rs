//! Files written aside, made durable and moved into place; files read with their size and hash checked.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;

use crate::error::At;
use crate::{Error, FileEntry, Result};

/// A writer that hashes and counts what passes through it.
pub(crate) struct Hashed<W> {
    inner: W,
    hasher: blake3::Hasher,
    bytes: u64,
}

impl<W: Write> Hashed<W> {
    pub(crate) fn new(inner: W) -> Self {
        Hashed { inner, hasher: blake3::Hasher::new(), bytes: 0 }
    }

    /// Bytes written so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The writer, the bytes written and their BLAKE3.
    pub(crate) fn finish(self) -> (W, u64, String) {
        let hash = self.hasher.finalize().to_hex().to_string();
        (self.inner, self.bytes, hash)
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(buf)?;
        self.hasher.update(&buf[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Writes `bytes` to `aside`, makes them durable and renames the file to `path`.
pub(crate) fn write_durably(aside: &Path, path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = File::create(aside).at("create", aside)?;
    file.write_all(bytes).at("write", aside)?;
    file.sync_all().at("fsync", aside)?;
    rename_durably(aside, path)
}

/// Renames a file whose content is durable, and makes the rename durable.
pub(crate) fn rename_durably(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).at("rename", from)?;
    sync_dir(to.parent().expect("a cache's files lie in a directory"))
}

/// Makes the entries of a directory durable.
pub(crate) fn sync_dir(dir: &Path) -> Result<()> {
    // Only Unix opens a directory as a file; elsewhere a rename is as durable as it gets.
    if cfg!(unix) {
        let handle = File::open(dir).at("open", dir)?;
        handle.sync_all().at("fsync", dir)?;
    }
    Ok(())
}

/// Removes a file; it may be gone already.
pub(crate) fn remove_if_there(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.at("remove", path),
    }
}

/// The bytes of a file.
pub(crate) fn read_file(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).at("read", path)
}

/// Refuses a file that is missing or has another size than `bytes`.
pub(crate) fn check_size(path: &Path, bytes: u64) -> Result<()> {
    match fs::metadata(path) {
        Ok(found) => compare_size(path, bytes, found.len()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(Error::Missing { path: path.to_path_buf(), expected_bytes: bytes })
        }
        Err(error) => Err(error).at("look at", path),
    }
}

/// Refuses `found` bytes where `expected` were sealed.
pub(crate) fn compare_size(path: &Path, expected: u64, found: u64) -> Result<()> {
    match found.cmp(&expected) {
        std::cmp::Ordering::Equal => Ok(()),
        std::cmp::Ordering::Less => Err(Error::Truncated {
            path: path.to_path_buf(),
            expected: format!("{expected} bytes"),
            found: format!("{found} bytes"),
        }),
        std::cmp::Ordering::Greater => {
            Err(Error::WrongSize { path: path.to_path_buf(), expected_bytes: expected, found_bytes: found })
        }
    }
}

/// The bytes of a table of the cache in `dir`, once size and hash agree with the manifest.
pub(crate) fn read_sealed(dir: &Path, entry: &FileEntry) -> Result<Vec<u8>> {
    let path = dir.join(&entry.path);
    check_size(&path, entry.bytes)?;
    let bytes = read_file(&path)?;
    compare_size(&path, entry.bytes, bytes.len() as u64)?;
    compare_hash(&path, &entry.blake3, blake3::hash(&bytes))?;
    Ok(bytes)
}

/// Refuses the file at `path` unless its BLAKE3 is the one that was sealed.
pub(crate) fn compare_hash(path: &Path, expected: &str, found: blake3::Hash) -> Result<()> {
    let found = found.to_hex();
    if found.as_str() == expected {
        return Ok(());
    }
    Err(Error::Altered {
        path: path.to_path_buf(),
        place: "BLAKE3 of the whole file".into(),
        expected: expected.to_owned(),
        found: found.to_string(),
    })
}

/// BLAKE3 of a file, read in pieces.
pub(crate) fn hash_file(path: &Path) -> Result<blake3::Hash> {
    let mut file = File::open(path).at("open", path)?;
    let mut hasher = blake3::Hasher::new();
    let mut piece = vec![0; 1 << 20];
    loop {
        match file.read(&mut piece).at("read", path)? {
            0 => return Ok(hasher.finalize()),
            n => hasher.update(&piece[..n]),
        };
    }
}
