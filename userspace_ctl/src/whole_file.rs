// SPDX-License-Identifier: MIT OR Apache-2.0
//! Writes files that are there as a whole or not at all.

use crate::failure::Failure;
use std::fs::{self, File};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Has `write` write a file, which those may open that `mode` says. If that fails, what was there before is there still.
pub fn write_whole(
    file: &Path,
    mode: u32,
    write: impl FnOnce(&mut File) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let failed = |e: std::io::Error| Failure::file(file, &e);
    let mut part = file.as_os_str().to_owned();
    part.push(".part");
    let part = PathBuf::from(part);
    // One that is left over may be open to others.
    let _ = fs::remove_file(&part);
    let mut options = File::options();
    let options = options.write(true).create_new(true).mode(mode);
    let mut to = options.open(&part).map_err(failed)?;
    let written = write(&mut to)
        .and_then(|()| to.sync_all().map_err(failed))
        .and_then(|()| fs::rename(&part, file).map_err(failed));
    written.inspect_err(|_| {
        // What is left of the part is of no use; the error that matters is the first.
        let _ = fs::remove_file(&part);
    })
}
