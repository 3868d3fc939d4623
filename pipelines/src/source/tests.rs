use std::fs;
use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;

use super::*;

/// A PNG of one colour.
fn png(grey: u8) -> Vec<u8> {
    use ::image::{ExtendedColorType, ImageEncoder, codecs::png::PngEncoder};
    let mut file = Vec::new();
    PngEncoder::new(&mut file).write_image(&[grey; 6], 3, 2, ExtendedColorType::L8).unwrap();
    file
}

/// Writes `files` below a new folder.
fn tree(files: &[(&str, Vec<u8>)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    dir
}

fn open(dir: &Path) -> Result<Source> {
    Source::open(&SourceSpec::parse(dir)?)
}

fn message(dir: &Path) -> String {
    open(dir).unwrap_err().to_string()
}

#[test]
fn an_image_folder_is_sorted_recursive_and_labelled() {
    let dir = tree(&[
        ("b/2.PNG", png(2)),
        ("b/deep/er/1.png", png(1)),
        ("a/z.jpeg", png(3)),
        ("b-c/x.webp", png(4)),
        ("a/notes.txt", vec![]),
        ("a/.hidden.png", png(9)),
        (".cache/x.png", png(9)),
        ("beside.png", png(9)),
    ]);
    let source = open(dir.path()).unwrap();
    assert_eq!(source.classes().unwrap(), ["a", "b", "b-c"]);
    let all: Vec<(&str, Option<u32>)> =
        (0..source.len()).map(|i| (source.sample(i).id.as_str(), source.sample(i).label)).collect();
    assert_eq!(
        all,
        [("a/z.jpeg", Some(0)), ("b/2.PNG", Some(1)), ("b/deep/er/1.png", Some(1)), ("b-c/x.webp", Some(2))]
    );
    assert_eq!(source.labels(), [Some(0), Some(1), Some(1), Some(2)]);
    assert_eq!(source.read(2).unwrap().pixels, [1; 6]);
    assert_eq!(Path::new(&source.sample(2).source), dir.path().join("b/deep/er/1.png"));
    assert!(source.test_split().unwrap().is_none());
    assert_eq!(source.sample(2).key(), random::sample_key("b/deep/er/1.png"));
}

#[test]
fn images_alone_are_unlabelled() {
    let dir = tree(&[("2.png", png(2)), ("1.png", png(1))]);
    let source = open(dir.path()).unwrap();
    assert_eq!((source.len(), source.classes(), source.sample(0).label), (2, None, None));
    assert_eq!(source.sample(0).id, "1.png");
    assert!(source.with_classes(&["x".into()]).unwrap().classes().is_none());
}

#[test]
fn the_fingerprint_follows_names_sizes_and_labels() {
    let print = |files: &[(&str, Vec<u8>)]| open(tree(files).path()).unwrap().fingerprint();
    let first = print(&[("a/1.png", png(1)), ("b/2.png", png(2))]);
    assert_eq!(first, print(&[("b/2.png", png(2)), ("a/1.png", png(1))]), "not the place, not the order of writing");
    let mut longer = png(2);
    longer.push(0);
    for other in [
        &[("a/1.png", png(1)), ("b/3.png", png(2))],
        &[("a/1.png", png(1)), ("a/2.png", png(2))],
        &[("a/1.png", png(1)), ("b/2.png", longer)],
        &[("1.png", png(1)), ("2.png", png(2))],
    ] {
        assert_ne!(first, print(other));
    }
}

#[test]
fn empty_folders_and_split_folders_are_errors() {
    assert!(message(tree(&[]).path()).contains("no images in this folder"));
    assert!(message(tree(&[("a/x.txt", vec![])]).path()).contains("no images in this folder"));
    let text = message(tree(&[("a/x.png", png(1)), ("b/x.bmp", vec![])]).path());
    assert!(text.contains("b: no images in this class folder") && text.contains("*.webp"), "{text}");
    let text = message(tree(&[("train/a/x.png", png(1)), ("val/a/x.png", png(1))]).path());
    assert!(text.contains("look like splits") && text.contains("/train as the data"), "{text}");
    assert!(message(Path::new("no/such/place")).contains("nothing is there"));
    // `train` alone is a class like any other.
    assert_eq!(open(tree(&[("train/x.png", png(1)), ("bus/x.png", png(1))]).path()).unwrap().len(), 2);
}

#[cfg(unix)]
#[test]
fn links_are_counted_and_not_followed_and_odd_names_are_refused() {
    use std::os::unix::ffi::OsStrExt;
    let outside = tree(&[("x.png", png(1))]);
    let dir = tree(&[("a/1.png", png(1))]);
    std::os::unix::fs::symlink(outside.path(), dir.path().join("b")).unwrap();
    std::os::unix::fs::symlink(outside.path().join("x.png"), dir.path().join("a/2.png")).unwrap();
    std::os::unix::fs::symlink(dir.path(), dir.path().join("a/loop")).unwrap();
    let source = open(dir.path()).unwrap();
    assert_eq!((source.len(), source.ignored_links()), (1, 3));

    // The root itself may be a link.
    let root = outside.path().join("root");
    std::os::unix::fs::symlink(dir.path(), &root).unwrap();
    assert_eq!(open(&root).unwrap().len(), 1);

    fs::write(dir.path().join("a").join(std::ffi::OsStr::from_bytes(b"\xff.png")), png(1)).unwrap();
    assert!(message(dir.path()).contains("not UTF-8"));
}

#[test]
fn unreadable_images_name_their_file() {
    let dir = tree(&[("a/1.png", b"no image".to_vec()), ("a/2.png", png(1))]);
    let source = open(dir.path()).unwrap();
    let text = source.read(0).unwrap_err().to_string();
    assert!(text.contains("a/1.png: not a readable image"), "{text}");
    fs::remove_file(dir.path().join("a/2.png")).unwrap();
    assert!(matches!(source.read(1).unwrap_err(), Error::Io { .. }));
}

#[test]
fn labels_are_counted_in_the_training_classes() {
    let val = open(tree(&[("c/1.png", png(1)), ("a/1.png", png(1))]).path()).unwrap();
    let classes = ["a", "b", "c"].map(String::from);
    let val = val.with_classes(&classes).unwrap();
    assert_eq!((val.labels(), val.classes().unwrap()), (vec![Some(0), Some(2)], &classes[..]));
    let text = val.with_classes(&classes[..2]).unwrap_err().to_string();
    assert!(text.contains("class `c` is not among the 2 classes") && text.contains("a, b"), "{text}");
}

fn idx(dims: &[u32], values: &[u8]) -> Vec<u8> {
    let mut file = vec![0, 0, 8, dims.len() as u8];
    file.extend(dims.iter().flat_map(|d| d.to_be_bytes()));
    file.extend(values);
    file
}

fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn an_idx_folder_finds_its_companions() {
    let images = |first: u8| idx(&[2, 2, 3], &(first..first + 12).collect::<Vec<_>>());
    let dir = tree(&[
        ("train-images-idx3-ubyte.gz", gz(&images(0))),
        ("train-labels-idx1-ubyte", idx(&[2], &[2, 0])),
        ("t10k-images-idx3-ubyte", images(100)),
        ("t10k-labels-idx1-ubyte.gz", gz(&idx(&[2], &[1, 1]))),
    ]);
    let source = open(dir.path()).unwrap();
    assert_eq!((source.len(), source.labels()), (2, vec![Some(2), Some(0)]));
    assert_eq!(source.classes().unwrap(), ["0", "1", "2"]);
    assert_eq!(source.sample(1).id, "000001");
    assert!(source.sample(1).source.ends_with("train-images-idx3-ubyte.gz#1"));
    assert_eq!(source.read(1).unwrap(), Image::new(1, 2, 3, (6..12).collect()));

    let test = source.test_split().unwrap().unwrap();
    assert_eq!((test.labels(), test.read(0).unwrap().pixels[0]), (vec![Some(1), Some(1)], 100));
    assert!(test.test_split().unwrap().is_none());

    let file = SourceSpec::parse(dir.path().join("t10k-images-idx3-ubyte")).unwrap();
    assert_eq!(Source::open(&file).unwrap().fingerprint(), test.fingerprint());
    assert_ne!(source.fingerprint(), test.fingerprint());

    fs::remove_file(dir.path().join("train-labels-idx1-ubyte")).unwrap();
    let source = open(dir.path()).unwrap();
    assert_eq!((source.labels(), source.classes()), (vec![None, None], None));
}

#[test]
fn idx_files_that_do_not_belong_together_are_refused() {
    let dir =
        tree(&[("train-images-idx3-ubyte", idx(&[2, 1, 1], &[1, 2])), ("train-labels-idx1-ubyte", idx(&[3], &[0; 3]))]);
    let text = message(dir.path());
    assert!(text.contains("3 labels") && text.contains("2 images"), "{text}");
}

#[test]
fn every_damaged_idx_file_is_an_error() {
    let plain = idx(&[3, 4, 5], &[7; 60]);
    let packed = gz(&plain);
    let fails = |bytes: &[u8]| idx::images("x.idx", bytes).err().map(|err| err.to_string());
    assert!(fails(&plain).is_none() && fails(&packed).is_none());
    for end in 0..plain.len() {
        assert!(fails(&plain[..end]).is_some(), "plain cut at {end}");
    }
    for end in 0..packed.len() {
        assert!(fails(&packed[..end]).is_some(), "packed cut at {end}");
    }
    for i in 0..16 {
        let mut flipped = plain.clone();
        flipped[i] ^= 0x81;
        assert!(fails(&flipped).unwrap().starts_with("x.idx: "), "byte {i}");
    }
    for i in 10..packed.len() {
        let mut flipped = packed.clone();
        flipped[i] ^= 0x10;
        assert!(fails(&flipped).is_some(), "packed byte {i}");
    }
    assert!(fails(&[plain.clone(), vec![0]].concat()).unwrap().contains("found more"));
    assert!(fails(&gz(&[plain.clone(), vec![0]].concat())).unwrap().contains("found more"));
    assert!(fails(&idx(&[60], &[7; 60])).unwrap().contains("00 00 08 03"));
    assert!(fails(&idx(&[0, 4, 5], &[])).unwrap().contains("sizes"));
    // A claim of 2^96 values is refused before anything is allocated.
    assert!(fails(&gz(&idx(&[u32::MAX; 3], &[1]))).unwrap().contains("what the file's length can hold"));
}

#[test]
fn the_embedded_sample_is_balanced_and_has_its_test_part() {
    let train = Source::open(&SourceSpec::parse("embedded").unwrap()).unwrap();
    let test = train.test_split().unwrap().unwrap();
    for (source, n_each) in [(&train, 60), (&test, 200)] {
        assert_eq!(source.len(), 10 * n_each);
        assert_eq!(source.classes().unwrap()[9], "Ankle boot");
        for class in 0..10 {
            assert_eq!(source.labels().iter().filter(|l| **l == Some(class)).count(), n_each);
        }
        let image = source.read(source.len() - 1).unwrap();
        assert_eq!((image.channels, image.height, image.width), (1, 28, 28));
        assert!(image.pixels.iter().any(|&p| p > 100));
    }
    assert!(test.test_split().unwrap().is_none());
    assert_eq!(train.sample(5).source, "fashion-mnist-1pct-train#5");
}

#[test]
fn specs_are_strict_json() {
    for spec in [
        SourceSpec::ImageFolder { root: "a/b".into() },
        SourceSpec::Idx { images: "i".into(), labels: None },
        SourceSpec::Embedded { split: EmbeddedSplit::Test },
    ] {
        let json = serde_json::to_string(&spec).unwrap();
        assert_eq!(serde_json::from_str::<SourceSpec>(&json).unwrap(), spec);
    }
    assert!(serde_json::from_str::<SourceSpec>(r#"{"image_folder":{"root":"a","roof":"b"}}"#).is_err());
}
