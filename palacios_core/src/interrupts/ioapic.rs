// SPDX-License-Identifier: MIT OR Apache-2.0
//! The I/O APIC (Intel 82093AA datasheet, 290566).
//!
//! It is version 0x11, as in the chipsets that PCs were made of for a decade: an end of interrupt comes as a broadcast of
//! the local APIC and never by an EOI register, which needs version 0x20 and buys nothing without directed EOIs.
//!
//! Input `n` is global system interrupt `n`. That ISA IRQ 0 arrives at input 2 and the PIC pair's output at input 0 is
//! the wiring's business, which the ACPI tables tell the guest. Inputs are given as asserted or not: polarity is kept for
//! the guest to read and means nothing here. Nobody tells whether a local APIC took a message: a level-triggered one that
//! all refuse waits for its EOI forever, until the guest clears the remote IRR.
#![forbid(unsafe_code)]

use super::{Delivery, Destination, Message, MessageSink};
use crate::devices::IoRegion;
use crate::state_io::{StateError, StateReader, StateWriter};

/// Number of inputs.
pub const INPUTS: usize = 24;
/// Where a PC has it.
pub const BASE_GPA: u64 = 0xfec0_0000;
/// Where it answers.
pub const REGION: IoRegion = IoRegion::memory(BASE_GPA, 0x1000);

const VERSION: u32 = 0x11;
const STATE_VERSION: u32 = 1;

/// One redirection entry (82093AA: 3.2.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry(u64);

impl Entry {
    const LOGICAL: u64 = 1 << 11;
    const REMOTE_IRR: u64 = 1 << 14;
    const LEVEL: u64 = 1 << 15;
    const MASKED: u64 = 1 << 16;
    /// Vector, delivery and destination modes, polarity, trigger, mask; destination.
    const WRITABLE: u64 = 0xff00_0000_0001_afff;

    const fn has(self, bit: u64) -> bool {
        self.0 & bit != 0
    }
    const fn vector(self) -> u8 {
        self.0 as u8
    }
    const fn destination(self) -> Destination {
        Destination::of_byte((self.0 >> 56) as u8, self.has(Self::LOGICAL))
    }
    const fn delivery(self) -> Option<Delivery> {
        match Delivery::of_register(self.0 as u32) {
            Some(Delivery::Startup) => None,
            other => other,
        }
    }
    /// Whether its interrupts are ended by an EOI: level-triggered, of a mode that has a vector. The others are edges
    /// whatever is programmed.
    const fn is_level(self) -> bool {
        self.has(Self::LEVEL) && self.has_vector()
    }
    /// Whether its message carries a vector.
    const fn has_vector(self) -> bool {
        matches!(
            self.delivery(),
            Some(Delivery::Fixed | Delivery::LowestPriority)
        )
    }
    const fn message(self) -> Option<Message> {
        match self.delivery() {
            Some(delivery) => Some(Message {
                destination: self.destination(),
                delivery,
                vector: self.vector(),
                level: self.is_level(),
            }),
            None => None,
        }
    }
}

/// An I/O APIC with 24 inputs. Like the PIC pair it sits behind the VM's interrupt lock.
#[derive(Clone, Debug)]
pub struct IoApic {
    id: u8,
    /// The register that the window shows.
    select: u8,
    /// Levels of the inputs, bit `n` for input `n`.
    lines: u32,
    entries: [Entry; INPUTS],
}

/// An I/O APIC's registers (82093AA: 3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoApicRegisters {
    /// The id.
    pub id: u8,
    /// The inputs that are asserted, bit `n` for input `n`.
    pub lines: u32,
    /// The redirection entries.
    pub entries: [u64; INPUTS],
}

impl Default for IoApic {
    fn default() -> Self {
        Self::new()
    }
}

impl IoApic {
    /// All inputs masked.
    pub const fn new() -> Self {
        Self {
            id: 0,
            select: 0,
            lines: 0,
            entries: [Entry(Entry::MASKED); INPUTS],
        }
    }

    /// Its registers.
    pub fn registers(&self) -> IoApicRegisters {
        IoApicRegisters {
            id: self.id,
            lines: self.lines,
            entries: self.entries.map(|entry| entry.0),
        }
    }

    /// Back to power-on; all lines are low.
    pub fn reset(&mut self) {
        *self = Self::new();
    }

    /// Whether an input is set up to send an NMI or an INIT.
    pub fn sends_events(&self) -> bool {
        self.entries.iter().any(|entry| {
            let event = matches!(entry.delivery(), Some(Delivery::Nmi | Delivery::Init(_)));
            event && !entry.has(Entry::MASKED)
        })
    }

    /// The vector that an input sends, unless it is masked or sends another kind of message.
    pub fn vector(&self, input: u8) -> Option<u8> {
        let entry = *self.entries.get(usize::from(input))?;
        (entry.has_vector() && !entry.has(Entry::MASKED)).then(|| entry.vector())
    }

    /// Drives one of the [`INPUTS`]; any other number is ignored.
    pub fn set_line(&mut self, input: u8, level: bool, sink: &dyn MessageSink) {
        let Some(entry) = self.entries.get_mut(usize::from(input)) else {
            return;
        };
        let bit = 1 << (input & 31);
        let rising = level && self.lines & bit == 0;
        self.lines = if level {
            self.lines | bit
        } else {
            self.lines & !bit
        };
        if entry.is_level() {
            send_level(entry, level, sink);
        } else if rising && !entry.has(Entry::MASKED) {
            // An edge on a masked input is lost (82093AA: 3.2.4, bit 16).
            send(*entry, sink);
        }
    }

    /// A local APIC broadcast the end of a level-triggered `vector`: an input still asserted interrupts again.
    pub fn eoi(&mut self, vector: u8, sink: &dyn MessageSink) {
        for (input, entry) in (0..).zip(self.entries.iter_mut()) {
            if entry.vector() == vector && entry.has(Entry::REMOTE_IRR) {
                entry.0 &= !Entry::REMOTE_IRR;
                send_level(entry, self.lines >> input & 1 != 0, sink);
            }
        }
    }

    /// A read of `size` bytes at `offset` from the base.
    pub fn read(&self, offset: u64, size: u8) -> u64 {
        let register = match offset & !3 {
            0x00 => self.select.into(),
            0x10 => self.register(),
            _ => 0,
        };
        let skipped = (offset & 3) * 8;
        let wanted = u64::MAX >> (64u32.saturating_sub(u32::from(size).saturating_mul(8)) & 63);
        u64::from(register) >> skipped & wanted
    }

    /// A write of `size` bytes at `offset` from the base. Registers are 32 bits wide: what is narrower is extended with
    /// zeroes, as by the chipset, and what is not aligned is ignored.
    pub fn write(&mut self, offset: u64, size: u8, value: u64, sink: &dyn MessageSink) {
        let value = match size {
            1 => value & 0xff,
            2 => value & 0xffff,
            _ => value & 0xffff_ffff,
        };
        match offset {
            0x00 => self.select = value as u8,
            0x10 => self.write_register(value, sink),
            _ => {}
        }
    }

    fn register(&self) -> u32 {
        match self.select {
            // The arbitration id, register 2, follows the id.
            0x00 | 0x02 => u32::from(self.id) << 24,
            0x01 => VERSION | (INPUTS as u32 - 1) << 16,
            _ => match self.selected_entry() {
                Some((input, shift)) => self
                    .entries
                    .get(input)
                    .map_or(0, |entry| (entry.0 >> shift) as u32),
                None => 0,
            },
        }
    }

    /// The entry of which the window shows a half, and by how much that half is shifted.
    fn selected_entry(&self) -> Option<(usize, u32)> {
        let half = self.select.checked_sub(0x10)?;
        Some((usize::from(half / 2), u32::from(half & 1) * 32))
    }

    fn write_register(&mut self, value: u64, sink: &dyn MessageSink) {
        if self.select == 0 {
            self.id = (value >> 24) as u8 & 0x0f;
            return;
        }
        let Some((input, shift)) = self.selected_entry() else {
            return;
        };
        let level = self.lines.checked_shr(input as u32).unwrap_or(0) & 1 != 0;
        let Some(entry) = self.entries.get_mut(input) else {
            return;
        };
        let half = 0xffff_ffff << shift & Entry::WRITABLE;
        entry.0 = entry.0 & !half | value << shift & half;
        if entry.is_level() {
            // Unmasked with its line high, or made level-triggered while it is.
            send_level(entry, level, sink);
        } else {
            // Guests without an EOI register clear the remote IRR by a detour through edge-triggered.
            entry.0 &= !Entry::REMOTE_IRR;
        }
    }

    /// Writes all state.
    pub fn save(&self, to: &mut StateWriter<'_>) -> Result<(), StateError> {
        to.u32(STATE_VERSION)?;
        to.bytes(&[self.id, self.select])?;
        to.u32(self.lines)?;
        for entry in &self.entries {
            to.u64(entry.0)?;
        }
        Ok(())
    }

    /// Takes back what [`IoApic::save`] wrote; on failure nothing has changed.
    pub fn restore(&mut self, from: &mut StateReader<'_>) -> Result<(), StateError> {
        from.version(STATE_VERSION)?;
        let mut new = Self::new();
        [new.id, new.select] = from.bytes()?;
        new.lines = from.u32()?;
        if new.id > 0x0f || new.lines >> INPUTS != 0 {
            return Err(StateError::Value("ioapic"));
        }
        for entry in &mut new.entries {
            *entry = Entry(from.u64()?);
            let known = entry.0 & !(Entry::WRITABLE | Entry::REMOTE_IRR) == 0;
            if !known || entry.has(Entry::REMOTE_IRR) && !entry.is_level() {
                return Err(StateError::Value("ioapic.entry"));
            }
        }
        *self = new;
        Ok(())
    }
}

/// Sends a level-triggered entry's interrupt if it is due: asserted, not masked, and the last one has ended.
fn send_level(entry: &mut Entry, asserted: bool, sink: &dyn MessageSink) {
    if asserted && !entry.has(Entry::MASKED | Entry::REMOTE_IRR) {
        entry.0 |= Entry::REMOTE_IRR;
        send(*entry, sink);
    }
}

fn send(entry: Entry, sink: &dyn MessageSink) {
    if let Some(message) = entry.message() {
        sink.send(None, message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::testing::saved;
    use proptest::prelude::*;
    use std::cell::RefCell;

    #[derive(Default)]
    struct Sent(RefCell<Vec<Message>>);

    impl MessageSink for Sent {
        fn send(&self, from: Option<u32>, message: Message) {
            assert_eq!(from, None);
            self.0.borrow_mut().push(message);
        }
        fn pic_output(&self) {}
    }

    impl Sent {
        fn take(&self) -> Vec<Message> {
            self.0.take()
        }
    }

    fn write(apic: &mut IoApic, register: u8, value: u32, sink: &Sent) {
        apic.write(0, 4, register.into(), sink);
        apic.write(0x10, 4, value.into(), sink);
    }

    fn read(apic: &mut IoApic, register: u8) -> u32 {
        apic.write(0, 4, register.into(), &Sent::default());
        apic.read(0x10, 4) as u32
    }

    fn route(apic: &mut IoApic, input: u8, low: u32, destination: u8, sink: &Sent) {
        write(apic, 0x11 + 2 * input, u32::from(destination) << 24, sink);
        write(apic, 0x10 + 2 * input, low, sink);
    }

    const LEVEL: u32 = 1 << 15;
    const MASKED: u32 = 1 << 16;
    const REMOTE_IRR: u32 = 1 << 14;

    #[test]
    fn names_itself() {
        let mut apic = IoApic::new();
        assert_eq!(read(&mut apic, 1), 0x0017_0011);
        write(&mut apic, 0, 0xffff_ffff, &Sent::default());
        assert_eq!(read(&mut apic, 0), 0x0f00_0000);
        assert_eq!(read(&mut apic, 2), 0x0f00_0000);
        assert_eq!(read(&mut apic, 0x10), MASKED);
        assert_eq!(read(&mut apic, 0x40), 0, "no EOI register");
    }

    #[test]
    fn an_edge_sends_once() {
        let (mut apic, sink) = (IoApic::new(), Sent::default());
        route(&mut apic, 2, 0x30, 3, &sink);
        apic.set_line(2, true, &sink);
        apic.set_line(2, true, &sink);
        let message = Message {
            destination: Destination::Physical(3),
            delivery: Delivery::Fixed,
            vector: 0x30,
            level: false,
        };
        assert_eq!(sink.take(), [message]);
        apic.set_line(2, false, &sink);
        apic.set_line(2, true, &sink);
        assert_eq!(sink.take(), [message]);
    }

    #[test]
    fn an_edge_on_a_masked_input_is_lost_and_a_level_is_not() {
        let (mut apic, sink) = (IoApic::new(), Sent::default());
        for (input, trigger) in [(4, 0), (10, LEVEL)] {
            route(&mut apic, input, 0x30 | trigger | MASKED, 0, &sink);
            apic.set_line(input, true, &sink);
            assert_eq!(sink.take(), []);
            route(&mut apic, input, 0x30 | trigger, 0, &sink);
            assert_eq!(sink.take().len(), usize::from(trigger == LEVEL));
        }
    }

    #[test]
    fn a_level_waits_for_its_eoi_and_comes_again_while_high() {
        let (mut apic, sink) = (IoApic::new(), Sent::default());
        route(&mut apic, 10, 0x41 | LEVEL, 0, &sink);
        apic.set_line(10, true, &sink);
        let sent = sink.take();
        assert!(matches!(
            sent[..],
            [Message {
                level: true,
                vector: 0x41,
                ..
            }]
        ));
        assert_eq!(read(&mut apic, 0x24), 0x41 | LEVEL | REMOTE_IRR);
        apic.set_line(10, false, &sink);
        apic.set_line(10, true, &sink);
        apic.eoi(0x40, &sink);
        assert_eq!(sink.take(), []);
        apic.eoi(0x41, &sink);
        assert_eq!(sink.take(), sent);
        apic.set_line(10, false, &sink);
        apic.eoi(0x41, &sink);
        assert_eq!(sink.take(), []);
        assert_eq!(read(&mut apic, 0x24), 0x41 | LEVEL);
    }

    #[test]
    fn one_eoi_ends_all_inputs_that_share_the_vector() {
        let (mut apic, sink) = (IoApic::new(), Sent::default());
        for input in [16, 17] {
            route(&mut apic, input, 0x50 | LEVEL, 0, &sink);
            apic.set_line(input, true, &sink);
        }
        assert_eq!(sink.take().len(), 2);
        apic.eoi(0x50, &sink);
        assert_eq!(sink.take().len(), 2);
    }

    #[test]
    fn a_detour_through_edge_triggered_clears_the_remote_irr() {
        let (mut apic, sink) = (IoApic::new(), Sent::default());
        route(&mut apic, 10, 0x41 | LEVEL, 0, &sink);
        apic.set_line(10, true, &sink);
        apic.set_line(10, false, &sink);
        route(&mut apic, 10, 0x41 | MASKED, 0, &sink);
        route(&mut apic, 10, 0x41 | MASKED | LEVEL, 0, &sink);
        assert_eq!(read(&mut apic, 0x24), 0x41 | MASKED | LEVEL);
    }

    #[test]
    fn delivers_in_all_modes_to_all_destinations() {
        let (mut apic, sink) = (IoApic::new(), Sent::default());
        let modes = [
            (0u32, Some(Delivery::Fixed)),
            (1, Some(Delivery::LowestPriority)),
            (2, Some(Delivery::Smi)),
            (3, None),
            (4, Some(Delivery::Nmi)),
            (5, Some(Delivery::Init(true))),
            (6, None),
            (7, Some(Delivery::ExtInt)),
        ];
        let destinations = [
            (0, 0x07, Destination::Physical(7)),
            (0, 0xff, Destination::All),
            (1 << 11, 0xff, Destination::Logical(0xff)),
        ];
        for (mode, delivery) in modes {
            for (logical, id, destination) in destinations {
                route(&mut apic, 1, 0x60 | mode << 8 | logical, id, &sink);
                apic.set_line(1, true, &sink);
                apic.set_line(1, false, &sink);
                let to = |m: &Message| (m.delivery, m.destination);
                let expected = delivery.map(|delivery| (delivery, destination));
                assert_eq!(sink.take().first().map(to), expected);
            }
        }
    }

    #[test]
    fn an_nmi_is_an_edge_whatever_is_programmed() {
        let (mut apic, sink) = (IoApic::new(), Sent::default());
        route(&mut apic, 1, 4 << 8 | LEVEL, 0, &sink);
        apic.set_line(1, true, &sink);
        assert!(!sink.take()[0].level);
        assert_eq!(read(&mut apic, 0x12) & REMOTE_IRR, 0);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Line(u8, bool),
        Eoi(u8),
        Read(u64, u8),
        Write(u64, u8, u64),
        Register(u8, u32),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let size = prop::sample::select(vec![1u8, 2, 4, 8]);
        let step = prop_oneof![
            (0u8..30, any::<bool>()).prop_map(|(input, level)| Step::Line(input, level)),
            (0u8..8).prop_map(Step::Eoi),
            (0u64..0x48, size.clone()).prop_map(|(at, size)| Step::Read(at, size)),
            (0u64..0x48, size, any::<u64>()).prop_map(|(at, size, v)| Step::Write(at, size, v)),
            (0u8..0x48, any::<u32>()).prop_map(|(r, v)| Step::Register(r, v & !0xf8)),
        ];
        prop::collection::vec(step, 0..60)
    }

    fn run(apic: &mut IoApic, steps: &[Step]) -> (Vec<u64>, Vec<Message>) {
        let sink = Sent::default();
        let mut reads = Vec::new();
        for step in steps {
            match *step {
                Step::Line(input, level) => apic.set_line(input, level, &sink),
                Step::Eoi(vector) => apic.eoi(vector, &sink),
                Step::Read(at, size) => reads.push(apic.read(at, size)),
                Step::Write(at, size, value) => apic.write(at, size, value, &sink),
                Step::Register(register, value) => write(apic, register, value, &sink),
            }
        }
        (reads, sink.take())
    }

    proptest! {
        #[test]
        fn a_restored_one_goes_on_as_the_saved_one(before in steps(), after in steps()) {
            let mut apic = IoApic::new();
            run(&mut apic, &before);
            let record = saved(|w| apic.save(w));
            let mut twin = IoApic::new();
            prop_assert_eq!(twin.restore(&mut StateReader::new(&record)), Ok(()));
            prop_assert_eq!(saved(|w| twin.save(w)), record);
            prop_assert_eq!(run(&mut twin, &after), run(&mut apic, &after));
        }

        #[test]
        fn a_level_in_flight_is_never_sent_twice(before in steps()) {
            let mut apic = IoApic::new();
            run(&mut apic, &before);
            let sink = Sent::default();
            for input in 0..INPUTS as u8 {
                let in_flight = apic.entries[usize::from(input)].has(Entry::REMOTE_IRR);
                apic.set_line(input, true, &sink);
                prop_assert!(!in_flight || sink.take().is_empty());
                sink.take();
            }
        }

        #[test]
        fn a_damaged_record_is_restored_or_refused(
            before in steps(), at in 0usize..210, byte: u8, length in 0usize..220, after in steps(),
        ) {
            let mut apic = IoApic::new();
            run(&mut apic, &before);
            let mut record = saved(|w| apic.save(w));
            if let Some(field) = record.get_mut(at) {
                *field = byte;
            }
            record.truncate(length);
            let _ = apic.restore(&mut StateReader::new(&record));
            run(&mut apic, &after);
        }
    }
}
