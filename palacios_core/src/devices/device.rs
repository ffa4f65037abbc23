// SPDX-License-Identifier: MIT OR Apache-2.0
//! The contract of a device.
//!
//! A device is plain state behind `&mut self`; the bus that owns it holds the lock. It says in which regions of ports or memory it
//! answers, and sees an access as the number of a region and an offset in it. What it needs of the machine it is given when it is
//! made, and keeps: see [`links`](super::links). A device never names the VMM or the host.
#![forbid(unsafe_code)]

pub use super::region::{IoAddress, IoRegion, Space};

use crate::alloc_ext::NoMemory;
use crate::block::{BlockError, BlockInfo};
use crate::interfaces::Wakers;
use crate::regions::{Change, RegionError};
use crate::state_io::{StateError, StateReader, StateWriter};
use alloc::vec::Vec;

/// The far end of a byte-wise device (a serial port, a debug port). Made by the host; never blocks.
pub trait ByteStream: Send {
    /// Takes output. When the buffer is full, the host drops its oldest bytes: a guest's port never stalls.
    fn write(&mut self, data: &[u8]);
    /// Gives waiting input; returns how many bytes of `buf` were filled.
    fn read(&mut self, buf: &mut [u8]) -> usize;
}

/// The most letters of a counter's name. With a device's name before it, it is the name of a counter of the VM.
pub const MAX_COUNTER_NAME: usize = 11;

/// A stream to nowhere.
pub struct Nowhere;

impl ByteStream for Nowhere {
    fn write(&mut self, _data: &[u8]) {}
    fn read(&mut self, _buf: &mut [u8]) -> usize {
        0
    }
}

/// A device on the machine's buses.
pub trait Device: Send {
    /// A short name of its kind, like `uart` or `pit`.
    fn name(&self) -> &'static str;
    /// Whether it may be taken away while the machine lives. What every PC has may not.
    fn is_removable(&self) -> bool {
        false
    }
    /// Back to the state after power-on, its interrupt lines too.
    fn reset(&mut self);
    /// Writes all state a guest can observe. The format is the device's own, with its version first.
    fn save(&self, to: &mut StateWriter<'_>) -> Result<(), StateError>;
    /// Takes back what [`Device::save`] wrote, and drives its lines by it; any byte sequence either is restored or refused.
    fn restore(&mut self, from: &mut StateReader<'_>) -> Result<(), StateError>;

    /// Where it answers. A region's number is its place in this list, which keeps its length. One may be switched off, or move:
    /// then it asks for [`Request::Regions`].
    fn regions(&self) -> &[IoRegion];
    /// A read of `size` bytes at `offset` in a region: 1, 2 or 4 bytes of ports, 1, 2, 4 or 8 of memory. Only that many low bytes
    /// of the answer count. An access to ports may run over the region's end, one to memory does not.
    fn read(&mut self, region: usize, offset: u64, size: u8) -> u64;
    /// A write of the `size` low bytes of `value`.
    fn write(&mut self, region: usize, offset: u64, size: u8, value: u64);
    /// Whether an access there sleeps nowhere, reaches no stream and no memory of the guest's, and asks for no [`Request`]. Then it is made in the
    /// window, if nobody else is at the device just now: that costs a fraction.
    fn answers_in_window(&self, _region: usize, _offset: u64, _write: bool) -> bool {
        false
    }
    /// What is to change in the machine because of a write. Asked after each.
    fn request(&mut self) -> Option<Request> {
        None
    }
    /// Memory was changed as [`Request::Memory`] with that tag had asked for, or was not.
    fn memory_changed(&mut self, _tag: u64, _changed: Result<(), RegionError>) {}

    /// Timed work, if it has any.
    fn timed(&mut self) -> Option<&mut dyn Timed> {
        None
    }
    /// Work of its own, if it has any.
    fn work(&mut self) -> Option<&mut dyn Work> {
        None
    }
    /// Slots, if it is what tells the guest of devices that come and go.
    fn slots(&mut self) -> Option<&mut dyn Slots> {
        None
    }
    /// Input from a stream, if it takes any.
    fn input(&mut self) -> Option<&mut dyn Input> {
        None
    }
    /// The disk, if it is one.
    fn disk(&mut self) -> Option<&mut dyn Disk> {
        None
    }
    /// Calls `tell` with the name and value of each counter. A name has at most [`MAX_COUNTER_NAME`] letters.
    fn counters(&self, _tell: &mut dyn FnMut(&'static str, u64)) {}
}

/// A change of the machine that a device asks for. It is made before the guest goes on, and when nobody holds the device's lock.
#[derive(Debug)]
pub enum Request {
    /// Its regions are others than before.
    Regions,
    /// What is where in the guest's memory: all of this at once, or nothing. [`Device::memory_changed`] says which.
    Memory {
        /// The changes, in their order.
        changes: Vec<Change>,
        /// What the device knows the request by.
        tag: u64,
    },
    /// The devices in those slots of the PCI bus, a bit for each, are gone for the guest: they are taken away.
    Eject(u32),
}

/// A device that never sleeps and takes no lock that does: it is called in the window, with the guest's registers loaded. It is there as
/// long as the machine.
pub trait WindowDevice: Send + Sync {
    /// As [`Device::name`].
    fn name(&self) -> &'static str;
    /// As [`Device::regions`].
    fn regions(&self) -> &[IoRegion];
    /// As [`Device::read`].
    fn read(&self, region: usize, offset: u64, size: u8) -> u64;
    /// As [`Device::write`].
    fn write(&self, region: usize, offset: u64, size: u8, value: u64);
}

/// Work that is due at a time of the VM's clock.
pub trait Timed {
    /// When [`Timed::tick`] is next wanted, on the scale of the VM's clock. Asked after each call into the device.
    fn deadline_ns(&self) -> Option<u64>;
    /// The deadline passed, maybe long ago: does all that is due by now. It also comes with no deadline past when the VM
    /// goes on after a pause, in which the wall clock went on.
    fn tick(&mut self);
}

/// What a step of work leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// There is more to do.
    Again,
    /// Nothing, until it is woken.
    Idle,
}

/// Work off the vCPUs' threads. A device that has some is given a worker when it is attached, a thread that calls this. It is not called while the
/// machine is paused or reset, while the device is saved, or after it was taken away.
pub trait Work {
    /// It has a worker now, which `wakers` wake. Called once, before the first step.
    fn begin(&mut self, _wakers: &dyn Wakers) -> Result<(), NoMemory> {
        Ok(())
    }
    /// Does a short piece of the work: a register access waits for it. `rung` says which of the device's doorbells rang since it was last
    /// asked: a bit for each region, by its number.
    fn step(&mut self, rung: u64) -> Step;
    /// A step in which it is brought to rest: what is under way goes on, and nothing else needs to begin.
    fn finish(&mut self) -> Step {
        self.step(0)
    }
    /// Nothing is under way that goes on between steps.
    fn is_at_rest(&self) -> bool {
        true
    }
}

/// What tells the guest of PCI devices that come and go while it runs.
pub trait Slots {
    /// A device came into a slot.
    fn came(&mut self, slot: u8);
    /// The owner wants the device in a slot: the guest is to eject it.
    fn is_to_go(&mut self, slot: u8);
    /// The device in a slot was taken away.
    fn is_gone(&mut self, slot: u8);
}

/// A device that keeps bytes in a block store.
pub trait Disk {
    /// What its store is like now.
    fn info(&self) -> BlockInfo;
    /// Makes its store so many bytes long. Its work then tells the guest.
    fn resize(&mut self, bytes: u64) -> Result<(), BlockError>;
}

/// A device that takes input from a [`ByteStream`].
pub trait Input {
    /// New input may wait in the stream.
    fn input_ready(&mut self);
}

/// A wide read of registers that are a byte each, as a bus bridge splits it: byte `i` comes from `offset + i`, the first one first.
pub fn read_bytewise(offset: u64, size: u8, mut read: impl FnMut(u64) -> u8) -> u64 {
    let mut bytes = [0; 8];
    for (at, byte) in (0..).zip(bytes.iter_mut()).take(usize::from(size)) {
        *byte = read(offset.wrapping_add(at));
    }
    u64::from_le_bytes(bytes)
}

/// A wide write to registers that are a byte each: byte `i` of `value` goes to `offset + i`, the first one first.
pub fn write_bytewise(offset: u64, size: u8, value: u64, mut write: impl FnMut(u64, u8)) {
    for (at, byte) in (0..).zip(value.to_le_bytes()).take(usize::from(size)) {
        write(offset.wrapping_add(at), byte);
    }
}
