//! The specification says what is written: other readers get along with it.

use std::fs::{self, File};

use arrow::ipc::reader::FileReader;
use cab_format::{Cache, Split};

use crate::common::*;

/// A reader that knows nothing of this crate reads the shards.
#[test]
fn a_plain_arrow_reader_reads_a_shard() {
    let dir = tempfile::tempdir().unwrap();
    complete(dir.path());
    let cache = Cache::open(dir.path()).unwrap();
    for (s, (split, blocks)) in SHARDS.iter().enumerate() {
        let path = dir.path().join(cab_format::shard_path(s as u32));
        let reader = FileReader::try_new(File::open(path).unwrap(), None).unwrap();
        assert_eq!(reader.num_batches(), blocks.len());
        let schema = reader.schema();
        let columns: Vec<_> = schema.fields().iter().map(|f| f.name().as_str()).collect();
        let fields = cache.fields(*split).iter().map(|f| f.name.as_str());
        assert_eq!(columns, ["record", "label"].into_iter().chain(fields).collect::<Vec<_>>());
        let input = schema.field(2).metadata();
        assert_eq!(input.get("ARROW:extension:name").unwrap(), "arrow.fixed_shape_tensor");
        assert_eq!(input.get("ARROW:extension:metadata").unwrap(), r#"{"shape":[3,5,7]}"#);
        for (batch, block) in reader.zip(*blocks) {
            assert_eq!(batch.unwrap().num_rows(), block.len());
        }
    }
}

/// The manifest's digest, computed as the specification words it.
#[test]
fn the_digest_is_of_all_bytes_before_it() {
    let dir = tempfile::tempdir().unwrap();
    let manifest = complete(dir.path());
    let text = fs::read_to_string(dir.path().join("manifest.json")).unwrap();
    let (before, rest) = text.rsplit_once(&manifest.digest).unwrap();
    assert!(before.ends_with(",\n  \"digest\": \""));
    assert_eq!(rest, "\"\n}\n");
    assert_eq!(blake3::hash(before.as_bytes()).to_hex().as_str(), manifest.digest);
}

/// Frame and blocks tile a shard; their checksums, computed as the specification words it.
#[test]
fn frame_and_blocks_cover_every_byte() {
    let dir = tempfile::tempdir().unwrap();
    let manifest = complete(dir.path());
    let cache = Cache::open(dir.path()).unwrap();
    for (s, entry) in manifest.shards.iter().enumerate() {
        let bytes = fs::read(dir.path().join(&entry.path)).unwrap();
        assert_eq!(blake3::hash(&bytes).to_hex().as_str(), entry.blake3);
        let (mut frame, mut at) = (Vec::new(), None);
        for block in cache.blocks(s as u32) {
            let (start, end) = (block.offset as usize, (block.offset + block.bytes) as usize);
            let before = at.replace(end);
            assert!(before.is_none_or(|before| before == start));
            if before.is_none() {
                frame.extend_from_slice(&bytes[..start]);
            }
            assert_eq!(crc32c::crc32c(&bytes[start..end]), block.crc32c);
            assert_eq!(start % 8, 0);
        }
        frame.extend_from_slice(&bytes[at.unwrap_or(0)..]);
        assert_eq!(crc32c::crc32c(&frame), entry.frame_crc32c);
    }
    assert_eq!(cache.locations(Split::Train).len(), 6);
}
