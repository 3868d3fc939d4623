//! Writing a cache: shards in any order and from any thread, interrupted and resumed, sealed once.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{SystemTime, UNIX_EPOCH};

use arrow::datatypes::SchemaRef;
use parquet::errors::ParquetError;
use serde_json::{Map, Value};

use crate::catalog::{RowMeta, SkippedRow, TableWriter};
use crate::error::At;
use crate::field::{check_fields, names, schema};
use crate::files::{Hashed, remove_if_there, rename_durably, sync_dir, write_durably};
use crate::manifest::{CATALOG, FORMAT, MANIFEST, RecordCounts, SKIPPED, ShardEntry, VERSION, shard_path};
use crate::partial::{self, Account, BlockEntry, PARTIAL, ShardSummary, aside_path};
use crate::shard::{header, tail};
use crate::{EncodedBlock, Error, FieldSpec, FileEntry, Manifest, Result, Split, split_fields};

/// What to do with records that are in the directory already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnExisting {
    /// Keep the finished shards of the same plan; refuse any other.
    Resume,
    /// Remove what an earlier extraction wrote, of whatever plan; never a file that is not ours.
    Overwrite,
}

/// A cache being written; holds its lock.
#[derive(Debug)]
pub struct CacheWriter {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    partial: PathBuf,
    plan_digest: String,
    fields: Vec<FieldSpec>,
    shards: Mutex<BTreeMap<u32, Slot>>,
    /// Held open: closing it gives the lock back.
    _lock: File,
}

#[derive(Debug)]
enum Slot {
    BeingWritten,
    Finished(Arc<ShardSummary>),
}

impl Inner {
    fn slots(&self) -> MutexGuard<'_, BTreeMap<u32, Slot>> {
        // Slots are replaced whole: a panic elsewhere leaves none half-written.
        self.shards.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl CacheWriter {
    /// A writer of records of the plan `plan_digest` into `dir`, which is made if it is not there.
    ///
    /// # Errors
    /// [`Error::AlreadySealed`], [`Error::PlanMismatch`], [`Error::Foreign`], [`Error::NewerVersion`] for what the
    /// directory holds; [`Error::Locked`] while another process writes it; [`Error::BadField`] for fields that cannot be
    /// stored.
    pub fn open(
        dir: impl AsRef<Path>,
        plan_digest: &str,
        fields: &[FieldSpec],
        existing: OnExisting,
    ) -> Result<CacheWriter> {
        let dir = dir.as_ref();
        check_fields(fields)?;
        match partial::judge(dir, plan_digest, fields, existing) {
            // Nothing to tidy up, so nothing to lock.
            Err(error @ Error::AlreadySealed { .. }) if !dir.join(PARTIAL).exists() => return Err(error),
            Err(Error::AlreadySealed { .. }) | Ok(()) => {}
            Err(error) => return Err(error),
        }
        let lock = partial::lock(dir)?;
        // Another writer may have finished between the first look and the lock.
        let judged = partial::judge(dir, plan_digest, fields, existing);
        if matches!(judged, Err(Error::AlreadySealed { .. })) {
            // A writer that died between sealing and tidying up left this; a read-only cache keeps it.
            let _ = fs::remove_dir_all(dir.join(PARTIAL));
        }
        judged?;
        if let Some(parent) = dir.canonicalize().at("look at", dir)?.parent() {
            // A parent that may not be opened still holds the directory; it is only not durable yet.
            let _ = sync_dir(parent);
        }
        let partial = dir.join(PARTIAL);
        if existing == OnExisting::Overwrite || !partial::has_plan(dir) {
            partial::remove_ours(dir)?;
            partial::write_plan(&partial, plan_digest, fields)?;
        }
        let shards = dir.join("shards");
        fs::create_dir_all(&shards).at("create", &shards)?;
        sync_dir(dir)?;
        let finished =
            partial::recover(dir)?.into_iter().map(|(shard, summary)| (shard, Slot::Finished(Arc::new(summary))));
        Ok(CacheWriter {
            inner: Arc::new(Inner {
                dir: dir.to_path_buf(),
                partial,
                plan_digest: plan_digest.to_owned(),
                fields: fields.to_vec(),
                shards: Mutex::new(finished.collect()),
                _lock: lock,
            }),
        })
    }

    /// The directory of the cache.
    pub fn dir(&self) -> &Path {
        &self.inner.dir
    }

    /// Shard `shard`, if it was finished by this run or an earlier one.
    pub fn finished(&self, shard: u32) -> Option<Arc<ShardSummary>> {
        match self.inner.slots().get(&shard) {
            Some(Slot::Finished(summary)) => Some(summary.clone()),
            _ => None,
        }
    }

    /// Every finished shard with its index, in order.
    pub fn summaries(&self) -> Vec<(u32, Arc<ShardSummary>)> {
        let slots = self.inner.slots();
        let finished = slots.iter().filter_map(|(shard, slot)| match slot {
            Slot::Finished(summary) => Some((*shard, summary.clone())),
            Slot::BeingWritten => None,
        });
        finished.collect()
    }

    /// A writer of shard `shard`, all of whose records belong to `split`; different shards may be written by different
    /// threads. Dropped before it is finished, it leaves the shard to be begun again.
    ///
    /// # Errors
    /// [`Error::ShardTaken`] for a shard that is finished or being written.
    pub fn shard(&self, shard: u32, split: Split) -> Result<ShardWriter> {
        match self.inner.slots().entry(shard) {
            std::collections::btree_map::Entry::Vacant(slot) => slot.insert(Slot::BeingWritten),
            std::collections::btree_map::Entry::Occupied(slot) => {
                let state = match slot.get() {
                    Slot::BeingWritten => "being written",
                    Slot::Finished(_) => "finished",
                };
                return Err(Error::ShardTaken { shard, state });
            }
        };
        // Made first, so that an error below frees the slot.
        let claim = Claim { inner: self.inner.clone(), shard };
        let fields = split_fields(&self.inner.fields, split);
        let schema = schema(&fields);
        let header = header(&schema).map_err(|source| Error::Arrow { place: shard_path(shard), source })?;
        let path = aside_path(&self.inner.partial, shard);
        let mut file = Hashed::new(File::create(&path).at("create", &path)?);
        file.write_all(&header).at("write", &path)?;
        Ok(ShardWriter {
            claim,
            split,
            schema,
            path,
            file,
            frame_crc32c: crc32c::crc32c(&header),
            blocks: Vec::new(),
            footer: Vec::new(),
            field_bytes: fields.iter().map(|f| (f.name.clone(), 0)).collect(),
            fields,
            rows: Vec::new(),
        })
    }

    /// Seals the cache of shards `0..shards`: catalog, table of skipped records, and last the manifest with the keys of
    /// `about` in it.
    ///
    /// # Errors
    /// [`Error::UnfinishedShards`] unless exactly these shards are finished; [`Error::ReservedKey`] for a key of `about`
    /// that the format uses; [`Error::DuplicateRecord`].
    pub fn seal(self, shards: u32, about: Map<String, Value>) -> Result<Manifest> {
        let Inner { dir, partial, .. } = &*self.inner;
        let summaries = self.complete(shards)?;
        let (catalog, skipped) = self.write_tables(shards)?;
        let mut records = RecordCounts::default();
        for summary in &summaries {
            *records.of_mut(summary.entry.split) += summary.entry.records;
        }
        let mut manifest = Manifest {
            format: FORMAT.into(),
            version: VERSION,
            created_unix_secs: now_unix_secs(),
            plan_digest: self.inner.plan_digest.clone(),
            records,
            fields: self.inner.fields.clone(),
            catalog,
            skipped,
            shards: summaries.iter().map(|s| s.entry.clone()).collect(),
            about,
            digest: String::new(),
        };
        let bytes = manifest.seal()?;
        write_durably(&partial.join(MANIFEST), &dir.join(MANIFEST), &bytes)?;
        // Sealed: readers do not look at `.partial`, and a rerun finds the manifest first.
        let _ = fs::remove_dir_all(partial);
        Ok(manifest)
    }

    /// The summaries of shards `0..shards`, if these and no others are finished.
    fn complete(&self, shards: u32) -> Result<Vec<Arc<ShardSummary>>> {
        let slots = self.inner.slots();
        let mut wrong: Vec<String> = (0..shards)
            .filter(|shard| !matches!(slots.get(shard), Some(Slot::Finished(_))))
            .map(|shard| format!("{shard} missing"))
            .collect();
        wrong.extend(slots.range(shards..).map(|(s, _)| format!("{s} too many")));
        drop(slots);
        if wrong.is_empty() {
            return Ok(self.summaries().into_iter().map(|(_, s)| s).collect());
        }
        wrong.truncate(8);
        Err(Error::UnfinishedShards { dir: self.inner.dir.clone(), expected: shards, found: wrong.join(", ") })
    }

    /// Writes the catalog and the table of skipped records from the accounts of the shards, one shard at a time.
    fn write_tables(&self, shards: u32) -> Result<(FileEntry, Option<FileEntry>)> {
        let partial = &self.inner.partial;
        let catalog = partial.join(CATALOG);
        let mut table = Table::create(&self.inner, CATALOG, TableWriter::catalog)?;
        let mut seen: Vec<(u64, u32)> = Vec::new();
        let mut skips = 0;
        for shard in 0..shards {
            let account = Account::read(partial, shard)?;
            skips += account.skipped.len();
            let rows = account.catalog_rows();
            seen.extend(rows.iter().map(|row| (row.record, shard)));
            table.append(|writer| writer.append_catalog(&rows))?;
        }
        seen.sort_unstable();
        if let Some(pair) = seen.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Err(Error::DuplicateRecord {
                path: catalog,
                record: pair[0].0,
                first: pair[0].1,
                second: pair[1].1,
            });
        }
        let catalog = table.finish()?;
        if skips == 0 {
            remove_if_there(&self.inner.dir.join(SKIPPED))?;
            return Ok((catalog, None));
        }
        let mut table = Table::create(&self.inner, SKIPPED, TableWriter::skipped)?;
        for shard in 0..shards {
            let skipped = Account::read(partial, shard)?.skipped;
            table.append(|writer| writer.append_skipped(&skipped))?;
        }
        Ok((catalog, Some(table.finish()?)))
    }
}

/// The clock, read in this one place.
fn now_unix_secs() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

/// A Parquet table written aside.
struct Table<'a> {
    name: &'static str,
    aside: PathBuf,
    dir: &'a Path,
    writer: TableWriter<Hashed<File>>,
}

impl<'a> Table<'a> {
    fn create(
        inner: &'a Inner,
        name: &'static str,
        open: impl FnOnce(Hashed<File>) -> Result<TableWriter<Hashed<File>>, ParquetError>,
    ) -> Result<Self> {
        let aside = inner.partial.join(name);
        let file = File::create(&aside).at("create", &aside)?;
        let writer = open(Hashed::new(file)).map_err(|source| Error::Parquet { path: aside.clone(), source })?;
        Ok(Table { name, aside, dir: &inner.dir, writer })
    }

    fn append(&mut self, write: impl FnOnce(&mut TableWriter<Hashed<File>>) -> Result<(), ParquetError>) -> Result<()> {
        write(&mut self.writer).map_err(|source| Error::Parquet { path: self.aside.clone(), source })
    }

    fn finish(self) -> Result<FileEntry> {
        let finished = self.writer.finish().map_err(|source| Error::Parquet { path: self.aside.clone(), source });
        let (file, rows) = finished?;
        let (file, bytes, blake3) = file.finish();
        file.sync_all().at("fsync", &self.aside)?;
        rename_durably(&self.aside, &self.dir.join(self.name))?;
        Ok(FileEntry { path: self.name.into(), rows, bytes, blake3 })
    }
}

/// The right to write one shard; given back when dropped.
#[derive(Debug)]
struct Claim {
    inner: Arc<Inner>,
    shard: u32,
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut slots = self.inner.slots();
        if matches!(slots.get(&self.shard), Some(Slot::BeingWritten)) {
            slots.remove(&self.shard);
        }
    }
}

/// A shard being written.
pub struct ShardWriter {
    claim: Claim,
    split: Split,
    fields: Vec<FieldSpec>,
    schema: SchemaRef,
    path: PathBuf,
    file: Hashed<File>,
    frame_crc32c: u32,
    blocks: Vec<BlockEntry>,
    footer: Vec<arrow::ipc::Block>,
    field_bytes: BTreeMap<String, u64>,
    rows: Vec<(u64, Option<i64>, RowMeta)>,
}

impl ShardWriter {
    /// The fields a block of this shard is encoded with.
    pub fn fields(&self) -> &[FieldSpec] {
        &self.fields
    }

    /// Writes a block behind those there are.
    ///
    /// # Errors
    /// [`Error::BlockMismatch`] for a block encoded with other fields than the split has.
    pub fn append(&mut self, block: EncodedBlock) -> Result<()> {
        if block.schema != self.schema {
            let columns = block.schema.fields().iter().skip(2);
            let found: Vec<_> = columns.map(|f| f.name().as_str()).collect();
            return Err(Error::BlockMismatch {
                shard: self.claim.shard,
                split: self.split,
                expected: names(&self.fields),
                found: format!("{} (shapes and types count too)", found.join(", ")),
            });
        }
        let offset = self.file.bytes();
        self.file.write_all(&block.message).at("write", &self.path)?;
        let bytes = block.message.len();
        self.blocks.push(BlockEntry {
            offset,
            bytes: bytes as u64,
            crc32c: block.crc32c,
            rows: block.rows.len() as u32,
        });
        self.footer.push(arrow::ipc::Block::new(
            offset as i64,
            block.metadata_bytes as i32,
            (bytes - block.metadata_bytes) as i64,
        ));
        for (field, bytes) in self.fields.iter().zip(&block.field_bytes) {
            *self.field_bytes.entry(field.name.clone()).or_default() += bytes;
        }
        self.rows.extend(block.rows);
        Ok(())
    }

    /// Finishes the shard: its file durable and in place, its account beside it. `extra` is the caller's to read back
    /// from [`ShardSummary::extra`]; `skipped` are the records of the shard's range that could not be made. A shard may
    /// hold no block at all.
    pub fn finish(mut self, extra: Value, mut skipped: Vec<SkippedRow>) -> Result<Arc<ShardSummary>> {
        let tail = tail(&self.schema, &self.footer);
        self.file.write_all(&tail).at("write", &self.path)?;
        let (file, bytes, blake3) = self.file.finish();
        file.sync_all().at("fsync", &self.path)?;
        skipped.sort_by_key(|row| row.record);
        let Claim { inner, shard } = &self.claim;
        let summary = ShardSummary {
            entry: ShardEntry {
                path: shard_path(*shard),
                split: self.split,
                records: self.rows.len() as u64,
                blocks: self.blocks.len() as u32,
                bytes,
                blake3,
                frame_crc32c: crc32c::crc32c_append(self.frame_crc32c, &tail),
                field_bytes: self.field_bytes,
            },
            blocks: self.blocks,
            skipped_records: skipped.len() as u64,
            extra,
        };
        let account = Account::new(*shard, summary, self.rows, skipped);
        account.write(&inner.partial)?;
        rename_durably(&self.path, &inner.dir.join(shard_path(*shard)))?;
        let summary = Arc::new(account.summary);
        let mut slots = inner.slots();
        slots.insert(*shard, Slot::Finished(summary.clone()));
        drop(slots);
        Ok(summary)
    }
}
