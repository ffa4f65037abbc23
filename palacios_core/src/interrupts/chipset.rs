// SPDX-License-Identifier: MIT OR Apache-2.0
//! The interrupt controllers that all vCPUs share, and how a PC wires them: the PIC pair and the I/O APIC see the same ISA
//! lines, and the PIC pair's output goes to the first vCPU's LINT0. The four wires of the PCI bus lead to ISA lines, beside what else drives those.
#![forbid(unsafe_code)]

use super::ioapic::{self, IoApic, IoApicRegisters};
use super::pic::{self, Pic, PicRegisters};
use super::MessageSink;
use crate::devices::pci::intx;
use crate::devices::{hpet, IoRegion};
use crate::state_io::{StateError, StateReader, StateWriter};

/// Where both answer.
pub static REGIONS: [IoRegion; 4] = {
    let [primary, secondary, edge_level] = pic::REGIONS;
    [primary, secondary, edge_level, ioapic::REGION]
};
/// The number of the I/O APIC's region. The PIC pair's have the numbers that they have there.
pub const IOAPIC: usize = 3;
/// ISA lines.
const ISA_LINES: u32 = 16;
/// The timer's line is input 0 of the PIC, and by custom input 2 of the I/O APIC; the tables of the firmware say so.
pub const TIMER_INPUT: u8 = 2;
const TIMER_LINE: u32 = 0;
const CLOCK_LINE: u32 = 8;
/// The lines of the 8254 and the real-time clock, each with the one that replaces it.
const REPLACED_LINES: [(u32, u32); 2] = {
    let [timer, clock] = hpet::LEGACY_LINES;
    [(TIMER_LINE, timer), (CLOCK_LINE, clock)]
};
/// The inputs of the I/O APIC, the legacy lines of the HPET, and the wires of the PCI bus.
const LINES: usize = ioapic::INPUTS + hpet::LEGACY_LINES.len() + WIRES;
const WIRES: usize = intx::LINES.len();

/// The PIC pair and the I/O APIC.
#[derive(Clone, Debug)]
pub struct Chipset {
    pic: Pic,
    ioapic: IoApic,
    /// The first two timers of the HPET have the lines of the 8254 and the real-time clock.
    legacy_replacement: bool,
    /// The PIC pair's output when it was last told.
    told: bool,
    /// How many sources hold each line high. They outlive a reset.
    sources: [u16; LINES],
    /// The ISA line to which each wire leads. The ISA bridge has the registers.
    wires: [Option<u8>; WIRES],
}

/// Registers of the interrupt controllers that all vCPUs share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChipsetRegisters {
    /// The I/O APIC's.
    pub ioapic: IoApicRegisters,
    /// The primary 8259A's, and the secondary's.
    pub pics: [PicRegisters; 2],
    /// The first two timers of the HPET have the lines of the 8254 and the real-time clock.
    pub legacy_replacement: bool,
}

impl Chipset {
    /// All registers. Reading them changes nothing.
    pub fn registers(&self) -> ChipsetRegisters {
        ChipsetRegisters {
            ioapic: self.ioapic.registers(),
            pics: self.pic.registers(),
            legacy_replacement: self.legacy_replacement,
        }
    }

    /// As firmware leaves them.
    pub const fn new() -> Self {
        Self {
            pic: Pic::after_firmware(),
            ioapic: IoApic::new(),
            legacy_replacement: false,
            told: false,
            sources: [0; LINES],
            wires: [None; WIRES],
        }
    }

    /// As firmware leaves them. Lines that are held high stay so.
    pub fn reset(&mut self, sink: &dyn MessageSink) {
        let (sources, wires) = (self.sources, self.wires);
        *self = Self {
            sources,
            wires,
            ..Self::new()
        };
        for line in (0..ioapic::INPUTS as u32).chain(hpet::LEGACY_LINES) {
            self.show_level(line, sink);
        }
    }

    /// One more source holds a line high: a global system interrupt, or a legacy line of the HPET.
    pub fn raise(&mut self, line: u32, sink: &dyn MessageSink) {
        if let Some(sources) = self.sources_of(line) {
            *sources = sources.saturating_add(1);
            if *sources == 1 {
                self.set_line(line, true, sink);
            }
        }
    }

    /// A source lets go of a line.
    pub fn lower(&mut self, line: u32, sink: &dyn MessageSink) {
        if let Some(sources) = self.sources_of(line).filter(|sources| **sources > 0) {
            *sources = sources.wrapping_sub(1);
            if *sources == 0 {
                self.set_line(line, false, sink);
            }
        }
    }

    fn sources_of(&mut self, line: u32) -> Option<&mut u16> {
        let others = hpet::LEGACY_LINES.iter().chain(&intx::LINES);
        let index = match others.into_iter().position(|own| *own == line) {
            Some(other) => ioapic::INPUTS.wrapping_add(other),
            None => usize::try_from(line)
                .ok()
                .filter(|line| *line < ioapic::INPUTS)?,
        };
        self.sources.get_mut(index)
    }

    /// Shows a line that is held high to the controllers.
    fn show_level(&mut self, line: u32, sink: &dyn MessageSink) {
        if self.sources_of(line).is_some_and(|sources| *sources > 0) {
            self.set_line(line, true, sink);
        }
    }

    /// Tells the controllers of a line's new level.
    fn set_line(&mut self, line: u32, level: bool, sink: &dyn MessageSink) {
        if let Some(wire) = intx::LINES.iter().position(|own| *own == line) {
            return self.set_wire(wire, level, sink);
        }
        let Some(irq) = self.replaced(line) else {
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

    /// A wire of the PCI bus is one more source of the line to which it leads.
    fn set_wire(&mut self, wire: usize, level: bool, sink: &dyn MessageSink) {
        let Some(irq) = self.wires.get(wire).copied().flatten() else {
            return;
        };
        match level {
            true => self.raise(irq.into(), sink),
            false => self.lower(irq.into(), sink),
        }
    }

    /// Has a wire lead to an ISA line, or to none.
    pub fn route_wire(&mut self, wire: usize, irq: Option<u8>, sink: &dyn MessageSink) {
        let (Some(route), Some(line)) = (self.wires.get(wire), intx::LINES.get(wire)) else {
            return;
        };
        if *route == irq {
            return;
        }
        let is_high = self.sources_of(*line).is_some_and(|sources| *sources > 0);
        if is_high {
            self.set_wire(wire, false, sink);
        }
        if let Some(route) = self.wires.get_mut(wire) {
            *route = irq.filter(|irq| u32::from(*irq) < ISA_LINES);
        }
        if is_high {
            self.set_wire(wire, true, sink);
        }
    }

    /// Switches the legacy replacement.
    pub fn set_legacy_replacement(&mut self, on: bool, sink: &dyn MessageSink) {
        if on == self.legacy_replacement {
            return;
        }
        for (own, legacy) in REPLACED_LINES {
            let connected = if self.legacy_replacement { legacy } else { own };
            self.set_line(connected, false, sink);
        }
        self.legacy_replacement = on;
        for (own, legacy) in REPLACED_LINES {
            self.show_level(if on { legacy } else { own }, sink);
        }
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

    /// Tells the first vCPU of a rise of the PIC pair's output.
    fn tell_output(&mut self, sink: &dyn MessageSink) {
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
    pub fn acknowledge(&mut self, sink: &dyn MessageSink) -> Option<u8> {
        let vector = self.pic.output().then(|| self.pic.acknowledge());
        self.tell_output(sink);
        vector
    }

    /// A local APIC's EOI of a level-triggered vector.
    pub fn eoi(&mut self, vector: u8, sink: &dyn MessageSink) {
        self.ioapic.eoi(vector, sink);
    }
    /// A read in one of [`REGIONS`].
    pub fn read(&mut self, region: usize, offset: u64, size: u8, sink: &dyn MessageSink) -> u64 {
        if region == IOAPIC {
            return self.ioapic.read(offset, size);
        }
        let value = self.pic.read(region, offset, size);
        self.tell_output(sink);
        value
    }
    /// A write in one of [`REGIONS`].
    pub fn write(
        &mut self,
        region: usize,
        offset: u64,
        size: u8,
        value: u64,
        sink: &dyn MessageSink,
    ) {
        if region == IOAPIC {
            return self.ioapic.write(offset, size, value, sink);
        }
        self.pic.write(region, offset, size, value);
        self.tell_output(sink);
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
        // What rises from now on is news.
        self.told = self.output();
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

    /// Ends what is in service, in both chips.
    fn end_service(chipset: &mut Chipset) {
        for region in [1, 0] {
            chipset.write(region, 0, 1, 0x20, &Nobody);
        }
    }

    fn pulse(chipset: &mut Chipset, line: u32) {
        chipset.raise(line, &Nobody);
        chipset.lower(line, &Nobody);
    }

    #[test]
    fn a_line_is_high_as_long_as_a_source_holds_it() {
        let mut chipset = Chipset::new();
        let edges = |chipset: &mut Chipset| {
            let edge = chipset.acknowledge(&Nobody).is_some();
            end_service(chipset);
            edge
        };
        chipset.raise(TIMER_LINE, &Nobody);
        assert!(edges(&mut chipset));
        chipset.raise(TIMER_LINE, &Nobody);
        chipset.lower(TIMER_LINE, &Nobody);
        chipset.raise(TIMER_LINE, &Nobody);
        assert!(!edges(&mut chipset), "it was high throughout");
        for _ in 0..3 {
            // One time more than it was raised: that is nobody's source.
            chipset.lower(TIMER_LINE, &Nobody);
        }
        chipset.raise(TIMER_LINE, &Nobody);
        assert!(edges(&mut chipset));
        chipset.raise(1000, &Nobody);
        chipset.lower(1000, &Nobody);
    }

    #[test]
    fn a_line_that_is_held_is_high_behind_a_reset() {
        let mut chipset = Chipset::new();
        chipset.raise(TIMER_LINE, &Nobody);
        assert_eq!(chipset.acknowledge(&Nobody), Some(8));
        chipset.reset(&Nobody);
        assert_eq!(chipset.acknowledge(&Nobody), Some(8));
        chipset.lower(TIMER_LINE, &Nobody);
        chipset.reset(&Nobody);
        assert_eq!(chipset.acknowledge(&Nobody), None);
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
                assert_eq!(chipset.acknowledge(&Nobody), None);
                pulse(&mut chipset, heard);
                assert_eq!(chipset.acknowledge(&Nobody), Some(vector));
            }
        }
    }

    #[test]
    fn a_wire_is_one_more_source_of_its_line() {
        let mut chipset = Chipset::new();
        chipset.pic.write(0, 1, 1, 0);
        chipset.pic.write(1, 1, 1, 0);
        let [a, b, ..] = intx::LINES;
        let level = |chipset: &Chipset, irq: u32| chipset.ioapic.registers().lines >> irq & 1 != 0;
        chipset.raise(a, &Nobody);
        assert_eq!(chipset.acknowledge(&Nobody), None, "it leads nowhere");
        chipset.route_wire(0, Some(11), &Nobody);
        assert!(level(&chipset, 11));
        chipset.route_wire(1, Some(11), &Nobody);
        chipset.raise(b, &Nobody);
        chipset.lower(a, &Nobody);
        assert!(level(&chipset, 11), "the other holds it");
        chipset.reset(&Nobody);
        assert!(level(&chipset, 11), "sources and routes outlive a reset");
        chipset.route_wire(1, Some(5), &Nobody);
        assert_eq!((level(&chipset, 11), level(&chipset, 5)), (false, true));
        chipset.lower(b, &Nobody);
        assert!(!level(&chipset, 5));
        chipset.route_wire(9, Some(5), &Nobody);
        chipset.route_wire(0, Some(200), &Nobody);
    }

    #[test]
    fn a_line_that_is_replaced_falls() {
        let mut chipset = Chipset::new();
        chipset.raise(CLOCK_LINE, &Nobody);
        chipset.set_legacy_replacement(true, &Nobody);
        assert_eq!(
            chipset.acknowledge(&Nobody),
            Some(0x70),
            "the edge came before"
        );
        end_service(&mut chipset);
        chipset.raise(hpet::LEGACY_LINES[1], &Nobody);
        assert_eq!(
            chipset.acknowledge(&Nobody),
            Some(0x70),
            "this is another one"
        );
    }
}
