//! What lies in `.partial` while a cache is written: the plan, the lock, the account of every finished shard.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::catalog::{CatalogRow, RowMeta, SkippedRow};
use crate::error::At;
use crate::files::{check_size, read_file, remove_if_there, rename_durably, sync_dir, write_durably};
use crate::manifest::{CATALOG, FORMAT, MANIFEST, Manifest, SKIPPED, ShardEntry, VERSION, shard_path};
use crate::sealed_json::{self, Style};
use crate::{Error, FieldSpec, OnExisting, Result};

/// Directory of everything that is no part of a sealed cache.
pub(crate) const PARTIAL: &str = ".partial";
const LOCK: &str = "lock";
const PLAN: &str = "plan.json";

/// Place and checksum of a block in its shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockEntry {
    /// First byte in the file.
    pub offset: u64,
    /// Bytes, message header included.
    pub bytes: u64,
    /// CRC32C of those bytes.
    pub crc32c: u32,
    /// Rows.
    pub rows: u32,
}

/// What is known of a finished shard before the cache is sealed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardSummary {
    /// As the manifest will name it.
    pub entry: ShardEntry,
    /// Its blocks, in order.
    pub blocks: Vec<BlockEntry>,
    /// Records of its range that could not be made.
    pub skipped_records: u64,
    /// The caller's own counters, kept across an interruption.
    pub extra: serde_json::Value,
}

/// A catalog row before its place is known: record, label, sample id, source, view, seed, partner, bits of the weight.
///
/// Bits, because JSON has no infinity and a weight must come back as it went in.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Row(u64, Option<i64>, String, String, u32, u64, Option<u64>, Option<u32>);

/// The account of a finished shard: `.partial/00000.json`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Account {
    shard: u32,
    pub(crate) summary: ShardSummary,
    rows: Vec<Row>,
    pub(crate) skipped: Vec<SkippedRow>,
    digest: String,
}

impl Account {
    pub(crate) fn new(
        shard: u32,
        summary: ShardSummary,
        rows: Vec<(u64, Option<i64>, RowMeta)>,
        skipped: Vec<SkippedRow>,
    ) -> Self {
        let row = |(record, label, m): (u64, Option<i64>, RowMeta)| {
            let weight = m.mix_weight.map(f32::to_bits);
            Row(record, label, m.sample_id, m.source, m.view, m.seed, m.mix_partner, weight)
        };
        Account { shard, summary, rows: rows.into_iter().map(row).collect(), skipped, digest: String::new() }
    }

    pub(crate) fn write(&self, partial: &Path) -> Result<()> {
        let path = account_path(partial, self.shard);
        let (bytes, _) = sealed_json::seal(self, Style::Compact);
        write_durably(&path.with_extension("json.tmp"), &path, &bytes)
    }

    pub(crate) fn read(partial: &Path, shard: u32) -> Result<Account> {
        let path = account_path(partial, shard);
        let account: Account = sealed_json::open(&path, &read_file(&path)?, Style::Compact)?;
        let rows: u64 = account.summary.blocks.iter().map(|b| u64::from(b.rows)).sum();
        if account.shard != shard || rows != account.rows.len() as u64 {
            return Err(Error::Inconsistent {
                path,
                place: "rows".into(),
                expected: format!("shard {shard} with {rows} rows"),
                found: format!("shard {} with {} rows", account.shard, account.rows.len()),
            });
        }
        Ok(account)
    }

    /// The shard's rows of the catalog.
    pub(crate) fn catalog_rows(self) -> Vec<CatalogRow> {
        let (shard, split) = (self.shard, self.summary.entry.split);
        let blocks = self.summary.blocks.into_iter().enumerate();
        let places = blocks.flat_map(|(b, block)| (0..block.rows).map(move |row| (b, block, row)));
        let place = |(row, (b, block, r)): (Row, (usize, BlockEntry, u32))| {
            let Row(record, label, sample_id, source, view, seed, mix_partner, weight) = row;
            CatalogRow {
                record,
                split,
                label,
                meta: RowMeta { sample_id, source, view, seed, mix_partner, mix_weight: weight.map(f32::from_bits) },
                shard,
                block: b as u32,
                row: r,
                block_offset: block.offset,
                block_bytes: block.bytes,
                block_crc32c: block.crc32c,
            }
        };
        self.rows.into_iter().zip(places).map(place).collect()
    }
}

fn account_path(partial: &Path, shard: u32) -> PathBuf {
    partial.join(format!("{shard:05}.json"))
}

/// Where a shard is written before it is finished.
pub(crate) fn aside_path(partial: &Path, shard: u32) -> PathBuf {
    partial.join(format!("{shard:05}.arrow"))
}

/// `plan.json`: whose records these are.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Plan {
    format: String,
    version: u64,
    plan_digest: String,
    fields: Vec<FieldSpec>,
    digest: String,
}

/// Writes the plan; from here on the directory can be resumed.
pub(crate) fn write_plan(partial: &Path, plan_digest: &str, fields: &[FieldSpec]) -> Result<()> {
    let plan = Plan {
        format: FORMAT.into(),
        version: VERSION,
        plan_digest: plan_digest.into(),
        fields: fields.to_vec(),
        digest: String::new(),
    };
    let path = partial.join(PLAN);
    let (bytes, _) = sealed_json::seal(&plan, Style::Compact);
    write_durably(&path.with_extension("json.tmp"), &path, &bytes)
}

pub(crate) fn has_plan(dir: &Path) -> bool {
    dir.join(PARTIAL).join(PLAN).exists()
}

/// Whether records of this plan may be written to `dir`; changes nothing.
pub(crate) fn judge(dir: &Path, plan_digest: &str, fields: &[FieldSpec], existing: OnExisting) -> Result<()> {
    let overwrite = existing == OnExisting::Overwrite;
    let mismatch =
        |found: String| Error::PlanMismatch { dir: dir.to_path_buf(), expected: plan_digest.to_owned(), found };
    let path = dir.join(MANIFEST);
    if path.exists() {
        return match Manifest::open(&path) {
            Err(error @ (Error::Foreign { .. } | Error::Io { .. })) => Err(error),
            _ if overwrite => Ok(()),
            Err(error) => Err(error),
            Ok(found) if found.plan_digest != plan_digest => Err(mismatch(found.plan_digest)),
            Ok(_) => Err(Error::AlreadySealed { dir: dir.to_path_buf() }),
        };
    }
    let path = dir.join(PARTIAL).join(PLAN);
    if path.exists() {
        if overwrite {
            return Ok(());
        }
        let found: Plan = sealed_json::open(&path, &read_file(&path)?, Style::Compact)?;
        return match found {
            _ if found.version > VERSION => Err(Error::NewerVersion { path, found: found.version, known: VERSION }),
            _ if found.plan_digest != plan_digest => Err(mismatch(found.plan_digest)),
            _ if found.fields != fields => Err(mismatch("the same digest with other fields".into())),
            _ => Ok(()),
        };
    }
    // Neither manifest nor plan: empty, or begun by us and interrupted before the plan was written.
    let begun = dir.join(PARTIAL).join(LOCK).exists();
    let ours = |name: &str| begun && [PARTIAL, CATALOG, SKIPPED, "shards"].contains(&name);
    match names_in(dir)?.into_iter().find(|name| !ours(name)) {
        None => Ok(()),
        Some(found) => Err(Error::Foreign {
            path: dir.to_path_buf(),
            expected: "an empty directory or one begun by cab-extract",
            found,
        }),
    }
}

/// Sorted names in a directory; none if it is not there.
fn names_in(dir: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.at("list", dir)?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.at("list", dir)?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// Takes the lock of the cache in `dir`; it is held as long as the file lives, and a crash gives it back.
pub(crate) fn lock(dir: &Path) -> Result<File> {
    let partial = dir.join(PARTIAL);
    let path = partial.join(LOCK);
    loop {
        fs::create_dir_all(&partial).at("create", &partial)?;
        let file = match File::create(&path) {
            // Another writer sealed and removed `.partial` in between.
            Err(error) if error.kind() == io::ErrorKind::NotFound && dir.exists() => continue,
            other => other.at("create", &path)?,
        };
        match file.try_lock() {
            Ok(()) if same_file(&file, &path) => return Ok(file),
            // The lock of a file that another writer has removed meanwhile locks nothing.
            Ok(()) => continue,
            Err(TryLockError::WouldBlock) => {
                return Err(Error::Locked { dir: dir.to_path_buf() });
            }
            Err(TryLockError::Error(error)) => return Err(error).at("lock", &path),
        }
    }
}

#[cfg(unix)]
fn same_file(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let id = |meta: &fs::Metadata| (meta.dev(), meta.ino());
    matches!((file.metadata(), fs::metadata(path)), (Ok(a), Ok(b)) if id(&a) == id(&b))
}

#[cfg(not(unix))]
fn same_file(_: &File, path: &Path) -> bool {
    path.exists()
}

/// The shard index in a name like `00012.arrow`.
pub(crate) fn shard_index(name: &str, extension: &str) -> Option<u32> {
    let stem = name.strip_suffix(extension)?;
    let index = stem.parse().ok()?;
    (format!("{index:05}") == stem).then_some(index)
}

/// Removes every file this crate writes, the manifest first; others stay, and so does the lock.
pub(crate) fn remove_ours(dir: &Path) -> Result<()> {
    let (partial, shards) = (dir.join(PARTIAL), dir.join("shards"));
    remove_if_there(&dir.join(MANIFEST))?;
    // From here on the cache is unsealed, whatever happens.
    sync_dir(dir)?;
    remove_if_there(&partial.join(PLAN))?;
    sync_dir(&partial)?;
    for name in names_in(&partial)?.iter().filter(|name| *name != LOCK) {
        remove_if_there(&partial.join(name))?;
    }
    for name in [CATALOG, SKIPPED] {
        remove_if_there(&dir.join(name))?;
    }
    for name in names_in(&shards)? {
        if shard_index(&name, ".arrow").is_some() {
            remove_if_there(&shards.join(name))?;
        }
    }
    Ok(())
}

/// The shards finished by an earlier run; whatever that run left unfinished is removed.
pub(crate) fn recover(dir: &Path) -> Result<Vec<(u32, ShardSummary)>> {
    let (partial, shards) = (dir.join(PARTIAL), dir.join("shards"));
    let mut finished = Vec::new();
    let names = names_in(&partial)?;
    for shard in names.iter().filter_map(|name| shard_index(name, ".json")) {
        match finish_interrupted(dir, &partial, shard) {
            Ok(summary) => finished.push((shard, summary)),
            // A shard whose account does not hold is made again; only a failing disk stops us.
            Err(error @ Error::Io { .. }) => return Err(error),
            Err(_) => remove_if_there(&account_path(&partial, shard))?,
        }
    }
    for name in names.iter().filter(|n| n.ends_with(".tmp") || n.ends_with(".arrow")) {
        remove_if_there(&partial.join(name))?;
    }
    for name in names_in(&shards)? {
        let index = shard_index(&name, ".arrow");
        if index.is_some_and(|index| !finished.iter().any(|(shard, _)| *shard == index)) {
            remove_if_there(&shards.join(name))?;
        }
    }
    finished.sort_by_key(|(shard, _)| *shard);
    Ok(finished)
}

/// The account of a shard whose file is whole, moved into place if the run stopped right before that.
fn finish_interrupted(dir: &Path, partial: &Path, shard: u32) -> Result<ShardSummary> {
    let summary = Account::read(partial, shard)?.summary;
    let path = dir.join(shard_path(shard));
    let aside = aside_path(partial, shard);
    if check_size(&path, summary.entry.bytes).is_err() {
        check_size(&aside, summary.entry.bytes)?;
        rename_durably(&aside, &path)?;
    }
    Ok(summary)
}
