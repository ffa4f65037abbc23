// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a device is given when it is made, and keeps: its ways into the rest of the machine. When the device goes, they go
//! with it.
#![forbid(unsafe_code)]

use crate::alloc_ext::NoMemory;
use crate::interfaces::{Clock, GuestMemory, InterruptLines, MemoryControl, PowerSink};
use alloc::boxed::Box;

/// Makes the links of a device.
pub trait Links {
    /// The VM's clock.
    fn clock(&self) -> Result<Box<dyn Clock>, NoMemory>;
    /// All interrupt lines, for a device that chooses among them while it runs. Most want a [`Line`].
    fn interrupt_lines(&self) -> Result<Box<dyn InterruptLines>, NoMemory>;
    /// Power-off, reset and test exit.
    fn power(&self) -> Result<Box<dyn PowerSink>, NoMemory>;
    /// The guest's memory.
    fn memory(&self) -> Result<Box<dyn GuestMemory>, NoMemory>;
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
}

/// One source of an interrupt line. The line is high as long as any of its sources holds it high; a source that goes away lets
/// go of it.
pub struct Line {
    lines: Box<dyn InterruptLines>,
    number: u32,
    high: bool,
}

impl Line {
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
