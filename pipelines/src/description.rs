//! What a vision cache says of itself: the manifest's keys beyond the format's own.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::recipe::Precision;
use crate::teacher::VitConfig;
use crate::view::ViewRecipe;
use crate::{Error, Result};

/// The manifest's keys that this crate owns.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Description {
    /// The model that was run.
    pub teacher: TeacherDescription,
    /// What it was run on.
    pub data: DataDescription,
    /// How views are made of samples.
    pub views: ViewRecipe,
    /// Which teacher layer each student layer learns from.
    pub layer_map: LayerMapDescription,
    /// Teacher layers whose q and k are stored, ascending.
    pub captured_layers: Vec<usize>,
    /// What the tokens of q and k are.
    pub tokens: TokenDescription,
    /// Class names by label, when known.
    pub classes: Option<Vec<String>>,
}

/// The model that was run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TeacherDescription {
    /// The name or path it was asked for by.
    pub name: String,
    /// Architecture family: `vit`.
    pub family: String,
    /// BLAKE3 of the weight file.
    pub weights_blake3: String,
    /// Arithmetic of the forward pass.
    pub precision: Precision,
    /// Sizes and normalisation.
    pub config: VitConfig,
}

/// What the teacher was run on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DataDescription {
    /// Training samples.
    pub train: SourceDescription,
    /// Held-out samples.
    pub val: Option<SourceDescription>,
    /// Class-balanced fraction of the training samples taken.
    pub fraction: f64,
    /// Largest number of samples a split.
    pub limit: Option<usize>,
    /// Seed of the subset, the order and the views.
    pub seed: u64,
}

/// One data source.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SourceDescription {
    /// Path, or `embedded`.
    pub source: String,
    /// BLAKE3 over what identifies the data.
    pub fingerprint: String,
    /// Samples taken from it.
    pub samples: usize,
}

/// Which teacher layer each student layer learns from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LayerMapDescription {
    /// Preset of the student the map was made for.
    pub student: String,
    /// Teacher layer of each student layer.
    pub map: Vec<usize>,
}

/// What the tokens of q and k are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TokenDescription {
    /// Tokens in all.
    pub len: usize,
    /// Tokens before the patches, in order.
    pub prefix: Vec<String>,
    /// Rows and columns of patches, in raster order behind the prefix.
    pub grid: [usize; 2],
}

impl Description {
    /// The manifest keys of this description.
    pub fn to_map(&self) -> Map<String, Value> {
        match serde_json::to_value(self) {
            Ok(Value::Object(map)) => map,
            other => unreachable!("a struct of plain values becomes an object, not {other:?}"),
        }
    }

    /// Reads the description back from a manifest's keys.
    ///
    /// # Errors
    /// When a key is missing or of another form: the cache was not written for vision students.
    pub fn from_map(map: &Map<String, Value>) -> Result<Description> {
        serde_json::from_value(Value::Object(map.clone())).map_err(|source| Error::Description { source })
    }
}
