// SPDX-License-Identifier: MIT OR Apache-2.0
//! What owners ask of devices beside the guest: another size of a disk, and the counters of all.
#![forbid(unsafe_code)]

use super::Bus;
use crate::block::{BlockError, SECTOR_BYTES};
use crate::devices::device::Disk;
use crate::host::{Host, Lock};
use crate::names::DeviceId;
use core::fmt;

/// The size that a disk is to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewSize {
    /// So many bytes. `None`: what its store has now, which somebody else has made larger or smaller.
    pub bytes: Option<u64>,
    /// It may become smaller; what is behind the new end is lost.
    pub may_shrink: bool,
}

/// Why a disk has no other size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResizeError {
    /// The VM has no device of that name.
    NoSuchDevice,
    /// The device is no disk.
    NoDisk,
    /// The size is not a multiple of the disk's blocks.
    NotWhole {
        /// How large a block is.
        block_bytes: u32,
    },
    /// The disk is larger, and is not to become smaller.
    Shrinks {
        /// How large it is.
        now_bytes: u64,
    },
    /// By its store.
    Store(BlockError),
}

impl fmt::Display for ResizeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSuchDevice => f.write_str("the VM has no such device"),
            Self::NoDisk => f.write_str("this device is no disk"),
            Self::NotWhole { block_bytes } => write!(
                f,
                "a disk has whole blocks: give a multiple of {block_bytes} bytes"
            ),
            Self::Shrinks { now_bytes } => write!(
                f,
                "the disk has {now_bytes} bytes, and would lose some: say that it is to shrink if it is"
            ),
            Self::Store(BlockError::Unsupported) => f.write_str(
                "only a disk that is written to in a file can be given a size; one on a block device has the size of that",
            ),
            Self::Store(why) => write!(f, "of what holds the disk: {why}"),
        }
    }
}

impl<H: Host> Bus<H> {
    /// Gives a disk another size. Its guest is told when its worker runs. Returns how many bytes it has. *Thread.*
    ///
    /// # Errors
    /// Why not; the disk is as it was then.
    pub fn resize(&self, name: &DeviceId, new: NewSize) -> Result<u64, ResizeError> {
        let (number, _) = self.find(name).ok_or(ResizeError::NoSuchDevice)?;
        let slot = self.slot(number).ok_or(ResizeError::NoSuchDevice)?;
        let mut device = slot.device.lock();
        let device = device.as_mut().ok_or(ResizeError::NoSuchDevice)?;
        let disk = device.disk().ok_or(ResizeError::NoDisk)?;
        if let Some(bytes) = new.bytes {
            change(disk, bytes, new.may_shrink)?;
        }
        if let Some(worker) = &*slot.worker.lock() {
            worker.wake();
        }
        Ok(size(disk))
    }

    /// Calls `tell` with each counter of each device: the device, the counter's name and its value. *Thread.*
    pub fn counters(&self, mut tell: impl FnMut(&DeviceId, &'static str, u64)) {
        let attached = self.attached.lock();
        for listed in &attached.devices {
            let Some(slot) = self.slot(listed.slot) else {
                continue;
            };
            if let Some(device) = slot.device.lock().as_ref() {
                device.counters(&mut |counter, value| tell(&listed.name, counter, value));
            }
        }
    }
}

fn size(disk: &dyn Disk) -> u64 {
    disk.info().sectors.saturating_mul(SECTOR_BYTES)
}

fn change(disk: &mut dyn Disk, bytes: u64, may_shrink: bool) -> Result<(), ResizeError> {
    let (now_bytes, block_bytes) = (size(disk), disk.info().block_bytes);
    if bytes & u64::from(block_bytes).saturating_sub(1) != 0 {
        return Err(ResizeError::NotWhole { block_bytes });
    }
    if bytes < now_bytes && !may_shrink {
        return Err(ResizeError::Shrinks { now_bytes });
    }
    disk.resize(bytes).map_err(ResizeError::Store)
}
