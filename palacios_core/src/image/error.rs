// SPDX-License-Identifier: MIT OR Apache-2.0
//! Why an image was refused, in words that say what to do.

use crate::file_kind::FileKind;
use core::fmt;

/// A name out of an image, cut to what fits, for messages.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Name {
    bytes: [u8; Self::MAX],
    len: u8,
}

impl Name {
    const MAX: usize = 39;
}

impl From<&str> for Name {
    fn from(name: &str) -> Self {
        let mut bytes = [0; Self::MAX];
        let mut len = 0u8;
        for (to, from) in bytes.iter_mut().zip(name.bytes()) {
            *to = from;
            len = len.saturating_add(1);
        }
        Self { bytes, len }
    }
}

impl fmt::Display for Name {
    /// Prints what is not plain ASCII escaped: a hostile name must not steer a terminal.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.bytes.get(..self.len.into()).unwrap_or(&[]);
        write!(f, "`{}`", name.escape_ascii())
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A part of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The header with its blob table.
    Header,
    /// The machine's description.
    Description,
    /// The blob of this number.
    Blob(u32),
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header => f.write_str("the header"),
            Self::Description => f.write_str("the machine's description"),
            Self::Blob(index) => write!(f, "blob {index}"),
        }
    }
}

/// Why an image was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageError {
    /// The file ends too early.
    Truncated {
        /// Bytes that it should have at least.
        need: u64,
        /// Bytes that it has.
        have: u64,
    },
    /// The file is something else.
    NotAnImage {
        /// A guess at what it is.
        looks_like: &'static str,
    },
    /// The format is newer than this VMM.
    NewerVersion {
        /// The version in the file.
        found: u32,
        /// The newest version that this VMM reads.
        known: u32,
    },
    /// The header contradicts itself; says how.
    BadHeader(&'static str),
    /// A part was damaged.
    BadChecksum(Part),
    /// A part lies outside of the file or over the one before it.
    Overlap(Part),
    /// Something exceeds what this VMM takes.
    TooBig {
        /// What.
        what: &'static str,
        /// Its size or number.
        found: u32,
        /// The largest that is taken.
        limit: u32,
    },
    /// The description is no device tree, or not one of a machine.
    BadTree {
        /// The node.
        node: Name,
        /// What is wrong there.
        why: &'static str,
    },
    /// A property of the description has a wrong value.
    BadProperty {
        /// The node.
        node: Name,
        /// The property.
        property: Name,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The image asks for a feature that this VMM does not have.
    UnknownFeature(Name),
    /// The image takes a feature of the processor away that this VMM does not know, or that no guest can be without.
    UnknownCpuFeature(Name),
    /// The machine has a device that this VMM does not have: the node, and its `compatible`.
    UnknownDevice {
        /// The node.
        node: Name,
        /// What it is.
        compatible: Name,
    },
    /// The description names a blob that is not there.
    NoSuchBlob {
        /// The number asked for.
        index: u32,
        /// How many blobs there are.
        count: u32,
    },
    /// The machine has too little memory to be one.
    TooLittleMemory {
        /// Bytes it has.
        bytes: u64,
        /// Bytes it needs.
        least: u64,
    },
    /// The machine has more memory than this VMM can address.
    TooMuchMemory {
        /// Bytes it has.
        bytes: u64,
        /// The most it can have.
        most: u64,
    },
    /// The machine has a number of processors that this VMM does not run.
    BadCpuCount {
        /// Processors it has.
        found: u32,
        /// The most it can have.
        most: u32,
    },
    /// There is no kernel.
    NoKernel,
}

impl fmt::Display for ImageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated { need, have } => write!(f, "the image is cut off: it has {have} bytes and needs {need}; copy or build it again"),
            Self::NotAnImage { looks_like } => write!(f, "not a guest.img: {looks_like}"),
            Self::NewerVersion { found, known } => write!(f, "the image has format version {found}, this VMM reads up to {known}; load a newer VMM or build the image with this one's `v3`"),
            Self::BadHeader(why) => write!(f, "the image's header is wrong: {why}; build it again"),
            Self::BadChecksum(part) => write!(f, "the image is damaged: {part} does not match its checksum; copy or build it again"),
            Self::Overlap(part) => write!(f, "the image's header is wrong: {part} lies outside of the file or over another part; build it again"),
            Self::TooBig { what, found, limit } => write!(f, "the image is too big: {what} is {found}, this VMM takes up to {limit}"),
            Self::BadTree { node, why } => write!(f, "the machine's description is wrong at {node}: {why}"),
            Self::BadProperty { node, property, why } => write!(f, "the machine's description is wrong at {node}: its property {property} {why}"),
            Self::UnknownFeature(feature) => write!(f, "the image requires {feature}, which this VMM does not have; load a newer VMM"),
            Self::UnknownCpuFeature(feature) => write!(f, "the processors shall be without {feature}, which is no feature that this VMM could take away; `v3 info --cpuid` lists them"),
            Self::UnknownDevice { node, compatible } => write!(f, "the machine has a device {node} of kind {compatible}, which this VMM does not have; remove it or load a newer VMM"),
            Self::NoSuchBlob { index, count } => write!(f, "the machine's description names blob {index}, but the image has {count}; build it again"),
            Self::TooLittleMemory { bytes, least } => write!(f, "the machine has {bytes} bytes of memory; give it {} MiB or more", least >> 20),
            Self::TooMuchMemory { bytes, most } => write!(f, "the machine has {} MiB of memory; this VMM gives at most {} MiB", bytes >> 20, most >> 20),
            Self::BadCpuCount { found, most } => write!(f, "the machine has {found} processors; this VMM runs 1 to {most}"),
            Self::NoKernel => f.write_str("the image has no kernel; add one and build it again"),
        }
    }
}

impl core::error::Error for ImageError {}

/// The words for a file that is no guest.img, with what to do about it.
pub(super) fn looks_like(kind: FileKind) -> &'static str {
    match kind {
        FileKind::Empty => "it is empty",
        FileKind::PalaciosImage => {
            "it is an image of the C Palacios, which is not read: build a new one with `v3 build`"
        }
        FileKind::Elf | FileKind::Linux => {
            "a kernel: wrap it by `v3 build`, or start it by `v3 run --kernel`"
        }
        FileKind::Compressed => "it is compressed: unpack it first",
        FileKind::DeviceTree => "it is a bare device tree",
        FileKind::Text => "it seems to be text: make an image of it by `v3 build`",
        FileKind::OtherLinux | FileKind::Cpio | FileKind::DosProgram | FileKind::Unknown => {
            "its first bytes are not those of a guest.img"
        }
    }
}
