//! The manifest: the last file written, and the one that seals a cache.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::field::check_fields;
use crate::files::read_file;
use crate::sealed_json::{self, Style};
use crate::{Error, FieldSpec, Result, Split};

/// What `format` says in every manifest.
pub const FORMAT: &str = "cab-cache";
/// The version this crate writes, and the newest it reads.
pub const VERSION: u64 = 1;
/// File name of the manifest inside a cache.
pub const MANIFEST: &str = "manifest.json";
/// File name of the catalog inside a cache.
pub const CATALOG: &str = "catalog.parquet";
/// File name of the table of skipped records, present when there are any.
pub const SKIPPED: &str = "skipped.parquet";

/// Records of each split.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordCounts {
    /// Records of split train.
    pub train: u64,
    /// Records of split val.
    pub val: u64,
}

impl RecordCounts {
    /// Records of `split`.
    pub fn of(&self, split: Split) -> u64 {
        match split {
            Split::Train => self.train,
            Split::Val => self.val,
        }
    }

    pub(crate) fn of_mut(&mut self, split: Split) -> &mut u64 {
        match split {
            Split::Train => &mut self.train,
            Split::Val => &mut self.val,
        }
    }
}

/// A file of the cache other than a shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Path inside the cache, with `/`.
    pub path: String,
    /// Rows of the table.
    pub rows: u64,
    /// Size of the file.
    pub bytes: u64,
    /// BLAKE3 of the file, lower-case hexadecimal.
    pub blake3: String,
}

/// A shard of the cache.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardEntry {
    /// Path inside the cache, with `/`.
    pub path: String,
    /// The split of all its records.
    pub split: Split,
    /// Records it holds; 0 when all of its range was skipped.
    pub records: u64,
    /// Record batches it holds.
    pub blocks: u32,
    /// Size of the file.
    pub bytes: u64,
    /// BLAKE3 of the file, lower-case hexadecimal.
    pub blake3: String,
    /// CRC32C of the bytes before the first block and after the last, taken together.
    pub frame_crc32c: u32,
    /// Compressed bytes of every field, over all blocks.
    pub field_bytes: BTreeMap<String, u64>,
}

/// Everything about a cache that is not a record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: String,
    /// Format version, [`VERSION`].
    pub version: u64,
    /// When the cache was sealed, seconds since 1970 UTC: the only value that two equal extractions do not share.
    pub created_unix_secs: u64,
    /// Digest of the plan that produced the cache.
    pub plan_digest: String,
    /// Records of each split.
    pub records: RecordCounts,
    /// Every field of a record, in column order.
    pub fields: Vec<FieldSpec>,
    /// The table with one row per record.
    pub catalog: FileEntry,
    /// The table of skipped records, if any were.
    pub skipped: Option<FileEntry>,
    /// The shards; a shard's index is its position here.
    pub shards: Vec<ShardEntry>,
    /// Keys that the format only carries: teacher, data, views, layer map, class names, …
    #[serde(flatten)]
    pub about: Map<String, Value>,
    /// BLAKE3 of all bytes of the manifest before this value.
    pub digest: String,
}

/// Keys of the manifest that `about` cannot have.
const RESERVED: [&str; 10] = [
    "format",
    "version",
    "created_unix_secs",
    "plan_digest",
    "records",
    "fields",
    "catalog",
    "skipped",
    "shards",
    "digest",
];

impl Manifest {
    /// The fields that records of `split` have, in column order.
    pub fn split_fields(&self, split: Split) -> Vec<FieldSpec> {
        crate::split_fields(&self.fields, split)
    }

    /// A digest that two caches share exactly when they hold the same bytes: everything but the time of sealing.
    pub fn content_digest(&self) -> String {
        let timeless = Manifest { created_unix_secs: 0, digest: String::new(), ..self.clone() };
        let bytes = serde_json::to_vec(&timeless).expect("a manifest's keys are strings");
        blake3::hash(&bytes).to_hex().to_string()
    }

    /// Fills in the digest; returns the bytes of the file.
    ///
    /// # Errors
    /// A key of `about` that the format itself uses; fields that cannot be stored.
    pub(crate) fn seal(&mut self) -> Result<Vec<u8>> {
        if let Some(key) = RESERVED.iter().find(|key| self.about.contains_key(**key)) {
            return Err(Error::ReservedKey { key: (*key).to_owned() });
        }
        check_fields(&self.fields)?;
        self.digest.clear();
        let (bytes, digest) = sealed_json::seal(self, Style::Pretty);
        self.digest = digest;
        Ok(bytes)
    }

    /// Reads and checks the manifest at `path`.
    pub(crate) fn open(path: &Path) -> Result<Manifest> {
        Manifest::parse(path, &read_file(path)?)
    }

    /// The manifest in `bytes`, which lie at `path`.
    pub(crate) fn parse(path: &Path, bytes: &[u8]) -> Result<Manifest> {
        match head(bytes) {
            // A newer version may be sealed in another way: nothing below may judge it.
            Ok(head) if head.format == FORMAT && head.version > VERSION => {
                return Err(Error::NewerVersion { path: path.to_path_buf(), found: head.version, known: VERSION });
            }
            Ok(head) if head.format != FORMAT => {
                return Err(Error::Foreign {
                    path: path.to_path_buf(),
                    expected: "a manifest of format cab-cache",
                    found: format!("format {:?}", head.format),
                });
            }
            Ok(_) => {}
            Err(_) if is_ours(bytes) => {}
            Err(error) => {
                return Err(Error::Foreign {
                    path: path.to_path_buf(),
                    expected: "a manifest of format cab-cache",
                    found: error.to_string(),
                });
            }
        }
        let manifest: Manifest = sealed_json::open(path, bytes, Style::Pretty)?;
        manifest.check(path)?;
        Ok(manifest)
    }

    /// Refuses what a writer of this version cannot have written.
    fn check(&self, path: &Path) -> Result<()> {
        let inconsistent = |place: String, expected: String, found: String| {
            Err(Error::Inconsistent { path: path.to_path_buf(), place, expected, found })
        };
        if self.version != VERSION {
            let found = self.version.to_string();
            return inconsistent("version".into(), VERSION.to_string(), found);
        }
        check_fields(&self.fields)?;
        // Only the paths this format has are ever opened, whatever a manifest says.
        if self.catalog.path != CATALOG {
            let found = self.catalog.path.clone();
            return inconsistent("catalog".into(), CATALOG.into(), found);
        }
        if let Some(skipped) = self.skipped.as_ref().filter(|s| s.path != SKIPPED) {
            return inconsistent("skipped".into(), SKIPPED.into(), skipped.path.clone());
        }
        let mut counts = RecordCounts::default();
        for (index, shard) in self.shards.iter().enumerate() {
            let expected = shard_path(index as u32);
            if shard.path != expected {
                return inconsistent(format!("shard {index}"), expected, shard.path.clone());
            }
            let count = counts.of_mut(shard.split);
            *count = count.saturating_add(shard.records);
        }
        if counts != self.records || counts.train.checked_add(counts.val) != Some(self.catalog.rows) {
            return inconsistent(
                "records".into(),
                format!("{counts:?}, as the shards add up"),
                format!("{:?}, catalog {}", self.records, self.catalog.rows),
            );
        }
        Ok(())
    }
}

/// Path of shard `index` inside a cache.
pub fn shard_path(index: u32) -> String {
    format!("shards/{index:05}.arrow")
}

/// Whether the bytes start as every manifest of this crate does.
pub(crate) fn is_ours(bytes: &[u8]) -> bool {
    let start = b"{\n  \"format\": \"cab-cache\",";
    let len = start.len().min(bytes.len());
    bytes[..len] == start[..len]
}

#[derive(Deserialize)]
struct Head {
    format: String,
    version: u64,
}

/// Format and version, however the rest of the file reads.
fn head(bytes: &[u8]) -> serde_json::Result<Head> {
    serde_json::from_slice(bytes)
}
