// SPDX-License-Identifier: MIT OR Apache-2.0
//! The interrupt controllers that all vCPUs share, and how a PC wires them: the PIC pair and the I/O APIC see the same ISA
//! lines, and the PIC pair's output goes to the first vCPU's LINT0.
#![forbid(unsafe_code)]

use super::ioapic::{self, IoApic};
use super::pic::{self, Pic};
use super::MessageSink;
use crate::addr::Gpa;
use crate::devices::hpet;
use crate::state_io::{StateError, StateReader, StateWriter};

/// The length of the I/O APIC's window.
const IOAPIC_BYTES: u64 = 0x1000;
/// ISA lines.
const ISA_LINES: u32 = 16;
/// The timer's line is input 0 of the PIC, and by custom input 2 of the I/O APIC; the tables of the firmware say so.
pub const TIMER_INPUT: u8 = 2;
const TIMER_LINE: u32 = 0;
const CLOCK_LINE: u32 = 8;
/// The lines of the 8254 and the real-time clock, each with the one that replaces it.
const REPLACED_LINES: [(u32, u32); 2] = {
    let [timer, clock] = hpet::LEGACY_LINES;
    [(TIMER_LINE, timer.0), (CLOCK_LINE, clock.0)]
};

/// The PIC pair and the I/O APIC.
#[derive(Clone, Debug)]
pub struct Chipset {
    pic: Pic,
    ioapic: IoApic,
    /// The first two timers of the HPET have the lines of the 8254 and the real-time clock.
    legacy_replacement: bool,
    /// The PIC pair's output when it was last told.
    told: bool,
}

impl Chipset {
    /// As firmware leaves them.
    pub const fn new() -> Self {
        Self {
            pic: Pic::after_firmware(),
            ioapic: IoApic::new(),
            legacy_replacement: false,
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

    /// Drives global system interrupt `irq`, or a legacy line of the HPET.
    pub fn set_line(&mut self, irq: u32, level: bool, sink: &dyn MessageSink) {
        let Some(irq) = self.replaced(irq) else {
            return;
        };
        if irq < ISA_LINES {
            self.pic.set_line(irq as u8, level);
        }
        if let Some(input) = input_of(irq) {
            self.ioapic.set_line(input, level, sink);
        }
        self.tell_output(sink);
    }

    /// Switches the legacy replacement, with both lines low.
    pub fn set_legacy_replacement(&mut self, on: bool, sink: &dyn MessageSink) {
        for (own, legacy) in REPLACED_LINES {
            let connected = if self.legacy_replacement { legacy } else { own };
            self.set_line(connected, false, sink);
        }
        self.legacy_replacement = on;
    }

    /// The interrupt that a line leads to, of those that may be replaced by others. `None`: it is cut off.
    fn replaced(&self, line: u32) -> Option<u32> {
        for (own, legacy) in REPLACED_LINES {
            match (line, self.legacy_replacement) {
                (line, true) if line == legacy => return Some(own),
                (line, false) if line == own => return Some(own),
                (line, _) if line == own || line == legacy => return None,
                _ => {}
            }
        }
        Some(line)
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
        let by_ioapic = input_of(irq).and_then(|input| self.ioapic.vector(input));
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
        self.ioapic.save(to)?;
        to.bool(self.legacy_replacement)
    }
    /// Takes back what [`Chipset::save`] wrote.
    pub fn restore(&mut self, from: &mut StateReader<'_>) -> Result<(), StateError> {
        self.pic.restore(from)?;
        self.ioapic.restore(from)?;
        self.legacy_replacement = from.bool("chipset.legacy_replacement")?;
        self.told = false;
        Ok(())
    }
}

/// The I/O APIC's input for global system interrupt `irq`.
fn input_of(irq: u32) -> Option<u8> {
    match irq {
        TIMER_LINE => Some(TIMER_INPUT),
        irq => u8::try_from(irq).ok(),
    }
}

impl Default for Chipset {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interrupts::Message;

    struct Nobody;

    impl MessageSink for Nobody {
        fn send(&self, _: Option<u32>, _: Message) {}
        fn pic_output(&self) {}
    }

    fn pulse(chipset: &mut Chipset, line: u32) {
        chipset.set_line(line, true, &Nobody);
        chipset.set_line(line, false, &Nobody);
    }

    /// IA-PC HPET 1.0a: 2.3.5, bit 1.
    #[test]
    fn legacy_replacement_cuts_timer_and_clock_off() {
        for ((own, legacy), vector) in REPLACED_LINES.into_iter().zip([0x08, 0x70]) {
            for on in [false, true] {
                let mut chipset = Chipset::new();
                chipset.set_legacy_replacement(on, &Nobody);
                let (heard, cut_off) = if on { (legacy, own) } else { (own, legacy) };
                pulse(&mut chipset, cut_off);
                assert_eq!(chipset.acknowledge(), None);
                pulse(&mut chipset, heard);
                assert_eq!(chipset.acknowledge(), Some(vector));
            }
        }
    }

    #[test]
    fn a_line_that_is_replaced_falls() {
        let mut chipset = Chipset::new();
        chipset.set_line(CLOCK_LINE, true, &Nobody);
        chipset.set_legacy_replacement(true, &Nobody);
        assert_eq!(chipset.acknowledge(), Some(0x70), "the edge came before");
        for (port, value) in [(0xa0, 0x20), (0x20, 0x20)] {
            chipset.port_write(port, 1, value);
        }
        chipset.set_line(hpet::LEGACY_LINES[1].0, true, &Nobody);
        assert_eq!(chipset.acknowledge(), Some(0x70), "this is another one");
    }
}
