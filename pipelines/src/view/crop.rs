//! The box of a random resized crop.

use super::Window;
use crate::random::Stream;

/// A window of a `size` image with torchvision's and timm's distribution: ten tries to place a box of a uniformly drawn part of the area and
/// a log-uniformly drawn ratio, else the largest central box within the range of ratios.
pub(super) fn draw(size: [usize; 2], scale: [f64; 2], ratio: [f64; 2], stream: &mut Stream) -> Window {
    let [height, width] = size;
    let area = height as f64 * width as f64;
    for _ in 0..10 {
        let target = area * stream.between(scale[0], scale[1]);
        let aspect = stream.between(ratio[0].ln(), ratio[1].ln()).exp();
        let w = (target * aspect).sqrt().round_ties_even() as usize;
        let h = (target / aspect).sqrt().round_ties_even() as usize;
        if (1..=width).contains(&w) && (1..=height).contains(&h) {
            let top = stream.below((height - h) as u64 + 1) as usize;
            let left = stream.below((width - w) as u64 + 1) as usize;
            return Window { top, left, height: h, width: w };
        }
    }
    central(size, ratio)
}

/// The largest central window whose width over height lies in `ratio`.
fn central([height, width]: [usize; 2], ratio: [f64; 2]) -> Window {
    let aspect = width as f64 / height as f64;
    let (h, w) = if aspect < ratio[0] {
        ((width as f64 / ratio[0]).round_ties_even() as usize, width)
    } else if aspect > ratio[1] {
        (height, (height as f64 * ratio[1]).round_ties_even() as usize)
    } else {
        (height, width)
    };
    // A ratio far from 1 on an image one pixel wide may round to nothing or to more than there is.
    let (h, w) = (h.clamp(1, height), w.clamp(1, width));
    Window { top: (height - h) / 2, left: (width - w) / 2, height: h, width: w }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Purpose;

    fn windows(size: [usize; 2], scale: [f64; 2], n: u64) -> Vec<Window> {
        let ratio = [3.0 / 4.0, 4.0 / 3.0];
        (0..n).map(|sample| draw(size, scale, ratio, &mut Stream::new(0, sample, 1, Purpose::Crop))).collect()
    }

    /// With scales at which every try fits, area and log ratio are uniform, and the place is uniform in what is left.
    #[test]
    fn area_ratio_and_place_have_their_distributions() {
        let n = 40_000;
        let windows = windows([1000, 1000], [0.08, 0.5], n);
        let root = (n as f64).sqrt();
        let near = |values: &dyn Fn(&Window) -> f64, low: f64, high: f64, what: &str| {
            // Map to the unit interval and compare mean, second moment and tail with the uniform law's.
            let unit: Vec<f64> = windows.iter().map(|w| (values(w) - low) / (high - low)).collect();
            let mean = unit.iter().sum::<f64>() / n as f64;
            let square = unit.iter().map(|u| u * u).sum::<f64>() / n as f64;
            let tail = unit.iter().filter(|&&u| u < 0.1).count() as f64 / n as f64;
            assert!((mean - 0.5).abs() < 6.0 * 0.289 / root + 0.002, "{what}: mean {mean}");
            assert!((square - 1.0 / 3.0).abs() < 6.0 * 0.298 / root + 0.002, "{what}: second moment {square}");
            assert!((tail - 0.1).abs() < 6.0 * 0.3 / root + 0.003, "{what}: tail {tail}");
        };
        near(&|w| (w.height * w.width) as f64 / 1e6, 0.08, 0.5, "scale");
        near(&|w| (w.width as f64 / w.height as f64).ln(), (0.75f64).ln(), (4.0f64 / 3.0).ln(), "ratio");
        near(&|w| w.top as f64 / (1000 - w.height) as f64, 0.0, 1.0, "top");
        near(&|w| w.left as f64 / (1000 - w.width) as f64, 0.0, 1.0, "left");
    }

    /// For the usual scale range on a square image, the expected area is that of torchvision's loop: scales are rejected when a side does not
    /// fit, which happens exactly when `scale * max(ratio, 1 / ratio) > 1`.
    #[test]
    fn rejected_boxes_shift_the_area_as_expected() {
        let (mut sum, mut kept) = (0.0, 0.0);
        let steps = 2_000;
        for i in 0..steps {
            let scale = 0.08 + 0.92 * (f64::from(i) + 0.5) / f64::from(steps);
            for j in 0..steps {
                let log_ratio = (4.0f64 / 3.0).ln() * (2.0 * (f64::from(j) + 0.5) / f64::from(steps) - 1.0);
                if scale * log_ratio.abs().exp() <= 1.0 {
                    sum += scale;
                    kept += 1.0;
                }
            }
        }
        let expected = sum / kept;
        let windows = windows([2000, 2000], [0.08, 1.0], 40_000);
        let mean = windows.iter().map(|w| (w.height * w.width) as f64 / 4e6).sum::<f64>() / 40_000.0;
        // Standard error 0.0013; the integral itself says 0.497, the unrejected mean would be 0.54.
        assert!((mean - expected).abs() < 0.008, "{mean} against {expected}");
        assert!(expected < 0.52);
    }

    #[test]
    fn windows_lie_inside_and_odd_images_fall_back_to_the_centre() {
        for size in [[1, 1], [1, 50], [50, 1], [3, 2], [28, 28], [480, 640]] {
            for window in windows(size, [0.08, 1.0], 500) {
                assert!(window.height >= 1 && window.top + window.height <= size[0], "{size:?} {window:?}");
                assert!(window.width >= 1 && window.left + window.width <= size[1], "{size:?} {window:?}");
            }
        }
        let ratio = [3.0 / 4.0, 4.0 / 3.0];
        assert_eq!(central([10, 1000], ratio), Window { top: 0, left: 493, height: 10, width: 13 });
        assert_eq!(central([1000, 10], ratio), Window { top: 493, left: 0, height: 13, width: 10 });
        assert_eq!(central([10, 10], ratio), Window { top: 0, left: 0, height: 10, width: 10 });
        // An area near 1 never fits a ratio this far off: all ten tries fail.
        assert_eq!(windows([10, 1000], [0.9, 1.0], 1)[0], central([10, 1000], ratio));
    }
}
