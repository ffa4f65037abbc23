// SPDX-License-Identifier: GPL-2.0
//! Why a device was not attached: what `V3_VM_ATTACH` answers, as a number and in words.

use crate::descriptor::FileFault;
use crate::error;
use crate::file_store::DiskFault;
use core::fmt;
use kernel::prelude::*;
use palacios_core::devices::layout::AttachError;
use palacios_core::devices::virtio::blk::MAX_QUEUES;
use palacios_core::host::NoMemory;
use v3_abi as abi;

/// Why a device was not attached.
pub(crate) enum DeviceRefusal {
    /// Flags or padding.
    NotZero,
    BadId,
    /// The options are shorter than their first version, or not as long as they say.
    BadOptions,
    /// They are longer than the module knows, and not zero there.
    MoreOptions,
    /// They are of this version, and the module knows up to that one.
    NewerOptions(u32, u32),
    /// A device of this kind has none.
    NoOptions,
    NoSuchPort(u32),
    TooManyDescriptors(u32),
    NotOpen(i32),
    /// This one has a role or a kind that nobody knows.
    UnknownRole(i32),
    /// Two descriptors for input, or for output.
    RoleTaken(i32),
    File(i32, FileFault),
    Disk(i32, DiskFault),
    TooManyQueues(u32),
    /// By the host.
    Host(Error),
    /// By the core.
    Core(AttachError),
}

impl From<NoMemory> for DeviceRefusal {
    fn from(_: NoMemory) -> Self {
        Self::Host(ENOMEM)
    }
}

impl From<Error> for DeviceRefusal {
    fn from(error: Error) -> Self {
        Self::Host(error)
    }
}

impl DeviceRefusal {
    /// What the call answers.
    pub(crate) fn error(&self) -> Error {
        match self {
            Self::NotZero
            | Self::BadId
            | Self::BadOptions
            | Self::NoOptions
            | Self::NoSuchPort(_)
            | Self::UnknownRole(_)
            | Self::RoleTaken(_)
            | Self::TooManyQueues(_)
            | Self::File(..) => EINVAL,
            Self::Disk(_, DiskFault::InUse) => EBUSY,
            Self::Disk(_, DiskFault::NoMemory) => ENOMEM,
            Self::Disk(..) => EINVAL,
            Self::MoreOptions | Self::TooManyDescriptors(_) => E2BIG,
            Self::NewerOptions(..) => error::beyond_us(),
            Self::NotOpen(_) => EBADF,
            Self::Host(error) => *error,
            Self::Core(why) => error::of_attach(why),
        }
    }
}

impl fmt::Display for DeviceRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotZero => f.write_str("flags and padding must be zero"),
            Self::BadId => f.write_str("an id is 1 to 31 of A-Z a-z 0-9 . _ -"),
            Self::BadOptions => {
                f.write_str("the options are not as long as they say, or as they are at least")
            }
            Self::MoreOptions => {
                f.write_str("the options hold more than this module knows: use a newer one")
            }
            Self::NewerOptions(version, newest) => write!(
                f,
                "the options are of version {version}, this module knows up to {newest}: use a newer one"
            ),
            Self::NoOptions => f.write_str("a device of this kind has no options"),
            Self::NoSuchPort(port) => write!(f, "{port:#x} is no port: they end at 0xffff"),
            Self::TooManyDescriptors(count) => write!(
                f,
                "{count} descriptors are more than {}",
                abi::V3_MAX_DESCRIPTORS
            ),
            Self::NotOpen(fd) => write!(f, "descriptor {fd} is not open"),
            Self::UnknownRole(fd) => write!(
                f,
                "descriptor {fd} has a role or a kind that this module does not know"
            ),
            Self::RoleTaken(fd) => write!(
                f,
                "descriptor {fd} has the role of another one: a stream has one input and one output, a disk one file"
            ),
            Self::File(fd, fault) => write!(f, "descriptor {fd} {}", words(*fault)),
            Self::Disk(fd, fault) => write!(f, "descriptor {fd} {}", fault.words()),
            Self::TooManyQueues(count) => {
                write!(f, "a disk has up to {MAX_QUEUES} queues, not {count}")
            }
            Self::Host(ENOMEM) => f.write_str("the host has no memory for this device"),
            Self::Host(EFAULT) => f.write_str("a pointer does not lead to memory of the caller"),
            Self::Host(ENODEV) => f.write_str("the VM was freed"),
            Self::Host(error) => {
                let number = error.to_errno().unsigned_abs();
                write!(f, "the host answered error {number}")
            }
            Self::Core(why) => why.fmt(f),
        }
    }
}

fn words(fault: FileFault) -> &'static str {
    match fault {
        FileFault::Ours => "is a node of v3vee itself, which no VM may hold",
        FileFault::NoBytes => "is no file, pipe, socket or terminal that carries bytes",
        FileFault::NotReadable => "is for input, but was not opened for reading",
        FileFault::NotWritable => "is for output, but was not opened for writing",
        FileFault::Waits => "may block: open it with O_NONBLOCK",
    }
}
