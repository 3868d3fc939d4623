//! The one error type of this crate.

use std::path::{Path, PathBuf};

/// A result whose error is this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can be wrong with data, names and numbers read from disk or typed by a person.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder could not be read.
    #[error("{path}: cannot read: {source}", path = path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// Bytes that are no image this crate reads, or a damaged one.
    #[error("{file}: not a readable image: {reason}; JPEG, PNG and WebP are read, replace or remove the file")]
    Image {
        /// The file, or `image in memory`.
        file: String,
        /// What the decoder found.
        reason: String,
    },
    /// An image with more pixels than are decoded.
    #[error("{file}: {width} x {height} pixels, at most {max_pixels} are decoded; scale the image down or remove it")]
    ImageTooLarge {
        /// The file, or `image in memory`.
        file: String,
        /// Pixels across.
        width: u32,
        /// Pixels down.
        height: u32,
        /// The limit on `width * height`.
        max_pixels: u64,
    },
    /// A data path that is neither an image folder nor an IDX file.
    #[error(
        "{path}: {found}; expected a folder with one subfolder of images per class, a folder with train-images-idx3-ubyte(.gz), \
         an IDX file of images, or the word `embedded`", path = path.display()
    )]
    NoSource {
        /// The path as given.
        path: PathBuf,
        /// What is there.
        found: &'static str,
    },
    /// An image folder, or one class of it, without images.
    #[error("{path}: no images in this {what} ({links} symbolic links were not followed); expected files named {expected}, put some there or remove the folder", path = path.display())]
    NoImages {
        /// The folder.
        path: PathBuf,
        /// `folder` or `class folder`.
        what: &'static str,
        /// Symbolic links met in it, which are not followed.
        links: usize,
        /// The endings that are read.
        expected: &'static str,
    },
    /// A folder that holds splits, not classes.
    #[error("{path}: holds the folders `{train}` and `{val}`, which look like splits and not like classes; give {path}/{train} as the data and {path}/{val} as the validation data", path = path.display())]
    SplitFolders {
        /// The folder.
        path: PathBuf,
        /// The training split's folder name.
        train: String,
        /// The other split's folder name.
        val: String,
    },
    /// A file name that is not UTF-8 and so cannot be stored in a catalog.
    #[error("{path}: the file name is not UTF-8; rename the file", path = path.display())]
    FileName {
        /// The file.
        path: PathBuf,
    },
    /// An IDX file with a wrong header or length.
    #[error("{file}: {place}: expected {expected}, found {found}; fetch the file again")]
    Idx {
        /// The file.
        file: String,
        /// Where in the file.
        place: &'static str,
        /// What belongs there.
        expected: String,
        /// What is there.
        found: String,
    },
    /// IDX images and labels of different number.
    #[error("{labels}: {n_labels} labels, but {images} holds {n_images} images; give the files that belong together")]
    IdxPair {
        /// The file of images.
        images: String,
        /// Images in it.
        n_images: usize,
        /// The file of labels.
        labels: String,
        /// Labels in it.
        n_labels: usize,
    },
    /// A class of the validation data that the training data does not have.
    #[error(
        "{from}: class `{class}` is not among the {n_known} classes of the training data ({known}); name the class folders alike in both"
    )]
    UnknownClass {
        /// The source with the extra class.
        from: String,
        /// The class.
        class: String,
        /// How many classes are known.
        n_known: usize,
        /// The first of them.
        known: String,
    },
    /// A number of a view recipe out of range.
    #[error("view recipe: `{field}`: expected {expected}, found {found}; change the flag or the recipe")]
    View {
        /// The field.
        field: &'static str,
        /// Its range.
        expected: String,
        /// Its value.
        found: String,
    },
    /// A fraction of the data out of range.
    #[error("fraction: expected a number above 0 and at most 1, found {found}; 0.01 takes one percent")]
    Fraction {
        /// The value.
        found: f64,
    },
    /// A teacher, student or architecture name that is not known.
    #[error("{what} `{name}` is not known; did you mean `{nearest}`? Known: {known}")]
    UnknownName {
        /// What the name stands for.
        what: &'static str,
        /// The name as typed or read.
        name: String,
        /// The known name closest to it.
        nearest: String,
        /// All known names.
        known: String,
    },
    /// JSON that does not parse.
    #[error("{file}: not the expected JSON: {source}; {hint}")]
    Json {
        /// The file.
        file: String,
        /// What the parser found, with line and column.
        source: serde_json::Error,
        /// What to do next.
        hint: &'static str,
    },
    /// A number of a teacher's configuration missing or out of range.
    #[error(
        "{file}: `{field}`: expected {expected}, found {found}; correct the configuration or choose another teacher"
    )]
    Teacher {
        /// The file, or `teacher` for numbers made in memory.
        file: String,
        /// The field, with dots for nesting.
        field: String,
        /// What belongs there.
        expected: String,
        /// What is there.
        found: String,
    },
    /// A teacher's option that changes its forward pass and is not implemented.
    #[error(
        "{file}: `{option}` = {value} is not supported, only {supported}; choose a plain ViT or DeiT as the teacher"
    )]
    TeacherOption {
        /// The file.
        file: String,
        /// The option, with dots for nesting.
        option: String,
        /// Its value.
        value: String,
        /// The value that is supported.
        supported: String,
    },
    /// A teacher's tensor missing or of another shape than the configuration says.
    #[error(
        "teacher weights: tensor `{tensor}`: expected {expected}, found {found}; give the weights and the config.json that belong together"
    )]
    TeacherTensor {
        /// The tensor's name.
        tensor: String,
        /// The shape that the configuration asks for.
        expected: String,
        /// What the weights hold.
        found: String,
    },
    /// A tensor that a plain ViT does not have, so that its forward pass is another one.
    #[error(
        "teacher weights: tensor `{tensor}` belongs to {option}, which is not supported; choose a plain ViT or DeiT as the teacher"
    )]
    UnsupportedTensor {
        /// The tensor's name.
        tensor: String,
        /// The option it belongs to.
        option: &'static str,
    },
    /// A number of a student's configuration out of range.
    #[error("student: `{field}`: expected {expected}, found {found}; change the flag of that name")]
    Student {
        /// The field.
        field: &'static str,
        /// Its range.
        expected: String,
        /// Its value.
        found: String,
    },
    /// A setting of a recipe that cannot be.
    #[error("{setting} {detail}")]
    Recipe {
        /// The flag.
        setting: String,
        /// What is wrong and what would be right.
        detail: String,
    },
    /// A manifest without the keys of a vision cache.
    #[error("the manifest does not describe a vision cache: {source}; extract it with this version")]
    Description {
        /// What the parser found.
        source: serde_json::Error,
    },
    /// A layer list that does not fit student and teacher.
    #[error("{what} `{text}`: expected {expected}, found {found}; layers are counted from 0 and separated by commas")]
    Layers {
        /// `layer map` or `captured layers`.
        what: &'static str,
        /// The list as typed.
        text: String,
        /// What would fit.
        expected: String,
        /// What does not.
        found: String,
    },
}

impl Error {
    /// An [`Error::Io`] at `path`.
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        |source| Self::Io { path: path.to_owned(), source }
    }

    /// The same error with `name` as its file, when it is about an image in memory.
    pub(crate) fn in_file(mut self, name: &str) -> Self {
        if let Self::Image { file, .. } | Self::ImageTooLarge { file, .. } = &mut self {
            name.clone_into(file);
        }
        self
    }
}
