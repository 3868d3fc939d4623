//! IDX files, the format of MNIST and its relatives: a big-endian header, then bytes; plain or gzipped.

use std::io::Read;
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;

use crate::image::Image;
use crate::{Error, Result};

/// The most that a deflate stream can grow when unpacked; a header that claims more than the file can hold is wrong.
const MAX_DEFLATE_RATIO: u64 = 1032;

/// Grey images of one size.
pub(super) struct Images {
    pub file: String,
    height: usize,
    width: usize,
    pixels: Vec<u8>,
}

impl std::fmt::Debug for Images {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {} x {} x {}", self.file, self.len(), self.height, self.width)
    }
}

impl Images {
    /// Number of images.
    pub fn len(&self) -> usize {
        self.pixels.len() / (self.height * self.width)
    }

    /// Image `i`.
    pub fn image(&self, i: usize) -> Image {
        let bytes = self.height * self.width;
        Image::new(1, self.height, self.width, self.pixels[i * bytes..(i + 1) * bytes].to_vec())
    }
}

/// One label per image.
pub(super) struct Labels {
    pub file: String,
    pub values: Vec<u8>,
}

/// The images in the bytes of an IDX file of rank 3.
pub(super) fn images(file: &str, bytes: &[u8]) -> Result<Images> {
    let (dims, pixels) = parse::<3>(file, bytes, "images, rows, columns")?;
    let [_, height, width] = dims;
    Ok(Images { file: file.to_owned(), height, width, pixels })
}

/// The labels in the bytes of an IDX file of rank 1.
pub(super) fn labels(file: &str, bytes: &[u8]) -> Result<Labels> {
    let (_, values) = parse::<1>(file, bytes, "labels")?;
    Ok(Labels { file: file.to_owned(), values })
}

/// The sizes and the values; every size is at least 1 and their product is the number of values.
fn parse<const RANK: usize>(file: &str, bytes: &[u8], what: &str) -> Result<([usize; RANK], Vec<u8>)> {
    let fault = |place, expected: String, found: String| Error::Idx { file: file.to_owned(), place, expected, found };
    let packed = bytes.starts_with(&[0x1f, 0x8b]);
    let mut reader: Box<dyn Read + '_> = if packed { Box::new(MultiGzDecoder::new(bytes)) } else { Box::new(bytes) };

    let mut magic = [0; 4];
    let unreadable = |place| move |err: std::io::Error| fault(place, "more bytes".into(), err.to_string());
    reader.read_exact(&mut magic).map_err(unreadable("first 4 bytes"))?;
    if magic != [0, 0, 8, RANK as u8] {
        return Err(fault(
            "first 4 bytes",
            format!("00 00 08 {RANK:02x} (unsigned bytes of {RANK} dimensions: {what})"),
            hex(magic),
        ));
    }
    let mut dims = [0usize; RANK];
    for dim in &mut dims {
        let mut size = [0; 4];
        reader.read_exact(&mut size).map_err(unreadable("sizes"))?;
        *dim = u32::from_be_bytes(size) as usize;
    }
    let held = if packed { bytes.len() as u64 * MAX_DEFLATE_RATIO } else { bytes.len() as u64 };
    let total = dims.iter().try_fold(1u64, |product, &dim| product.checked_mul(dim as u64));
    let total = match total {
        Some(total) if total > 0 && total <= held => total as usize,
        _ => {
            return Err(fault(
                "sizes",
                format!("between 1 and {held} values, what the file's length can hold"),
                format!("{dims:?}"),
            ));
        }
    };

    let mut values = Vec::with_capacity(total);
    // One byte more than belongs there tells a file that is too long.
    reader.take(total as u64 + 1).read_to_end(&mut values).map_err(unreadable("values"))?;
    match values.len() {
        n if n == total => Ok((dims, values)),
        n if n > total => Err(fault("values", format!("{total} bytes for {dims:?}"), "more".into())),
        n => Err(fault("values", format!("{total} bytes for {dims:?}"), format!("{n}"))),
    }
}

fn hex(bytes: [u8; 4]) -> String {
    bytes.map(|b| format!("{b:02x}")).join(" ")
}

/// BLAKE3 over sizes, pixels and labels.
pub(super) fn fingerprint(images: &Images, labels: Option<&Labels>) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"idx 1\n");
    for size in [images.len(), images.height, images.width] {
        hasher.update(&(size as u64).to_le_bytes());
    }
    hasher.update(&images.pixels);
    if let Some(labels) = labels {
        hasher.update(&labels.values);
    }
    hasher.finalize().to_hex().to_string()
}

/// The file `stem` in `folder`, gzipped or plain.
pub(super) fn beside(folder: &Path, stem: &str) -> Option<PathBuf> {
    ["", ".gz"].iter().map(|end| folder.join(format!("{stem}{end}"))).find(|path| path.is_file())
}

/// The labels that belong to a file of images: `…labels-idx1…` beside `…images-idx3…`.
pub(super) fn labels_of(images: &Path) -> Option<PathBuf> {
    sibling(images, "images-idx3", "labels-idx1").or_else(|| sibling(images, "images.idx3", "labels.idx1"))
}

/// The test images that belong to a file of training images.
pub(super) fn companion(images: &Path, [train, test]: [&str; 2]) -> Option<PathBuf> {
    let name = images.file_name()?.to_str()?;
    // Only the beginning counts: a name may well have the word elsewhere.
    name.starts_with(train).then(|| sibling(images, train, test))?
}

/// The existing file named like `path` with the first `from` replaced by `to`, gzipped or plain.
fn sibling(path: &Path, from: &str, to: &str) -> Option<PathBuf> {
    let name = path.file_name()?.to_str()?;
    let stem = name.strip_suffix(".gz").unwrap_or(name);
    stem.contains(from).then(|| beside(path.parent()?, &stem.replacen(from, to, 1)))?
}
