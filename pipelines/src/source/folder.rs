//! A tree of image files, one folder per class, as torchvision's `ImageFolder` reads it.

use std::collections::BTreeMap;
use std::path::Path;

use walkdir::{DirEntry, WalkDir};

use super::SampleInfo;
use crate::{Error, Result};

/// The endings that are read, in any case.
const ENDINGS: [&str; 4] = ["jpg", "jpeg", "png", "webp"];
const ENDINGS_TEXT: &str = "*.jpg, *.jpeg, *.png or *.webp";

/// Folder names that speak of splits and not of classes.
const TRAIN_NAMES: [&str; 2] = ["train", "training"];
const VAL_NAMES: [&str; 5] = ["val", "valid", "validation", "test", "testing"];

/// What a tree holds.
pub(super) struct Listing {
    pub samples: Vec<SampleInfo>,
    pub classes: Option<Vec<String>>,
    pub fingerprint: String,
    pub links: usize,
}

/// Lists the images under `root`: classes are its subfolders sorted by name, samples are sorted by class and then by path.
///
/// Hidden files and folders are passed over, and so is whatever lies beside the class folders; symbolic links below `root` are counted and not
/// followed. Without subfolders the images of `root` itself are taken, unlabelled.
pub(super) fn list(root: &Path) -> Result<Listing> {
    refuse_splits(root)?;
    let mut links = 0;
    let mut files: BTreeMap<String, Vec<(String, u64)>> = BTreeMap::new();
    let mut plain = Vec::new();
    for entry in WalkDir::new(root).min_depth(1).follow_links(false).into_iter().filter_entry(|e| !hidden(e)) {
        let entry = entry.map_err(|err| walk_error(root, err))?;
        if entry.path_is_symlink() {
            links += 1;
            continue;
        }
        let id = || id_of(root, entry.path());
        if entry.file_type().is_dir() && entry.depth() == 1 {
            files.entry(id()?).or_default();
        }
        if !entry.file_type().is_file() || !readable_name(entry.path()) {
            continue;
        }
        let id = id()?;
        let bytes = entry.metadata().map_err(|err| walk_error(root, err))?.len();
        match id.split_once('/') {
            Some((class, _)) => files.entry(class.to_owned()).or_default().push((id, bytes)),
            None => plain.push((id, bytes)),
        }
    }

    let none = |path: &Path, what| Err(Error::NoImages { path: path.to_owned(), what, links, expected: ENDINGS_TEXT });
    if files.values().all(Vec::is_empty) && plain.is_empty() {
        return none(root, "folder");
    }
    let classes: Option<Vec<String>> = (!files.is_empty()).then(|| files.keys().cloned().collect());
    if classes.is_none() {
        files.insert(String::new(), plain);
    }

    let mut hasher = blake3::Hasher::new();
    hasher.update(b"image folder 1\n");
    let mut samples = Vec::new();
    for ((class, mut members), label) in files.into_iter().zip(0..) {
        if members.is_empty() {
            // Other tools number such a class or refuse it; guessing which would shift every later label.
            return none(&root.join(class), "class folder");
        }
        members.sort_unstable();
        for (id, bytes) in members {
            // Lengths first, so that no two lists of names run together.
            hasher.update(&(id.len() as u64).to_le_bytes());
            hasher.update(id.as_bytes());
            hasher.update(&bytes.to_le_bytes());
            let source = root.join(&id);
            let Some(source) = source.to_str().map(str::to_owned) else { return Err(Error::FileName { path: source }) };
            samples.push(SampleInfo { id, source, label: classes.is_some().then_some(label) });
        }
    }
    // The ids begin with their class, so the labels are in the hash already; this tells labelled from unlabelled.
    hasher.update(&[u8::from(classes.is_some())]);
    Ok(Listing { samples, classes, fingerprint: hasher.finalize().to_hex().to_string(), links })
}

/// An error when `root` holds both a training and a validation folder: their names would silently become two classes.
pub(super) fn refuse_splits(root: &Path) -> Result<()> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(root).map_err(Error::io(root))? {
        let entry = entry.map_err(Error::io(root))?;
        if entry.file_type().map_err(Error::io(root))?.is_dir() {
            names.extend(entry.file_name().to_str().map(str::to_owned));
        }
    }
    let find = |known: &[&str]| known.iter().find(|k| names.iter().any(|n| n == *k)).map(|k| (*k).to_owned());
    match (find(&TRAIN_NAMES), find(&VAL_NAMES)) {
        (Some(train), Some(val)) => Err(Error::SplitFolders { path: root.to_owned(), train, val }),
        _ => Ok(()),
    }
}

fn hidden(entry: &DirEntry) -> bool {
    entry.depth() > 0 && entry.file_name().as_encoded_bytes().starts_with(b".")
}

fn readable_name(path: &Path) -> bool {
    path.extension().and_then(|e| e.to_str()).is_some_and(|e| ENDINGS.iter().any(|known| known.eq_ignore_ascii_case(e)))
}

/// The path below the root, with `/` between folders.
fn id_of(root: &Path, path: &Path) -> Result<String> {
    let below = path.strip_prefix(root).expect("a walk stays below its root");
    let parts: Option<Vec<&str>> = below.components().map(|part| part.as_os_str().to_str()).collect();
    parts.map(|parts| parts.join("/")).ok_or_else(|| Error::FileName { path: path.to_owned() })
}

fn walk_error(root: &Path, err: walkdir::Error) -> Error {
    let path = err.path().unwrap_or(root).to_owned();
    let source = err.into_io_error().unwrap_or_else(|| std::io::Error::other("a loop of links"));
    Error::Io { path, source }
}
