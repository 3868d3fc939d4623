//! Reading a sealed cache through memory maps, any number of threads at once.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use arrow::buffer::Buffer;
use arrow::datatypes::SchemaRef;
use bytes::Bytes;
use memmap2::Mmap;

use crate::block::{Block, Refused, decode_block};
use crate::catalog::{CatalogRow, SkippedRow, Table};
use crate::error::At;
use crate::field::{names, schema};
use crate::files::{check_size, compare_size, read_sealed};
use crate::index::{Index, Location};
use crate::manifest::{MANIFEST, Manifest};
use crate::partial::{BlockEntry, PARTIAL};
use crate::{Error, FieldSpec, Result, Split, split_fields};

/// A sealed cache, open for reading.
///
/// Files are mapped, not copied: replacing a file of an open cache is safe, cutting one short is not, as with every
/// memory map.
#[derive(Debug)]
pub struct Cache {
    dir: PathBuf,
    manifest: Manifest,
    index: Index,
    shards: Vec<Shard>,
    splits: [Columns; 2],
}

/// The columns that records of one split have.
#[derive(Debug)]
struct Columns {
    fields: Vec<FieldSpec>,
    schema: SchemaRef,
}

#[derive(Debug)]
struct Shard {
    path: PathBuf,
    /// The whole file, mapped when a block is first read; its frame has been checked.
    file: OnceLock<Buffer>,
    /// Whether the checksum of a block was found right.
    checked: Vec<AtomicBool>,
}

impl Cache {
    /// The sealed cache in `dir`.
    ///
    /// Read and checked: manifest (format, version, digest), catalog (hash, agreement with the manifest), presence and
    /// size of every file. Blocks are checked when they are first read.
    ///
    /// # Errors
    /// [`Error::NotACache`], [`Error::Unsealed`], [`Error::Foreign`], [`Error::NewerVersion`], [`Error::Missing`],
    /// [`Error::Truncated`], [`Error::WrongSize`], [`Error::Altered`], [`Error::Inconsistent`].
    pub fn open(dir: impl AsRef<Path>) -> Result<Cache> {
        let dir = dir.as_ref();
        let manifest = open_manifest(dir)?;
        for shard in &manifest.shards {
            check_size(&dir.join(&shard.path), shard.bytes)?;
        }
        if let Some(skipped) = &manifest.skipped {
            check_size(&dir.join(&skipped.path), skipped.bytes)?;
        }
        let index = open_index(dir, &manifest)?;
        Ok(Cache::of(dir, manifest, index))
    }

    /// A cache of which manifest and catalog are known to be good.
    pub(crate) fn of(dir: &Path, manifest: Manifest, index: Index) -> Cache {
        let shard = |(entry, blocks): (&crate::ShardEntry, &Vec<BlockEntry>)| Shard {
            path: dir.join(&entry.path),
            file: OnceLock::new(),
            checked: blocks.iter().map(|_| AtomicBool::new(false)).collect(),
        };
        let columns = |split| {
            let fields = split_fields(&manifest.fields, split);
            let schema = schema(&fields);
            Columns { fields, schema }
        };
        Cache {
            dir: dir.to_path_buf(),
            shards: manifest.shards.iter().zip(&index.blocks).map(shard).collect(),
            splits: [columns(Split::Train), columns(Split::Val)],
            manifest,
            index,
        }
    }

    /// The directory of the cache.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The fields of records of `split`, in column order.
    pub fn fields(&self, split: Split) -> &[FieldSpec] {
        &self.splits[split as usize].fields
    }

    /// Where the records of `split` lie, sorted by record id.
    pub fn locations(&self, split: Split) -> &[Location] {
        self.index.locations(split)
    }

    /// The blocks of a shard, in order; none for a shard that does not exist.
    pub fn blocks(&self, shard: u32) -> &[BlockEntry] {
        self.index.blocks.get(shard as usize).map_or(&[], Vec::as_slice)
    }

    /// Record ids, labels and the named fields of one block; no other field is decompressed.
    ///
    /// # Errors
    /// [`Error::NoSuchBlock`], [`Error::UnknownField`]; [`Error::Altered`] when a checksum does not agree: of the file's
    /// frame when the shard is first read, of the block when it is first read.
    pub fn read_block(&self, shard: u32, block: u32, fields: &[&str]) -> Result<Block> {
        let no_such_block = || Error::NoSuchBlock { dir: self.dir.clone(), shard, block, shards: self.shards.len() };
        let lies = *self.blocks(shard).get(block as usize).ok_or_else(no_such_block)?;
        let shard_idx = shard as usize;
        let (shard, entry) = (&self.shards[shard_idx], &self.manifest.shards[shard_idx]);
        let columns = &self.splits[entry.split as usize];
        let mut projection = Vec::with_capacity(fields.len());
        for name in fields {
            let position = columns.fields.iter().position(|f| f.name == *name);
            projection.push(position.ok_or_else(|| Error::UnknownField {
                path: shard.path.clone(),
                field: (*name).to_owned(),
                split: entry.split,
                known: names(&columns.fields),
            })?);
        }
        projection.sort_unstable();
        projection.dedup();
        let message = self.file(shard_idx)?.slice_with_length(lies.offset as usize, lies.bytes as usize);
        let place = || format!("block {block}");
        if !shard.checked[block as usize].load(Ordering::Relaxed) {
            compare_crc(&shard.path, place, lies.crc32c, crc32c::crc32c(&message))?;
            shard.checked[block as usize].store(true, Ordering::Relaxed);
        }
        let rows = lies.rows as usize;
        decode_block(&columns.schema, &columns.fields, rows, &message, &projection).map_err(|refused| match refused {
            Refused::Shape { expected, found } => {
                Error::Inconsistent { path: shard.path.clone(), place: place(), expected, found }
            }
            Refused::Arrow(source) => Error::Arrow { place: format!("{}, {}", shard.path.display(), place()), source },
        })
    }

    /// Every row of the catalog, in order of shard, block, row.
    pub fn catalog_rows(&self) -> Result<Vec<CatalogRow>> {
        let entry = &self.manifest.catalog;
        let bytes = read_sealed(&self.dir, entry)?;
        Table::new(&self.dir.join(&entry.path), bytes).catalog_rows()
    }

    /// The records that could not be made, in order of record id within a shard.
    pub fn skipped_rows(&self) -> Result<Vec<SkippedRow>> {
        let Some(entry) = &self.manifest.skipped else {
            return Ok(Vec::new());
        };
        let bytes = read_sealed(&self.dir, entry)?;
        Table::new(&self.dir.join(&entry.path), bytes).skipped_rows()
    }

    /// The mapped file of a shard, once its size and its frame have been found right.
    pub(crate) fn file(&self, shard_idx: usize) -> Result<&Buffer> {
        let shard = &self.shards[shard_idx];
        if let Some(file) = shard.file.get() {
            return Ok(file);
        }
        let entry = &self.manifest.shards[shard_idx];
        let file = map(&shard.path, entry.bytes)?;
        let blocks = &self.index.blocks[shard_idx];
        let found = frame_crc32c(&file, blocks);
        compare_crc(&shard.path, || "frame".into(), entry.frame_crc32c, found)?;
        // Two threads may both have mapped it; one map is kept.
        Ok(shard.file.get_or_init(|| file))
    }

    pub(crate) fn schema(&self, split: Split) -> &SchemaRef {
        &self.splits[split as usize].schema
    }
}

/// The manifest of the cache in `dir`, checked.
pub(crate) fn open_manifest(dir: &Path) -> Result<Manifest> {
    let path = dir.join(MANIFEST);
    if path.exists() {
        return Manifest::open(&path);
    }
    let dir = dir.to_path_buf();
    match dir.join(PARTIAL).exists() {
        true => Err(Error::Unsealed { dir }),
        false => Err(Error::NotACache { dir }),
    }
}

/// The catalog of the cache in `dir`, checked.
pub(crate) fn open_index(dir: &Path, manifest: &Manifest) -> Result<Index> {
    let bytes = read_sealed(dir, &manifest.catalog)?;
    Index::new(&dir.join(&manifest.catalog.path), manifest, bytes)
}

/// CRC32C of the bytes before the first block and after the last.
fn frame_crc32c(file: &[u8], blocks: &[BlockEntry]) -> u32 {
    match (blocks.first(), blocks.last()) {
        (Some(first), Some(last)) => {
            let header = crc32c::crc32c(&file[..first.offset as usize]);
            crc32c::crc32c_append(header, &file[(last.offset + last.bytes) as usize..])
        }
        _ => crc32c::crc32c(file),
    }
}

fn compare_crc(path: &Path, place: impl Fn() -> String, expected: u32, found: u32) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(Error::Altered {
        path: path.to_path_buf(),
        place: place(),
        expected: format!("CRC32C {expected:08x}"),
        found: format!("{found:08x}"),
    })
}

/// The file of a shard, mapped.
fn map(path: &Path, bytes: u64) -> Result<Buffer> {
    check_size(path, bytes)?;
    let file = File::open(path).at("open", path)?;
    #[allow(unsafe_code, reason = "shards larger than memory are read without copying them")]
    // SAFETY: the map is read-only and private to this process's view of a file that no writer of ours changes once it
    // is in place; whatever bytes are seen are compared with their checksum before anything follows them.
    let map = unsafe { Mmap::map(&file) }.at("map", path)?;
    compare_size(path, bytes, map.len() as u64)?;
    Ok(Buffer::from(Bytes::from_owner(map)))
}
