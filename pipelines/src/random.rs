//! Random numbers that depend on (seed, sample, view, purpose) and on nothing else.
//!
//! There is no global state and no order of use: a [`Stream`] gives the same numbers on every machine, on every thread, whatever other
//! streams were made before. Numbers are counter-based: the position in the stream is the counter, the tuple is the rest of the counter
//! and the key, and ten rounds of Philox 4x32 make them random.
//!
//! # Source
//! Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011.

/// What a stream's numbers are used for, so that two uses at the same (seed, sample, view) never share numbers.
///
/// The numbers behind the variants are part of every cache's meaning: they never change, new ones are added at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[repr(u8)]
pub enum Purpose {
    /// Box of a random resized crop.
    Crop = 1,
    /// Horizontal flip.
    Flip = 2,
    /// Scale, angle and shift of an affine map.
    Affine = 3,
    /// Choice of a fraction of the samples.
    Subset = 4,
    /// Order of the samples in a cache.
    Shuffle = 5,
    /// Order of the records in an epoch of training.
    Order = 6,
    /// Initial weights.
    Init = 7,
    /// Stochastic depth and other drops in training.
    Drop = 8,
}

/// A 64-bit key for a sample, from its id alone: it depends neither on the sample's position nor on the other samples.
pub fn sample_key(id: &str) -> u64 {
    let hash = blake3::hash(id.as_bytes());
    let (first, _) = hash.as_bytes().split_first_chunk::<8>().expect("a BLAKE3 hash has 32 bytes");
    u64::from_le_bytes(*first)
}

/// The numbers of one (seed, sample, view, purpose).
///
/// Different tuples never share a Philox block as long as seeds stay below 2^56; above that the purpose is mixed into the seed's top byte.
/// A stream has 2^33 numbers of 64 bits before it repeats.
#[derive(Debug, Clone)]
pub struct Stream {
    key: [u32; 2],
    counter: [u32; 4],
    ready: [u64; 2],
    n_ready: usize,
}

impl Stream {
    /// The stream of the tuple, at its beginning.
    pub fn new(seed: u64, sample: u64, view: u32, purpose: Purpose) -> Self {
        let [seed_low, seed_high] = halves(seed);
        let [sample_low, sample_high] = halves(sample);
        Self {
            key: [seed_low, seed_high ^ (u32::from(purpose as u8) << 24)],
            counter: [0, view, sample_low, sample_high],
            ready: [0; 2],
            n_ready: 0,
        }
    }

    /// The next 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        if self.n_ready == 0 {
            let [a, b, c, d] = philox(self.counter, self.key);
            // Taken from the back.
            self.ready = [join(c, d), join(a, b)];
            self.n_ready = 2;
            self.counter[0] = self.counter[0].wrapping_add(1);
        }
        self.n_ready -= 1;
        self.ready[self.n_ready]
    }

    /// A number in `[0, 1)` with 53 random bits.
    pub fn uniform(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// A number in `[low, high)`, or `low` when both are equal.
    pub fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.uniform()
    }

    /// An integer in `0..n`, every one equally likely.
    ///
    /// # Panics
    /// When `n` is 0.
    pub fn below(&mut self, n: u64) -> u64 {
        assert!(n > 0, "below(0) has no value to return");
        // The high half of a 128-bit product is almost uniform; the low half tells the few draws that would make it uneven.
        let uneven = n.wrapping_neg() % n;
        loop {
            let product = u128::from(self.next_u64()) * u128::from(n);
            if product as u64 >= uneven {
                return (product >> 64) as u64;
            }
        }
    }

    /// A standard normal number (Box–Muller, the cosine half).
    pub fn normal(&mut self) -> f64 {
        // 1 - u lies in (0, 1], so that the logarithm is finite.
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }
}

fn halves(x: u64) -> [u32; 2] {
    [x as u32, (x >> 32) as u32]
}

fn join(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

/// Ten rounds of Philox 4x32.
fn philox(mut x: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for round in 0..10 {
        if round > 0 {
            key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
        }
        let [low0, high0] = halves(u64::from(x[0]) * 0xD251_1F53);
        let [low1, high1] = halves(u64::from(x[2]) * 0xCD9E_8D57);
        x = [high1 ^ x[1] ^ key[0], low1, high0 ^ x[3] ^ key[1], low0];
    }
    x
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers that the authors of Philox publish with it.
    #[test]
    fn philox_gives_its_known_answers() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox([!0; 4], [!0; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        assert_eq!(
            philox([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn every_part_of_the_tuple_changes_the_numbers() {
        let first = |seed, sample, view, purpose| Stream::new(seed, sample, view, purpose).next_u64();
        let mut seen = std::collections::HashSet::new();
        for seed in [0, 1, 1 << 40] {
            for sample in [0, 1, 1 << 40] {
                for view in [0, 1, 2] {
                    for purpose in [Purpose::Crop, Purpose::Flip, Purpose::Affine] {
                        assert!(seen.insert(first(seed, sample, view, purpose)));
                        assert_eq!(first(seed, sample, view, purpose), first(seed, sample, view, purpose));
                    }
                }
            }
        }
        assert_eq!(seen.len(), 81);
    }

    #[test]
    fn uniform_below_and_normal_have_their_moments() {
        let mut stream = Stream::new(7, 0, 0, Purpose::Order);
        let n = 200_000;
        let uniform: Vec<f64> = (0..n).map(|_| stream.uniform()).collect();
        assert!(uniform.iter().all(|u| (0.0..1.0).contains(u)));
        let (mean, var) = moments(&uniform);
        // Six standard errors: 1/sqrt(12 n) and about sqrt(1/180 n).
        assert!((mean - 0.5).abs() < 6.0 * 0.2887 / f64::from(n).sqrt(), "{mean}");
        assert!((var - 1.0 / 12.0).abs() < 6.0 * 0.0745 / f64::from(n).sqrt(), "{var}");

        let normal: Vec<f64> = (0..n).map(|_| stream.normal()).collect();
        let (mean, var) = moments(&normal);
        assert!(mean.abs() < 6.0 / f64::from(n).sqrt(), "{mean}");
        assert!((var - 1.0).abs() < 6.0 * 2f64.sqrt() / f64::from(n).sqrt(), "{var}");
        let beyond = normal.iter().filter(|x| x.abs() > 1.959_964).count() as f64 / f64::from(n);
        assert!((beyond - 0.05).abs() < 0.003, "{beyond}");

        let mut counts = [0u32; 7];
        for _ in 0..70_000 {
            counts[stream.below(7) as usize] += 1;
        }
        assert!(counts.iter().all(|&c| (9_400..10_600).contains(&c)), "{counts:?}");
        assert_eq!(stream.below(1), 0);
        // Half of all draws are rejected at this size; an even split of the range must come out.
        let wide = (1u64 << 63) + 1;
        let high = (0..2_000).filter(|_| stream.below(wide) >= wide / 2).count();
        assert!((850..1_150).contains(&high), "{high}");
    }

    fn moments(x: &[f64]) -> (f64, f64) {
        let mean = x.iter().sum::<f64>() / x.len() as f64;
        (mean, x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / x.len() as f64)
    }

    #[test]
    fn a_sample_key_is_a_function_of_the_id() {
        assert_eq!(sample_key("n01440764/a.jpg"), sample_key("n01440764/a.jpg"));
        assert_ne!(sample_key("000001"), sample_key("000002"));
    }
}
