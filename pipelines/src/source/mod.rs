//! Where samples come from: a tree of image files, a pair of IDX files, or the sample that the program carries.
//!
//! A source knows the names, labels and number of its samples and reads one at a time; it starts no threads and keeps no order but its own.

mod folder;
mod idx;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::assets::{self, EmbeddedSample};
use crate::image::Image;
use crate::{Error, Result, random};

/// Which data is meant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum SourceSpec {
    /// A folder with one subfolder per class, images anywhere below; or a folder of images alone, which are then unlabelled.
    ImageFolder {
        /// The folder.
        root: PathBuf,
    },
    /// An IDX file of grey images, plain or gzipped.
    Idx {
        /// The images.
        images: PathBuf,
        /// Their labels; without them the images are unlabelled.
        labels: Option<PathBuf>,
    },
    /// The embedded 1 % sample of Fashion-MNIST.
    Embedded {
        /// Which part of it.
        split: EmbeddedSplit,
    },
}

/// A part of the embedded sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EmbeddedSplit {
    /// 600 training images.
    Train,
    /// 2,000 test images.
    Test,
}

impl SourceSpec {
    /// What lies at `path`: a folder that holds `train-images-idx3-ubyte(.gz)`, or else `t10k-images-idx3-ubyte(.gz)`, is an IDX pair; any
    /// other folder is an image folder; a file is an IDX file, its labels beside it; the word `embedded` is the embedded training images
    /// when nothing of that name exists.
    ///
    /// # Errors
    /// [`Error::NoSource`] when nothing is there, [`Error::SplitFolders`] when the folder holds `train` and `val` instead of classes.
    pub fn parse(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        if path.is_file() {
            return Ok(Self::idx(path.to_owned()));
        }
        if path.is_dir() {
            if let Some(images) =
                TRAIN_AND_TEST.iter().find_map(|part| idx::beside(path, &format!("{part}-images-idx3-ubyte")))
            {
                return Ok(Self::idx(images));
            }
            folder::refuse_splits(path)?;
            return Ok(Self::ImageFolder { root: path.to_owned() });
        }
        if path == Path::new("embedded") {
            return Ok(Self::Embedded { split: EmbeddedSplit::Train });
        }
        Err(Error::NoSource { path: path.to_owned(), found: "nothing is there" })
    }

    fn idx(images: PathBuf) -> Self {
        let labels = idx::labels_of(&images);
        Self::Idx { images, labels }
    }
}

/// Beginnings of the file names of an IDX data set's training and test part.
const TRAIN_AND_TEST: [&str; 2] = ["train", "t10k"];

/// One sample's names and label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SampleInfo {
    /// Name within the source: the path below the root with `/` between folders, or the position in an IDX file as six digits.
    pub id: String,
    /// Where it is: the file's path, or the IDX file's path, `#` and the position.
    pub source: String,
    /// Position of the class in [`Source::classes`], if known.
    pub label: Option<u32>,
}

impl SampleInfo {
    /// The key of the sample's random numbers, from the id alone.
    pub fn key(&self) -> u64 {
        random::sample_key(&self.id)
    }
}

/// An opened source: every sample's name and label, and the way to its pixels. Reading needs `&self` only and may happen on any thread.
#[derive(Debug)]
pub struct Source {
    spec: SourceSpec,
    samples: Vec<SampleInfo>,
    classes: Option<Vec<String>>,
    fingerprint: String,
    ignored_links: usize,
    pixels: Pixels,
}

#[derive(Debug)]
enum Pixels {
    /// In the file that the sample's `source` names.
    Files,
    /// In memory.
    Idx(idx::Images),
}

impl Source {
    /// The source that `spec` names. An image folder's tree is listed but no image is read; IDX files are read as a whole.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::NoSource`], [`Error::NoImages`], [`Error::SplitFolders`], [`Error::FileName`] for image folders,
    /// [`Error::Io`], [`Error::Idx`], [`Error::IdxPair`] for IDX files.
    pub fn open(spec: &SourceSpec) -> Result<Self> {
        match spec {
            SourceSpec::ImageFolder { root } => {
                let listing = folder::list(root)?;
                Ok(Self {
                    spec: spec.clone(),
                    samples: listing.samples,
                    classes: listing.classes,
                    fingerprint: listing.fingerprint,
                    ignored_links: listing.links,
                    pixels: Pixels::Files,
                })
            }
            SourceSpec::Idx { images, labels } => {
                let read = |path: &Path| std::fs::read(path).map_err(Error::io(path));
                let pixels = idx::images(&images.display().to_string(), &read(images)?)?;
                let labels = match labels {
                    Some(path) => Some(idx::labels(&path.display().to_string(), &read(path)?)?),
                    None => None,
                };
                Self::of_idx(spec, pixels, labels, None)
            }
            SourceSpec::Embedded { split } => {
                let EmbeddedSample { name, images, labels } = assets::fashion_mnist(*split);
                let names = assets::FASHION_MNIST_CLASSES.map(str::to_owned).to_vec();
                Self::of_idx(spec, idx::images(name, images)?, Some(idx::labels(name, labels)?), Some(names))
            }
        }
    }

    fn of_idx(
        spec: &SourceSpec,
        pixels: idx::Images,
        labels: Option<idx::Labels>,
        names: Option<Vec<String>>,
    ) -> Result<Self> {
        let fingerprint = idx::fingerprint(&pixels, labels.as_ref());
        if let Some(labels) = &labels
            && labels.values.len() != pixels.len()
        {
            let (images, n_images) = (pixels.file.clone(), pixels.len());
            return Err(Error::IdxPair {
                images,
                n_images,
                labels: labels.file.clone(),
                n_labels: labels.values.len(),
            });
        }
        let values = labels.map(|l| l.values);
        let numbered = || {
            let n_classes = values.as_ref()?.iter().max().map_or(0, |&max| u32::from(max) + 1);
            Some((0..n_classes).map(|class| class.to_string()).collect())
        };
        let classes = names.or_else(numbered);
        let samples = (0..pixels.len())
            .map(|i| SampleInfo {
                id: format!("{i:06}"),
                source: format!("{}#{i}", pixels.file),
                label: values.as_ref().map(|values| u32::from(values[i])),
            })
            .collect();
        Ok(Self { spec: spec.clone(), samples, classes, fingerprint, ignored_links: 0, pixels: Pixels::Idx(pixels) })
    }

    /// What was opened.
    pub fn spec(&self) -> &SourceSpec {
        &self.spec
    }

    /// Number of samples, at least 1.
    pub fn len(&self) -> usize {
        self.samples.len()
    }

    /// Always false: a source without samples does not open.
    pub fn is_empty(&self) -> bool {
        self.samples.is_empty()
    }

    /// Names and label of sample `i`.
    ///
    /// # Panics
    /// When `i` is not below [`len`](Self::len).
    pub fn sample(&self, i: usize) -> &SampleInfo {
        &self.samples[i]
    }

    /// Every sample's label, in order.
    pub fn labels(&self) -> Vec<Option<u32>> {
        self.samples.iter().map(|sample| sample.label).collect()
    }

    /// The pixels of sample `i`.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Image`], [`Error::ImageTooLarge`], each naming the file; the sample is then unreadable, the source is not.
    ///
    /// # Panics
    /// When `i` is not below [`len`](Self::len).
    pub fn read(&self, i: usize) -> Result<Image> {
        match &self.pixels {
            Pixels::Files => {
                let name = &self.samples[i].source;
                let bytes = std::fs::read(name).map_err(Error::io(Path::new(name)))?;
                crate::image::decode(&bytes).map_err(|err| err.in_file(name))
            }
            Pixels::Idx(images) => Ok(images.image(i)),
        }
    }

    /// The class names by label; none for unlabelled data.
    pub fn classes(&self) -> Option<&[String]> {
        self.classes.as_deref()
    }

    /// BLAKE3 in hexadecimal over what identifies the data: ids, file sizes and class names of an image folder (not its place, not the
    /// files' content), pixels and labels of IDX files.
    pub fn fingerprint(&self) -> String {
        self.fingerprint.clone()
    }

    /// Symbolic links met in an image folder; they are not followed, what they point to is not part of the source.
    pub fn ignored_links(&self) -> usize {
        self.ignored_links
    }

    /// The same source with its labels counted in `classes`, by name.
    ///
    /// Validation data may lack a class of the training data; its own counting would then shift every later label. Unlabelled data stays so.
    ///
    /// # Errors
    /// [`Error::UnknownClass`] when the source has a class that `classes` does not name.
    pub fn with_classes(mut self, classes: &[String]) -> Result<Self> {
        let Some(own) = self.classes.take() else { return Ok(self) };
        let place: std::collections::HashMap<&str, u32> = classes.iter().map(String::as_str).zip(0..).collect();
        let mut renumbered = Vec::with_capacity(own.len());
        for class in &own {
            renumbered.push(*place.get(class.as_str()).ok_or_else(|| {
                let mut known = classes.iter().take(10).cloned().collect::<Vec<_>>().join(", ");
                if classes.len() > 10 {
                    known.push_str(", …");
                }
                Error::UnknownClass { from: self.place(), class: class.clone(), n_known: classes.len(), known }
            })?);
        }
        for sample in &mut self.samples {
            sample.label = sample.label.map(|label| renumbered[label as usize]);
        }
        self.classes = Some(classes.to_vec());
        Ok(self)
    }

    /// The test part that belongs to this source: `t10k-…` beside `train-…` IDX files, the embedded test images beside the embedded training
    /// images; `None` for everything else.
    ///
    /// # Errors
    /// As [`Source::open`], when the test part is there and cannot be opened.
    pub fn test_split(&self) -> Result<Option<Self>> {
        let spec = match &self.spec {
            SourceSpec::Idx { images, .. } => match idx::companion(images, TRAIN_AND_TEST) {
                Some(images) => SourceSpec::idx(images),
                None => return Ok(None),
            },
            SourceSpec::Embedded { split: EmbeddedSplit::Train } => SourceSpec::Embedded { split: EmbeddedSplit::Test },
            _ => return Ok(None),
        };
        Self::open(&spec).map(Some)
    }

    /// The source's place in words.
    fn place(&self) -> String {
        match &self.spec {
            SourceSpec::ImageFolder { root } => root.display().to_string(),
            SourceSpec::Idx { images, .. } => images.display().to_string(),
            SourceSpec::Embedded { .. } => "embedded".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests;
