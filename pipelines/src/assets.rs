//! What the program carries: a small trained teacher and 1 % of Fashion-MNIST. Origin and licence are in `assets/README.md`.

use crate::source::EmbeddedSplit;

/// The embedded teacher's weights, a safetensors file in timm's naming.
pub const VIT_NANO_WEIGHTS: &[u8] = include_bytes!("../assets/vit-nano.safetensors");

/// The embedded teacher's `config.json`, in the form of timm's hub.
pub const VIT_NANO_CONFIG: &str = include_str!("../assets/vit-nano.json");

/// Names of Fashion-MNIST's classes, by label.
pub const FASHION_MNIST_CLASSES: [&str; 10] =
    ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"];

/// One part of the embedded Fashion-MNIST sample.
#[derive(Debug, Clone, Copy)]
pub struct EmbeddedSample {
    /// The name that stands for its file.
    pub name: &'static str,
    /// Gzipped IDX file of the images, 28 x 28, grey.
    pub images: &'static [u8],
    /// Gzipped IDX file of the labels.
    pub labels: &'static [u8],
}

/// One part of the embedded Fashion-MNIST sample: 600 training or 2,000 test images, the same number of each class.
pub fn fashion_mnist(split: EmbeddedSplit) -> EmbeddedSample {
    match split {
        EmbeddedSplit::Train => EmbeddedSample {
            name: "fashion-mnist-1pct-train",
            images: include_bytes!("../assets/fashion-mnist-1pct-train-images-idx3-ubyte.gz"),
            labels: include_bytes!("../assets/fashion-mnist-1pct-train-labels-idx1-ubyte.gz"),
        },
        EmbeddedSplit::Test => EmbeddedSample {
            name: "fashion-mnist-1pct-test",
            images: include_bytes!("../assets/fashion-mnist-1pct-test-images-idx3-ubyte.gz"),
            labels: include_bytes!("../assets/fashion-mnist-1pct-test-labels-idx1-ubyte.gz"),
        },
    }
}
