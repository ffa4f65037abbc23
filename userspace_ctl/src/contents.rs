// SPDX-License-Identifier: MIT OR Apache-2.0
//! What goes into an image, from files or from memory, and why there is no image.

use crate::error::plain;
use rustix::io::Errno;
use std::borrow::Cow;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Where the contents of one of a guest's files come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Contents {
    /// From this file, which is read when the image is made.
    File(PathBuf),
    /// From memory.
    Bytes {
        /// Where the bytes came from, for messages.
        origin: String,
        /// The contents.
        bytes: Vec<u8>,
    },
}

impl From<PathBuf> for Contents {
    fn from(file: PathBuf) -> Self {
        Self::File(file)
    }
}

impl fmt::Display for Contents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(file) => file.display().fmt(f),
            Self::Bytes { origin, .. } => f.write_str(origin),
        }
    }
}

impl Contents {
    /// How many bytes have to be read from a file.
    pub(crate) fn bytes_to_read(&self) -> Result<u64, BuildError> {
        match self {
            Self::File(file) => file_bytes(file),
            Self::Bytes { .. } => Ok(0),
        }
    }

    /// The contents; tells `step` of each piece that was read.
    pub(crate) fn get(&self, step: &mut dyn FnMut(u64)) -> Result<Cow<'_, [u8]>, BuildError> {
        match self {
            Self::File(file) => Ok(read(file, step)?.into()),
            Self::Bytes { bytes, .. } => Ok(bytes.into()),
        }
    }
}

/// Reads a whole file, such as an image. `progress` is called with the bytes read so far, and those to read.
pub fn read_file(file: &Path, progress: &mut dyn FnMut(u64, u64)) -> Result<Vec<u8>, BuildError> {
    let total = file_bytes(file)?;
    let mut done = 0;
    read(file, &mut |bytes| {
        done += bytes;
        progress(done, total);
    })
}

fn file_bytes(file: &Path) -> Result<u64, BuildError> {
    let found = std::fs::metadata(file).map_err(|e| BuildError::file(file, &e))?;
    Ok(found.len())
}

/// Reads a whole file; tells `step` of each piece.
fn read(file: &Path, step: &mut dyn FnMut(u64)) -> Result<Vec<u8>, BuildError> {
    const PIECE_BYTES: u64 = 4 << 20;
    let mut data = Vec::new();
    let mut read_all = || {
        let mut from = File::open(file)?;
        loop {
            match from.by_ref().take(PIECE_BYTES).read_to_end(&mut data)? {
                0 => return Ok(()),
                got => step(got as u64),
            }
        }
    };
    read_all().map_err(|e| BuildError::file(file, &e))?;
    Ok(data)
}

/// Why no image was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BuildError {
    /// A file cannot be read.
    File {
        /// Its path.
        file: PathBuf,
        /// Why.
        why: String,
    },
    /// The kernel cannot be started on this machine.
    Kernel {
        /// Its file, or the image that it is in.
        kernel: String,
        /// Why.
        why: String,
    },
    /// The machine cannot be described in an image, or the module would refuse it.
    Image(String),
}

impl BuildError {
    fn file(file: &Path, error: &io::Error) -> Self {
        let why = Errno::from_io_error(error).map_or_else(|| error.to_string(), plain);
        Self::File {
            file: file.into(),
            why,
        }
    }
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { file, why } => write!(f, "{}: {why}", file.display()),
            Self::Kernel { kernel, why } => write!(f, "{kernel}: {why}"),
            Self::Image(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for BuildError {}
