//! Antialiased resizing, and the evaluation transform.

use fast_image_resize::images::{TypedCroppedImage, TypedImage, TypedImageRef};
use fast_image_resize::pixels::{U8, U8x3};
use fast_image_resize::{FilterType, PixelTrait, ResizeAlg, ResizeOptions, Resizer};

use super::Interpolation;
use crate::image::Image;

/// Whole pixels of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Window {
    pub top: usize,
    pub left: usize,
    pub height: usize,
    pub width: usize,
}

/// Part of a window in fractions of pixels.
#[derive(Debug, Clone, Copy)]
struct Region {
    top: f64,
    left: f64,
    height: f64,
    width: f64,
}

/// `[height, width, channels]` of the evaluation transform: shorter side to `floor(size / crop_pct)`, centre crop.
pub(super) fn evaluation(image: &Image, size: [usize; 2], crop_pct: f64, filter: Interpolation) -> Vec<u8> {
    let source = [image.height, image.width];
    let resized = resized_size(source, size.map(|side| (side as f64 / crop_pct).floor()));
    if source == size && resized == size.map(|side| side as f64) {
        return image.pixels.clone(); // nothing to resize, nothing to cut
    }
    // Only the centre of the resized image is computed: the filter's weights depend on the geometry of the whole, which stays the same.
    let (top, height) = centre(source[0], resized[0], size[0]);
    let (left, width) = centre(source[1], resized[1], size[1]);
    resample(image, whole(image), Region { top, left, height, width }, size, filter)
}

/// `[height, width, channels]` of one window resized to `size`; pixels outside the window have no influence.
pub(super) fn window(image: &Image, window: Window, size: [usize; 2], filter: Interpolation) -> Vec<u8> {
    let region = Region { top: 0.0, left: 0.0, height: window.height as f64, width: window.width as f64 };
    resample(image, window, region, size, filter)
}

fn whole(image: &Image) -> Window {
    Window { top: 0, left: 0, height: image.height, width: image.width }
}

/// Size of the whole image after the resize whose centre is kept.
///
/// A square target takes the shorter side to it and cuts the longer one's length down to whole pixels (torchvision's `Resize`); another
/// target is covered at the source's aspect ratio, both sides rounded (timm's `ResizeKeepRatio`).
fn resized_size(source: [usize; 2], target: [f64; 2]) -> [f64; 2] {
    let [height, width] = source.map(|side| side as f64);
    if target[0] == target[1] {
        let short = height.min(width);
        [height, width].map(|side| (target[0] * side / short).floor())
    } else {
        let ratio = (height / target[0]).min(width / target[1]);
        [height, width].map(|side| (side / ratio).round_ties_even())
    }
}

/// Start and length, in source pixels, of the `kept` central of `resized` pixels.
fn centre(source: usize, resized: f64, kept: usize) -> (f64, f64) {
    let step = source as f64 / resized;
    let start = ((resized - kept as f64) / 2.0).round_ties_even() * step;
    // Rounding must not push the end beyond the image.
    (start, (kept as f64 * step).min(source as f64 - start))
}

/// Resamples `region` of `window` to `size`, along rows first and along columns second with 8 bits between, as Pillow does (its newest
/// versions sometimes swap the two, which shows in saturated noise alone).
fn resample(image: &Image, window: Window, region: Region, size: [usize; 2], filter: Interpolation) -> Vec<u8> {
    // Not dispatched by the library, which would compile its filters for every kind of pixel it knows.
    if image.channels == 1 {
        resample_typed::<U8>(image, window, region, size, filter)
    } else {
        resample_typed::<U8x3>(image, window, region, size, filter)
    }
}

fn resample_typed<P: PixelTrait>(
    image: &Image,
    window: Window,
    region: Region,
    size: [usize; 2],
    filter: Interpolation,
) -> Vec<u8> {
    let (kind, radius) = match filter {
        Interpolation::Bilinear => (FilterType::Bilinear, 1.0),
        Interpolation::Bicubic => (FilterType::CatmullRom, 2.0),
        Interpolation::Lanczos => (FilterType::Lanczos3, 3.0),
    };
    let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(kind)).use_alpha(false);

    // Only rows within the filter's reach are resampled along x.
    let reach = radius * (region.height / size[0] as f64).max(1.0) + 1.0;
    let first_row = (region.top - reach).floor().max(0.0) as usize;
    let end_row = ((region.top + region.height + reach).ceil() as usize).min(window.height);
    let rows = end_row - first_row;

    // A sub-slice, so that rows outside the window are out of the filter's reach; columns are cut by the view.
    let row_bytes = image.width * image.channels;
    let top = window.top + first_row;
    let source = &image.pixels[top * row_bytes..(top + rows) * row_bytes];
    let source =
        TypedImageRef::<P>::from_buffer(px(image.width), px(rows), source).expect("the slice has the size of its rows");
    let source = TypedCroppedImage::from_ref(&source, px(window.left), 0, px(window.width), px(rows))
        .expect("the window lies inside the image");

    let mut across = vec![0; rows * size[1] * image.channels];
    let mut out = vec![0; size[0] * size[1] * image.channels];
    let mut resizer = Resizer::new();
    let mut across_view =
        TypedImage::<P>::from_buffer(px(size[1]), px(rows), &mut across).expect("the buffer has this size");
    let mut out_view =
        TypedImage::<P>::from_buffer(px(size[1]), px(size[0]), &mut out).expect("the buffer has this size");
    let along_rows = options.crop(region.left, 0.0, region.width, rows as f64);
    let along_columns = options.crop(0.0, region.top - first_row as f64, size[1] as f64, region.height);
    resizer.resize_typed(&source, &mut across_view, &along_rows).expect("the region lies inside the window");
    resizer.resize_typed(&across_view, &mut out_view, &along_columns).expect("the region lies inside the window");
    out
}

/// Sides come from images of at most 2^28 pixels and from checked recipes.
fn px(side: usize) -> u32 {
    u32::try_from(side).expect("an image side fits 32 bits")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_those_of_torchvision_and_timm() {
        assert_eq!(resized_size([375, 500], [248.0; 2]), [248.0, 330.0]);
        assert_eq!(resized_size([500, 375], [256.0; 2]), [341.0, 256.0]);
        assert_eq!(resized_size([100, 100], [31.0; 2]), [31.0, 31.0]);
        assert_eq!(resized_size([100, 300], [50.0, 100.0]), [50.0, 150.0]);
        assert_eq!(resized_size([100, 150], [50.0, 100.0]), [67.0, 100.0]);
    }

    /// A plain double loop over the definition: the filter stretched by the scale, weights normalised over the pixels inside the window.
    fn oracle(image: &Image, window: Window, size: [usize; 2], filter: Interpolation) -> Vec<f64> {
        let kernel = |x: f64| -> f64 {
            let x = x.abs();
            match filter {
                Interpolation::Bilinear => (1.0 - x).max(0.0),
                Interpolation::Bicubic if x < 1.0 => (1.5 * x - 2.5) * x * x + 1.0,
                Interpolation::Bicubic if x < 2.0 => ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0,
                Interpolation::Bicubic => 0.0,
                Interpolation::Lanczos if x == 0.0 => 1.0,
                Interpolation::Lanczos if x < 3.0 => {
                    let p = std::f64::consts::PI * x;
                    p.sin() / p * (p / 3.0).sin() / (p / 3.0)
                }
                Interpolation::Lanczos => 0.0,
            }
        };
        let weights = |n_in: usize, n_out: usize, at: usize| -> Vec<f64> {
            let scale = n_in as f64 / n_out as f64;
            let centre = (at as f64 + 0.5) * scale;
            let raw: Vec<f64> = (0..n_in).map(|i| kernel((i as f64 + 0.5 - centre) / scale.max(1.0))).collect();
            let sum: f64 = raw.iter().sum();
            raw.iter().map(|w| w / sum).collect()
        };
        let mut out = Vec::new();
        for y in 0..size[0] {
            let wy = weights(window.height, size[0], y);
            for x in 0..size[1] {
                let wx = weights(window.width, size[1], x);
                for c in 0..image.channels {
                    let at = |j: usize, i: usize| {
                        f64::from(image.pixels[((window.top + j) * image.width + window.left + i) * image.channels + c])
                    };
                    let mut sum = 0.0;
                    for (j, vy) in wy.iter().enumerate() {
                        // Each row is cut to a byte's range, as 8 bits between the passes do.
                        let row: f64 = wx.iter().enumerate().map(|(i, vx)| vx * at(j, i)).sum();
                        sum += vy * row.clamp(0.0, 255.0);
                    }
                    out.push(sum.clamp(0.0, 255.0));
                }
            }
        }
        out
    }

    #[test]
    fn resampling_equals_the_definition() {
        let mut stream = crate::random::Stream::new(1, 0, 0, crate::random::Purpose::Order);
        for channels in [1, 3] {
            let pixels = (0..37 * 29 * channels).map(|_| stream.below(256) as u8).collect();
            let image = Image::new(channels, 29, 37, pixels);
            let inner = Window { top: 5, left: 3, height: 17, width: 30 };
            for filter in [Interpolation::Bilinear, Interpolation::Bicubic, Interpolation::Lanczos] {
                for (win, size) in [
                    (whole(&image), [12, 11]),
                    (whole(&image), [60, 75]),
                    (inner, [8, 40]),
                    (inner, [17, 9]),
                    (inner, [17, 30]),
                ] {
                    let got = window(&image, win, size, filter);
                    let want = oracle(&image, win, size, filter);
                    assert_eq!(got.len(), want.len());
                    let worst = got.iter().zip(&want).map(|(g, w)| (f64::from(*g) - w).abs()).fold(0.0, f64::max);
                    // Half a level for each of the two roundings, the first one widened by negative weights.
                    assert!(worst < 1.6, "{filter:?} {channels} {win:?} {size:?}: {worst}");
                }
            }
        }
    }

    #[test]
    fn computing_the_centre_alone_changes_nothing() {
        let pixels: Vec<u8> = (0..90 * 61 * 3u32).map(|i| (i * i % 253) as u8).collect();
        let image = Image::new(3, 61, 90, pixels);
        for crop_pct in [0.5, 0.875, 0.9, 1.0] {
            for size in [[20, 20], [40, 40], [64, 64], [24, 40]] {
                let resized = resized_size([61, 90], size.map(|s| (s as f64 / crop_pct).floor())).map(|s| s as usize);
                let all = window(&image, whole(&image), resized, Interpolation::Bicubic);
                let [top, left] = [0, 1].map(|d| ((resized[d] - size[d]) as f64 / 2.0).round_ties_even() as usize);
                let mut cut = Vec::new();
                for y in top..top + size[0] {
                    cut.extend_from_slice(&all[(y * resized[1] + left) * 3..(y * resized[1] + left + size[1]) * 3]);
                }
                let got = evaluation(&image, size, crop_pct, Interpolation::Bicubic);
                let worst = got.iter().zip(&cut).map(|(a, b)| a.abs_diff(*b)).max();
                assert!(worst <= Some(1), "{crop_pct} {size:?}: {worst:?}");
            }
        }
    }

    #[test]
    fn extreme_shapes_cost_little() {
        let thin = Image::new(1, 1, 200_000, vec![9; 200_000]);
        assert_eq!(evaluation(&thin, [32, 32], 0.9, Interpolation::Bicubic), vec![9; 32 * 32]);
        let tall = Image::new(1, 200_000, 1, vec![9; 200_000]);
        assert_eq!(evaluation(&tall, [32, 32], 0.9, Interpolation::Bicubic), vec![9; 32 * 32]);
        let dot = Image::new(3, 1, 1, vec![1, 2, 3]);
        assert_eq!(evaluation(&dot, [3, 2], 0.9, Interpolation::Bicubic), [1, 2, 3].repeat(6));
    }
}
