// SPDX-License-Identifier: MIT OR Apache-2.0
//! The interrupt controllers that all vCPUs share, and how a PC wires them: the PIC pair and the I/O APIC see the same ISA
//! lines, and the PIC pair's output goes to the first vCPU's LINT0.
#![forbid(unsafe_code)]

use super::ioapic::{self, IoApic};
use super::pic::{self, Pic};
use super::MessageSink;
use crate::addr::Gpa;
use crate::state_io::{StateError, StateReader, StateWriter};

/// The length of the I/O APIC's window.
const IOAPIC_BYTES: u64 = 0x1000;
/// ISA lines.
const ISA_LINES: u32 = 16;
/// The timer's line is input 0 of the PIC, and by custom input 2 of the I/O APIC; the MADT says so.
const TIMER_PIN: u8 = 2;

/// The PIC pair and the I/O APIC.
#[derive(Clone, Debug)]
pub struct Chipset {
    pic: Pic,
    ioapic: IoApic,
    /// The PIC pair's output when it was last told.
    told: bool,
}

impl Chipset {
    /// After power-on.
    pub const fn new() -> Self {
        Self {
            pic: Pic::new(),
            ioapic: IoApic::new(),
            told: false,
        }
    }

    /// Whether a port is the PIC pair's.
    pub fn has_port(port: u16) -> bool {
        pic::PORTS.iter().any(|ports| ports.contains(&port))
    }
    /// Whether an address is in the I/O APIC's window.
    pub fn has_address(at: Gpa) -> bool {
        (ioapic::BASE_GPA..ioapic::BASE_GPA + IOAPIC_BYTES).contains(&at.0)
    }

    /// Drives global system interrupt `irq`.
    pub fn set_line(&mut self, irq: u32, level: bool, sink: &dyn MessageSink) {
        if irq < ISA_LINES {
            self.pic.set_line(irq as u8, level);
        }
        if let Some(pin) = pin_of(irq) {
            self.ioapic.set_line(pin, level, sink);
        }
        self.tell_output(sink);
    }

    /// Tells the first vCPU of a rise of the PIC pair's output; call after each access to the pair.
    pub fn tell_output(&mut self, sink: &dyn MessageSink) {
        let output = self.pic.output();
        if output && !self.told {
            sink.pic_output();
        }
        self.told = output;
    }

    /// Whether a line may send what also a processor with interrupts off takes: an NMI or an INIT.
    pub fn sends_events(&self) -> bool {
        self.ioapic.sends_events()
    }
    /// The vectors of global system interrupt `irq`, by the PIC pair and by the I/O APIC.
    pub fn vectors(&self, irq: u32) -> [Option<u8>; 2] {
        let by_pic = u8::try_from(irq).ok().and_then(|irq| self.pic.vector(irq));
        let by_ioapic = pin_of(irq).and_then(|pin| self.ioapic.vector(pin));
        [by_pic, by_ioapic]
    }
    /// The PIC pair has an interrupt.
    pub fn output(&self) -> bool {
        self.pic.output()
    }
    /// The vector that the PIC pair would give now.
    pub fn waiting_vector(&self) -> Option<u8> {
        self.pic.waiting_vector()
    }
    /// The PIC pair keeps an interrupt of line `irq` back, for one that is in service or goes first.
    pub fn pic_holds_back(&self, irq: u32) -> bool {
        u8::try_from(irq).is_ok_and(|irq| self.pic.holds_back(irq))
    }
    /// The PIC pair's vector, whose service begins; `None` if the request has gone.
    pub fn acknowledge(&mut self) -> Option<u8> {
        self.pic.output().then(|| self.pic.acknowledge())
    }

    /// A local APIC's EOI of a level-triggered vector.
    pub fn eoi(&mut self, vector: u8, sink: &dyn MessageSink) {
        self.ioapic.eoi(vector, sink);
    }
    /// A read of one of the PIC pair's ports.
    pub fn port_read(&mut self, port: u16, size: u8) -> u32 {
        self.pic.port_read(port, size)
    }
    /// A write to one of the PIC pair's ports.
    pub fn port_write(&mut self, port: u16, size: u8, value: u32) {
        self.pic.port_write(port, size, value);
    }
    /// A read in the I/O APIC's window.
    pub fn mmio_read(&self, at: Gpa, size: u8) -> u64 {
        self.ioapic
            .mmio_read(at.0.wrapping_sub(ioapic::BASE_GPA), size)
    }
    /// A write in the I/O APIC's window.
    pub fn mmio_write(&mut self, at: Gpa, size: u8, value: u64, sink: &dyn MessageSink) {
        self.ioapic
            .mmio_write(at.0.wrapping_sub(ioapic::BASE_GPA), size, value, sink);
    }

    /// Writes all state.
    pub fn save(&self, to: &mut StateWriter<'_>) -> Result<(), StateError> {
        self.pic.save(to)?;
        self.ioapic.save(to)
    }
    /// Takes back what [`Chipset::save`] wrote.
    pub fn restore(&mut self, from: &mut StateReader<'_>) -> Result<(), StateError> {
        self.pic.restore(from)?;
        self.ioapic.restore(from)?;
        self.told = false;
        Ok(())
    }
}

/// The I/O APIC's input for global system interrupt `irq`.
fn pin_of(irq: u32) -> Option<u8> {
    match irq {
        0 => Some(TIMER_PIN),
        irq => u8::try_from(irq).ok(),
    }
}

impl Default for Chipset {
    fn default() -> Self {
        Self::new()
    }
}
