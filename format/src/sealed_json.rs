//! JSON whose last key is the digest of everything before it, so that every altered byte shows.

use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Error, Result};

const HEX: usize = 64;

/// Spacing of the JSON text.
#[derive(Clone, Copy)]
pub(crate) enum Style {
    /// For people: the manifest.
    Pretty,
    /// For ourselves: files under `.partial`.
    Compact,
}

impl Style {
    /// The text right before and right after the digest.
    fn around(self) -> (&'static [u8], &'static [u8]) {
        match self {
            Style::Pretty => (b",\n  \"digest\": \"", b"\"\n}\n"),
            Style::Compact => (b",\"digest\":\"", b"\"}\n"),
        }
    }
}

/// The text of `value`, whose last key must be an empty `digest`, with the digest filled in; and the digest.
pub(crate) fn seal(value: &impl Serialize, style: Style) -> (Vec<u8>, String) {
    let text = match style {
        Style::Pretty => serde_json::to_vec_pretty(value),
        Style::Compact => serde_json::to_vec(value),
    };
    let mut text = text.expect("our own values have string keys");
    text.push(b'\n');
    let (before, after) = style.around();
    assert!(text.ends_with(after), "a sealed value is an object");
    text.truncate(text.len() - after.len());
    assert!(text.ends_with(before), "an empty digest is the last key");
    let digest = blake3::hash(&text).to_hex().to_string();
    text.extend_from_slice(digest.as_bytes());
    text.extend_from_slice(after);
    (text, digest)
}

/// The value in `bytes`, which lie at `path`, once their digest agrees.
pub(crate) fn open<T: DeserializeOwned>(path: &Path, bytes: &[u8], style: Style) -> Result<T> {
    let (before, after) = style.around();
    let cut = |found: String| Error::Truncated {
        path: path.to_path_buf(),
        expected: "a digest as the last line".into(),
        found,
    };
    let rest = bytes.strip_suffix(after).ok_or_else(|| cut(format!("another end after {} bytes", bytes.len())))?;
    let at = rest.len().checked_sub(HEX);
    let (sealed, stated) = at
        .map(|at| rest.split_at(at))
        .filter(|(sealed, _)| sealed.ends_with(before))
        .ok_or_else(|| cut("another last line".into()))?;
    let digest = blake3::hash(sealed).to_hex();
    if digest.as_bytes() != stated {
        return Err(Error::Altered {
            path: path.to_path_buf(),
            place: "digest".into(),
            expected: String::from_utf8_lossy(stated).into_owned(),
            found: digest.to_string(),
        });
    }
    serde_json::from_slice(bytes).map_err(|source| Error::Json { path: path.to_path_buf(), source })
}
