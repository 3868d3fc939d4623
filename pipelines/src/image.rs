//! Decoding an image file into 8-bit pixels, as Pillow's `open` and `convert("RGB")` do.
//!
//! A file that is cut short is an error. EXIF orientation is ignored, alpha is dropped, 16-bit samples keep their high byte, the first frame of an animation is taken. The format
//! is told by the content, not by the file's name. Grey images stay grey: [`crate::view`] brings them to the teacher's channels.

use std::io::Cursor;

use ::image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits};

use crate::{Error, Result};

/// The largest `width * height` that is decoded: 2^28 pixels, 0.8 GB as RGB. A file that claims more is refused before anything is allocated.
pub const MAX_PIXELS: u64 = 1 << 28;

/// 8-bit pixels, row by row, the channels of a pixel together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// 1 (grey) or 3 (red, green, blue).
    pub channels: usize,
    /// Rows, at least 1.
    pub height: usize,
    /// Pixels per row, at least 1.
    pub width: usize,
    /// `[height, width, channels]`.
    pub pixels: Vec<u8>,
}

impl Image {
    /// An image of the given pixels.
    ///
    /// # Panics
    /// When the number of pixels does not fit the sizes, a size is 0, or there are neither 1 nor 3 channels.
    pub fn new(channels: usize, height: usize, width: usize, pixels: Vec<u8>) -> Self {
        assert!(matches!(channels, 1 | 3), "1 or 3 channels, not {channels}");
        assert!(height > 0 && width > 0, "an image of {height} x {width} pixels");
        assert_eq!(pixels.len(), channels * height * width, "pixels of [{height}, {width}, {channels}]");
        Self { channels, height, width, pixels }
    }

    /// The same image with `channels` channels: grey is replicated, colour becomes ITU-R 601 luma as in Pillow's mode `L`.
    ///
    /// # Panics
    /// When `channels` is neither 1 nor 3.
    pub fn to_channels(&self, channels: usize) -> Self {
        let pixels = match (self.channels, channels) {
            (from, to) if from == to => self.pixels.clone(),
            (1, 3) => self.pixels.iter().flat_map(|&grey| [grey; 3]).collect(),
            (3, 1) => self.pixels.chunks_exact(3).map(|rgb| luma([rgb[0], rgb[1], rgb[2]])).collect(),
            (from, to) => panic!("no conversion from {from} to {to} channels"),
        };
        Self { channels, pixels, ..*self }
    }
}

/// `0.299 r + 0.587 g + 0.114 b` in 16-bit fixed point, rounded.
fn luma([r, g, b]: [u8; 3]) -> u8 {
    ((u32::from(r) * 19_595 + u32::from(g) * 38_470 + u32::from(b) * 7_471 + 0x8000) >> 16) as u8
}

/// The image in the bytes of a JPEG, PNG or WebP file.
///
/// # Errors
/// [`Error::Image`] when the bytes are no such file or a damaged one, [`Error::ImageTooLarge`] above [`MAX_PIXELS`]. Both call the file
/// `image in memory`; [`crate::source::Source::read`] names it.
pub fn decode(bytes: &[u8]) -> Result<Image> {
    let file = || "image in memory".to_owned();
    let fault = |err: ::image::ImageError| Error::Image { file: file(), reason: err.to_string() };
    let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().expect("memory is always readable");
    if reader.format() == Some(ImageFormat::Jpeg) && !jpeg_has_end(bytes) {
        // The decoder would fill what is missing with grey and call it an image.
        return Err(Error::Image { file: file(), reason: "the JPEG file is cut short".into() });
    }
    let mut decoder = reader.into_decoder().map_err(fault)?;

    let (width, height) = decoder.dimensions();
    if u64::from(width) * u64::from(height) > MAX_PIXELS {
        return Err(Error::ImageTooLarge { file: file(), width, height, max_pixels: MAX_PIXELS });
    }
    if width == 0 || height == 0 {
        return Err(Error::Image { file: file(), reason: format!("{width} x {height} pixels") });
    }
    let mut limits = Limits::no_limits();
    // Room for the pixels at 16 bits and four channels, and as much again for the decoder's own state.
    limits.max_alloc = Some(MAX_PIXELS * 16);
    decoder.set_limits(limits).map_err(fault)?;

    let (channels, pixels) = match DynamicImage::from_decoder(decoder).map_err(fault)? {
        DynamicImage::ImageLuma8(grey) => (1, grey.into_raw()),
        DynamicImage::ImageRgb8(rgb) => (3, rgb.into_raw()),
        DynamicImage::ImageLumaA8(pixels) => (1, first_of::<2, 1>(pixels.as_raw())),
        DynamicImage::ImageRgba8(pixels) => (3, first_of::<4, 3>(pixels.as_raw())),
        DynamicImage::ImageLuma16(pixels) => (1, high_bytes::<1, 1>(pixels.as_raw())),
        DynamicImage::ImageLumaA16(pixels) => (1, high_bytes::<2, 1>(pixels.as_raw())),
        DynamicImage::ImageRgb16(pixels) => (3, high_bytes::<3, 3>(pixels.as_raw())),
        DynamicImage::ImageRgba16(pixels) => (3, high_bytes::<4, 3>(pixels.as_raw())),
        other => return Err(Error::Image { file: file(), reason: format!("pixels of kind {:?}", other.color()) }),
    };
    Ok(Image::new(channels, height as usize, width as usize, pixels))
}

/// Whether a JPEG file has its end marker after the beginning of its first scan.
///
/// Inside a scan `ff` is always followed by `00` or a restart marker, so that `ff d9` there can only be the end. Before the scan it may also
/// stand in an embedded thumbnail, hence the walk over the header's segments.
fn jpeg_has_end(bytes: &[u8]) -> bool {
    let mut at = 2;
    while let Some(&[0xff, marker, high, low]) = bytes.get(at..at + 4) {
        match marker {
            // Fill bytes.
            0xff => at += 1,
            // Start of scan.
            0xda => return bytes[at..].windows(2).any(|pair| pair == [0xff, 0xd9]),
            // Markers without a length.
            0x01 | 0xd0..=0xd8 => at += 2,
            _ => at += 2 + usize::from(u16::from_be_bytes([high, low])),
        }
    }
    false
}

/// The first `TO` of every `FROM` values.
fn first_of<const FROM: usize, const TO: usize>(values: &[u8]) -> Vec<u8> {
    values.chunks_exact(FROM).flat_map(|pixel| pixel[..TO].iter().copied()).collect()
}

/// The high bytes of the first `TO` of every `FROM` values.
fn high_bytes<const FROM: usize, const TO: usize>(values: &[u16]) -> Vec<u8> {
    values.chunks_exact(FROM).flat_map(|pixel| pixel[..TO].iter().map(|v| (v >> 8) as u8)).collect()
}

#[cfg(test)]
mod tests {
    use ::image::{ExtendedColorType, ImageEncoder, codecs};

    use super::*;

    fn png(width: u32, height: u32, kind: ExtendedColorType, bytes: &[u8]) -> Vec<u8> {
        let mut file = Vec::new();
        codecs::png::PngEncoder::new(&mut file).write_image(bytes, width, height, kind).unwrap();
        file
    }

    #[test]
    fn png_kinds_come_out_as_pillow_converts_them() {
        let decoded = |kind, bytes: &[u8]| decode(&png(2, 1, kind, bytes)).unwrap();
        assert_eq!(decoded(ExtendedColorType::L8, &[7, 9]), Image::new(1, 1, 2, vec![7, 9]));
        assert_eq!(decoded(ExtendedColorType::La8, &[7, 0, 9, 255]), Image::new(1, 1, 2, vec![7, 9]));
        assert_eq!(decoded(ExtendedColorType::Rgb8, &[1, 2, 3, 4, 5, 6]).pixels, [1, 2, 3, 4, 5, 6]);
        assert_eq!(decoded(ExtendedColorType::Rgba8, &[1, 2, 3, 0, 4, 5, 6, 255]).pixels, [1, 2, 3, 4, 5, 6]);
        let deep: Vec<u8> = [0x12ffu16, 0xff00].iter().flat_map(|v| v.to_ne_bytes()).collect();
        assert_eq!(decoded(ExtendedColorType::L16, &deep), Image::new(1, 1, 2, vec![0x12, 0xff]));
        let deep: Vec<u8> =
            [0x0100u16, 0x02ff, 0x0380, 9, 0xffff, 0, 0x7f80, 9].iter().flat_map(|v| v.to_ne_bytes()).collect();
        assert_eq!(decoded(ExtendedColorType::Rgba16, &deep).pixels, [1, 2, 3, 255, 0, 127]);
    }

    #[test]
    fn webp_and_jpeg_are_read_whatever_their_name() {
        let pixels: Vec<u8> = (0..16 * 16 * 3).map(|i| (i % 200) as u8).collect();
        let mut webp = Vec::new();
        codecs::webp::WebPEncoder::new_lossless(&mut webp)
            .write_image(&pixels, 16, 16, ExtendedColorType::Rgb8)
            .unwrap();
        assert_eq!(decode(&webp).unwrap(), Image::new(3, 16, 16, pixels));

        let flat = vec![100u8; 16 * 8];
        let mut jpeg = Vec::new();
        codecs::jpeg::JpegEncoder::new(&mut jpeg).write_image(&flat, 16, 8, ExtendedColorType::L8).unwrap();
        let image = decode(&jpeg).unwrap();
        assert_eq!((image.channels, image.height, image.width), (1, 8, 16));
        assert!(image.pixels.iter().all(|p| p.abs_diff(100) <= 1));
    }

    /// No cut and no flipped byte may panic, and no cut may pass for the whole image.
    #[test]
    fn damaged_files_are_errors() {
        let pixels: Vec<u8> = (0..24 * 20 * 3u32).map(|i| (i * i % 251) as u8).collect();
        let whole = png(24, 20, ExtendedColorType::Rgb8, &pixels);
        let mut webp = Vec::new();
        codecs::webp::WebPEncoder::new_lossless(&mut webp)
            .write_image(&pixels, 24, 20, ExtendedColorType::Rgb8)
            .unwrap();
        let mut jpeg = Vec::new();
        codecs::jpeg::JpegEncoder::new(&mut jpeg).write_image(&pixels, 24, 20, ExtendedColorType::Rgb8).unwrap();
        for (name, file) in [("png", &whole), ("webp", &webp), ("jpeg", &jpeg)] {
            for end in 0..file.len() {
                if let Ok(image) = decode(&file[..end]) {
                    // What is missing is then no pixel (a trailing chunk).
                    assert!(name != "jpeg" && image.pixels == pixels, "{name} cut at {end}");
                }
                let mut flipped = file.clone();
                flipped[end] ^= 0x41;
                drop(decode(&flipped));
            }
        }
        for bad in [&b""[..], b"hello", b"GIF89a", b"\xff\xd8\xff\xe0"] {
            let text = decode(bad).unwrap_err().to_string();
            assert!(text.contains("image in memory") && text.contains("JPEG, PNG and WebP"), "{text}");
        }
    }

    #[test]
    fn a_claim_of_too_many_pixels_is_refused_first() {
        let mut file = png(1, 1, ExtendedColorType::L8, &[0]);
        // The header's width and height, and its checksum.
        file[16..24].copy_from_slice(&[0, 1, 0, 0, 0, 0, 0x10, 1]);
        let mut crc = flate2::Crc::new();
        crc.update(&file[12..29]);
        file[29..33].copy_from_slice(&crc.sum().to_be_bytes());
        let err = decode(&file).unwrap_err().in_file("big.png");
        assert!(matches!(err, Error::ImageTooLarge { width: 65536, height: 4097, .. }), "{err}");
        assert!(err.to_string().starts_with("big.png: 65536 x 4097"));
    }

    #[test]
    fn channels_convert_both_ways() {
        let colour = Image::new(3, 1, 3, vec![255, 0, 0, 0, 255, 0, 255, 255, 255]);
        assert_eq!(colour.to_channels(1).pixels, [76, 150, 255]);
        assert_eq!(Image::new(1, 1, 2, vec![3, 4]).to_channels(3).pixels, [3, 3, 3, 4, 4, 4]);
        assert_eq!(colour.to_channels(3), colour);
    }
}
