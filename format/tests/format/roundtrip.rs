//! What goes in comes out, whatever its type, shape and content.

use cab_format::{
    Block, Cache, CacheWriter, Codec, Dtype, Error, FieldSpec, OnExisting, RecordRow, RowMeta, Split, encode_block,
    verify,
};
use proptest::prelude::*;
use serde_json::{Map, Value};

use crate::common::*;

/// Every type after `dtype`; a new one must be named here.
fn next(dtype: Dtype) -> Option<Dtype> {
    match dtype {
        Dtype::U8 => Some(Dtype::U32),
        Dtype::U32 => Some(Dtype::F16),
        Dtype::F16 => Some(Dtype::F32),
        Dtype::F32 => None,
    }
}

fn dtypes() -> Vec<Dtype> {
    std::iter::successors(Some(Dtype::U8), |dtype| next(*dtype)).collect()
}

fn field(name: &str, dtype: Dtype, shape: Vec<usize>, codec: Codec) -> FieldSpec {
    let splits = vec![Split::Train];
    FieldSpec { name: name.into(), dtype, shape, codec, splits }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn bytes_in_bytes_out(
        shapes in prop::collection::vec(prop::collection::vec(1usize..6, 1..4), 4),
        blocks in prop::collection::vec(1usize..19, 0..4),
        codec in prop::sample::select(vec![Codec::Exact]),
        flat in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let fields: Vec<_> = dtypes()
            .into_iter()
            .zip(shapes)
            .map(|(dtype, shape)| field(&format!("{dtype:?}"), dtype, shape, codec))
            .collect();
        let mut next_record = 0;
        let mut make = |_| {
            next_record += 1;
            let byte = |f, i| if flat { 0 } else { noise(seed, next_record * 8 + f, i) as u8 };
            RecordRow {
                record: next_record * 3,
                label: (noise(seed, next_record, 0) > u64::MAX / 3).then_some(noise(seed, next_record, 1) as i64),
                fields: (0..).zip(&fields).map(|(f, spec)| (0..spec.record_bytes() as u64).map(|i| byte(f, i)).collect()).collect(),
                meta: RowMeta {
                    sample_id: format!("s{next_record}"),
                    source: String::new(),
                    view: seed as u32,
                    seed,
                    mix_partner: flat.then_some(seed),
                    mix_weight: flat.then_some(f32::from_bits(seed as u32)).filter(|w| !w.is_nan()),
                },
            }
        };
        let blocks: Vec<Vec<RecordRow>> = blocks.into_iter().map(|rows| (0..rows).map(&mut make).collect()).collect();
        let dir = tempfile::tempdir().unwrap();
        let writer = CacheWriter::open(dir.path(), PLAN, &fields, OnExisting::Resume).unwrap();
        let mut shard = writer.shard(0, Split::Train).unwrap();
        for rows in &blocks {
            shard.append(encode_block(&fields, rows.clone()).unwrap()).unwrap();
        }
        shard.finish(Value::Null, vec![]).unwrap();
        writer.seal(1, Map::new()).unwrap();

        let cache = Cache::open(dir.path()).unwrap();
        let names: Vec<_> = fields.iter().map(|f| f.name.as_str()).collect();
        for (b, rows) in blocks.iter().enumerate() {
            let block = cache.read_block(0, b as u32, &names).unwrap();
            prop_assert_eq!(block.rows(), rows.len());
            let labels: Vec<_> = rows.iter().map(|r| r.label).collect();
            prop_assert_eq!(block.labels(), labels);
            for (r, row) in rows.iter().enumerate() {
                prop_assert_eq!(block.records()[r], row.record);
                for (name, bytes) in names.iter().zip(&row.fields) {
                    prop_assert_eq!(block.row(name, r), bytes);
                }
            }
            for (f, name) in names.iter().enumerate() {
                let whole: Vec<u8> = rows.iter().flat_map(|r| r.fields[f].clone()).collect();
                prop_assert_eq!(block.bytes(name), whole);
                let alone = cache.read_block(0, b as u32, &[*name]).unwrap();
                prop_assert_eq!(alone.bytes(name), block.bytes(name));
            }
        }
        let written: Vec<_> = blocks.iter().flatten().map(|r| (r.record, r.label, r.meta.clone())).collect();
        let listed: Vec<_> = cache.catalog_rows().unwrap().into_iter().map(|r| (r.record, r.label, r.meta)).collect();
        prop_assert_eq!(listed, written);
        prop_assert!(verify(dir.path()).unwrap().is_empty());
    }
}

#[test]
fn a_cache_tells_what_was_written() {
    let dir = tempfile::tempdir().unwrap();
    let sealed = complete(dir.path());
    assert!(verify(dir.path()).unwrap().is_empty());
    let cache = Cache::open(dir.path()).unwrap();
    assert_eq!(*cache.manifest(), sealed);
    assert_eq!(sealed.about, about());
    assert_eq!((sealed.records.train, sealed.records.val), (6, 3));
    assert_eq!(sealed.shards[2].records, 0);
    assert_eq!(sealed.shards[3].field_bytes.keys().collect::<Vec<_>>(), ["input", "logits"], "val records have no q");
    for shard in &sealed.shards {
        let fields: u64 = shard.field_bytes.values().sum();
        assert!(fields < shard.bytes && (fields > 0) == (shard.records > 0));
    }
    let told = read_all(dir.path()).unwrap();
    assert_eq!(told.len(), 9);
    for ((split, record), (label, _, view, bytes)) in &told {
        let expected = row(cache.fields(*split), *record);
        assert_eq!(*label, expected.label);
        assert_eq!(*view, expected.meta.view);
        assert_eq!(*bytes, expected.fields);
    }
    let rows = cache.catalog_rows().unwrap();
    for told in &rows {
        assert_eq!(told.meta, row(&[], told.record).meta);
        let block = cache.blocks(told.shard)[told.block as usize];
        let place = (told.block_offset, told.block_bytes, told.block_crc32c);
        assert_eq!(place, (block.offset, block.bytes, block.crc32c));
    }
    let skipped_records = cache.skipped_rows().unwrap();
    assert_eq!(skipped_records, [skipped(4), skipped(7), skipped(8)]);
}

#[test]
fn samples_are_numbered_as_they_appear_by_record() {
    let dir = tempfile::tempdir().unwrap();
    let fields = [field("input", Dtype::U8, vec![1], Codec::Exact)];
    let writer = CacheWriter::open(dir.path(), PLAN, &fields, OnExisting::Resume).unwrap();
    let mut shard = writer.shard(0, Split::Train).unwrap();
    let record = |(record, sample): (u64, &str)| {
        let mut row = row(&fields, record);
        row.meta.sample_id = sample.into();
        row
    };
    let rows = [(7, "c"), (3, "a"), (5, "b"), (1, "c")].map(record);
    shard.append(encode_block(&fields, rows.to_vec()).unwrap()).unwrap();
    shard.finish(Value::Null, vec![]).unwrap();
    writer.seal(1, Map::new()).unwrap();
    let cache = Cache::open(dir.path()).unwrap();
    let places = cache.locations(Split::Train).iter();
    let numbered: Vec<_> = places.map(|l| (l.record, l.sample, l.row)).collect();
    assert_eq!(numbered, [(1, 0, 3), (3, 1, 1), (5, 2, 2), (7, 0, 0)]);
    assert!(cache.locations(Split::Val).is_empty());
}

#[test]
fn many_threads_read_the_same_cache() {
    let dir = tempfile::tempdir().unwrap();
    complete(dir.path());
    let cache = Cache::open(dir.path()).unwrap();
    let read = || {
        let train = cache.locations(Split::Train).iter();
        let inputs = train.map(|l| {
            let block: Block = cache.read_block(l.shard, l.block, &["input"]).unwrap();
            block.row("input", l.row as usize).to_vec()
        });
        inputs.collect::<Vec<_>>()
    };
    let expected = read();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(read)).collect();
        for thread in threads {
            assert_eq!(thread.join().unwrap(), expected);
        }
    });
}

#[test]
fn what_is_not_there_is_named() {
    let dir = tempfile::tempdir().unwrap();
    complete(dir.path());
    let cache = Cache::open(dir.path()).unwrap();
    let error = cache.read_block(3, 0, &["input", "q.00"]).unwrap_err();
    assert!(matches!(&error, Error::UnknownField { field, split: Split::Val, known, .. }
        if field == "q.00" && known == "input, logits"));
    for (shard, block) in [(0, 2), (2, 0), (4, 0), (u32::MAX, u32::MAX)] {
        let error = cache.read_block(shard, block, &[]).unwrap_err();
        assert!(matches!(error, Error::NoSuchBlock { .. }), "{error}");
    }
    let twice = cache.read_block(0, 0, &["logits", "input", "logits"]).unwrap();
    assert_eq!(twice.row("logits", 0), row(cache.fields(Split::Train), 0).fields[1]);
}

#[test]
fn rows_that_do_not_fit_are_refused() {
    let fields = fields();
    let good = row(&fields, 1);
    let encode = |change: &dyn Fn(&mut RecordRow)| {
        let mut bad = good.clone();
        change(&mut bad);
        encode_block(&fields, vec![good.clone(), bad])
    };
    assert_eq!(encode(&|_| ()).unwrap().rows(), 2);
    let short = encode(&|row| row.fields[1].truncate(3)).unwrap_err();
    assert!(matches!(&short, Error::BadRow { row: 1, place, .. } if place == "field `logits`"));
    let fewer = encode(&|row| row.fields.truncate(2)).unwrap_err();
    assert!(matches!(&fewer, Error::BadRow { row: 1, place, .. } if place == "fields"));
    let none = encode_block(&fields, vec![]).unwrap_err();
    assert!(matches!(none, Error::BadBlock { rows: 0, .. }));
}

#[test]
fn fields_that_cannot_be_stored_are_refused() {
    let good = || field("q.00", Dtype::F32, vec![2], Codec::Exact);
    let refused = |fields: &[FieldSpec]| {
        let error = encode_block(fields, vec![row(&[], 0)]).unwrap_err();
        assert!(matches!(error, Error::BadField { .. }), "{error}");
    };
    refused(&[good(), good()]);
    for name in ["", "record", "label", "a b", "q/0", &"x".repeat(65)] {
        refused(&[FieldSpec { name: name.into(), ..good() }]);
    }
    for shape in [vec![], vec![3, 0], vec![1 << 40, 1 << 40], vec![1 << 28, 2]] {
        refused(&[FieldSpec { shape, ..good() }]);
    }
    refused(&[FieldSpec { splits: vec![], ..good() }]);
}
