// SPDX-License-Identifier: MIT OR Apache-2.0
//! The tables of the MultiProcessor Specification 1.4, for kernels that read no ACPI: the same processors, interrupt
//! controllers and wires as the MADT's.

use super::acpi::copy;
use super::error::BootError;
use super::layout::MP_TABLES;
use super::writer::Writer;
use crate::addr::Gpa;
use crate::devices::pci::{intx, Bdf, FIRST_FREE_SLOT, SLOTS};
use crate::image::Machine;
use crate::interfaces::GuestMemory;
use crate::interrupts::chipset::TIMER_INPUT;
use crate::interrupts::pic::LEVELS;
use crate::interrupts::{ioapic, lapic};

const FLOATING_BYTES: u64 = 16;
const HEADER_BYTES: usize = 44;
/// 1.4.
const REVISION: u8 = 4;
/// The buses, the first one by its number in PCI, and the I/O APIC.
const PCI: u8 = 0;
const ISA: u8 = 1;
const IO_APIC_ID: u8 = 0;
/// Of local APICs and I/O APIC, as their version registers say.
const LOCAL_APIC_VERSION: u8 = 0x14;
const IO_APIC_VERSION: u8 = 0x11;
/// Of a processor: usable; the first one.
const ENABLED: u8 = 1;
const BOOTSTRAP: u8 = 2;
/// Of a processor, as in EDX of CPUID leaf 1 (table 4-6): FPU, CMPXCHG8B, APIC.
const FEATURES: u32 = 1 << 0 | 1 << 8 | 1 << 9;

/// Kinds of interrupts (table 4-10).
const INT: u8 = 0;
const NMI: u8 = 1;
const EXT_INT: u8 = 3;
/// Polarity and trigger mode: as is usual on the bus; active high, level.
const CONFORMS: u16 = 0;
const ACTIVE_HIGH_LEVEL: u16 = 0b1101;
const ALL_LOCAL_APICS: u8 = 0xff;

/// Entries of the configuration table while they are written.
struct Entries<'a> {
    to: Writer<'a>,
    count: u16,
    sum: u8,
}

impl Entries<'_> {
    fn put<const N: usize>(&mut self, parts: [&[u8]; N]) -> Result<(), BootError> {
        for part in parts {
            self.to.bytes(part)?;
            self.sum = self.sum.wrapping_add(sum(part));
        }
        self.count = self.count.wrapping_add(1);
        Ok(())
    }

    /// 4.3.1. The processor's signature is left to CPUID, which every processor that runs this has.
    fn processor(&mut self, id: u8) -> Result<(), BootError> {
        let flags = if id == 0 {
            ENABLED | BOOTSTRAP
        } else {
            ENABLED
        };
        let features = FEATURES.to_le_bytes();
        self.put([
            &[0, id, LOCAL_APIC_VERSION, flags],
            &[0; 4],
            &features,
            &[0; 8],
        ])
    }
    /// 4.3.2.
    fn buses(&mut self) -> Result<(), BootError> {
        self.put([&[1, PCI], b"PCI   "])?;
        self.put([&[1, ISA], b"ISA   "])
    }
    /// 4.3.3.
    fn io_apic(&mut self) -> Result<(), BootError> {
        let head = [2, IO_APIC_ID, IO_APIC_VERSION, ENABLED];
        self.put([&head, &(ioapic::BASE_GPA as u32).to_le_bytes()])
    }
    /// 4.3.4: a bus's interrupt at an input of the I/O APIC.
    fn io_interrupt(&mut self, bus: u8, irq: u8, input: u8, flags: u16) -> Result<(), BootError> {
        self.put([
            &[3, INT],
            &flags.to_le_bytes(),
            &[bus, irq, IO_APIC_ID, input],
        ])
    }
    /// The pins of all slots, as firmware routes them (D.3: slot and pin make a number).
    fn pins(&mut self) -> Result<(), BootError> {
        for slot in FIRST_FREE_SLOT..SLOTS {
            for pin in 0..4u8 {
                let wire = intx::wire(Bdf::new(slot, 0), pin.wrapping_add(1));
                if let Some(input) = intx::USUAL.get(wire) {
                    self.io_interrupt(PCI, slot << 2 | pin, *input, ACTIVE_HIGH_LEVEL)?;
                }
            }
        }
        Ok(())
    }
    /// 4.3.5: what arrives at an input of local APICs.
    fn local_interrupt(&mut self, kind: u8, apic: u8, input: u8) -> Result<(), BootError> {
        self.put([&[4, kind], &CONFORMS.to_le_bytes(), &[ISA, 0, apic, input]])
    }
}

/// Writes the floating pointer at [`MP_TABLES`], and the configuration table behind it.
pub(super) fn write(machine: &Machine<'_>, memory: &dyn GuestMemory) -> Result<(), BootError> {
    const CASCADE: u8 = 2;
    let table = Gpa(MP_TABLES.saturating_add(FLOATING_BYTES));
    let first = Gpa(table.0.saturating_add(HEADER_BYTES as u64));
    let mut entries = Entries {
        to: Writer { memory, at: first },
        count: 0,
        sum: 0,
    };
    for id in 0..machine.vcpus {
        entries.processor(id as u8)?;
    }
    entries.buses()?;
    entries.io_apic()?;
    for irq in (0..16u8).filter(|irq| *irq != CASCADE) {
        let input = if irq == 0 { TIMER_INPUT } else { irq };
        let flags = match LEVELS >> irq & 1 {
            0 => CONFORMS,
            _ => ACTIVE_HIGH_LEVEL,
        };
        entries.io_interrupt(ISA, irq, input, flags)?;
    }
    entries.pins()?;
    // The PIC pair ends in the first processor's LINT0.
    entries.local_interrupt(EXT_INT, 0, 0)?;
    entries.local_interrupt(NMI, ALL_LOCAL_APICS, 1)?;
    let bytes = entries.to.at.0.saturating_sub(table.0) as u16;
    memory.write(table, &header(bytes, entries.count, entries.sum))?;
    memory.write(Gpa(MP_TABLES), &floating(table))?;
    Ok(())
}

/// The table's header (4.2); `rest` is the sum of the entries' bytes.
fn header(bytes: u16, entries: u16, rest: u8) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    copy(&mut header[..4], b"PCMP");
    copy(&mut header[4..6], &bytes.to_le_bytes());
    header[6] = REVISION;
    copy(&mut header[8..28], b"V3VEE   PALACIOS    ");
    copy(&mut header[34..36], &entries.to_le_bytes());
    copy(&mut header[36..40], &(lapic::BASE_GPA as u32).to_le_bytes());
    header[7] = sum(&header).wrapping_add(rest).wrapping_neg();
    header
}

/// The floating pointer (4.1). Feature bytes of zero: there is a table, and no PIC mode.
fn floating(table: Gpa) -> [u8; FLOATING_BYTES as usize] {
    let mut pointer = [0; FLOATING_BYTES as usize];
    copy(&mut pointer[..4], b"_MP_");
    copy(&mut pointer[4..8], &(table.0 as u32).to_le_bytes());
    pointer[8] = 1; // In units of 16 bytes.
    pointer[9] = REVISION;
    pointer[10] = sum(&pointer).wrapping_neg();
    pointer
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::testing::TestMemory;
    use crate::image::testing::Spec;
    use crate::image::Image;

    /// What a kernel finds that follows the specification: the table's header and its entries.
    fn found(memory: &TestMemory) -> (Vec<u8>, Vec<Vec<u8>>) {
        let pointer = (0xf_0000..0x10_0000)
            .step_by(16)
            .map(|at| memory.bytes(at, 16))
            .find(|bytes| bytes.starts_with(b"_MP_") && sum(bytes) == 0);
        let pointer = pointer.expect("a floating pointer");
        assert_eq!((pointer[8], pointer[9], pointer[11]), (1, 4, 0));
        let at = u32::from_le_bytes(pointer[4..8].try_into().unwrap()).into();
        let header = memory.bytes(at, HEADER_BYTES);
        let bytes = u16::from_le_bytes(header[4..6].try_into().unwrap());
        let table = memory.bytes(at, bytes.into());
        assert_eq!(
            (&table[..4], table[6], sum(&table)),
            (b"PCMP".as_slice(), 4, 0)
        );
        assert!(at + u64::from(bytes) <= 0x10_0000);
        let (mut entries, mut rest) = (Vec::new(), &table[HEADER_BYTES..]);
        while let [kind, ..] = rest {
            let (entry, others) = rest.split_at(if *kind == 0 { 20 } else { 8 });
            entries.push(entry.to_vec());
            rest = others;
        }
        (header, entries)
    }

    fn machine(vcpus: u32) -> (Vec<u8>, Vec<Vec<u8>>) {
        let spec = Spec {
            cpus: (0..vcpus).map(|n| (n, None)).collect(),
            ..Spec::default()
        };
        let bytes = spec.image(&[b"kernel"]);
        let machine = Image::parse(&bytes).unwrap().machine().unwrap();
        let memory = TestMemory::new(machine.ram);
        write(&machine, &memory).unwrap();
        found(&memory)
    }

    #[test]
    fn every_processor_is_listed_and_the_first_one_boots() {
        for vcpus in [1, 2, 4, 64] {
            let (header, entries) = machine(vcpus);
            let count = u16::from_le_bytes(header[34..36].try_into().unwrap());
            assert_eq!(usize::from(count), entries.len());
            assert_eq!(header[36..40], 0xfee0_0000u32.to_le_bytes());
            let processors = entries.iter().filter(|entry| entry[0] == 0);
            let ids: Vec<_> = processors
                .map(|entry| (u32::from(entry[1]), entry[3]))
                .collect();
            let expected = (0..vcpus).map(|id| (id, if id == 0 { 3 } else { 1 }));
            assert_eq!(ids, expected.collect::<Vec<_>>());
        }
    }

    #[test]
    fn interrupts_are_wired_as_the_chipset_is() {
        let (_, entries) = machine(2);
        let kinds: Vec<u8> = entries.iter().map(|entry| entry[0]).collect();
        assert!(kinds.is_sorted(), "by kind, as 4.3 demands");
        let io_apic = entries.iter().find(|entry| entry[0] == 2).unwrap();
        assert_eq!(io_apic[..], [2, 0, 0x11, 1, 0, 0, 0xc0, 0xfe]);
        let of_bus = |bus| move |entry: &&Vec<u8>| entry[0] == 3 && entry[4] == bus;
        let pins: Vec<_> = entries.iter().filter(of_bus(PCI)).collect();
        assert_eq!(pins.len(), 30 * 4);
        assert_eq!(
            pins[0][..],
            [3, 0, 13, 0, 0, 2 << 2, 0, 11],
            "INTA of slot 2 is PIRQB"
        );
        let wires = entries.iter().filter(of_bus(ISA));
        let wires: Vec<_> = wires.map(|entry| (entry[5], entry[7], entry[2])).collect();
        assert_eq!(
            (wires.len(), wires[0]),
            (15, (0, 2, 0)),
            "the timer at input 2"
        );
        assert!(wires.contains(&(9, 9, 13)), "the SCI is level-triggered");
        assert!(wires[1..].iter().all(|(irq, input, _)| irq == input));
        let local = entries.iter().filter(|entry| entry[0] == 4);
        let local: Vec<_> = local.map(|e| (e[1], e[6], e[7])).collect();
        assert_eq!(local, [(3, 0, 0), (1, 0xff, 1)], "PIC and NMI");
    }
}
