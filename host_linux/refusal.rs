// SPDX-License-Identifier: GPL-2.0
//! Why there is no new VM: what `V3_CREATE` answers, as a number and in words.

use crate::error;
use core::fmt;
use kernel::prelude::*;
use palacios_core::host::NoMemory;
use palacios_core::vm::{CreateError, VmName};

/// Why there is no new VM.
pub(crate) enum Refusal {
    /// Flags or padding.
    NotZero,
    BadName,
    /// The image is longer than this.
    TooLong {
        max_bytes: u64,
    },
    NameTaken(VmName),
    /// There are so many VMs.
    Full(usize),
    /// By the host.
    Host(Error),
    /// By the core.
    Core(CreateError),
}

impl From<NoMemory> for Refusal {
    fn from(_: NoMemory) -> Self {
        Self::Host(ENOMEM)
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self::Host(error)
    }
}

impl Refusal {
    /// What the call answers.
    pub(crate) fn error(&self) -> Error {
        match self {
            Self::NotZero | Self::BadName => EINVAL,
            Self::TooLong { .. } => E2BIG,
            Self::NameTaken(_) => EEXIST,
            Self::Full(_) => ENOSPC,
            Self::Host(error) => *error,
            Self::Core(why) => error::of_create(why),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotZero => f.write_str("flags and padding must be zero"),
            Self::BadName => {
                f.write_str("a name is 1 to 63 of A-Z a-z 0-9 . _ - and not digits alone")
            }
            Self::TooLong { max_bytes } => {
                write!(f, "the image is longer than {} MiB", max_bytes >> 20)
            }
            Self::NameTaken(name) => write!(f, "a VM with the name {} exists", name.as_str()),
            Self::Full(vms) => write!(f, "there are {vms} VMs already: free one"),
            Self::Host(ENOMEM) => f.write_str("the host has no memory for this VM"),
            Self::Host(EFAULT) => f.write_str("a pointer does not lead to memory of the caller"),
            Self::Host(error) => {
                let number = error.to_errno().unsigned_abs();
                write!(f, "the host answered error {number}")
            }
            Self::Core(why) => why.fmt(f),
        }
    }
}
