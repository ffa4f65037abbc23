// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a device is given when it is made, and keeps: its ways into the rest of the machine. When the device goes, they go
//! with it.
#![forbid(unsafe_code)]

use crate::addr::{Gpa, NotRam};
use crate::alloc_ext::NoMemory;
use crate::interfaces::{
    Clock, DmaMemory, GuestMemory, InterruptLines, MemoryControl, MsiSender, PinError,
    PinnedMemory, PowerSink, RandomSource,
};
use alloc::boxed::Box;

/// Makes the links of a device.
pub trait Links {
    /// The VM's clock.
    fn clock(&self) -> Result<Box<dyn Clock>, NoMemory>;
    /// All interrupt lines, for a device that chooses among them while it runs. Most want a [`Line`].
    fn interrupt_lines(&self) -> Result<Box<dyn InterruptLines>, NoMemory>;
    /// Power-off, reset and test exit.
    fn power(&self) -> Result<Box<dyn PowerSink>, NoMemory>;
    /// Message-signalled interrupts.
    fn msi(&self) -> Result<Box<dyn MsiSender>, NoMemory>;
    /// The guest's memory for transfers of the device's own. Most want a [`Dma`].
    fn dma_memory(&self) -> Result<Box<dyn DmaMemory>, NoMemory>;
    /// The guest's memory.
    fn memory(&self) -> Result<Box<dyn GuestMemory>, NoMemory>;
    /// Random numbers of the host's.
    fn random(&self) -> Result<Box<dyn RandomSource>, NoMemory>;
    /// What is where in the guest's memory.
    fn memory_control(&self) -> Result<Box<dyn MemoryControl>, NoMemory>;

    /// An end of the interrupt line with this number, see [`InterruptLines::raise`].
    fn line(&self, number: u32) -> Result<Line, NoMemory> {
        Ok(Line {
            lines: self.interrupt_lines()?,
            number,
            high: false,
        })
    }
    /// A device's own way to guest memory, see [`Dma`]. It is closed.
    fn dma(&self) -> Result<Dma, NoMemory> {
        Ok(Dma {
            memory: self.dma_memory()?,
            open: false,
        })
    }
}

/// A device's own way to guest memory. The guest opens it when it lets the device master the bus.
pub struct Dma {
    memory: Box<dyn DmaMemory>,
    open: bool,
}

/// Why a transfer was not made, or not wholly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DmaError {
    /// The device may not master the bus.
    Closed,
    /// There is no memory.
    NotRam(NotRam),
    /// It cannot be pinned.
    NotPinned(PinError),
}

impl Dma {
    /// Whether the device may transfer.
    pub fn set_open(&mut self, open: bool) {
        self.open = open;
    }

    /// Whether it may.
    pub fn is_open(&self) -> bool {
        self.open
    }

    fn memory(&self) -> Result<&dyn DmaMemory, DmaError> {
        let memory = self.memory.as_ref();
        self.open.then_some(memory).ok_or(DmaError::Closed)
    }

    /// Copies out of guest memory. On an error nothing of `buf` may be used.
    pub fn read(&self, at: Gpa, buf: &mut [u8]) -> Result<(), DmaError> {
        self.memory()?.read(at, buf).map_err(DmaError::NotRam)
    }
    /// Copies into guest memory. On an error the first bytes may have been written.
    pub fn write(&self, at: Gpa, data: &[u8]) -> Result<(), DmaError> {
        self.memory()?.write(at, data).map_err(DmaError::NotRam)
    }
    /// Keeps memory where it is while somebody else transfers, see [`DmaMemory::pin`]. Whoever closes the way lets go of it.
    pub fn pin(&self, at: Gpa, bytes: u64, write: bool) -> Result<Box<dyn PinnedMemory>, DmaError> {
        let pinned = self.memory()?.pin(at, bytes, write);
        pinned.map_err(DmaError::NotPinned)
    }
}

/// One source of an interrupt line. The line is high as long as any of its sources holds it high; a source that goes away lets
/// go of it.
pub struct Line {
    lines: Box<dyn InterruptLines>,
    number: u32,
    high: bool,
}

impl Line {
    /// Whether it holds the line high.
    pub fn is_high(&self) -> bool {
        self.high
    }

    /// Holds the line high, or lets go of it.
    pub fn set(&mut self, high: bool) {
        if high == self.high {
            return;
        }
        self.high = high;
        if high {
            self.lines.raise(self.number);
        } else {
            self.lines.lower(self.number);
        }
    }
    /// A pulse: an edge for an edge-triggered input.
    pub fn pulse(&mut self) {
        self.set(true);
        self.set(false);
    }
    /// Becomes a source of another line.
    pub fn move_to(&mut self, number: u32) {
        if number != self.number {
            let high = self.high;
            self.set(false);
            self.number = number;
            self.set(high);
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.set(false);
    }
}
