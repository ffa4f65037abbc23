// SPDX-License-Identifier: MIT OR Apache-2.0
//! The links from devices to the board of their VM, and from the bus to the interrupt controllers on it.
#![forbid(unsafe_code)]

use super::board::Board;
use crate::addr::{Gpa, NotRam};
use crate::alloc_ext::{try_box, NoMemory};
use crate::devices::links::Links;
use crate::devices::{IoRegion, WindowDevice};
use crate::host::Host;
use crate::interfaces::{
    Clock, GuestMemory, InterruptLines, LogError, MemoryControl, PowerRequest, PowerSink,
};
use crate::interrupts::chipset;
use crate::regions::{Change, RegionError};
use alloc::boxed::Box;

/// A reference to the board, which a device holds as one or another of its links.
pub(super) struct BoardLink<H: Host>(pub(super) H::Shared<Board<H>>);

impl<H: Host> BoardLink<H> {
    fn boxed(&self) -> Result<Box<Self>, NoMemory> {
        try_box(Self(self.0.clone()))
    }
}

impl<H: Host> Links for BoardLink<H> {
    fn clock(&self) -> Result<Box<dyn Clock>, NoMemory> {
        Ok(self.boxed()?)
    }
    fn interrupt_lines(&self) -> Result<Box<dyn InterruptLines>, NoMemory> {
        Ok(self.boxed()?)
    }
    fn power(&self) -> Result<Box<dyn PowerSink>, NoMemory> {
        Ok(self.boxed()?)
    }
    fn memory(&self) -> Result<Box<dyn GuestMemory>, NoMemory> {
        Ok(self.boxed()?)
    }
    fn memory_control(&self) -> Result<Box<dyn MemoryControl>, NoMemory> {
        Ok(self.boxed()?)
    }
}

/// The interrupt controllers, on the bus.
pub(super) struct ControllerPorts<H: Host>(pub(super) H::Shared<Board<H>>);

impl<H: Host> WindowDevice for ControllerPorts<H> {
    fn name(&self) -> &'static str {
        "interrupt controllers"
    }
    fn regions(&self) -> &[IoRegion] {
        &chipset::REGIONS
    }
    fn read(&self, region: usize, offset: u64, size: u8) -> u64 {
        self.0
            .with_chipset(|chipset, sink| chipset.read(region, offset, size, sink))
    }
    fn write(&self, region: usize, offset: u64, size: u8, value: u64) {
        self.0
            .with_chipset(|chipset, sink| chipset.write(region, offset, size, value, sink));
    }
}

impl<H: Host> Clock for BoardLink<H> {
    fn now_ns(&self) -> u64 {
        self.0.clock().now_ns()
    }
    fn wall_ns(&self) -> u64 {
        self.0.clock().wall_ns()
    }
}

impl<H: Host> InterruptLines for BoardLink<H> {
    fn raise(&self, number: u32) {
        self.0.raise(number);
    }
    fn lower(&self, number: u32) {
        self.0.lower(number);
    }
    fn set_legacy_replacement(&self, on: bool) {
        self.0.set_legacy_replacement(on);
    }
}

impl<H: Host> PowerSink for BoardLink<H> {
    fn request(&self, what: PowerRequest) {
        self.0.power.request(what);
    }
}

impl<H: Host> GuestMemory for BoardLink<H> {
    fn read(&self, at: Gpa, buf: &mut [u8]) -> Result<(), NotRam> {
        self.0.memory().read(at, buf)
    }
    fn write(&self, at: Gpa, data: &[u8]) -> Result<(), NotRam> {
        self.0.memory().write(at, data)
    }
}

impl<H: Host> MemoryControl for BoardLink<H> {
    fn forget(&self, at: Gpa) {
        self.0.forget(at);
    }
    fn change(&self, changes: &[Change]) -> Result<(), RegionError> {
        self.0.change(changes)
    }
    fn discard(&self, at: Gpa, bytes: u64) -> u64 {
        self.0.discard(at, bytes)
    }
    fn begin_log(&self) -> Result<(), LogError> {
        self.0.begin_log()
    }
    fn take_dirty(&self, first: u64, words: &mut [u64]) {
        self.0.take_dirty(first, words);
    }
    fn end_log(&self) {
        self.0.end_log();
    }
}
