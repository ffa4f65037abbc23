// SPDX-License-Identifier: MIT OR Apache-2.0
//! The links from devices to the board of their VM, and from the bus to the interrupt controllers on it.
#![forbid(unsafe_code)]

use super::board::{Board, WindowBoard};
use crate::addr::{Gpa, Hpa, NotRam};
use crate::alloc_ext::{try_box, NoMemory};
use crate::devices::links::Links;
use crate::devices::{IoRegion, WindowDevice};
use crate::host::Host;
use crate::interfaces::{
    Clock, DmaMemory, GuestMemory, InterruptLines, LogError, MemoryControl, Msi, MsiSender,
    PinError, PinnedMemory, PowerRequest, PowerSink, RandomSource,
};
use crate::interrupts::chipset;
use crate::interrupts::msi;
use crate::interrupts::MessageSink;
use crate::memory::{Memory, Pin};
use alloc::boxed::Box;
use core::ops::Deref;

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
    fn msi(&self) -> Result<Box<dyn MsiSender>, NoMemory> {
        Ok(self.boxed()?)
    }
    fn dma_memory(&self) -> Result<Box<dyn DmaMemory>, NoMemory> {
        Ok(self.boxed()?)
    }
    fn memory(&self) -> Result<Box<dyn GuestMemory>, NoMemory> {
        Ok(self.boxed()?)
    }
    fn random(&self) -> Result<Box<dyn RandomSource>, NoMemory> {
        Ok(self.boxed()?)
    }
    fn memory_control(&self) -> Result<Box<dyn MemoryControl>, NoMemory> {
        Ok(self.boxed()?)
    }
}

/// The interrupt controllers, on the bus.
pub(super) struct ControllerPorts<H: Host>(pub(super) WindowBoard<H::Shared<Board<H>>>);

impl<H: Host> WindowDevice for ControllerPorts<H> {
    fn name(&self) -> &'static str {
        "interrupt-controllers"
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
    fn route_wire(&self, wire: usize, irq: Option<u8>) {
        self.0.route_wire(wire, irq);
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

impl<H: Host> MsiSender for BoardLink<H> {
    fn send(&self, msi: Msi) {
        if let Some(message) = msi::message(msi) {
            self.0.send(None, message);
        }
    }
}

/// Leads to the memory on the board.
struct BoardMemory<H: Host>(H::Shared<Board<H>>);

impl<H: Host> Deref for BoardMemory<H> {
    type Target = Memory<H>;
    fn deref(&self) -> &Memory<H> {
        self.0.memory()
    }
}

impl<H: Host> DmaMemory for BoardLink<H> {
    fn pin(&self, at: Gpa, bytes: u64, write: bool) -> Result<Box<dyn PinnedMemory>, PinError> {
        let memory = BoardMemory::<H>(self.0.clone());
        let pin = Pin::new(memory, at, bytes, write)?;
        let pin = try_box(pin).map_err(|NoMemory| PinError::NoMemory)?;
        Ok(pin)
    }
}

impl<H: Host> PinnedMemory for Pin<H, BoardMemory<H>> {
    fn pieces(&self, piece: &mut dyn FnMut(Hpa, u64)) {
        for (at, bytes) in Pin::pieces(self) {
            piece(at, bytes);
        }
    }
    fn read(&self, at: u64, buf: &mut [u8]) -> bool {
        Pin::read(self, at, buf)
    }
    fn write(&self, at: u64, data: &[u8]) -> bool {
        Pin::write(self, at, data)
    }
}

impl<H: Host> RandomSource for BoardLink<H> {
    fn fill(&mut self, buf: &mut [u8]) -> bool {
        self.0.host().random(buf)
    }
}

impl<H: Host> MemoryControl for BoardLink<H> {
    fn forget(&self, at: Gpa) {
        self.0.forget(at);
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
