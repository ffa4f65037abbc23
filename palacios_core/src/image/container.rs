// SPDX-License-Identifier: MIT OR Apache-2.0
//! The container that guest.img is: a header, a description of the machine, and blobs.
//!
//! ```text
//! 0x00  u8[8]  magic            7f 'v' '3' 'v' 'e' 'e' 0d 0a
//! 0x08  u32    version          1
//! 0x0c  u32    header_bytes     of this header with its blob table: 0x30 + 0x18 * blob_count
//! 0x10  u64    total_bytes      of the file; what follows is ignored
//! 0x18  u64    tree_offset      of the machine's description, a multiple of 8
//! 0x20  u32    tree_bytes
//! 0x24  u32    tree_crc
//! 0x28  u32    blob_count
//! 0x2c  u32    header_crc       of header_bytes bytes, with this field taken as zero
//! then for each blob:
//! 0x00  u64    offset           a multiple of 4096
//! 0x08  u64    bytes            may be zero
//! 0x10  u32    crc
//! 0x14  u32    zero
//! ```
//!
//! Numbers are little-endian. Header, tree and blobs follow each other in this order and do not overlap. The tree is a
//! flattened device tree; [`machine`](super::machine) says what it may hold. A blob is a kernel, an initrd or a module.
//!
//! Checksums are CRC-32C. They find damage, not malice: whoever
//! may create a VM may put any guest in it. So nothing here trusts a checked byte more than an unchecked one; no image
//! makes the parser panic, loop or read outside of it.

use super::error::{self, ImageError, Part};
use super::fdt::Tree;
use crate::addr::PAGE_SIZE;
use crate::bytes::{le32, le64, slice};
use crate::checksum::{checksum, checksum_of};
use crate::file_kind::FileKind;

/// The first bytes of a guest.img. The last two are lost in a transfer that takes the file for text.
pub const MAGIC: [u8; 8] = *b"\x7fv3vee\r\n";
/// The version of the format that this VMM reads and writes.
pub const VERSION: u32 = 1;
/// The most blobs that an image may hold.
pub const MAX_BLOBS: u32 = 256;
/// The longest tree that an image may hold. Bounds the work of reading one.
pub const MAX_TREE_BYTES: u32 = 1 << 20;

pub(super) const HEADER_BYTES: u32 = 0x30;
pub(super) const BLOB_ENTRY_BYTES: u32 = 0x18;
pub(super) const HEADER_CRC_AT: usize = 0x2c;

/// An image whose header, checksums and tree were found good.
#[derive(Clone, Copy, Debug)]
pub struct Image<'a> {
    bytes: &'a [u8],
    blob_count: u32,
    tree: Tree<'a>,
}

impl<'a> Image<'a> {
    /// Reads an image, checks all its checksums, and looks through its tree.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ImageError> {
        let image = Self::parse_again(bytes)?;
        for index in 0..image.blob_count {
            let entry = image.entry(index)?;
            if checksum(image.blob(index)?) != entry.crc {
                return Err(ImageError::BadChecksum(Part::Blob(index)));
            }
        }
        Ok(image)
    }

    /// As [`Image::parse`], but without the blobs' checksums: for a machine that starts again from bytes that `parse`
    /// accepted before.
    pub fn parse_again(bytes: &'a [u8]) -> Result<Self, ImageError> {
        let (header, tree) = read_header(bytes)?;
        let image = Image {
            bytes,
            blob_count: header.blob_count,
            tree: Tree::parse(tree)?,
        };
        let mut free_from = header.tree_end();
        for index in 0..image.blob_count {
            let entry = image.entry(index)?;
            if entry.offset % PAGE_SIZE != 0 {
                return Err(ImageError::BadHeader(
                    "a blob does not start on a page boundary",
                ));
            }
            let end = entry.offset.saturating_add(entry.bytes);
            if entry.offset < free_from || end > header.total_bytes {
                return Err(ImageError::Overlap(Part::Blob(index)));
            }
            free_from = end;
        }
        Ok(image)
    }

    /// The machine's description.
    pub fn tree(&self) -> Tree<'a> {
        self.tree
    }

    /// The bytes of one blob.
    pub fn blob(&self, index: u32) -> Result<&'a [u8], ImageError> {
        let entry = self.entry(index)?;
        slice(self.bytes, entry.offset, entry.bytes).ok_or(ImageError::Overlap(Part::Blob(index)))
    }

    fn entry(&self, index: u32) -> Result<BlobEntry, ImageError> {
        if index >= self.blob_count {
            return Err(ImageError::NoSuchBlob {
                index,
                count: self.blob_count,
            });
        }
        let at = u64::from(HEADER_BYTES) + u64::from(BLOB_ENTRY_BYTES) * u64::from(index);
        let raw = slice(self.bytes, at, BLOB_ENTRY_BYTES.into());
        raw.and_then(BlobEntry::read)
            .ok_or(ImageError::BadHeader("the blob table is malformed"))
    }
}

struct Header {
    header_bytes: u32,
    total_bytes: u64,
    tree_offset: u64,
    tree_bytes: u32,
    tree_crc: u32,
    blob_count: u32,
    header_crc: u32,
}

impl Header {
    fn tree_end(&self) -> u64 {
        self.tree_offset.saturating_add(self.tree_bytes.into())
    }
    /// The fields after magic and version.
    fn read(raw: &[u8]) -> Option<Self> {
        Some(Header {
            header_bytes: le32(raw, 0x0c)?,
            total_bytes: le64(raw, 0x10)?,
            tree_offset: le64(raw, 0x18)?,
            tree_bytes: le32(raw, 0x20)?,
            tree_crc: le32(raw, 0x24)?,
            blob_count: le32(raw, 0x28)?,
            header_crc: le32(raw, HEADER_CRC_AT as u64)?,
        })
    }
}

struct BlobEntry {
    offset: u64,
    bytes: u64,
    crc: u32,
}

impl BlobEntry {
    fn read(raw: &[u8]) -> Option<Self> {
        (le32(raw, 0x14)? == 0).then_some(())?;
        Some(BlobEntry {
            offset: le64(raw, 0)?,
            bytes: le64(raw, 8)?,
            crc: le32(raw, 0x10)?,
        })
    }
}

/// The header and the tree's bytes, both checked.
fn read_header(bytes: &[u8]) -> Result<(Header, &[u8]), ImageError> {
    let have = bytes.len() as u64;
    let truncated = |need: u64| ImageError::Truncated { need, have };
    let seen = bytes.get(..MAGIC.len()).unwrap_or(bytes);
    if seen.is_empty() || !MAGIC.starts_with(seen) {
        return Err(ImageError::NotAnImage {
            looks_like: error::looks_like(FileKind::of(bytes)),
        });
    }
    // The version comes first: a newer format may differ in all that follows.
    let found = le32(bytes, 8).ok_or(truncated(HEADER_BYTES.into()))?;
    if found > VERSION {
        return Err(ImageError::NewerVersion {
            found,
            known: VERSION,
        });
    }
    let header = Header::read(bytes).ok_or(truncated(HEADER_BYTES.into()))?;
    within("its number of blobs", header.blob_count, MAX_BLOBS)?;
    within("its description", header.tree_bytes, MAX_TREE_BYTES)?;
    // The count is small, so this does not overflow.
    if found != VERSION
        || header.header_bytes != HEADER_BYTES + BLOB_ENTRY_BYTES * header.blob_count
    {
        return Err(ImageError::BadHeader(
            "its length does not fit its contents",
        ));
    }
    let raw =
        slice(bytes, 0, header.header_bytes.into()).ok_or(truncated(header.header_bytes.into()))?;
    if header_checksum(raw) != header.header_crc {
        return Err(ImageError::BadChecksum(Part::Header));
    }
    if header.total_bytes > have {
        return Err(truncated(header.total_bytes));
    }
    if header.tree_offset < header.header_bytes.into()
        || header.tree_offset % 8 != 0
        || header.tree_end() > header.total_bytes
    {
        return Err(ImageError::Overlap(Part::Description));
    }
    let tree = slice(bytes, header.tree_offset, header.tree_bytes.into())
        .ok_or(ImageError::Overlap(Part::Description))?;
    if checksum(tree) != header.tree_crc {
        return Err(ImageError::BadChecksum(Part::Description));
    }
    Ok((header, tree))
}

pub(super) fn within(what: &'static str, found: u32, limit: u32) -> Result<(), ImageError> {
    if found > limit {
        return Err(ImageError::TooBig { what, found, limit });
    }
    Ok(())
}

/// The checksum of a header, whose own field counts as zero.
pub(super) fn header_checksum(raw: &[u8]) -> u32 {
    let before = raw.get(..HEADER_CRC_AT).unwrap_or(&[]);
    let behind = raw.get(HEADER_CRC_AT + 4..).unwrap_or(&[]);
    checksum_of(&[before, &[0; 4], behind])
}
