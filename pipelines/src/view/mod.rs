//! One image to the pixels of one view: a pure function of (image, seed, sample, view).
//!
//! View 0 is the evaluation transform; the others are drawn from the recipe's augmentation. A view depends neither on how many views there
//! are, nor on other samples, nor on the order of work. The pixels that come out are what the teacher sees and what the cache stores; the
//! normalisation `(x / 255 - mean) / std` belongs to the teacher ([`crate::teacher::VitConfig`]) and happens after loading, in both stages.

mod affine;
mod crop;
mod resize;

use serde::{Deserialize, Serialize};

use crate::image::Image;
use crate::random::{Purpose, Stream};
use crate::teacher::VitConfig;
use crate::{Error, Result};

use resize::Window;

/// How the views of a sample are made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ViewRecipe {
    /// Channels of the stored pixels: 1 (grey) or 3.
    pub channels: usize,
    /// Rows of the stored pixels.
    pub height: usize,
    /// Columns of the stored pixels.
    pub width: usize,
    /// Part of the resized image's side that the evaluation transform's centre crop keeps, in `(0, 1]`.
    pub crop_pct: f64,
    /// Filter of every resize.
    pub interpolation: Interpolation,
    /// What is drawn for views 1 and above.
    pub augment: Augment,
    /// Number of views of each training sample, view 0 included.
    pub views: u32,
    /// Seed of everything drawn.
    pub seed: u64,
}

/// Filter of a resize, widened when shrinking (antialiased) as in Pillow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Interpolation {
    /// Triangle of radius 1.
    Bilinear,
    /// Cubic of radius 2 with a = -0.5 (Catmull–Rom).
    Bicubic,
    /// Windowed sinc of radius 3.
    Lanczos,
}

/// What views 1 and above are drawn from.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Augment {
    /// Nothing is drawn: only view 0 exists.
    None,
    /// Random resized crop, then a horizontal flip, with torchvision's and timm's distribution.
    Crop {
        /// Range of the crop's part of the area.
        scale: [f64; 2],
        /// Range of the crop's width over its height, drawn uniformly in its logarithm.
        ratio: [f64; 2],
        /// Probability of the flip.
        flip: f64,
    },
    /// Scale, rotation and shift about the centre of the evaluation transform, bilinear, black outside; for small grey images.
    Affine {
        /// Range of the scale; above 1 enlarges.
        scale: [f64; 2],
        /// The angle is drawn between minus and plus this many degrees.
        degrees: f64,
        /// The shift is drawn between minus and plus this part of the side, in each direction.
        shift: f64,
    },
}

impl Augment {
    /// Random resized crop with its usual numbers: scale 0.08 to 1, ratio 3/4 to 4/3, flip one half.
    pub const CROP: Self = Self::Crop { scale: [0.08, 1.0], ratio: [3.0 / 4.0, 4.0 / 3.0], flip: 0.5 };

    /// Light affine map: scale 0.85 to 1.15, 6 degrees, shift 0.06.
    pub const AFFINE: Self = Self::Affine { scale: [0.85, 1.15], degrees: 6.0, shift: 0.06 };

    /// The augmentation that suits images of this size when none is asked for: [`Augment::AFFINE`] for grey ones of at most 64 pixels a
    /// side (digits and garments do not survive a crop to 8 %), [`Augment::CROP`] for all others.
    pub fn suited(channels: usize, height: usize, width: usize) -> Self {
        if channels == 1 && height.max(width) <= 64 { Self::AFFINE } else { Self::CROP }
    }
}

impl ViewRecipe {
    /// The recipe whose view 0 is the evaluation transform of `teacher`.
    pub fn for_teacher(teacher: &VitConfig, augment: Augment, views: u32, seed: u64) -> Self {
        let [height, width] = teacher.img_size;
        let (channels, crop_pct, interpolation) = (teacher.in_chans, teacher.crop_pct, teacher.interpolation);
        Self { channels, height, width, crop_pct, interpolation, augment, views, seed }
    }

    /// `Ok` when every number is in its range.
    ///
    /// # Errors
    /// [`Error::View`] naming the first field that is not.
    pub fn check(&self) -> Result<()> {
        let require = |holds: bool, field: &'static str, expected: &str, found: String| {
            if holds { Ok(()) } else { Err(Error::View { field, expected: expected.into(), found }) }
        };
        let range = |[low, high]: [f64; 2], max: f64| 0.0 < low && low <= high && high <= max;
        require(matches!(self.channels, 1 | 3), "channels", "1 or 3", self.channels.to_string())?;
        for (field, side) in [("height", self.height), ("width", self.width)] {
            require((1..=MAX_SIDE).contains(&side), field, "1 to 16384", side.to_string())?;
        }
        let crop_pct = self.crop_pct;
        require((0.01..=1.0).contains(&crop_pct), "crop_pct", "0.01 to 1", crop_pct.to_string())?;
        require(self.views >= 1, "views", "at least 1", "0".into())?;
        match self.augment {
            Augment::None => require(
                self.views == 1,
                "views",
                "1 without augmentation, more would be the same pixels again",
                self.views.to_string(),
            ),
            Augment::Crop { scale, ratio, flip } => {
                require(range(scale, 1.0), "augment.crop.scale", "0 < low <= high <= 1", format!("{scale:?}"))?;
                require(range(ratio, 100.0), "augment.crop.ratio", "0 < low <= high <= 100", format!("{ratio:?}"))?;
                require((0.0..=1.0).contains(&flip), "augment.crop.flip", "0 to 1", flip.to_string())
            }
            Augment::Affine { scale, degrees, shift } => {
                require(range(scale, 100.0), "augment.affine.scale", "0 < low <= high <= 100", format!("{scale:?}"))?;
                require((0.0..=180.0).contains(&degrees), "augment.affine.degrees", "0 to 180", degrees.to_string())?;
                require((0.0..=1.0).contains(&shift), "augment.affine.shift", "0 to 1", shift.to_string())
            }
        }
    }

    /// Bytes of one view's pixels.
    pub fn view_bytes(&self) -> usize {
        self.channels * self.height * self.width
    }

    /// The pixels `[channels, height, width]` of one view.
    ///
    /// `sample_key` is [`crate::random::sample_key`] of the sample's id. View 0 is the evaluation transform: the shorter side is resized to
    /// `floor(size / crop_pct)` and the centre kept, as timm does; with `crop_pct` 1 an image of the recipe's size is not touched. Grey becomes colour by
    /// replication, colour becomes grey as in Pillow's mode `L`, before anything else.
    ///
    /// # Panics
    /// When the recipe does not pass [`check`](Self::check) or the image breaks the promises of [`Image`].
    pub fn make(&self, image: &Image, sample_key: u64, view: u32) -> Vec<u8> {
        // Colour to grey first, as Pillow converts before torchvision resizes; grey to colour last, because the channels stay equal.
        let grey = (self.channels < image.channels).then(|| image.to_channels(self.channels));
        let image = grey.as_ref().unwrap_or(image);
        let size = [self.height, self.width];
        let stream = |purpose| Stream::new(self.seed, sample_key, view, purpose);

        let mut pixels = match self.augment {
            _ if view == 0 => resize::evaluation(image, size, self.crop_pct, self.interpolation),
            Augment::None => resize::evaluation(image, size, self.crop_pct, self.interpolation),
            Augment::Crop { scale, ratio, .. } => {
                let window = crop::draw([image.height, image.width], scale, ratio, &mut stream(Purpose::Crop));
                resize::window(image, window, size, self.interpolation)
            }
            Augment::Affine { scale, degrees, shift } => {
                let plain = resize::evaluation(image, size, self.crop_pct, self.interpolation);
                let map = affine::draw(size, scale, degrees, shift, &mut stream(Purpose::Affine));
                affine::apply(&plain, image.channels, size, &map)
            }
        };
        if let Augment::Crop { flip, .. } = self.augment
            && view > 0
            && stream(Purpose::Flip).uniform() < flip
        {
            mirror(&mut pixels, image.channels, self.width);
        }
        planes(&pixels, image.channels, self.channels)
    }
}

/// The largest side of a view; above it position embeddings and memory would both be absurd.
const MAX_SIDE: usize = 16_384;

/// Mirrors every row of `[height, width, channels]`.
fn mirror(pixels: &mut [u8], channels: usize, width: usize) {
    for row in pixels.chunks_exact_mut(width * channels) {
        for x in 0..width / 2 {
            for c in 0..channels {
                row.swap(x * channels + c, (width - 1 - x) * channels + c);
            }
        }
    }
}

/// `[height, width, from]` to `[to, height, width]`; one channel is replicated.
fn planes(pixels: &[u8], from: usize, to: usize) -> Vec<u8> {
    (0..to).flat_map(|c| pixels.iter().skip(if from == 1 { 0 } else { c }).step_by(from).copied()).collect()
}

#[cfg(test)]
mod tests;
