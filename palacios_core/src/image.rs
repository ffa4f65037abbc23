// SPDX-License-Identifier: MIT OR Apache-2.0
//! guest.img: one file that holds a whole guest. [`container`] says how the file is laid out, [`machine`] what its description of the
//! machine may hold.
#![forbid(unsafe_code)]

pub mod container;
pub mod disk;
mod error;
pub mod fdt;
pub mod machine;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
#[cfg(any(test, feature = "image-writer"))]
pub mod write;

pub use container::{Image, MAGIC, MAX_BLOBS, MAX_TREE_BYTES, VERSION};
pub use error::{ImageError, Name, Part};
pub use machine::{BootKind, Machine, Module, OnTripleFault, Serial};
