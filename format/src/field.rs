//! Fields of a record and the Arrow schema they imply; says nothing of what a field means.

use std::collections::BTreeSet;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Name of the column that holds the record id.
pub const RECORD: &str = "record";
/// Name of the column that holds the label.
pub const LABEL: &str = "label";

/// Element type of a field as it is stored, little-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// Unsigned bytes: pixels.
    U8,
    /// Unsigned 32-bit integers: tokens.
    U32,
    /// IEEE half precision.
    F16,
    /// IEEE single precision.
    F32,
}

impl Dtype {
    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            Dtype::U8 => 1,
            Dtype::F16 => 2,
            Dtype::U32 | Dtype::F32 => 4,
        }
    }

    fn arrow(self) -> DataType {
        match self {
            Dtype::U8 => DataType::UInt8,
            Dtype::U32 => DataType::UInt32,
            Dtype::F16 => DataType::Float16,
            Dtype::F32 => DataType::Float32,
        }
    }
}

/// How the elements of a field become stored bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Codec {
    /// As they are: the stored bytes are the elements, little-endian, row-major.
    Exact,
}

/// What a record is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// Records a student learns from.
    Train,
    /// Records a student is judged on.
    Val,
}

impl Split {
    /// `train` or `val`, as the manifest and the catalog spell it.
    pub fn name(self) -> &'static str {
        match self {
            Split::Train => "train",
            Split::Val => "val",
        }
    }
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One array that every record of its splits has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FieldSpec {
    /// Column name in the shards: `input`, `logits`, `q.00`, …
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Size of every dimension, outermost first.
    pub shape: Vec<usize>,
    /// How elements become stored bytes.
    pub codec: Codec,
    /// The splits whose records have the field.
    pub splits: Vec<Split>,
}

impl FieldSpec {
    /// Elements of one record's array.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Stored bytes of one record's array, before compression.
    pub fn record_bytes(&self) -> usize {
        self.elements() * self.dtype.bytes()
    }

    /// Refuses names and shapes that a shard cannot hold.
    fn check(&self) -> Result<()> {
        let bad = |expected, found: String| Err(Error::BadField { field: self.name.clone(), expected, found });
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if self.name.is_empty() || self.name.len() > 64 || !self.name.chars().all(plain) {
            return bad("a name of 1 to 64 letters, digits, `.`, `_`, `-`", format!("{:?}", self.name));
        }
        if self.name == RECORD || self.name == LABEL {
            return bad("another name: every shard has this column already", self.name.clone());
        }
        if self.shape.is_empty() || self.shape.contains(&0) {
            return bad("at least one dimension, none of them 0", format!("{:?}", self.shape));
        }
        // Arrow counts the elements of a list in 31 bits.
        let elements =
            self.shape.iter().try_fold(1usize, |n, &dim| n.checked_mul(dim)).filter(|&n| n <= i32::MAX as usize / 8);
        if elements.is_none() {
            return bad("fewer than 2^28 elements", format!("{:?}", self.shape));
        }
        if self.splits.is_empty() {
            return bad("at least one split", "none".into());
        }
        Ok(())
    }
}

/// The fields that records of `split` have, in order.
pub fn split_fields(fields: &[FieldSpec], split: Split) -> Vec<FieldSpec> {
    fields.iter().filter(|f| f.splits.contains(&split)).cloned().collect()
}

/// Refuses fields that cannot be stored together.
pub(crate) fn check_fields(fields: &[FieldSpec]) -> Result<()> {
    let mut names = BTreeSet::new();
    for field in fields {
        field.check()?;
        if !names.insert(&field.name) {
            return Err(Error::BadField {
                field: field.name.clone(),
                expected: "every name once",
                found: "the name twice".into(),
            });
        }
    }
    Ok(())
}

/// Names of the fields, for messages.
pub(crate) fn names(fields: &[FieldSpec]) -> String {
    let names: Vec<_> = fields.iter().map(|f| f.name.as_str()).collect();
    names.join(", ")
}

/// The Arrow schema of a shard whose records have these fields.
pub(crate) fn schema(fields: &[FieldSpec]) -> SchemaRef {
    let mut columns = vec![Field::new(RECORD, DataType::UInt64, false), Field::new(LABEL, DataType::Int64, true)];
    columns.extend(fields.iter().map(|spec| {
        let item = Arc::new(Field::new("item", spec.dtype.arrow(), true));
        let list = DataType::FixedSizeList(item, spec.elements() as i32);
        let shape: Vec<_> = spec.shape.iter().map(usize::to_string).collect();
        Field::new(&spec.name, list, false).with_metadata(HashMap::from([
            ("ARROW:extension:name".to_owned(), "arrow.fixed_shape_tensor".to_owned()),
            ("ARROW:extension:metadata".to_owned(), format!("{{\"shape\":[{}]}}", shape.join(","))),
        ]))
    }));
    Arc::new(Schema::new(columns))
}
