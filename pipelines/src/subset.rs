//! Which samples are taken, and in what order: class-balanced nested fractions and shuffles, by seed alone.

use std::collections::BTreeMap;

use crate::random::{Purpose, Stream};
use crate::{Error, Result};

/// `Ok` when `fraction` is above 0 and at most 1.
///
/// # Errors
/// [`Error::Fraction`] otherwise, NaN included.
pub fn check_fraction(fraction: f64) -> Result<()> {
    if fraction > 0.0 && fraction <= 1.0 { Ok(()) } else { Err(Error::Fraction { found: fraction }) }
}

/// Positions of a class-balanced fraction of the samples, ascending.
///
/// Of every class `round(fraction * count)` samples are taken, at least one. Samples without a label are a class of their own, so that
/// unlabelled data gives a plain random subset. A smaller fraction with the same labels and seed is a subset of a larger one. Fractions
/// outside `(0, 1]` are clamped; [`check_fraction`] refuses them where a person typed them.
pub fn balanced(labels: &[Option<u32>], fraction: f64, seed: u64) -> Vec<usize> {
    let mut classes: BTreeMap<Option<u32>, Vec<usize>> = BTreeMap::new();
    for (position, label) in labels.iter().enumerate() {
        classes.entry(*label).or_default().push(position);
    }
    let mut taken = Vec::new();
    for (label, mut members) in classes {
        let count = (fraction * members.len() as f64).round() as usize;
        let count = count.clamp(1, members.len());
        // Each class has its own stream: adding samples to one class does not change the choice in another.
        let stream = Stream::new(seed, label.map_or(0, |l| u64::from(l) + 1), 0, Purpose::Subset);
        permute(&mut members, stream);
        taken.extend_from_slice(&members[..count]);
    }
    taken.sort_unstable();
    taken
}

/// The numbers `0..n` in a random order, a function of (n, seed).
pub fn shuffle(n: usize, seed: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    permute(&mut order, Stream::new(seed, 0, 0, Purpose::Shuffle));
    order
}

/// Brings `items` into an order drawn from `stream`, every order equally likely (Fisher–Yates).
pub fn permute<T>(items: &mut [T], mut stream: Stream) {
    for last in (1..items.len()).rev() {
        let other = stream.below(last as u64 + 1) as usize;
        items.swap(last, other);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Class c of 5 has 10 (c + 1) members, interleaved.
    fn labels() -> Vec<Option<u32>> {
        let mut labels = Vec::new();
        for round in 0..50 {
            labels.extend((0..5).filter(|c| round < 10 * (c + 1)).map(Some));
        }
        labels
    }

    #[test]
    fn a_fraction_is_balanced() {
        let labels = labels();
        let taken = balanced(&labels, 0.1, 3);
        for class in 0..5 {
            assert_eq!(taken.iter().filter(|&&i| labels[i] == Some(class)).count() as u32, class + 1);
        }
        assert!(taken.is_sorted());
        assert_eq!(taken, balanced(&labels, 0.1, 3));
        assert_ne!(taken, balanced(&labels, 0.1, 4));
    }

    #[test]
    fn fractions_are_nested_and_end_in_everything() {
        let labels = labels();
        let mut smaller = Vec::new();
        for percent in [0, 1, 2, 5, 10, 20, 50, 99, 100] {
            let larger = balanced(&labels, f64::from(percent) / 100.0, 0);
            assert!(smaller.iter().all(|i| larger.contains(i)), "{percent} %");
            smaller = larger;
        }
        assert_eq!(smaller, (0..labels.len()).collect::<Vec<_>>());
        assert_eq!(balanced(&labels, 1e-9, 0).len(), 5, "one per class at least");
        assert_eq!(balanced(&labels, 7.0, 0).len(), labels.len());
        assert_eq!(balanced(&labels, f64::NAN, 0).len(), 5);
    }

    #[test]
    fn unlabelled_data_gives_a_plain_subset() {
        let taken = balanced(&[None; 200], 0.25, 1);
        assert_eq!(taken.len(), 50);
        assert!(taken.windows(2).any(|w| w[1] != w[0] + 1), "not a prefix");
        assert!(balanced(&[], 0.5, 0).is_empty());
    }

    #[test]
    fn every_order_is_equally_likely() {
        let mut counts: BTreeMap<Vec<usize>, u32> = BTreeMap::new();
        for seed in 0..12_000 {
            *counts.entry(shuffle(4, seed)).or_default() += 1;
        }
        assert_eq!(counts.len(), 24);
        // Expected 500 each; six standard deviations are 131.
        assert!(counts.values().all(|&c| (369..631).contains(&c)), "{counts:?}");
        assert_eq!(shuffle(1000, 5), shuffle(1000, 5));
        assert_eq!(shuffle(0, 5), Vec::<usize>::new());
    }

    #[test]
    fn fractions_typed_by_a_person_are_checked() {
        assert!(check_fraction(1.0).is_ok() && check_fraction(0.01).is_ok());
        for bad in [0.0, -0.1, 1.5, f64::NAN] {
            assert!(check_fraction(bad).is_err(), "{bad}");
        }
    }
}
