//! What a cache is: records of fields, in shards, found through a catalog, sealed by a manifest.
//!
//! This crate knows bytes and where they lie. It does not know tensors, images, models, or what a recipe is. The rest of
//! this page is the specification of format `cab-cache`, version 1; a reader in any language can be written from it.
//!
//! # Directory
//! ```text
//! qk_cache/
//!   manifest.json          written last: with it the cache is sealed, without it there is no cache
//!   catalog.parquet        one row per record
//!   skipped.parquet        one row per record that could not be made; only when there are any
//!   shards/00000.arrow     the records; shard i is file i, at least five digits
//!   shards/00001.arrow …
//!   .partial/              only while a cache is written, see below
//! ```
//! Whole numbers in all files are little-endian. No file of a sealed cache ever changes. Two extractions of the same plan
//! produce the same bytes in every file but the manifest, whatever the order of writing and however often they were
//! interrupted; the manifests differ in `created_unix_secs` and therefore in `digest`.
//!
//! # Records and fields
//! A record has an id (u64, unique in the cache), a split (`train` or `val`), perhaps a label (i64), and one array per
//! field of its split. A field has a `name` (1 to 64 ASCII letters, digits, `.`, `_`, `-`; not `record` or `label`), a
//! `dtype` (`u8`, `u32`, `f16`, `f32`), a `shape` (at least one dimension, none of them 0, fewer than 2^28 elements), a
//! `codec` and the `splits` that have it. With codec `exact`, the only one of version 1, the stored bytes are the
//! elements, little-endian and row-major.
//!
//! # Manifest
//! One JSON object in UTF-8. Its keys, in order:
//!
//! | key | value |
//! |-----|-------|
//! | `format` | `"cab-cache"` |
//! | `version` | `1` |
//! | `created_unix_secs` | when the cache was sealed |
//! | `plan_digest` | text naming the plan; equal plans have equal digests |
//! | `records` | `{"train": n, "val": n}` |
//! | `fields` | list of `{"name", "dtype", "shape", "codec", "splits"}`, in column order |
//! | `catalog` | `{"path": "catalog.parquet", "rows", "bytes", "blake3"}` |
//! | `skipped` | the same of `skipped.parquet`, or `null` |
//! | `shards` | list of `{"path", "split", "records", "blocks", "bytes", "blake3", "frame_crc32c", "field_bytes"}`; shard i is element i |
//! | any others | keys the format only carries: teacher, data, views, layer map, class names, … |
//! | `digest` | 64 lower-case hexadecimal digits |
//!
//! `blake3` is the BLAKE3 of the whole file in lower-case hexadecimal; `field_bytes` maps every field of the shard's split
//! to its compressed bytes.
//!
//! The file ends with exactly `,\n  "digest": "`, the digest, and `"\n}\n`. The digest is the BLAKE3 of all bytes before
//! its own first digit. A reader looks at `format` and `version` first (a version above its own is refused unread), then
//! compares the digest, then believes the rest.
//!
//! # Catalog
//! Parquet, one row per record, in order of shard, block and row:
//!
//! | column | type | null | meaning |
//! |--------|------|------|---------|
//! | `record` | u64 | | the record's id |
//! | `split` | utf8 | | `train` or `val`, the split of its shard |
//! | `sample_id` | utf8 | | names the sample; the same for all its views |
//! | `source` | utf8 | | where the sample was read |
//! | `label` | i64 | yes | class, if known |
//! | `view` | u32 | | which view of the sample; 0 is the evaluation view |
//! | `seed` | u64 | | seed of the view's random numbers |
//! | `mix_partner` | u64 | yes | record it was mixed with |
//! | `mix_weight` | f32 | yes | weight of its own sample in the mixture |
//! | `shard`, `block`, `row` | u32 | | where it lies |
//! | `block_offset` | u64 | | first byte of its block in the shard's file, a multiple of 8 |
//! | `block_bytes` | u64 | | bytes of the block |
//! | `block_crc32c` | u32 | | CRC32C (Castagnoli) of those bytes |
//!
//! Blocks and rows of a shard are numbered from 0 without gaps; a block starts where the one before it ends. All rows of a
//! block agree in the three `block_` columns.
//!
//! `skipped.parquet` has `record` (u64), `sample_id`, `source`, `reason` (utf8), in order of shard and record id.
//!
//! # Shard
//! An Arrow IPC *file*, metadata version V5, without dictionaries, every buffer aligned to 64 bytes, bodies compressed with
//! Zstandard buffer by buffer. It holds records of one split. A record batch is a *block*; a shard whose whole range was
//! skipped has none, and is a file all the same. Columns:
//!
//! | column | Arrow type | null |
//! |--------|-----------|------|
//! | `record` | `uint64` | |
//! | `label` | `int64` | yes |
//! | every field of the split, in the manifest's order | extension `arrow.fixed_shape_tensor` with metadata `{"shape":[…]}` over `fixed_size_list<item: uint8, uint32, float16 or float32>[elements]` | |
//!
//! Arrays without nulls may leave their validity buffers empty.
//!
//! A shard's bytes are its blocks, one after the other, and its *frame*: what comes before the first block (magic and
//! schema) and after the last (end of stream, footer, magic). A block's bytes are the whole encapsulated message: marker
//! `ffffffff`, metadata length, metadata, padding, body. Each byte is covered twice: by the shard's `blake3`, and by the
//! block's `block_crc32c` or the shard's `frame_crc32c` (of the frame's two parts, joined; of the whole file if there is no
//! block). So a reader that takes the blocks' places from the catalog needs no footer, and can check what it reads without
//! reading the whole file: the frame when it opens a shard, a block when it first reads it, before any length inside is
//! followed.
//!
//! This crate then holds every node and buffer of a message against the lengths that fields and row count imply, the
//! uncompressed length in front of each compressed buffer included; nothing is allocated from a length that was not
//! compared.
//!
//! # Writing, sealing, resuming
//! While a cache is written, `.partial` holds
//! ```text
//! lock            an advisory lock on it keeps a second writer away; the system frees it when the writer dies
//! plan.json       format, version, plan digest, fields, digest; compact JSON, its digest at the end as in the manifest
//! 00000.arrow     a shard being written
//! 00000.json      the account of a finished shard: manifest entry, blocks, catalog rows, skipped records, the caller's
//!                 counters, digest
//! ```
//! 1. The directory is made, the lock taken, the plan written. A directory that holds anything this crate did not write is
//!    refused, and so is a sealed cache or another plan's, unless overwriting is asked for; then the manifest is removed
//!    first, and never a file that is not ours.
//! 2. A shard holds a range of record ids that the plan fixes. Its file is written in `.partial` and made durable (fsync);
//!    then its account is written aside, made durable and renamed to `00000.json`; then the shard is renamed into `shards`.
//!    Shards may be finished in any order.
//! 3. When all are finished, the catalog and the table of skipped records are made from the accounts in order of shard,
//!    written aside, made durable and renamed; last, in the same way, the manifest. `.partial` is removed.
//!
//! Every rename is followed by an fsync of its directory. A file that a power cut may have torn is therefore never one
//! that a later step relied on. Resuming reads the plan and the accounts: a shard is finished if its account's digest agrees
//! and its file, in `shards` or still in `.partial`, has the account's size; it is moved into place where that was missed.
//! Everything else is removed and made again.
//!
//! # Example
//! ```
//! use cab_format::*;
//!
//! # fn main() -> Result<()> {
//! # let temporary = tempfile::tempdir().unwrap();
//! # let dir = temporary.path().join("cache");
//! let fields = [FieldSpec {
//!     name: "input".into(),
//!     dtype: Dtype::U8,
//!     shape: vec![1, 2, 2],
//!     codec: Codec::Exact,
//!     splits: vec![Split::Train],
//! }];
//! let writer = CacheWriter::open(&dir, "digest of the plan", &fields, OnExisting::Resume)?;
//! let meta = RowMeta {
//!     sample_id: "cat/1".into(),
//!     source: "cat/1.png".into(),
//!     view: 0,
//!     seed: 0,
//!     mix_partner: None,
//!     mix_weight: None,
//! };
//! let row = RecordRow { record: 0, label: Some(3), fields: vec![vec![1, 2, 3, 4]], meta };
//! let mut shard = writer.shard(0, Split::Train)?;
//! shard.append(encode_block(&fields, vec![row])?)?;
//! shard.finish(serde_json::Value::Null, vec![])?;
//! writer.seal(1, serde_json::Map::new())?;
//!
//! let cache = Cache::open(&dir)?;
//! let place = cache.locations(Split::Train)[0];
//! let block = cache.read_block(place.shard, place.block, &["input"])?;
//! assert_eq!(block.row("input", place.row as usize), [1, 2, 3, 4]);
//! assert_eq!(block.label(place.row as usize), Some(3));
//! assert!(verify(&dir)?.is_empty());
//! # Ok(())
//! # }
//! ```

mod block;
mod cache;
mod catalog;
mod encode;
mod error;
mod field;
mod files;
mod index;
mod manifest;
mod partial;
mod sealed_json;
mod shard;
mod verify;
mod writer;

pub use block::Block;
pub use cache::Cache;
pub use catalog::{CatalogRow, RowMeta, SkippedRow};
pub use encode::{EncodedBlock, MAX_BLOCK_ROWS, RecordRow, encode_block};
pub use error::{Error, Result};
pub use field::{Codec, Dtype, FieldSpec, LABEL, RECORD, Split, split_fields};
pub use index::Location;
pub use manifest::{
    CATALOG, FORMAT, FileEntry, MANIFEST, Manifest, RecordCounts, SKIPPED, ShardEntry, VERSION, shard_path,
};
pub use partial::{BlockEntry, ShardSummary};
pub use verify::{Fault, verify};
pub use writer::{CacheWriter, OnExisting, ShardWriter};
