//! What can go wrong with a cache, each case with the file, the place and what to do next.

use std::path::{Path, PathBuf};

use arrow::error::ArrowError;
use parquet::errors::ParquetError;

/// `Ok` or this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything this crate refuses.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused a file operation.
    #[error("{}: cannot {doing}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What was attempted, as an infinitive.
        doing: &'static str,
        /// The system's reason.
        source: std::io::Error,
    },

    /// No manifest and no sign of one being written.
    #[error("{}: not a cache: expected manifest.json in it, found none; give the directory that cab-extract --out wrote", dir.display())]
    NotACache {
        /// The directory that was opened.
        dir: PathBuf,
    },

    /// The cache is still being written, or its extraction was interrupted.
    #[error("{}: the cache is not sealed: expected manifest.json, found only .partial; extraction still runs or was interrupted, rerun the same cab-extract command to finish it", dir.display())]
    Unsealed {
        /// The directory that was opened.
        dir: PathBuf,
    },

    /// A cache of a later format.
    #[error("{}: format version {found}, this program reads versions up to {known}; use a newer version of it", path.display())]
    NewerVersion {
        /// The manifest.
        path: PathBuf,
        /// The version the manifest names.
        found: u64,
        /// The newest version this crate reads.
        known: u64,
    },

    /// A file or directory that this crate did not write.
    #[error("{}: foreign: expected {expected}, found {found}; choose another directory, nothing was changed", path.display())]
    Foreign {
        /// The file or directory.
        path: PathBuf,
        /// What belongs there.
        expected: &'static str,
        /// What lies there.
        found: String,
    },

    /// A file the manifest names is not there.
    #[error("{}: missing: the manifest names this file of {expected_bytes} bytes; restore it or extract again with --overwrite", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// Its size according to the manifest.
        expected_bytes: u64,
    },

    /// A file is shorter than it was when it was sealed.
    #[error("{}: truncated: expected {expected}, found {found}; restore the file or extract again with --overwrite", path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// What a whole file has.
        expected: String,
        /// What this one has.
        found: String,
    },

    /// A file is longer than it was when it was sealed.
    #[error("{}: expected {expected_bytes} bytes, found {found_bytes}; restore the file or extract again with --overwrite", path.display())]
    WrongSize {
        /// The file.
        path: PathBuf,
        /// Its size according to the manifest.
        expected_bytes: u64,
        /// Its size.
        found_bytes: u64,
    },

    /// Bytes differ from what was sealed: a digest, hash or checksum does not agree.
    #[error("{}, {place}: altered: expected {expected}, found {found}; restore the file or extract again with --overwrite", path.display())]
    Altered {
        /// The file.
        path: PathBuf,
        /// Where in the file, for example `block 3`.
        place: String,
        /// The checksum that was sealed.
        expected: String,
        /// The checksum of what lies there.
        found: String,
    },

    /// The bytes are those that were sealed, yet they contradict the rest of the cache.
    #[error("{}, {place}: inconsistent: expected {expected}, found {found}; this cache was not written by cab-extract as it stands, extract again with --overwrite", path.display())]
    Inconsistent {
        /// The file.
        path: PathBuf,
        /// Where in the file.
        place: String,
        /// What the manifest or the catalog implies.
        expected: String,
        /// What lies there.
        found: String,
    },

    /// The directory holds the work of another plan.
    #[error("{}: holds records of another plan: expected plan {expected}, found {found}; give another --out, or --overwrite to replace it", dir.display())]
    PlanMismatch {
        /// The directory.
        dir: PathBuf,
        /// The plan of this run.
        expected: String,
        /// The plan the directory was begun with.
        found: String,
    },

    /// The directory already holds a finished cache of this very plan.
    #[error("{}: already sealed with this plan, nothing is left to do; --overwrite extracts it again", dir.display())]
    AlreadySealed {
        /// The directory.
        dir: PathBuf,
    },

    /// Another process writes this cache.
    #[error("{}: another process is writing this cache; wait for it, or give another --out", dir.display())]
    Locked {
        /// The directory.
        dir: PathBuf,
    },

    /// A field that the records do not have.
    #[error("{}: no field `{field}` in split {split}, it has {known}", path.display())]
    UnknownField {
        /// The shard.
        path: PathBuf,
        /// The field asked for.
        field: String,
        /// The split of the shard.
        split: crate::Split,
        /// The fields there are, comma-separated.
        known: String,
    },

    /// A shard or block beyond the last one.
    #[error("{}: expected a shard below {shards} and one of its blocks, found shard {shard}, block {block}", dir.display())]
    NoSuchBlock {
        /// The cache.
        dir: PathBuf,
        /// The shard asked for.
        shard: u32,
        /// The block asked for.
        block: u32,
        /// How many shards there are.
        shards: usize,
    },

    /// A field description that cannot be stored.
    #[error("field `{field}`: expected {expected}, found {found}")]
    BadField {
        /// The field's name.
        field: String,
        /// What a field needs.
        expected: &'static str,
        /// What this one has.
        found: String,
    },

    /// A row that does not fit the fields it was encoded with.
    #[error("row {row}, {place}: expected {expected}, found {found}")]
    BadRow {
        /// The position in the block.
        row: usize,
        /// The field, or `fields`.
        place: String,
        /// What the fields imply.
        expected: String,
        /// What the row has.
        found: String,
    },

    /// A block of no rows, or of more than a block may have.
    #[error("a block of {rows} rows: expected 1 to {most}")]
    BadBlock {
        /// The rows given.
        rows: usize,
        /// The most rows of a block.
        most: usize,
    },

    /// A block encoded with other fields than the shard's.
    #[error("shard {shard}: expected a block of split {split} with fields {expected}, found {found}")]
    BlockMismatch {
        /// The shard's index.
        shard: u32,
        /// The shard's split.
        split: crate::Split,
        /// The fields of the split.
        expected: String,
        /// The fields of the block.
        found: String,
    },

    /// A shard that is finished, or is being written, was begun again.
    #[error("shard {shard} is {state} already")]
    ShardTaken {
        /// The shard's index.
        shard: u32,
        /// `finished` or `being written`.
        state: &'static str,
    },

    /// Sealing found shards missing or too many.
    #[error("{}: cannot seal: expected shards 0..{expected} finished, found {found}", dir.display())]
    UnfinishedShards {
        /// The cache.
        dir: PathBuf,
        /// How many shards the plan has.
        expected: u32,
        /// Which are missing or too many.
        found: String,
    },

    /// A key that the format itself uses.
    #[error("manifest key `{key}` belongs to the format; name it otherwise")]
    ReservedKey {
        /// The key.
        key: String,
    },

    /// The same record twice.
    #[error("{}: record {record} appears twice: in shard {first} and in shard {second}", path.display())]
    DuplicateRecord {
        /// The catalog.
        path: PathBuf,
        /// The record id.
        record: u64,
        /// The shard of its first row.
        first: u32,
        /// The shard of its second row.
        second: u32,
    },

    /// JSON that does not have the expected shape although its digest agrees.
    #[error("{}: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Place and reason.
        source: serde_json::Error,
    },

    /// Arrow refused a block.
    #[error("{place}: {source}")]
    Arrow {
        /// File and block.
        place: String,
        /// Arrow's reason.
        source: ArrowError,
    },

    /// Parquet refused a table.
    #[error("{}: {source}", path.display())]
    Parquet {
        /// The file.
        path: PathBuf,
        /// Parquet's reason.
        source: ParquetError,
    },
}

/// Turns an I/O error into one that names the file and the attempt.
pub(crate) trait At<T> {
    /// The value, or [`Error::Io`] about `path`.
    fn at(self, doing: &'static str, path: &Path) -> Result<T>;
}

impl<T> At<T> for std::io::Result<T> {
    fn at(self, doing: &'static str, path: &Path) -> Result<T> {
        self.map_err(|source| Error::Io { path: path.to_path_buf(), doing, source })
    }
}
