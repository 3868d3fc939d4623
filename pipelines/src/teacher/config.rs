//! Reading timm's `config.json` as its hub stores it.

use serde_json::{Map, Value};

use super::{ARCHITECTURES, VitConfig, names};
use crate::nearest::unknown;
use crate::view::Interpolation;
use crate::{Error, Result};

/// Options of timm's `VisionTransformer` that a plain ViT has at these values; any other value changes the forward pass.
const FIXED: [(&str, &[Fixed]); 24] = [
    ("qkv_bias", &[Fixed::Bool(true)]),
    ("qk_norm", &[Fixed::Bool(false)]),
    ("scale_attn_norm", &[Fixed::Bool(false)]),
    ("scale_mlp_norm", &[Fixed::Bool(false)]),
    ("proj_bias", &[Fixed::Bool(true)]),
    ("init_values", &[Fixed::Null]),
    ("class_token", &[Fixed::Bool(true)]),
    ("pos_embed", &[Fixed::Text("learn")]),
    ("no_embed_class", &[Fixed::Bool(false)]),
    ("reg_tokens", &[Fixed::Zero]),
    ("pre_norm", &[Fixed::Bool(false)]),
    ("final_norm", &[Fixed::Bool(true)]),
    ("fc_norm", &[Fixed::Null, Fixed::Bool(false)]),
    ("pool_include_prefix", &[Fixed::Bool(false)]),
    ("dynamic_img_pad", &[Fixed::Bool(false)]),
    ("global_pool", &[Fixed::Text("token")]),
    ("distilled", &[Fixed::Bool(false)]),
    ("embed_layer", &[Fixed::Null]),
    ("embed_norm_layer", &[Fixed::Null]),
    ("norm_layer", &[Fixed::Null]),
    ("act_layer", &[Fixed::Null, Fixed::Text("gelu")]),
    ("block_fn", &[Fixed::Null]),
    ("mlp_layer", &[Fixed::Null]),
    ("attn_layer", &[Fixed::Null]),
];

/// Options that matter in training only, or only for how an input of another size is brought in.
const FREE: [&str; 11] = [
    "drop_rate",
    "pos_drop_rate",
    "patch_drop_rate",
    "proj_drop_rate",
    "attn_drop_rate",
    "drop_path_rate",
    "weight_init",
    "fix_init",
    "dynamic_img_size",
    "strict_img_size",
    "pretrained",
];

/// Options that are sizes, read below.
const SIZES: [&str; 8] =
    ["img_size", "patch_size", "in_chans", "num_classes", "embed_dim", "depth", "num_heads", "mlp_ratio"];

/// A supported value of an option.
enum Fixed {
    Null,
    Zero,
    Bool(bool),
    Text(&'static str),
}

impl Fixed {
    fn equals(&self, value: &Value) -> bool {
        match self {
            Self::Null => value.is_null(),
            Self::Zero => value.as_f64() == Some(0.0),
            Self::Bool(b) => value.as_bool() == Some(*b),
            Self::Text(text) => value.as_str() == Some(text),
        }
    }

    fn text(&self) -> String {
        match self {
            Self::Null => "null".into(),
            Self::Zero => "0".into(),
            Self::Bool(b) => b.to_string(),
            Self::Text(text) => (*text).into(),
        }
    }
}

impl VitConfig {
    /// The numbers in the text of timm's `config.json`; `file` names it in errors.
    ///
    /// `model_args` win over `pretrained_cfg`, which wins over what the architecture's name says, as in timm. Without `model_args` the
    /// architecture must be one of [`ARCHITECTURES`]; with `patch_size`, `embed_dim`, `depth` and `num_heads` stated it may have any name.
    ///
    /// # Errors
    /// [`Error::Json`] when the text is no JSON object, [`Error::UnknownName`] for an architecture whose sizes are not known,
    /// [`Error::TeacherOption`] for an option that is not a plain ViT's, [`Error::Teacher`] for numbers missing or out of range.
    pub fn parse(text: &str, file: &str) -> Result<Self> {
        let hint = "the folder must hold the config.json that timm writes for the hub";
        let json = serde_json::from_str::<Map<String, Value>>(text);
        let root = Section {
            file,
            name: "",
            values: &json.map_err(|source| Error::Json { file: file.into(), source, hint })?,
        };
        let args = root.section("model_args")?;
        // Old files have no inner object: everything stands at the top.
        let pretrained = if root.has("pretrained_cfg") { root.section("pretrained_cfg")? } else { Section { ..root } };
        refuse_options(&root, &args, &pretrained)?;

        let architecture = match root.values.get("architecture").or_else(|| pretrained.values.get("architecture")) {
            Some(Value::String(name)) => name.clone(),
            other => {
                return Err(root.fault("architecture", "a name such as vit_tiny_patch16_224", &format!("{other:?}")));
            }
        };
        let known = names::sizes(&architecture);
        let stated = ["patch_size", "embed_dim", "depth", "num_heads"].iter().all(|key| args.has(key));
        if known.is_none() && !stated {
            return Err(unknown("architecture", &architecture, &ARCHITECTURES));
        }
        let size = |key: &str, of: fn(names::Sizes) -> usize| match (args.count(key)?, known) {
            (Some(value), _) => Ok(value),
            (None, Some(sizes)) => Ok(of(sizes)),
            (None, None) => Err(args.fault(key, "a number", "nothing")),
        };

        let input = pretrained.numbers("input_size")?;
        let input = match input.as_deref() {
            None => None,
            Some(&[channels, height, width]) => Some([channels, height, width].map(|v| v as usize)),
            Some(other) => {
                return Err(pretrained.fault("input_size", "[channels, height, width]", &format!("{other:?}")));
            }
        };
        let img_size = match (args.sides("img_size")?, input, known) {
            (Some(sides), _, _) => sides,
            (None, Some([_, height, width]), _) => [height, width],
            (None, None, Some(sizes)) => [sizes.img_size; 2],
            (None, None, None) => return Err(args.fault("img_size", "the side of the input in pixels", "nothing")),
        };
        let in_chans = args.count("in_chans")?.or(input.map(|[channels, ..]| channels)).unwrap_or(3);
        let num_classes = match args.count("num_classes")?.or(root.count("num_classes")?) {
            Some(value) => value,
            None => pretrained.count("num_classes")?.unwrap_or(1000),
        };
        if num_classes == 0 {
            return Err(root.fault("num_classes", "at least 1: a teacher without a head has no logits to teach", "0"));
        }
        let patch = match args.sides("patch_size")? {
            Some([height, width]) if height != width => {
                return Err(args.fault("patch_size", "square patches", &format!("[{height}, {width}]")));
            }
            Some([side, _]) => side,
            None => size("patch_size", |s| s.patch)?,
        };

        let config = Self {
            img_size,
            patch,
            in_chans,
            num_classes,
            embed_dim: size("embed_dim", |s| s.embed_dim)?,
            depth: size("depth", |s| s.depth)?,
            heads: size("num_heads", |s| s.heads)?,
            mlp_ratio: args.number("mlp_ratio")?.unwrap_or(4.0),
            // timm's defaults where the file is silent: ImageNet's statistics, 0.875, bicubic.
            mean: per_channel(pretrained.numbers("mean")?.unwrap_or(vec![0.485, 0.456, 0.406]), in_chans),
            std: per_channel(pretrained.numbers("std")?.unwrap_or(vec![0.229, 0.224, 0.225]), in_chans),
            crop_pct: pretrained.number("crop_pct")?.unwrap_or(0.875),
            interpolation: interpolation(&pretrained)?,
            architecture,
        };
        config.check_in(file)?;
        Ok(config)
    }
}

/// One number for all channels is repeated; three for a grey input are averaged. Both as timm does; other lengths fail the check.
fn per_channel(values: Vec<f64>, in_chans: usize) -> Vec<f64> {
    match values.len() {
        1 => vec![values[0]; in_chans],
        n if n > 0 && in_chans == 1 => vec![values.iter().sum::<f64>() / n as f64],
        _ => values,
    }
}

fn interpolation(pretrained: &Section) -> Result<Interpolation> {
    match pretrained.values.get("interpolation") {
        None | Some(Value::Null) => Ok(Interpolation::Bicubic),
        Some(value) => serde_json::from_value(value.clone())
            .map_err(|_| pretrained.option("interpolation", value, "bilinear, bicubic and lanczos")),
    }
}

/// An error for the first option that a plain ViT does not have.
fn refuse_options(root: &Section, args: &Section, pretrained: &Section) -> Result<()> {
    for (key, value) in args.values {
        if SIZES.contains(&key.as_str()) || FREE.contains(&key.as_str()) {
            continue;
        }
        match FIXED.iter().find(|(name, _)| name == key) {
            None => return Err(args.option(key, value, "options of timm's VisionTransformer that are known here")),
            Some((_, supported)) => args.require(key, value, supported)?,
        }
    }
    if let Some(value) = root.values.get("global_pool") {
        root.require("global_pool", value, &[Fixed::Text("token"), Fixed::Null])?;
    }
    if let Some(value) = pretrained.values.get("crop_mode") {
        pretrained.require("crop_mode", value, &[Fixed::Text("center"), Fixed::Null])?;
    }
    Ok(())
}

/// One object of the file, and its name for errors.
struct Section<'a> {
    file: &'a str,
    name: &'static str,
    values: &'a Map<String, Value>,
}

impl<'a> Section<'a> {
    /// A nested object; empty when absent or null.
    fn section(&self, name: &'static str) -> Result<Section<'a>> {
        static EMPTY: std::sync::LazyLock<Map<String, Value>> = std::sync::LazyLock::new(Map::new);
        let values = match self.values.get(name) {
            None | Some(Value::Null) => &*EMPTY,
            Some(Value::Object(values)) => values,
            Some(other) => return Err(self.fault(name, "an object", &other.to_string())),
        };
        Ok(Section { file: self.file, name, values })
    }

    fn path(&self, key: &str) -> String {
        if self.name.is_empty() { key.to_owned() } else { format!("{}.{key}", self.name) }
    }

    fn fault(&self, key: &str, expected: &str, found: &str) -> Error {
        Error::Teacher { file: self.file.into(), field: self.path(key), expected: expected.into(), found: found.into() }
    }

    fn option(&self, key: &str, value: &Value, supported: &str) -> Error {
        Error::TeacherOption {
            file: self.file.into(),
            option: self.path(key),
            value: value.to_string(),
            supported: supported.into(),
        }
    }

    fn require(&self, key: &str, value: &Value, supported: &[Fixed]) -> Result<()> {
        if supported.iter().any(|fixed| fixed.equals(value)) {
            return Ok(());
        }
        let names: Vec<String> = supported.iter().map(Fixed::text).collect();
        Err(self.option(key, value, &names.join(" or ")))
    }

    fn has(&self, key: &str) -> bool {
        self.values.get(key).is_some_and(|value| !value.is_null())
    }

    fn number(&self, key: &str) -> Result<Option<f64>> {
        match self.values.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => value.as_f64().map(Some).ok_or_else(|| self.fault(key, "a number", &value.to_string())),
        }
    }

    fn count(&self, key: &str) -> Result<Option<usize>> {
        match self.values.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => {
                let count = value.as_u64().filter(|&v| v <= 1 << 32);
                count.map(|v| Some(v as usize)).ok_or_else(|| self.fault(key, "a whole number", &value.to_string()))
            }
        }
    }

    /// A side, or `[height, width]`.
    fn sides(&self, key: &str) -> Result<Option<[usize; 2]>> {
        let Some(Value::Array(sides)) = self.values.get(key) else {
            return Ok(self.count(key)?.map(|side| [side; 2]));
        };
        let side = |v: &Value| v.as_u64().filter(|&v| v <= 1 << 32).map(|v| v as usize);
        match &sides.iter().map(side).collect::<Option<Vec<_>>>().unwrap_or_default()[..] {
            &[height, width] => Ok(Some([height, width])),
            _ => Err(self.fault(key, "a side or [height, width]", &self.values[key].to_string())),
        }
    }

    /// Numbers, or one number.
    fn numbers(&self, key: &str) -> Result<Option<Vec<f64>>> {
        let Some(Value::Array(values)) = self.values.get(key) else {
            return Ok(self.number(key)?.map(|value| vec![value]));
        };
        let numbers: Option<Vec<f64>> = values.iter().map(Value::as_f64).collect();
        numbers.map(Some).ok_or_else(|| self.fault(key, "numbers", &self.values[key].to_string()))
    }
}
