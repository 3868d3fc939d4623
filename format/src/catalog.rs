//! The catalog and the table of skipped records: Parquet, one row per record, for every tool that reads Parquet.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, Float32Array, Int64Array, RecordBatch, StringArray, UInt32Array, UInt64Array};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use bytes::Bytes;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::arrow::arrow_writer::{ArrowWriter, ArrowWriterOptions};
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use serde::{Deserialize, Serialize};

use crate::{Error, Result, Split};

/// Where a record comes from: what the catalog says of it beyond its place.
#[derive(Debug, Clone, PartialEq)]
pub struct RowMeta {
    /// The sample's name, the same for all its views.
    pub sample_id: String,
    /// Where the sample was read: a path, or a file and an index.
    pub source: String,
    /// Which view of the sample; 0 is the evaluation view.
    pub view: u32,
    /// Seed of the view's random numbers.
    pub seed: u64,
    /// Record this one was mixed with, if it was.
    pub mix_partner: Option<u64>,
    /// Weight of the record's own sample in the mixture, if it was mixed.
    pub mix_weight: Option<f32>,
}

/// One row of the catalog.
#[derive(Debug, Clone, PartialEq)]
pub struct CatalogRow {
    /// The record's id, unique in the cache.
    pub record: u64,
    /// The record's split.
    pub split: Split,
    /// Class, if known.
    pub label: Option<i64>,
    /// Where the record comes from.
    pub meta: RowMeta,
    /// Index of its shard.
    pub shard: u32,
    /// Its block in the shard.
    pub block: u32,
    /// Its row in the block.
    pub row: u32,
    /// First byte of the block in the shard's file.
    pub block_offset: u64,
    /// Bytes of the block, its message header included.
    pub block_bytes: u64,
    /// CRC32C of those bytes.
    pub block_crc32c: u32,
}

/// A record that could not be made because its sample could not be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SkippedRow {
    /// The id the record would have had.
    pub record: u64,
    /// The sample's name.
    pub sample_id: String,
    /// Where the sample lies.
    pub source: String,
    /// Why it could not be read.
    pub reason: String,
}

fn catalog_schema() -> SchemaRef {
    let column = |name: &str, data_type, nullable| Field::new(name, data_type, nullable);
    Arc::new(Schema::new(vec![
        column("record", DataType::UInt64, false),
        column("split", DataType::Utf8, false),
        column("sample_id", DataType::Utf8, false),
        column("source", DataType::Utf8, false),
        column("label", DataType::Int64, true),
        column("view", DataType::UInt32, false),
        column("seed", DataType::UInt64, false),
        column("mix_partner", DataType::UInt64, true),
        column("mix_weight", DataType::Float32, true),
        column("shard", DataType::UInt32, false),
        column("block", DataType::UInt32, false),
        column("row", DataType::UInt32, false),
        column("block_offset", DataType::UInt64, false),
        column("block_bytes", DataType::UInt64, false),
        column("block_crc32c", DataType::UInt32, false),
    ]))
}

fn skipped_schema() -> SchemaRef {
    let column = |name: &str, data_type| Field::new(name, data_type, false);
    Arc::new(Schema::new(vec![
        column("record", DataType::UInt64),
        column("sample_id", DataType::Utf8),
        column("source", DataType::Utf8),
        column("reason", DataType::Utf8),
    ]))
}

fn array<A: Array + 'static>(values: impl Into<A>) -> ArrayRef {
    Arc::new(values.into())
}

fn strings<'a>(values: impl Iterator<Item = &'a str>) -> ArrayRef {
    Arc::new(StringArray::from_iter_values(values))
}

/// A Parquet table being written, row group by row group.
pub(crate) struct TableWriter<W: Write + Send> {
    schema: SchemaRef,
    inner: ArrowWriter<W>,
    rows: u64,
}

impl<W: Write + Send> TableWriter<W> {
    pub(crate) fn catalog(out: W) -> Result<Self, ParquetError> {
        TableWriter::new(out, catalog_schema())
    }

    pub(crate) fn skipped(out: W) -> Result<Self, ParquetError> {
        TableWriter::new(out, skipped_schema())
    }

    fn new(out: W, schema: SchemaRef) -> Result<Self, ParquetError> {
        let properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::try_new(3)?))
            // The library's version would change the bytes of an otherwise equal cache.
            .set_created_by("cab-format".to_owned())
            .build();
        let options = ArrowWriterOptions::new().with_properties(properties).with_skip_arrow_metadata(true);
        let inner = ArrowWriter::try_new_with_options(out, schema.clone(), options)?;
        Ok(TableWriter { schema, inner, rows: 0 })
    }

    pub(crate) fn append_catalog(&mut self, rows: &[CatalogRow]) -> Result<(), ParquetError> {
        fn u32s<'a>(rows: &'a [CatalogRow], of: impl Fn(&'a CatalogRow) -> u32) -> ArrayRef {
            array::<UInt32Array>(rows.iter().map(of).collect::<Vec<_>>())
        }
        fn u64s<'a>(rows: &'a [CatalogRow], of: impl Fn(&'a CatalogRow) -> u64) -> ArrayRef {
            array::<UInt64Array>(rows.iter().map(of).collect::<Vec<_>>())
        }
        let labels: Vec<_> = rows.iter().map(|r| r.label).collect();
        let partners: Vec<_> = rows.iter().map(|r| r.meta.mix_partner).collect();
        let weights: Vec<_> = rows.iter().map(|r| r.meta.mix_weight).collect();
        self.append(vec![
            u64s(rows, |r| r.record),
            strings(rows.iter().map(|r| r.split.name())),
            strings(rows.iter().map(|r| r.meta.sample_id.as_str())),
            strings(rows.iter().map(|r| r.meta.source.as_str())),
            array::<Int64Array>(labels),
            u32s(rows, |r| r.meta.view),
            u64s(rows, |r| r.meta.seed),
            array::<UInt64Array>(partners),
            array::<Float32Array>(weights),
            u32s(rows, |r| r.shard),
            u32s(rows, |r| r.block),
            u32s(rows, |r| r.row),
            u64s(rows, |r| r.block_offset),
            u64s(rows, |r| r.block_bytes),
            u32s(rows, |r| r.block_crc32c),
        ])
    }

    pub(crate) fn append_skipped(&mut self, rows: &[SkippedRow]) -> Result<(), ParquetError> {
        self.append(vec![
            array::<UInt64Array>(rows.iter().map(|r| r.record).collect::<Vec<_>>()),
            strings(rows.iter().map(|r| r.sample_id.as_str())),
            strings(rows.iter().map(|r| r.source.as_str())),
            strings(rows.iter().map(|r| r.reason.as_str())),
        ])
    }

    fn append(&mut self, columns: Vec<ArrayRef>) -> Result<(), ParquetError> {
        let batch = RecordBatch::try_new(self.schema.clone(), columns)?;
        self.rows += batch.num_rows() as u64;
        self.inner.write(&batch)
    }

    /// The writer underneath and the rows written.
    pub(crate) fn finish(self) -> Result<(W, u64), ParquetError> {
        Ok((self.inner.into_inner()?, self.rows))
    }
}

/// A Parquet table in memory; its hash has been checked.
pub(crate) struct Table<'a> {
    path: &'a Path,
    bytes: Bytes,
}

/// One column of a batch, of the type and nullability this format gives it.
fn column<'b, A: Array + 'static>(path: &Path, batch: &'b RecordBatch, name: &str, nullable: bool) -> Result<&'b A> {
    batch
        .column_by_name(name)
        .and_then(|column| column.as_any().downcast_ref::<A>())
        .filter(|column| nullable || column.null_count() == 0)
        .ok_or_else(|| Error::Inconsistent {
            path: path.to_path_buf(),
            place: format!("column `{name}`"),
            expected: format!("a column of {}", std::any::type_name::<A>()),
            found: "none of that type, or one with nulls".into(),
        })
}

fn at<T: Copy>(values: &[T], valid: bool, i: usize) -> Option<T> {
    valid.then(|| values[i])
}

/// Place of a record and the little a trainer needs of the catalog; filled in by [`Table::places`].
pub(crate) struct Place<'a> {
    pub(crate) record: u64,
    pub(crate) split: Split,
    pub(crate) sample_id: &'a str,
    pub(crate) label: Option<i64>,
    pub(crate) view: u32,
    pub(crate) shard: u32,
    pub(crate) block: u32,
    pub(crate) row: u32,
    pub(crate) block_offset: u64,
    pub(crate) block_bytes: u64,
    pub(crate) block_crc32c: u32,
}

impl<'a> Table<'a> {
    pub(crate) fn new(path: &'a Path, bytes: Vec<u8>) -> Self {
        Table { path, bytes: bytes.into() }
    }

    /// Calls `each` with every batch of the named columns, or of all.
    fn batches(&self, columns: Option<&[&str]>, mut each: impl FnMut(&RecordBatch) -> Result<()>) -> Result<()> {
        let parquet = |source| Error::Parquet { path: self.path.to_path_buf(), source };
        let mut builder = ParquetRecordBatchReaderBuilder::try_new(self.bytes.clone()).map_err(parquet)?;
        if let Some(columns) = columns {
            let mask = ProjectionMask::columns(builder.parquet_schema(), columns.iter().copied());
            builder = builder.with_projection(mask);
        }
        let reader = builder.with_batch_size(8192).build().map_err(parquet)?;
        for batch in reader {
            each(&batch.map_err(|error| parquet(error.into()))?)?;
        }
        Ok(())
    }

    fn split(&self, name: &str) -> Result<Split> {
        match name {
            "train" => Ok(Split::Train),
            "val" => Ok(Split::Val),
            other => Err(Error::Inconsistent {
                path: self.path.to_path_buf(),
                place: "column `split`".into(),
                expected: "`train` or `val`".into(),
                found: format!("{other:?}"),
            }),
        }
    }

    /// Calls `each` with the place of every record, in the table's order.
    pub(crate) fn places(&self, mut each: impl FnMut(Place<'_>) -> Result<()>) -> Result<()> {
        let columns = [
            "record",
            "split",
            "sample_id",
            "label",
            "view",
            "shard",
            "block",
            "row",
            "block_offset",
            "block_bytes",
            "block_crc32c",
        ];
        self.batches(Some(&columns), |batch| {
            let u32s = |name| column::<UInt32Array>(self.path, batch, name, false);
            let u64s = |name| column::<UInt64Array>(self.path, batch, name, false);
            let text = |name| column::<StringArray>(self.path, batch, name, false);
            let label = column::<Int64Array>(self.path, batch, "label", true)?;
            let (record, offset, bytes) = (u64s("record")?, u64s("block_offset")?, u64s("block_bytes")?);
            let (split, sample_id) = (text("split")?, text("sample_id")?);
            let (view, crc) = (u32s("view")?, u32s("block_crc32c")?);
            let (shard, block, row) = (u32s("shard")?, u32s("block")?, u32s("row")?);
            for i in 0..batch.num_rows() {
                each(Place {
                    record: record.value(i),
                    split: self.split(split.value(i))?,
                    sample_id: sample_id.value(i),
                    label: at(label.values(), label.is_valid(i), i),
                    view: view.value(i),
                    shard: shard.value(i),
                    block: block.value(i),
                    row: row.value(i),
                    block_offset: offset.value(i),
                    block_bytes: bytes.value(i),
                    block_crc32c: crc.value(i),
                })?;
            }
            Ok(())
        })
    }

    /// Every row of the catalog.
    pub(crate) fn catalog_rows(&self) -> Result<Vec<CatalogRow>> {
        let mut rows = Vec::new();
        let mut extra = Vec::new();
        self.batches(Some(&["source", "seed", "mix_partner", "mix_weight"]), |b| {
            let source = column::<StringArray>(self.path, b, "source", false)?;
            let seed = column::<UInt64Array>(self.path, b, "seed", false)?;
            let partner = column::<UInt64Array>(self.path, b, "mix_partner", true)?;
            let weight = column::<Float32Array>(self.path, b, "mix_weight", true)?;
            extra.extend((0..b.num_rows()).map(|i| RowMeta {
                sample_id: String::new(),
                source: source.value(i).to_owned(),
                view: 0,
                seed: seed.value(i),
                mix_partner: at(partner.values(), partner.is_valid(i), i),
                mix_weight: at(weight.values(), weight.is_valid(i), i),
            }));
            Ok(())
        })?;
        let mut extra = extra.into_iter();
        self.places(|place| {
            // Columns of one Parquet table have equal lengths.
            let Some(meta) = extra.next() else {
                return Ok(());
            };
            rows.push(CatalogRow {
                record: place.record,
                split: place.split,
                label: place.label,
                meta: RowMeta { sample_id: place.sample_id.to_owned(), view: place.view, ..meta },
                shard: place.shard,
                block: place.block,
                row: place.row,
                block_offset: place.block_offset,
                block_bytes: place.block_bytes,
                block_crc32c: place.block_crc32c,
            });
            Ok(())
        })?;
        Ok(rows)
    }

    /// Every row of the table of skipped records.
    pub(crate) fn skipped_rows(&self) -> Result<Vec<SkippedRow>> {
        let mut rows = Vec::new();
        self.batches(None, |batch| {
            let text = |name| column::<StringArray>(self.path, batch, name, false);
            let record = column::<UInt64Array>(self.path, batch, "record", false)?;
            let (sample_id, source, reason) = (text("sample_id")?, text("source")?, text("reason")?);
            rows.extend((0..batch.num_rows()).map(|i| SkippedRow {
                record: record.value(i),
                sample_id: sample_id.value(i).to_owned(),
                source: source.value(i).to_owned(),
                reason: reason.value(i).to_owned(),
            }));
            Ok(())
        })?;
        Ok(rows)
    }
}
