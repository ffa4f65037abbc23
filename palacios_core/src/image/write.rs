// SPDX-License-Identifier: MIT OR Apache-2.0
//! Writes an image: for the tools and the tests, which may allocate.
#![forbid(unsafe_code)]

use super::container::{
    header_checksum, within, BLOB_ENTRY_BYTES, HEADER_BYTES, HEADER_CRC_AT, MAGIC, MAX_BLOBS,
    MAX_TREE_BYTES, VERSION,
};
use super::error::ImageError;
use crate::addr::PAGE_SIZE;
use crate::checksum::checksum;
use alloc::vec::Vec;

/// Where the parts of an image go, and its first bytes.
pub struct Layout {
    /// Header, blob table and tree: the file's beginning.
    pub head: Vec<u8>,
    /// The offset of each blob. What lies between is zero.
    pub blob_offsets: Vec<u64>,
    /// The length of the file.
    pub total_bytes: u64,
}

/// Lays out an image of a tree and of blobs, each given by its length and [`checksum`].
pub fn layout(tree: &[u8], blobs: &[(u64, u32)]) -> Result<Layout, ImageError> {
    let blob_count = small("its number of blobs", blobs.len(), MAX_BLOBS)?;
    let tree_bytes = small("its description", tree.len(), MAX_TREE_BYTES)?;
    let header_bytes = HEADER_BYTES + BLOB_ENTRY_BYTES * blob_count;
    let tree_offset = u64::from(header_bytes).next_multiple_of(8);
    let mut table = Vec::new();
    let mut blob_offsets = Vec::new();
    let mut end = tree_offset + u64::from(tree_bytes);
    for (bytes, crc) in blobs {
        let offset = end.next_multiple_of(PAGE_SIZE);
        blob_offsets.push(offset);
        table.extend(
            [
                offset.to_le_bytes(),
                bytes.to_le_bytes(),
                u64::from(*crc).to_le_bytes(),
            ]
            .concat(),
        );
        end = offset + bytes;
    }
    let mut head = Vec::new();
    head.extend(MAGIC);
    head.extend(VERSION.to_le_bytes());
    head.extend(header_bytes.to_le_bytes());
    head.extend(end.to_le_bytes());
    head.extend(tree_offset.to_le_bytes());
    head.extend(tree_bytes.to_le_bytes());
    head.extend(checksum(tree).to_le_bytes());
    head.extend(blob_count.to_le_bytes());
    head.extend([0; 4]);
    head.extend(table);
    let crc = header_checksum(&head).to_le_bytes();
    for (to, from) in head.iter_mut().skip(HEADER_CRC_AT).zip(crc) {
        *to = from;
    }
    head.resize(tree_offset as usize, 0);
    head.extend(tree);
    Ok(Layout {
        head,
        blob_offsets,
        total_bytes: end,
    })
}

/// A whole image in memory.
pub fn image(tree: &[u8], blobs: &[&[u8]]) -> Result<Vec<u8>, ImageError> {
    let sums: Vec<_> = blobs
        .iter()
        .map(|blob| (blob.len() as u64, checksum(blob)))
        .collect();
    let layout = layout(tree, &sums)?;
    let mut image = layout.head;
    for (offset, blob) in layout.blob_offsets.iter().zip(blobs) {
        image.resize(*offset as usize, 0);
        image.extend_from_slice(blob);
    }
    Ok(image)
}

fn small(what: &'static str, found: usize, limit: u32) -> Result<u32, ImageError> {
    let found = u32::try_from(found).unwrap_or(u32::MAX);
    within(what, found, limit)?;
    Ok(found)
}
