// SPDX-License-Identifier: MIT OR Apache-2.0
//! The machine as its parts see it: the narrow traits through which a device, a loader or an interrupt controller reaches the
//! others. Whoever uses one does not know who is behind it, and a test puts a fake of its own there.
#![forbid(unsafe_code)]

use crate::addr::{Gpa, Hpa, NotRam};
use crate::alloc_ext::NoMemory;
use alloc::boxed::Box;
use core::fmt;

/// Time as the guest lives it.
pub trait Clock: Send {
    /// Nanoseconds since the VM first ran; stands still while the VM is paused.
    fn now_ns(&self) -> u64;
    /// Nanoseconds since 1970-01-01 UTC, which a real-time clock needs to say when its second ends.
    fn wall_ns(&self) -> u64;
}

/// The interrupt lines of a machine. Several sources may share one: it is high as long as one of them holds it high.
pub trait InterruptLines: Send {
    /// One more source holds line `number` high. That is a global system interrupt: 0–15 are the ISA lines, which PIC and I/O APIC
    /// both see.
    fn raise(&self, number: u32);
    /// One of the sources that held it high lets go of it.
    fn lower(&self, number: u32);
    /// Legacy replacement: two lines of the HPET's take the place of lines 0 and 8, of which nothing is heard while it is on.
    fn set_legacy_replacement(&self, on: bool);
    /// Wire number `wire` of the PCI bus leads to an interrupt from now on, or to none. Its line is one of [`LINES`](crate::devices::pci::intx::LINES).
    fn route_wire(&self, wire: usize, irq: Option<u8>);
}

/// Guest-physical memory. Shared with a hostile guest: each access is a bounds-checked volatile copy.
pub trait GuestMemory: Send {
    /// Copies out of guest RAM; fails where any byte is not RAM, having copied nothing that may be used.
    fn read(&self, at: Gpa, buf: &mut [u8]) -> Result<(), NotRam>;
    /// Copies into guest RAM; on failure a prefix may have been written.
    fn write(&self, at: Gpa, data: &[u8]) -> Result<(), NotRam>;
}

/// Guest memory for a device that transfers by itself, beside the processors.
pub trait DmaMemory: GuestMemory {
    /// Keeps `bytes` at `at` where they are until that is dropped, for a device that reads them, or writes them. *Thread.*
    fn pin(&self, at: Gpa, bytes: u64, write: bool) -> Result<Box<dyn PinnedMemory>, PinError>;
}

/// Guest memory that stays where it is until this is dropped. What was pinned to be written is dirty then.
pub trait PinnedMemory: Send {
    /// Calls `piece` for each piece in order: where the host has it, and how many bytes.
    fn pieces(&self, piece: &mut dyn FnMut(Hpa, u64));
    /// Copies out of it, from `at` bytes behind its beginning. `false`: it does not reach so far, and nothing was copied. *Any.*
    fn read(&self, at: u64, buf: &mut [u8]) -> bool;
    /// Copies into it. `false`: it does not reach so far, or was not pinned to be written; nothing was copied. *Any.*
    fn write(&self, at: u64, data: &[u8]) -> bool;
}

/// What is called when something may be ready.
pub trait Wake: Send + Sync {
    /// *Any.*
    fn wake(&self);
}

/// Makes what wakes a device's worker.
pub trait Wakers {
    /// One more.
    fn waker(&self) -> Result<Box<dyn Wake>, NoMemory>;
}

/// Random numbers that nobody can foretell.
pub trait RandomSource: Send {
    /// Fills `buf`. `false`: there is nothing to be had now, and nothing of `buf` may be used. It never waits. *Thread.*
    fn fill(&mut self, buf: &mut [u8]) -> bool;
}

/// Why memory cannot be pinned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PinError {
    /// At this address is no memory, or none that takes writes.
    NotMemory(Gpa),
    /// The range crosses from one region to another, or the region changed just now.
    CrossesRegions,
    /// The memory there is pinned as often as can be counted.
    TooMany,
    /// The host has no memory for it.
    NoMemory,
}

impl fmt::Display for PinError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotMemory(at) => write!(f, "no guest memory at {at} that a device can use so"),
            Self::CrossesRegions => {
                f.write_str("the range crosses from one region of guest memory to another")
            }
            Self::TooMany => f.write_str("too many transfers use this guest memory at once"),
            Self::NoMemory => f.write_str("the host has no memory for the guest"),
        }
    }
}

/// A write by a device that is to interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Msi {
    /// Where to.
    pub address: u64,
    /// What.
    pub data: u32,
}

/// Sends message-signalled interrupts.
pub trait MsiSender: Send {
    /// Writes what interrupts. To where no local APIC listens, and with a reserved vector, it is lost as on a PC. *Any.*
    fn send(&self, msi: Msi);
}

/// What processors know of the guest's memory, and what of it the host holds. Each call returns when no processor acts on what was before. All
/// may sleep.
pub trait MemoryControl: Send {
    /// Has all processors forget the page at `at`. The guest finds it as it was when it next touches it.
    fn forget(&self, at: Gpa);
    /// Gives RAM back to the host whose contents the guest does not need: it finds zeroes when it next touches it. Returns how many frames
    /// went.
    fn discard(&self, at: Gpa, bytes: u64) -> u64;
    /// Begins to log which pages of RAM are written.
    fn begin_log(&self) -> Result<(), LogError>;
    /// Takes what was logged since it was last taken: a bit for each page of RAM, from number `first` on, a multiple of 64.
    fn take_dirty(&self, first: u64, words: &mut [u64]);
    /// Ends the log.
    fn end_log(&self);
}

/// Why the log cannot begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogError {
    /// It runs already.
    Running,
    /// The host has no memory for it.
    NoMemory,
}

impl fmt::Display for LogError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Running => "the dirty log of this VM runs already",
            Self::NoMemory => "the host has no memory for the dirty log",
        })
    }
}

impl From<NoMemory> for LogError {
    fn from(_: NoMemory) -> Self {
        Self::NoMemory
    }
}

/// What a guest asks of its power supply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerRequest {
    /// ACPI S5: the VM stops, with success.
    Off,
    /// A reset: the machine starts again from its image.
    Reset,
    /// A write to the test exit port: the VM stops with this status.
    Exit(u32),
}

/// Takes the guest's power requests; they are honoured before the calling vCPU enters the guest again.
pub trait PowerSink: Send {
    /// Posts the request. The first one posted wins.
    fn request(&self, what: PowerRequest);
}
