//! Scale, rotation and shift of a small image.

use crate::random::Stream;

/// Where an output pixel comes from: `source = matrix * [x, y, 1]` in pixels, pixel centres at whole numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Map {
    /// `[[xx, xy, x0], [yx, yy, y0]]`.
    pub matrix: [[f64; 3]; 2],
}

/// A map that scales by a uniform number of `scale`, turns by up to `degrees` and shifts by up to `shift` of each side.
pub(super) fn draw(size: [usize; 2], scale: [f64; 2], degrees: f64, shift: f64, stream: &mut Stream) -> Map {
    let zoom = stream.between(scale[0], scale[1]);
    let angle = stream.between(-degrees, degrees).to_radians();
    let down = stream.between(-shift, shift) * size[0] as f64;
    let right = stream.between(-shift, shift) * size[1] as f64;
    map(size, zoom, angle, down, right)
}

/// The inverse of: about the image's centre scale by `zoom` and turn by `angle` (radians, clockwise on the screen), then shift.
fn map([height, width]: [usize; 2], zoom: f64, angle: f64, down: f64, right: f64) -> Map {
    let (sin, cos) = angle.sin_cos();
    let (c, s) = (cos / zoom, sin / zoom);
    let (x, y) = ((width as f64 - 1.0) / 2.0, (height as f64 - 1.0) / 2.0);
    let (dx, dy) = (x + right, y + down);
    Map { matrix: [[c, s, x - c * dx - s * dy], [-s, c, y + s * dx - c * dy]] }
}

/// `[height, width, channels]` pulled through `map`: bilinear, everything outside is 0, rounded to the nearest level.
pub(super) fn apply(pixels: &[u8], channels: usize, [height, width]: [usize; 2], map: &Map) -> Vec<u8> {
    let [[xx, xy, x0], [yx, yy, y0]] = map.matrix;
    let mut out = Vec::with_capacity(pixels.len());
    for row in 0..height {
        for column in 0..width {
            let (x, y) = (column as f64, row as f64);
            let (sx, sy) = (xx * x + xy * y + x0, yx * x + yy * y + y0);
            let (left, top) = (sx.floor(), sy.floor());
            let (fx, fy) = (sx - left, sy - top);
            for channel in 0..channels {
                let at = |y: f64, x: f64| -> f64 {
                    let inside = x >= 0.0 && y >= 0.0 && x < width as f64 && y < height as f64;
                    if inside { f64::from(pixels[(y as usize * width + x as usize) * channels + channel]) } else { 0.0 }
                };
                let upper = at(top, left) * (1.0 - fx) + at(top, left + 1.0) * fx;
                let lower = at(top + 1.0, left) * (1.0 - fx) + at(top + 1.0, left + 1.0) * fx;
                // The cast cuts a sum that rounding took just past the range.
                out.push((upper * (1.0 - fy) + lower * fy + 0.5) as u8);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Purpose;

    /// Spreads every source pixel as a tent of unit radius and reads it where the forward map's inverse lands: another order of the same sum.
    fn oracle(pixels: &[u8], [height, width]: [usize; 2], zoom: f64, angle: f64, down: f64, right: f64) -> Vec<f64> {
        let (cy, cx) = ((height as f64 - 1.0) / 2.0, (width as f64 - 1.0) / 2.0);
        let mut out = Vec::new();
        for row in 0..height {
            for column in 0..width {
                let (y, x) = (row as f64 - cy - down, column as f64 - cx - right);
                // Undo the turn with complex numbers: divide by zoom * e^(i angle).
                let sx = (x * angle.cos() + y * angle.sin()) / zoom + cx;
                let sy = (y * angle.cos() - x * angle.sin()) / zoom + cy;
                let mut sum = 0.0;
                for j in 0..height {
                    for i in 0..width {
                        let tent = (1.0 - (sx - i as f64).abs()).max(0.0) * (1.0 - (sy - j as f64).abs()).max(0.0);
                        sum += tent * f64::from(pixels[j * width + i]);
                    }
                }
                out.push(sum);
            }
        }
        out
    }

    #[test]
    fn the_map_equals_a_direct_sum_of_tents() {
        let size = [11, 14];
        let pixels: Vec<u8> = (0..11 * 14u32).map(|i| (i * i * 7 % 256) as u8).collect();
        for (zoom, angle, down, right) in
            [(1.0, 0.0, 0.0, 0.0), (1.15, 0.1, 0.6, -0.4), (0.85, -0.1, -1.7, 0.5), (0.5, 1.0, 3.0, 3.0)]
        {
            let got = apply(&pixels, 1, size, &map(size, zoom, angle, down, right));
            let want = oracle(&pixels, size, zoom, angle, down, right);
            let worst = got.iter().zip(&want).map(|(g, w)| (f64::from(*g) - w).abs()).fold(0.0, f64::max);
            assert!(worst <= 0.5 + 1e-9, "{zoom} {angle}: {worst}");
        }
        assert_eq!(apply(&pixels, 1, size, &map(size, 1.0, 0.0, 0.0, 0.0)), pixels);
    }

    #[test]
    fn directions_are_as_named() {
        // One bright pixel at row 1, column 2 of 5 x 5.
        let mut pixels = vec![0; 25];
        pixels[7] = 200;
        let bright = |m: &Map| apply(&pixels, 1, [5, 5], m).iter().position(|&p| p == 200);
        assert_eq!(bright(&map([5, 5], 1.0, 0.0, 1.0, 0.0)), Some(12), "one down");
        assert_eq!(bright(&map([5, 5], 1.0, 0.0, 0.0, 1.0)), Some(8), "one right");
        assert_eq!(
            bright(&map([5, 5], 1.0, std::f64::consts::FRAC_PI_2, 0.0, 0.0)),
            Some(13),
            "a quarter turn clockwise"
        );
        assert_eq!(bright(&map([5, 5], 2.0, 0.0, 0.0, 0.0)), Some(2), "twice as far from the centre");
        assert_eq!(apply(&pixels, 1, [5, 5], &map([5, 5], 1.0, 0.0, 5.0, 0.0)), vec![0; 25], "black from outside");
    }

    #[test]
    fn parameters_are_uniform_in_their_ranges() {
        let size = [28, 20];
        let n = 20_000;
        let (mut zooms, mut angles, mut shifts) = (Vec::new(), Vec::new(), Vec::new());
        for sample in 0..n {
            let [[c, s, x0], [_, _, y0]] =
                draw(size, [0.85, 1.15], 6.0, 0.06, &mut Stream::new(3, sample, 1, Purpose::Affine)).matrix;
            zooms.push(1.0 / c.hypot(s));
            angles.push(s.atan2(c).to_degrees());
            // The centre's source, turned back, is minus the shift.
            let (dx, dy) = (c * 9.5 + s * 13.5 + x0 - 9.5, -s * 9.5 + c * 13.5 + y0 - 13.5);
            let zoom2 = 1.0 / (c * c + s * s);
            shifts.push((-(c * dx - s * dy) * zoom2 / 20.0, -(s * dx + c * dy) * zoom2 / 28.0));
        }
        let check = |values: Vec<f64>, low: f64, high: f64| {
            let unit: Vec<f64> = values.iter().map(|v| (v - low) / (high - low)).collect();
            assert!(unit.iter().all(|u| (-1e-9..1.0 + 1e-9).contains(u)));
            let mean = unit.iter().sum::<f64>() / n as f64;
            let var = unit.iter().map(|u| (u - 0.5).powi(2)).sum::<f64>() / n as f64;
            assert!((mean - 0.5).abs() < 6.0 * 0.289 / (n as f64).sqrt(), "{mean}");
            assert!((var - 1.0 / 12.0).abs() < 6.0 * 0.0745 / (n as f64).sqrt(), "{var}");
        };
        check(zooms, 0.85, 1.15);
        check(angles, -6.0, 6.0);
        check(shifts.iter().map(|s| s.0).collect(), -0.06, 0.06);
        check(shifts.iter().map(|s| s.1).collect(), -0.06, 0.06);
    }
}
