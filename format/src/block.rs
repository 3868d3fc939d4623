//! A compressed Arrow message becomes the columns of a block again, once every length in it has been compared.

use arrow::array::{Array, ArrayRef, AsArray, Int64Array};
use arrow::buffer::{Buffer, ScalarBuffer};
use arrow::datatypes::{
    ArrowPrimitiveType, Float16Type, Float32Type, Int64Type, SchemaRef, UInt8Type, UInt32Type, UInt64Type,
};
use arrow::error::ArrowError;
use arrow::ipc::reader::FileDecoder;
use arrow::ipc::{CompressionType, MetadataVersion, root_as_message};

use crate::{Dtype, FieldSpec};

/// The columns of one block that were asked for.
#[derive(Debug, Clone)]
pub struct Block {
    records: ScalarBuffer<u64>,
    labels: Int64Array,
    columns: Vec<Column>,
}

#[derive(Debug, Clone)]
struct Column {
    name: String,
    record_bytes: usize,
    bytes: Buffer,
}

impl Block {
    /// Rows of the block.
    pub fn rows(&self) -> usize {
        self.records.len()
    }

    /// Record id of every row.
    pub fn records(&self) -> &[u64] {
        &self.records
    }

    /// Label of every row, where known.
    pub fn labels(&self) -> Vec<Option<i64>> {
        self.labels.iter().collect()
    }

    /// Label of one row, if known.
    ///
    /// # Panics
    /// `row` is not below [`Block::rows`].
    pub fn label(&self, row: usize) -> Option<i64> {
        assert!(row < self.rows(), "row {row} of {}", self.rows());
        self.labels.is_valid(row).then(|| self.labels.values()[row])
    }

    /// Stored bytes of a field, all rows one after the other.
    ///
    /// # Panics
    /// The field was not among those the block was read with.
    pub fn bytes(&self, field: &str) -> &[u8] {
        &self.column(field).bytes
    }

    /// Stored bytes of a field in one row.
    ///
    /// # Panics
    /// The field was not among those the block was read with, or `row` is not below [`Block::rows`].
    pub fn row(&self, field: &str, row: usize) -> &[u8] {
        let column = self.column(field);
        &column.bytes[row * column.record_bytes..][..column.record_bytes]
    }

    fn column(&self, field: &str) -> &Column {
        self.columns
            .iter()
            .find(|column| column.name == field)
            .unwrap_or_else(|| panic!("the block was read without field `{field}`"))
    }
}

/// Why a message is not the block it should be: what was expected, what was found.
pub(crate) enum Refused {
    Shape { expected: String, found: String },
    Arrow(ArrowError),
}

impl From<ArrowError> for Refused {
    fn from(error: ArrowError) -> Self {
        Refused::Arrow(error)
    }
}

fn shape(what: &str, expected: impl ToString, found: impl ToString) -> Refused {
    Refused::Shape { expected: format!("{what} {}", expected.to_string()), found: found.to_string() }
}

/// The columns `projection` (positions in `fields`) of a message of `rows` rows.
///
/// The message's checksum has been compared; its structure is compared here with what the fields imply before Arrow
/// follows a single length in it.
pub(crate) fn decode_block(
    schema: &SchemaRef,
    fields: &[FieldSpec],
    rows: usize,
    message: &Buffer,
    projection: &[usize],
) -> Result<Block, Refused> {
    let metadata_bytes = check_message(fields, rows, message)?;
    let body_bytes = message.len() - metadata_bytes;
    let mut wanted = vec![0, 1];
    wanted.extend(projection.iter().map(|f| f + 2));
    // Arrow hands columns out in the order of the projection it is given.
    let decoder = FileDecoder::new(schema.clone(), MetadataVersion::V5).with_projection(wanted);
    let place = arrow::ipc::Block::new(0, metadata_bytes as i32, body_bytes as i64);
    let batch = decoder
        .read_record_batch(&place, message)?
        .ok_or_else(|| shape("a record batch of rows", rows, "no message"))?;
    let columns = projection
        .iter()
        .zip(&batch.columns()[2..])
        .map(|(&f, column)| {
            let spec = &fields[f];
            let bytes = value_bytes(spec.dtype, column.as_fixed_size_list().values());
            let expected = rows * spec.record_bytes();
            if bytes.len() < expected {
                let what = format!("bytes of field `{}`:", spec.name);
                return Err(shape(&what, expected, bytes.len()));
            }
            Ok(Column {
                name: spec.name.clone(),
                record_bytes: spec.record_bytes(),
                bytes: bytes.slice_with_length(0, expected),
            })
        })
        .collect::<Result<_, _>>()?;
    Ok(Block {
        records: batch.column(0).as_primitive::<UInt64Type>().values().clone(),
        labels: batch.column(1).as_primitive::<Int64Type>().clone(),
        columns,
    })
}

fn value_bytes(dtype: Dtype, values: &ArrayRef) -> Buffer {
    fn typed<T: ArrowPrimitiveType>(values: &ArrayRef) -> Buffer {
        values.as_primitive::<T>().values().inner().clone()
    }
    match dtype {
        Dtype::U8 => typed::<UInt8Type>(values),
        Dtype::U32 => typed::<UInt32Type>(values),
        Dtype::F16 => typed::<Float16Type>(values),
        Dtype::F32 => typed::<Float32Type>(values),
    }
}

/// Bytes of the message's metadata, once every length in it is what `fields` and `rows` imply.
fn check_message(fields: &[FieldSpec], rows: usize, message: &[u8]) -> Result<usize, Refused> {
    let too_short = || shape("a message header of bytes", 8, message.len());
    let (marker, rest) = message.split_at_checked(4).ok_or_else(too_short)?;
    let (stated, rest) = rest.split_at_checked(4).ok_or_else(too_short)?;
    if marker != [0xff; 4] {
        return Err(shape("marker", "ffffffff", format!("{marker:02x?}")));
    }
    let stated = u32::from_le_bytes(stated.try_into().expect("four bytes")) as usize;
    let (metadata, body) =
        rest.split_at_checked(stated).ok_or_else(|| shape("metadata bytes up to", rest.len(), stated))?;
    let message = root_as_message(metadata).map_err(|error| shape("a message", "header", error.to_string()))?;
    if message.version() != MetadataVersion::V5 {
        let found = format!("{:?}", message.version());
        return Err(shape("metadata version", "V5", found));
    }
    if message.bodyLength() != body.len() as i64 {
        return Err(shape("body bytes", body.len(), message.bodyLength()));
    }
    let batch = message
        .header_as_record_batch()
        .ok_or_else(|| shape("a", "record batch", format!("{:?}", message.header_type())))?;
    if batch.length() != rows as i64 {
        return Err(shape("rows", rows, batch.length()));
    }
    let codec = batch.compression().map(|c| c.codec());
    if codec != Some(CompressionType::ZSTD) {
        return Err(shape("compression", "ZSTD", format!("{codec:?}")));
    }
    let (Some(nodes), Some(buffers)) = (batch.nodes(), batch.buffers()) else {
        return Err(shape("a record batch with", "nodes and buffers", "none"));
    };
    let (lengths, sizes) = layout(fields, rows);
    if nodes.len() != lengths.len() || buffers.len() != sizes.len() {
        let found = format!("{} and {}", nodes.len(), buffers.len());
        let expected = format!("{} and {}", lengths.len(), sizes.len());
        return Err(shape("nodes and buffers", expected, found));
    }
    for (i, (node, length)) in nodes.iter().zip(lengths).enumerate() {
        let nulls = if i == 1 { 0..=rows as i64 } else { 0..=0 };
        if node.length() != length as i64 || !nulls.contains(&node.null_count()) {
            let found = format!("{}, nulls {}", node.length(), node.null_count());
            return Err(shape(&format!("node {i} of length"), length, found));
        }
    }
    for (i, (buffer, size)) in buffers.iter().zip(sizes).enumerate() {
        let what = format!("buffer {i} of bytes");
        let lies = usize::try_from(buffer.offset())
            .ok()
            .zip(usize::try_from(buffer.length()).ok())
            .and_then(|(offset, length)| body.get(offset..)?.get(..length))
            .ok_or_else(|| shape(&what, size, "a range outside the body"))?;
        // A column without nulls may leave its validity away.
        let optional = i % 2 == 0 && i < 4 || i >= 4 && (i - 4) % 3 < 2;
        if optional && lies.is_empty() {
            continue;
        }
        let (stated, stored) = lies.split_at_checked(8).ok_or_else(|| shape(&what, size, lies.len()))?;
        match i64::from_le_bytes(stated.try_into().expect("eight bytes")) {
            -1 if stored.len() == size => {}
            stated if stated == size as i64 && size > 0 => {}
            -1 => return Err(shape(&what, size, stored.len())),
            stated => return Err(shape(&what, size, stated)),
        }
    }
    // A label that is null needs a bitmap that says which.
    if nodes.get(1).null_count() > 0 && buffers.get(2).length() == 0 {
        return Err(shape("validity of", "label", "none"));
    }
    Ok(8 + stated)
}

/// Lengths of the nodes and uncompressed sizes of the buffers of a message.
fn layout(fields: &[FieldSpec], rows: usize) -> (Vec<usize>, Vec<usize>) {
    let mut lengths = vec![rows, rows];
    let mut sizes = vec![rows.div_ceil(8), rows * 8, rows.div_ceil(8), rows * 8];
    for spec in fields {
        let elements = rows * spec.elements();
        lengths.extend([rows, elements]);
        sizes.extend([rows.div_ceil(8), elements.div_ceil(8), elements * spec.dtype.bytes()]);
    }
    (lengths, sizes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::field::schema;
    use crate::{Codec, EncodedBlock, RecordRow, RowMeta, Split, encode_block};

    fn encoded() -> (Vec<FieldSpec>, EncodedBlock) {
        let field = |name: &str, dtype, shape: &[usize]| FieldSpec {
            name: name.into(),
            dtype,
            shape: shape.to_vec(),
            codec: Codec::Exact,
            splits: vec![Split::Train],
        };
        let fields = vec![field("input", Dtype::U8, &[40]), field("q.00", Dtype::F32, &[3, 2])];
        let row = |record: u64| RecordRow {
            record,
            label: (record > 1).then_some(7),
            fields: vec![vec![record as u8; 40], (0..24).map(|i| i * 11).collect()],
            meta: RowMeta {
                sample_id: String::new(),
                source: String::new(),
                view: 0,
                seed: 0,
                mix_partner: None,
                mix_weight: None,
            },
        };
        let block = encode_block(&fields, (0..3).map(row).collect()).unwrap();
        (fields, block)
    }

    /// A checksum can be made to fit; then the structure still has to.
    #[test]
    fn an_altered_message_is_refused_or_has_the_right_sizes() {
        let (fields, block) = encoded();
        let schema = schema(&fields);
        let mut refused = 0;
        for i in 0..block.message.len() {
            for flip in [1, 0x80, 0xff] {
                let mut message = block.message.clone();
                message[i] ^= flip;
                let message = Buffer::from(message);
                match decode_block(&schema, &fields, 3, &message, &[0, 1]) {
                    Err(_) => refused += 1,
                    Ok(read) => {
                        assert_eq!(read.labels().len(), 3);
                        assert_eq!(read.bytes("input").len(), 3 * 40);
                        assert_eq!(read.bytes("q.00").len(), 3 * 24);
                    }
                }
            }
        }
        assert!(refused > block.message.len() / 2, "{refused}");
        for cut in 0..block.message.len() {
            let message = Buffer::from(&block.message[..cut]);
            assert!(decode_block(&schema, &fields, 3, &message, &[0]).is_err());
        }
    }

    #[test]
    fn a_message_of_other_rows_or_fields_is_refused() {
        let (fields, block) = encoded();
        let message = Buffer::from(block.message);
        let decode = |fields: &[FieldSpec], rows| decode_block(&schema(fields), fields, rows, &message, &[0]).is_ok();
        assert!(decode(&fields, 3));
        assert!(!decode(&fields, 2));
        assert!(!decode(&fields[..1], 3));
        let mut other = fields.clone();
        other[1].shape = vec![3, 3];
        assert!(!decode(&other, 3));
        other[1] = FieldSpec { dtype: Dtype::F16, ..fields[1].clone() };
        assert!(!decode(&other, 3));
    }
}
