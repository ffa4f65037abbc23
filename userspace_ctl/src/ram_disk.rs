// SPDX-License-Identifier: MIT OR Apache-2.0
//! Disks in memory that a guest brings along, and their nodes in an image.

use crate::contents::Contents;
use palacios_core::block::SECTOR_BYTES;
use palacios_core::devices::virtio::blk;
use palacios_core::devices::Machines;
use palacios_core::image::disk::ImageDisk;
use vm_fdt::FdtWriter;

/// A disk that a guest brings along. It is in memory: what is written to it goes with the VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RamDisk {
    /// What is at its beginning; zeroes if there is nothing.
    pub contents: Option<Contents>,
    /// How large it is; as large as its contents by default.
    pub bytes: Option<u64>,
    /// The guest may not write.
    pub is_read_only: bool,
}

impl RamDisk {
    /// The disk of an image, with what is on it.
    pub(crate) fn of_image(disk: &ImageDisk<'_>, contents: Contents) -> Self {
        let has_contents = !disk.contents.is_empty();
        let usual = (disk.contents.len() as u64).next_multiple_of(SECTOR_BYTES);
        Self {
            contents: has_contents.then_some(contents),
            bytes: (!has_contents || disk.bytes != usual).then_some(disk.bytes),
            is_read_only: disk.is_read_only,
        }
    }
}

/// What is on those that have something on them.
pub(crate) fn contents(disks: &[RamDisk]) -> impl Iterator<Item = &Contents> {
    disks.iter().filter_map(|disk| disk.contents.as_ref())
}

/// Writes one node a disk. What is on them is in the blobs from `first_blob` on.
pub(crate) fn write(
    disks: &[RamDisk],
    first_blob: usize,
    fdt: &mut FdtWriter,
) -> vm_fdt::FdtWriterResult<()> {
    let mut blob = first_blob as u32;
    for (number, disk) in disks.iter().enumerate() {
        let device = fdt.begin_node(&format!("disk@{number:x}"))?;
        if let Machines::Described(compatible) = blk::KIND.machines {
            fdt.property_string("compatible", compatible)?;
        }
        if disk.contents.is_some() {
            fdt.property_u32("v3vee,blob", blob)?;
            blob += 1;
        }
        if let Some(bytes) = disk.bytes {
            fdt.property_u64("v3vee,bytes", bytes)?;
        }
        if disk.is_read_only {
            fdt.property_null("v3vee,read-only")?;
        }
        fdt.end_node(device)?;
    }
    Ok(())
}
