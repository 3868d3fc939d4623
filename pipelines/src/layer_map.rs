//! From which teacher layer each student layer learns, and which teacher layers are therefore captured.
//!
//! A layer map is a plain list: entry `i` is the teacher layer of student layer `i`.

use crate::{Error, Result};

/// The map `floor(i * n_teacher / n_student)` for student layers `i`.
///
/// # Source
/// Arxiv 2510.19266, the layer alignment of the attention bridge.
pub fn proportional(n_student: usize, n_teacher: usize) -> Vec<usize> {
    (0..n_student).map(|i| i * n_teacher / n_student).collect()
}

/// The teacher layers of a map, ascending and without repetition.
pub fn captured(map: &[usize]) -> Vec<usize> {
    let mut layers = map.to_vec();
    layers.sort_unstable();
    layers.dedup();
    layers
}

/// The map written as `0,2,4,…`: one teacher layer per student layer; the word `proportional` gives [`proportional`].
///
/// # Errors
/// [`Error::Layers`] when the list does not parse, has another length than `n_student`, or names a layer the teacher does not have.
pub fn parse(text: &str, n_student: usize, n_teacher: usize) -> Result<Vec<usize>> {
    if text.trim() == "proportional" {
        return Ok(proportional(n_student, n_teacher));
    }
    let map = list("layer map", text, n_teacher)?;
    check(&map, n_student, n_teacher)?;
    Ok(map)
}

/// `Ok` when `map` has one entry per student layer and every entry is a layer of the teacher.
///
/// # Errors
/// [`Error::Layers`] otherwise.
pub fn check(map: &[usize], n_student: usize, n_teacher: usize) -> Result<()> {
    let fault = |expected: String, found: String| Error::Layers { what: "layer map", text: join(map), expected, found };
    if map.len() != n_student {
        let expected = format!("{n_student} entries, one per student layer");
        return Err(fault(expected, format!("{}", map.len())));
    }
    match map.iter().find(|&&layer| layer >= n_teacher) {
        Some(layer) => Err(fault(format!("layers below {n_teacher}, the teacher's depth"), format!("layer {layer}"))),
        None => Ok(()),
    }
}

/// The captured layers written as `0,2,4` or `all`, ascending.
///
/// # Errors
/// [`Error::Layers`] when the list does not parse, repeats a layer, or names one the teacher does not have.
pub fn parse_captured(text: &str, n_teacher: usize) -> Result<Vec<usize>> {
    const WHAT: &str = "captured layers";
    if text.trim() == "all" {
        return Ok((0..n_teacher).collect());
    }
    let layers = list(WHAT, text, n_teacher)?;
    let unique = captured(&layers);
    if unique.len() != layers.len() {
        let (text, expected) = (text.to_owned(), "each layer once".to_owned());
        return Err(Error::Layers { what: WHAT, text, expected, found: "a repeated layer".to_owned() });
    }
    Ok(unique)
}

fn list(what: &'static str, text: &str, n_teacher: usize) -> Result<Vec<usize>> {
    let entry = |part: &str| match part.trim().parse::<usize>() {
        Ok(layer) if layer < n_teacher => Ok(layer),
        _ => Err(Error::Layers {
            what,
            text: text.to_owned(),
            expected: format!("numbers below {n_teacher}, the teacher's depth"),
            found: format!("`{}`", part.trim()),
        }),
    };
    text.split(',').map(entry).collect()
}

fn join(layers: &[usize]) -> String {
    layers.iter().map(usize::to_string).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proportional_spreads_over_the_teacher() {
        assert_eq!(proportional(6, 12), [0, 2, 4, 6, 8, 10]);
        assert_eq!(proportional(5, 12), [0, 2, 4, 7, 9]);
        assert_eq!(proportional(24, 12)[..6], [0, 0, 1, 1, 2, 2]);
        assert_eq!(proportional(3, 3), [0, 1, 2]);
        for n_student in 1..30 {
            for n_teacher in 1..30 {
                let map = proportional(n_student, n_teacher);
                assert!(map.is_sorted() && map[0] == 0);
                check(&map, n_student, n_teacher).unwrap();
            }
        }
    }

    #[test]
    fn captured_layers_are_sorted_and_unique() {
        assert_eq!(captured(&[3, 0, 3, 1]), [0, 1, 3]);
        assert_eq!(captured(&proportional(24, 12)).len(), 12);
    }

    #[test]
    fn lists_are_checked() {
        assert_eq!(parse(" 5, 0,0", 3, 6).unwrap(), [5, 0, 0]);
        assert_eq!(parse("proportional", 2, 6).unwrap(), [0, 3]);
        for (bad, word) in
            [("0,1", "3 entries"), ("0,1,6", "below 6"), ("0,x,1", "`x`"), ("", "``"), ("0,-1,2", "`-1`")]
        {
            let text = parse(bad, 3, 6).unwrap_err().to_string();
            assert!(text.contains(word), "{bad}: {text}");
        }
        assert_eq!(parse_captured("4,0", 6).unwrap(), [0, 4]);
        assert_eq!(parse_captured("all", 3).unwrap(), [0, 1, 2]);
        assert!(parse_captured("1,1", 6).unwrap_err().to_string().contains("repeated"));
        assert!(parse_captured("6", 6).is_err());
    }
}
