// SPDX-License-Identifier: MIT OR Apache-2.0
//! The disks that an image brings along. They are in memory: what the guest writes to one goes with the VM.
#![forbid(unsafe_code)]

use super::container::Image;
use super::error::ImageError;
use super::fdt::{missing, wrong, Node};
use crate::block::SECTOR_BYTES;

/// The largest disk of an image.
pub const MAX_DISK_BYTES: u64 = 1 << 40;

/// A disk of an image.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ImageDisk<'a> {
    /// What is at its beginning; behind that it is zero.
    pub contents: &'a [u8],
    /// How large it is: whole sectors.
    pub bytes: u64,
    /// Its guest may not write.
    pub is_read_only: bool,
}

impl<'a> ImageDisk<'a> {
    /// The disk of a device's node.
    pub(super) fn parse(image: &Image<'a>, node: &Node<'a>) -> Result<Self, ImageError> {
        let contents = match node.u32("v3vee,blob")? {
            Some(index) => image.blob(index)?,
            None => &[],
        };
        let sectors = (contents.len() as u64).div_ceil(SECTOR_BYTES);
        let least = sectors.saturating_mul(SECTOR_BYTES);
        let bytes = match node.u64("v3vee,bytes")? {
            Some(bytes) => bytes,
            None if contents.is_empty() => return Err(missing(node, "v3vee,bytes")),
            None => least,
        };
        if bytes < least {
            return Err(wrong(node, "v3vee,bytes", "is less than its contents need"));
        }
        if bytes == 0 || bytes % SECTOR_BYTES != 0 || bytes > MAX_DISK_BYTES {
            let why = "is not a multiple of 512 from 512 bytes to 1 TiB";
            return Err(wrong(node, "v3vee,bytes", why));
        }
        Ok(Self {
            contents,
            bytes,
            is_read_only: node.property("v3vee,read-only").is_some(),
        })
    }
}
