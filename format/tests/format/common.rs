//! A small cache with everything in it: two splits, several shards and blocks, skipped records, a mixed record.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use cab_format::{
    Cache, CacheWriter, Codec, Dtype, FieldSpec, Manifest, OnExisting, RecordRow, RowMeta, ShardWriter, SkippedRow,
    Split, encode_block, split_fields,
};
use serde_json::{Map, Value, json};

pub const PLAN: &str = "plan-one";
/// Split and blocks of every shard; blocks are record ids.
pub const SHARDS: [(Split, &[&[u64]]); 4] = [
    (Split::Train, &[&[0, 1, 2], &[3]]),
    (Split::Train, &[&[5, 6]]),
    (Split::Train, &[]),
    (Split::Val, &[&[9, 10, 11]]),
];

pub fn fields() -> Vec<FieldSpec> {
    let field = |name: &str, dtype, shape: &[usize], splits: &[Split]| FieldSpec {
        name: name.into(),
        dtype,
        shape: shape.to_vec(),
        codec: Codec::Exact,
        splits: splits.to_vec(),
    };
    vec![
        field("input", Dtype::U8, &[3, 5, 7], &[Split::Train, Split::Val]),
        field("logits", Dtype::F32, &[5], &[Split::Train, Split::Val]),
        field("q.00", Dtype::F16, &[3, 1, 3], &[Split::Train]),
    ]
}

/// A number that depends on every argument and on nothing else.
pub fn noise(a: u64, b: u64, c: u64) -> u64 {
    let mut x = a ^ b.rotate_left(24) ^ c.rotate_left(48) ^ 0x9e37_79b9_7f4a_7c15;
    for _ in 0..3 {
        x = (x ^ (x >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x ^= x >> 32;
    }
    x
}

pub fn row(fields: &[FieldSpec], record: u64) -> RecordRow {
    let bytes = |f: usize, spec: &FieldSpec| {
        // Pixels that compress, floats that do not: both ways a buffer can be stored.
        let levels = if spec.dtype == Dtype::U8 { 4 } else { 256 };
        let byte = |i| (noise(record, f as u64, i) % levels) as u8;
        (0..spec.record_bytes() as u64).map(byte).collect()
    };
    RecordRow {
        record,
        label: (record != 2).then_some(record as i64 - 1),
        fields: fields.iter().enumerate().map(|(f, spec)| bytes(f, spec)).collect(),
        meta: RowMeta {
            sample_id: format!("class/{}", record % 3),
            source: format!("photos/{}.jpg", record % 3),
            view: (record / 3) as u32,
            seed: u64::MAX - record,
            mix_partner: (record == 3).then_some(1),
            mix_weight: (record == 3).then_some(0.3),
        },
    }
}

/// Appends the blocks of a shard, all but the last `leave`.
pub fn append(shard: u32, writer: &mut ShardWriter, leave: usize) {
    let (split, blocks) = SHARDS[shard as usize];
    let fields = split_fields(&fields(), split);
    for block in &blocks[..blocks.len() - leave] {
        let rows = block.iter().map(|record| row(&fields, *record)).collect();
        writer.append(encode_block(&fields, rows).unwrap()).unwrap();
    }
}

pub fn finish(shard: u32, writer: ShardWriter) {
    let skipped = match shard {
        0 => vec![skipped(4)],
        2 => vec![skipped(8), skipped(7)],
        _ => vec![],
    };
    writer.finish(json!({ "right": shard }), skipped).unwrap();
}

pub fn skipped(record: u64) -> SkippedRow {
    SkippedRow {
        record,
        sample_id: format!("class/{record}"),
        source: format!("photos/{record}.jpg"),
        reason: "no image".into(),
    }
}

pub fn open(dir: &Path) -> cab_format::Result<CacheWriter> {
    CacheWriter::open(dir, PLAN, &fields(), OnExisting::Resume)
}

pub fn write_shard(writer: &CacheWriter, shard: u32) {
    let mut file = writer.shard(shard, SHARDS[shard as usize].0).unwrap();
    append(shard, &mut file, 0);
    finish(shard, file);
}

pub fn about() -> Map<String, Value> {
    let about = json!({ "teacher": { "family": "vit", "mean": [0.1, 0.30000000000000004] }, "classes": ["a", "b"] });
    about.as_object().unwrap().clone()
}

/// Writes whatever is not there yet and seals.
pub fn complete(dir: &Path) -> Manifest {
    let writer = open(dir).unwrap();
    for shard in 0..SHARDS.len() as u32 {
        if writer.finished(shard).is_none() {
            write_shard(&writer, shard);
        }
    }
    writer.seal(SHARDS.len() as u32, about()).unwrap()
}

/// Every file of a directory with its bytes.
pub fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut rest = vec![dir.to_path_buf()];
    while let Some(next) = rest.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                rest.push(path);
            } else {
                let name = path.strip_prefix(dir).unwrap();
                found.insert(name.to_str().unwrap().to_owned(), fs::read(&path).unwrap());
            }
        }
    }
    found
}

/// All that a cache says of one record: label, sample, view, fields.
pub type Told = (Option<i64>, u32, u32, Vec<Vec<u8>>);

/// Opens a cache and reads everything in it through the public interface.
pub fn read_all(dir: &Path) -> cab_format::Result<BTreeMap<(Split, u64), Told>> {
    let cache = Cache::open(dir)?;
    let mut told = BTreeMap::new();
    for split in [Split::Train, Split::Val] {
        let names: Vec<_> = cache.fields(split).iter().map(|f| f.name.as_str()).collect();
        for place in cache.locations(split) {
            let block = cache.read_block(place.shard, place.block, &names)?;
            let row = place.row as usize;
            assert_eq!(block.records()[row], place.record);
            assert_eq!(block.label(row), place.label);
            let bytes = names.iter().map(|name| block.row(name, row).to_vec());
            let told_here = (place.label, place.sample, place.view, bytes.collect());
            told.insert((split, place.record), told_here);
        }
    }
    Ok(told)
}
