//! The known name closest to a mistyped one.

use crate::Error;

/// An [`Error::UnknownName`] that names the closest of `known`.
pub(crate) fn unknown(what: &'static str, name: &str, known: &[&str]) -> Error {
    let nearest = known.iter().min_by_key(|k| distance(name, k)).copied().unwrap_or_default();
    Error::UnknownName { what, name: name.into(), nearest: nearest.into(), known: known.join(", ") }
}

/// Number of single-character insertions, deletions and replacements between `a` and `b`, letters compared without case.
fn distance(a: &str, b: &str) -> usize {
    // A name typed by a person is short; the cap keeps a pasted file from costing quadratic time.
    let a: Vec<char> = a.to_lowercase().chars().take(200).collect();
    let mut row: Vec<usize> = (0..=a.len()).collect();
    for (j, cb) in b.to_lowercase().chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = j + 1;
        for (i, ca) in a.iter().enumerate() {
            let replaced = diagonal + usize::from(*ca != cb);
            diagonal = row[i + 1];
            row[i + 1] = replaced.min(row[i] + 1).min(row[i + 1] + 1);
        }
    }
    row[a.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_counts_edits() {
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("VIT-B", "vit-b"), 0);
    }

    #[test]
    fn the_closest_name_is_offered() {
        let text = unknown("teacher", "vit_b", &["vit-t", "vit-b", "deit-b"]).to_string();
        assert!(text.contains("did you mean `vit-b`"), "{text}");
    }
}
