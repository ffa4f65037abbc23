// SPDX-License-Identifier: MIT OR Apache-2.0
//! Why a VM could not be made, and why a vCPU was not moved.
#![forbid(unsafe_code)]

use crate::boot::BootError;
use crate::devices::layout::AttachError;
use crate::host::{CpuId, NoMemory, NoSuchCpu};
use crate::image::ImageError;
use core::fmt;

/// Why a VM could not be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CreateError {
    /// The host has no memory for it.
    NoMemory,
    /// The image is bad.
    Image(ImageError),
    /// The image is good, but its kernel cannot be started.
    Boot(BootError),
    /// A vCPU is pinned to a CPU that the host does not have, or that is offline.
    NoSuchCpu(CpuId),
    /// A device cannot be attached.
    Attach(AttachError),
}

impl From<AttachError> for CreateError {
    fn from(why: AttachError) -> Self {
        match why {
            AttachError::NoMemory => Self::NoMemory,
            why => Self::Attach(why),
        }
    }
}

impl From<NoMemory> for CreateError {
    fn from(_: NoMemory) -> Self {
        Self::NoMemory
    }
}

impl fmt::Display for CreateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoMemory => {
                f.write_str("the host has no memory for this VM: free some, or give the guest less")
            }
            Self::Image(error) => error.fmt(f),
            Self::Boot(error) => error.fmt(f),
            Self::Attach(error) => error.fmt(f),
            Self::NoSuchCpu(cpu) => write!(
                f,
                "a vCPU is pinned to CPU {}, which this host does not have, or which is offline",
                cpu.0
            ),
        }
    }
}

/// Why a vCPU was not moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MoveError {
    /// The VM has no vCPU of that number.
    NoSuchVcpu,
    /// The host has no such CPU, or it is not online.
    NoSuchCpu(CpuId),
    /// The VM has stopped, or is about to.
    Stopped,
}

impl From<NoSuchCpu> for MoveError {
    fn from(NoSuchCpu(cpu): NoSuchCpu) -> Self {
        Self::NoSuchCpu(cpu)
    }
}
