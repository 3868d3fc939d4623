//! The cache as its users see it: written, sealed, read, damaged, interrupted.

mod common;
mod damage;
mod policy;
mod resume;
mod roundtrip;
mod spec;
