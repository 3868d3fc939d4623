//! What extraction and training must agree on: where samples come from, how a sample becomes a view, the numbers that describe a teacher
//! and a student, and which teacher layer each student layer learns from.
//!
//! Everything here is data or a pure function of data. This crate must not know tensors, must not start threads and must not compute a
//! forward pass; it never calls a binary of the project.
//!
//! | module | for |
//! |---|---|
//! | [`source`] | image folders, IDX files and the embedded sample: names, labels, a fingerprint, reading one image |
//! | [`image`] | decoding JPEG, PNG and WebP into 8-bit pixels |
//! | [`view`] | one image to the stored pixels of one view: resize, crop, flip, affine |
//! | [`random`] | numbers that depend on (seed, sample, view, purpose) alone |
//! | [`subset`] | class-balanced nested fractions, shuffles |
//! | [`teacher`] | the sizes of a ViT or DeiT, read from timm's `config.json` or from the weights' shapes |
//! | [`student`] | the sizes of a Vision Mamba, with presets |
//! | [`layer_map`] | student layer to teacher layer |
//! | [`recipe`] | everything that decides a result, as plain values, and the plans they become once checked |
//! | [`record`] | which fields a record has |
//! | [`description`] | what a cache's manifest says of teacher, data and views |
//! | [`device`] | the names of devices |
//! | [`memory`] | settings of the C allocator |
//! | [`assets`] | the embedded teacher and the embedded 1 % of Fashion-MNIST |

#![deny(unsafe_code)]

pub mod assets;
pub mod description;
pub mod device;
mod error;
pub mod image;
pub mod layer_map;
pub mod memory;
mod nearest;
pub mod random;
pub mod recipe;
pub mod record;
pub mod source;
pub mod student;
pub mod subset;
pub mod teacher;
pub mod view;

pub use error::{Error, Result};
