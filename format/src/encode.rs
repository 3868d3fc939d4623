//! Rows become one compressed Arrow message: a block.

use std::sync::Arc;

use arrow::array::{ArrayRef, FixedSizeListArray, Int64Array, PrimitiveArray, RecordBatch, UInt64Array};
use arrow::buffer::{Buffer, MutableBuffer, ScalarBuffer};
use arrow::datatypes::{ArrowPrimitiveType, DataType, Float16Type, Float32Type, SchemaRef, UInt8Type, UInt32Type};
use arrow::error::ArrowError;
use arrow::ipc::writer::{DictionaryTracker, IpcDataGenerator, IpcWriteContext, IpcWriteOptions, write_message};
use arrow::ipc::{CompressionType, root_as_message};

use crate::field::{check_fields, schema};
use crate::{Dtype, Error, FieldSpec, Result, RowMeta};

/// The most rows one block can have.
pub const MAX_BLOCK_ROWS: usize = 1 << 20;

/// Zstandard's fast end: the exact codec's bytes are pixels and float mantissas, which higher levels barely shrink.
const ZSTD_LEVEL: i32 = 1;

/// A record as it is handed over for storing.
#[derive(Debug, Clone, PartialEq)]
pub struct RecordRow {
    /// The record's id, unique in the cache.
    pub record: u64,
    /// Class, if known.
    pub label: Option<i64>,
    /// Stored bytes of every field of the record's split, in the order of the fields.
    pub fields: Vec<Vec<u8>>,
    /// What the catalog says of the record.
    pub meta: RowMeta,
}

/// Rows compressed into the bytes of one Arrow record batch message.
#[derive(Debug, Clone)]
pub struct EncodedBlock {
    pub(crate) schema: SchemaRef,
    pub(crate) message: Vec<u8>,
    pub(crate) metadata_bytes: usize,
    pub(crate) crc32c: u32,
    pub(crate) rows: Vec<(u64, Option<i64>, RowMeta)>,
    /// Compressed bytes of every field, in order.
    pub(crate) field_bytes: Vec<u64>,
}

impl EncodedBlock {
    /// Rows of the block.
    pub fn rows(&self) -> usize {
        self.rows.len()
    }

    /// Bytes the block takes in its shard.
    pub fn bytes(&self) -> usize {
        self.message.len()
    }
}

pub(crate) fn write_options() -> IpcWriteOptions {
    IpcWriteOptions::default()
        .try_with_compression(Some(CompressionType::ZSTD))
        .and_then(|options| options.try_with_compression_level(Some(ZSTD_LEVEL)))
        .expect("Zstandard at this level is compiled in")
}

/// The block of these rows, whose split has these fields; any number of threads may encode at once.
///
/// # Errors
/// No rows or more than [`MAX_BLOCK_ROWS`]; fields that cannot be stored; a row with another number of fields, or with
/// another number of bytes than its field has.
pub fn encode_block(fields: &[FieldSpec], rows: Vec<RecordRow>) -> Result<EncodedBlock> {
    check_fields(fields)?;
    if rows.is_empty() || rows.len() > MAX_BLOCK_ROWS {
        return Err(Error::BadBlock { rows: rows.len(), most: MAX_BLOCK_ROWS });
    }
    for (i, row) in rows.iter().enumerate() {
        check_row(fields, i, row)?;
    }
    let schema = schema(fields);
    let mut columns: Vec<ArrayRef> = vec![
        Arc::new(UInt64Array::from_iter_values(rows.iter().map(|r| r.record))),
        Arc::new(Int64Array::from_iter(rows.iter().map(|r| r.label))),
    ];
    for (f, spec) in fields.iter().enumerate() {
        columns.push(tensor_column(&schema, f, spec, &rows));
    }
    let encoded = RecordBatch::try_new(schema.clone(), columns)
        .and_then(|batch| encode_message(&batch))
        .map_err(|source| Error::Arrow { place: "a new block".into(), source })?;
    let (message, metadata_bytes, field_bytes) = encoded;
    Ok(EncodedBlock {
        schema,
        crc32c: crc32c::crc32c(&message),
        message,
        metadata_bytes,
        rows: rows.into_iter().map(|row| (row.record, row.label, row.meta)).collect(),
        field_bytes,
    })
}

fn check_row(fields: &[FieldSpec], i: usize, row: &RecordRow) -> Result<()> {
    let bad = |place: &str, expected: String, found: String| Error::BadRow {
        row: i,
        place: place.to_owned(),
        expected,
        found,
    };
    if row.fields.len() != fields.len() {
        let found = row.fields.len().to_string();
        return Err(bad("fields", fields.len().to_string(), found));
    }
    for (spec, bytes) in fields.iter().zip(&row.fields) {
        if bytes.len() != spec.record_bytes() {
            return Err(bad(
                &format!("field `{}`", spec.name),
                format!("{} bytes", spec.record_bytes()),
                format!("{} bytes", bytes.len()),
            ));
        }
    }
    Ok(())
}

/// Column of field `f`, the rows' bytes one after the other.
fn tensor_column(schema: &SchemaRef, f: usize, spec: &FieldSpec, rows: &[RecordRow]) -> ArrayRef {
    let mut bytes = MutableBuffer::with_capacity(rows.len() * spec.record_bytes());
    for row in rows {
        bytes.extend_from_slice(&row.fields[f]);
    }
    fn typed<T: ArrowPrimitiveType>(buffer: Buffer) -> ArrayRef {
        let len = buffer.len() / size_of::<T::Native>();
        let values = ScalarBuffer::<T::Native>::new(buffer, 0, len);
        Arc::new(PrimitiveArray::<T>::new(values, None))
    }
    let buffer = Buffer::from(bytes);
    let values = match spec.dtype {
        Dtype::U8 => typed::<UInt8Type>(buffer),
        Dtype::U32 => typed::<UInt32Type>(buffer),
        Dtype::F16 => typed::<Float16Type>(buffer),
        Dtype::F32 => typed::<Float32Type>(buffer),
    };
    let DataType::FixedSizeList(item, elements) = schema.field(2 + f).data_type() else {
        unreachable!("every field's column is a fixed-size list")
    };
    Arc::new(FixedSizeListArray::new(item.clone(), *elements, values, None))
}

/// The framed message, the bytes of its metadata, and the compressed bytes of every field.
fn encode_message(batch: &RecordBatch) -> Result<(Vec<u8>, usize, Vec<u64>), ArrowError> {
    let options = write_options();
    let mut dictionaries = DictionaryTracker::new(true);
    let (_, encoded) =
        IpcDataGenerator::default().encode(batch, &mut dictionaries, &options, &mut IpcWriteContext::default())?;
    let message = root_as_message(&encoded.ipc_message)
        .ok()
        .and_then(|message| message.header_as_record_batch())
        .and_then(|header| header.buffers())
        .ok_or_else(|| ArrowError::IpcError("the message has no buffers".into()))?;
    // `record` and `label` have two buffers each, every field three: two of validity, one of values.
    let field_bytes = (0..batch.num_columns() - 2)
        .map(|f| (4 + 3 * f..7 + 3 * f).map(|b| message.get(b).length() as u64))
        .map(Iterator::sum)
        .collect();
    let mut framed = Vec::with_capacity(encoded.ipc_message.len() + encoded.arrow_data.len() + 128);
    let (metadata_bytes, _) = write_message(&mut framed, encoded, &options)?;
    Ok((framed, metadata_bytes, field_bytes))
}
