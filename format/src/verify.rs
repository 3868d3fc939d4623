//! Reading all of a cache and naming everything that is not as it was sealed.

use std::fmt;
use std::fs;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::cache::{open_index, open_manifest};
use crate::error::At;
use crate::files::{check_size, compare_hash, hash_file, read_sealed};
use crate::index::Location;
use crate::shard::footer_fault;
use crate::{Cache, Error, Manifest, Result};

/// One thing that is wrong with a cache.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fault {
    /// The file it is about.
    pub path: PathBuf,
    /// File, place, what was expected and what was found.
    pub problem: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.problem)
    }
}

impl Fault {
    fn new(path: &Path, error: &Error) -> Self {
        Fault { path: path.to_path_buf(), problem: error.to_string() }
    }
}

/// Everything that is wrong with the cache in `dir`, sorted by file; nothing if all is as it was sealed.
///
/// Every byte of every file is read: hashes of whole files, checksums of frames and blocks, agreement of shards, catalog
/// and manifest; every field of every block is decoded. One thread per core, a block of memory each.
///
/// # Errors
/// [`Error::NotACache`], [`Error::Unsealed`], and failures to list or open that are no property of the cache.
pub fn verify(dir: impl AsRef<Path>) -> Result<Vec<Fault>> {
    let dir = dir.as_ref();
    let manifest = match open_manifest(dir) {
        Ok(manifest) => manifest,
        Err(error @ (Error::NotACache { .. } | Error::Unsealed { .. } | Error::Io { .. })) => {
            return Err(error);
        }
        Err(error) => return Ok(vec![Fault::new(&dir.join(crate::MANIFEST), &error)]),
    };
    let mut faults = strangers(dir, &manifest)?;
    faults.extend(table_faults(dir, &manifest));
    let (index, mut shard_faults) = match open_index(dir, &manifest) {
        Ok(index) => (Some(index), Vec::new()),
        Err(error) => {
            let path = dir.join(&manifest.catalog.path);
            (None, vec![Fault::new(&path, &error)])
        }
    };
    let shards = manifest.shards.len();
    match index {
        Some(index) => {
            let cache = Cache::of(dir, manifest, index);
            let rows = rows_by_shard(&cache);
            shard_faults.extend(on_all_cores(shards, |shard| {
                let mut faults = file_faults(dir, cache.manifest(), shard);
                faults.extend(block_faults(&cache, shard, &rows[shard]));
                faults
            }));
        }
        // Without a catalog nobody knows where blocks lie; the files' hashes can still be compared.
        None => shard_faults.extend(on_all_cores(shards, |s| file_faults(dir, &manifest, s))),
    }
    faults.extend(shard_faults);
    faults.sort();
    faults.dedup();
    Ok(faults)
}

/// The faults that `find` sees in each of `0..count`.
fn on_all_cores(count: usize, find: impl Fn(usize) -> Vec<Fault> + Sync) -> Vec<Fault> {
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    let next = AtomicUsize::new(0);
    let faults = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..cores.min(count) {
            scope.spawn(|| {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    if i >= count {
                        break;
                    }
                    let found = find(i);
                    faults.lock().expect("finding does not panic").extend(found);
                }
            });
        }
    });
    faults.into_inner().expect("finding does not panic")
}

/// Files among the shards that the manifest does not name.
fn strangers(dir: &Path, manifest: &Manifest) -> Result<Vec<Fault>> {
    let shards = dir.join("shards");
    if manifest.shards.is_empty() && !shards.exists() {
        return Ok(Vec::new());
    }
    let mut faults = Vec::new();
    for entry in fs::read_dir(&shards).at("list", &shards)? {
        let path = entry.at("list", &shards)?.path();
        if !manifest.shards.iter().any(|shard| dir.join(&shard.path) == path) {
            let error = Error::Foreign {
                path: path.clone(),
                expected: "only shards the manifest names",
                found: "another file".into(),
            };
            faults.push(Fault::new(&path, &error));
        }
    }
    Ok(faults)
}

/// Faults of the table of skipped records.
fn table_faults(dir: &Path, manifest: &Manifest) -> Option<Fault> {
    let entry = manifest.skipped.as_ref()?;
    let path = dir.join(&entry.path);
    let rows = read_sealed(dir, entry).and_then(|bytes| crate::catalog::Table::new(&path, bytes).skipped_rows());
    let error = match rows {
        Ok(rows) if rows.len() as u64 == entry.rows => return None,
        Ok(rows) => Error::Inconsistent {
            path: path.clone(),
            place: "rows".into(),
            expected: entry.rows.to_string(),
            found: rows.len().to_string(),
        },
        Err(error) => error,
    };
    Some(Fault::new(&path, &error))
}

/// Size and hash of a shard's file.
fn file_faults(dir: &Path, manifest: &Manifest, shard: usize) -> Vec<Fault> {
    let entry = &manifest.shards[shard];
    let path = dir.join(&entry.path);
    let checked = check_size(&path, entry.bytes)
        .and_then(|()| hash_file(&path))
        .and_then(|hash| compare_hash(&path, &entry.blake3, hash));
    checked.err().iter().map(|e| Fault::new(&path, e)).collect()
}

/// What the catalog says of the rows of every shard, in order of block and row.
fn rows_by_shard(cache: &Cache) -> Vec<Vec<Location>> {
    let mut rows = vec![Vec::new(); cache.manifest().shards.len()];
    for split in [crate::Split::Train, crate::Split::Val] {
        for location in cache.locations(split) {
            rows[location.shard as usize].push(*location);
        }
    }
    for rows in &mut rows {
        rows.sort_unstable_by_key(|l| (l.block, l.row));
    }
    rows
}

/// Frame, footer and blocks of a shard, against the catalog.
fn block_faults(cache: &Cache, shard: usize, rows: &[Location]) -> Vec<Fault> {
    let entry = &cache.manifest().shards[shard];
    let path = cache.dir().join(&entry.path);
    let file = match cache.file(shard) {
        Ok(file) => file,
        Err(error) => return vec![Fault::new(&path, &error)],
    };
    let mut faults = Vec::new();
    let mut fault = |error: &Error| faults.push(Fault::new(&path, error));
    let blocks = cache.blocks(shard as u32);
    let places = blocks.iter().map(|block| (block.offset, block.bytes));
    if let Some(found) = footer_fault(file, cache.schema(entry.split), places) {
        fault(&Error::Inconsistent {
            path: path.clone(),
            place: "footer".into(),
            expected: "schema and blocks as manifest and catalog have them".into(),
            found,
        });
    }
    let names: Vec<_> = cache.fields(entry.split).iter().map(|f| f.name.as_str()).collect();
    let mut rest = rows;
    for (b, place) in blocks.iter().enumerate() {
        let rows;
        (rows, rest) = rest.split_at(place.rows as usize);
        let block = match cache.read_block(shard as u32, b as u32, &names) {
            Ok(block) => block,
            Err(error) => {
                fault(&error);
                continue;
            }
        };
        let differs = |i: &usize| {
            let (row, expected) = (*i, &rows[*i]);
            block.records()[row] != expected.record || block.label(row) != expected.label
        };
        if let Some(row) = (0..block.rows()).find(differs) {
            fault(&Error::Inconsistent {
                path: path.clone(),
                place: format!("block {b}, row {row}"),
                expected: format!("record {} with label {:?}", rows[row].record, rows[row].label),
                found: format!("{} with {:?}", block.records()[row], block.label(row)),
            });
        }
    }
    faults
}
