//! A shard's file around its blocks: what comes before the first and after the last.

use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use arrow::ipc::convert::{IpcSchemaEncoder, try_fb_to_schema};
use arrow::ipc::reader::read_footer_length;
use arrow::ipc::writer::FileWriter;
use arrow::ipc::{Block, FooterBuilder, MetadataVersion, root_as_footer};
use flatbuffers::FlatBufferBuilder;

use crate::encode::write_options;

const MAGIC: &[u8] = b"ARROW1";
const END_OF_STREAM: [u8; 8] = [0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0];

/// Everything before the first block: magic and schema message.
pub(crate) fn header(schema: &SchemaRef) -> Result<Vec<u8>, ArrowError> {
    let writer = FileWriter::try_new_with_options(Vec::new(), schema, write_options())?;
    Ok(writer.get_ref().clone())
}

/// Everything after the last block: end of stream, footer, its length, magic.
pub(crate) fn tail(schema: &SchemaRef, blocks: &[Block]) -> Vec<u8> {
    let mut builder = FlatBufferBuilder::new();
    let dictionaries = builder.create_vector::<Block>(&[]);
    let batches = builder.create_vector(blocks);
    let schema = IpcSchemaEncoder::new().schema_to_fb_offset(&mut builder, schema);
    let mut footer = FooterBuilder::new(&mut builder);
    footer.add_version(MetadataVersion::V5);
    footer.add_schema(schema);
    footer.add_dictionaries(dictionaries);
    footer.add_recordBatches(batches);
    let footer = footer.finish();
    builder.finish(footer, None);
    let footer = builder.finished_data();
    let length = (footer.len() as u32).to_le_bytes();
    [&END_OF_STREAM[..], footer, &length, MAGIC].concat()
}

/// What is wrong with the footer of a shard that should have this schema and blocks at these `(offset, bytes)`.
///
/// Our own reader never follows a footer; other Arrow readers do.
pub(crate) fn footer_fault(
    file: &[u8],
    schema: &SchemaRef,
    blocks: impl ExactSizeIterator<Item = (u64, u64)>,
) -> Option<String> {
    let Some((rest, trailer)) = file.split_last_chunk::<10>() else {
        return Some("no footer".into());
    };
    let footer = read_footer_length(*trailer)
        .ok()
        .and_then(|length| rest.len().checked_sub(length))
        .map(|start| root_as_footer(&rest[start..]));
    let footer = match footer {
        Some(Ok(footer)) => footer,
        Some(Err(error)) => return Some(error.to_string()),
        None => return Some("no footer".into()),
    };
    match footer.schema().map(|schema| try_fb_to_schema(schema)) {
        Some(Ok(found)) if found == **schema => {}
        found => return Some(format!("another schema: {found:?}")),
    }
    let listed: Vec<_> = footer.recordBatches().into_iter().flatten().collect();
    if listed.len() != blocks.len() {
        return Some(format!("{} blocks instead of {}", listed.len(), blocks.len()));
    }
    for (i, (found, (offset, bytes))) in listed.iter().zip(blocks).enumerate() {
        let length = i64::from(found.metaDataLength()).checked_add(found.bodyLength());
        if found.offset() != offset as i64 || length != Some(bytes as i64) {
            return Some(format!("block {i} elsewhere than in the catalog"));
        }
    }
    None
}
