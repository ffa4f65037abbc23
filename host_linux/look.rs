// SPDX-License-Identifier: GPL-2.0
//! What is seen inside a VM, in the words of `v3vee.h`: walks through page tables, interrupts, interrupt controllers.

use palacios_core::backend::Event;
use palacios_core::interrupts::chipset::ChipsetRegisters;
use palacios_core::interrupts::lapic::LocalApicRegisters;
use palacios_core::interrupts::pic::PicRegisters;
use palacios_core::memory::look::Place;
use palacios_core::memory::nested::trace::NestedTrace;
use palacios_core::memory::walk::trace::{EntryBits, PagingMode, Trace, TraceEnd, TracedEntry};
use palacios_core::vcpu::interrupts_look::VcpuInterrupts;
use v3_abi as abi;

/// The interface has the core's bits.
const _: () = {
    assert!(EntryBits::PRESENT.bits() == abi::V3_ENTRY_PRESENT);
    assert!(EntryBits::WRITABLE.bits() == abi::V3_ENTRY_WRITE);
    assert!(EntryBits::USER.bits() == abi::V3_ENTRY_USER);
    assert!(EntryBits::EXECUTABLE.bits() == abi::V3_ENTRY_EXECUTE);
    assert!(EntryBits::ACCESSED.bits() == abi::V3_ENTRY_ACCESSED);
    assert!(EntryBits::DIRTY.bits() == abi::V3_ENTRY_DIRTY);
    assert!(EntryBits::LEAF.bits() == abi::V3_ENTRY_LEAF);
    assert!(EntryBits::RESERVED.bits() == abi::V3_ENTRY_RESERVED);
    assert!(EntryBits::UNTOUCHED.bits() == abi::V3_ENTRY_UNTOUCHED);
};

/// What is at an address.
pub(crate) fn place(place: Place) -> u32 {
    match place {
        Place::Resident => abi::V3_PLACE_MEMORY,
        Place::NoFrame => abi::V3_PLACE_UNTOUCHED,
        Place::Nothing => abi::V3_PLACE_NONE,
    }
}

/// Puts a walk through the guest's tables into the answer. Returns the guest-physical address, if it leads to one.
pub(crate) fn guest_walk(to: &mut abi::v3_walk, trace: &Trace) -> Option<u64> {
    to.mode = match trace.mode {
        PagingMode::Off => abi::V3_PAGING_OFF,
        PagingMode::Legacy => abi::V3_PAGING_32BIT,
        PagingMode::Pae => abi::V3_PAGING_PAE,
        PagingMode::FourLevel => abi::V3_PAGING_4LEVEL,
        PagingMode::FiveLevel => abi::V3_PAGING_5LEVEL,
    };
    to.count = entries(&mut to.entries, trace.entries());
    to.end = match trace.end {
        TraceEnd::NotPresent => abi::V3_WALK_NOT_PRESENT,
        TraceEnd::Reserved => abi::V3_WALK_RESERVED,
        TraceEnd::NonCanonical => abi::V3_WALK_NON_CANONICAL,
        TraceEnd::NoTable(at) => {
            to.gpa = at.0;
            abi::V3_WALK_NO_TABLE
        }
        TraceEnd::Mapped(page) => {
            to.gpa = page.gpa.0;
            to.page_bytes = 1u64.wrapping_shl(page.page_shift.into());
            to.rights = rights(page.writable, page.user, page.executable);
            abi::V3_WALK_MAPPED
        }
    };
    (to.end == abi::V3_WALK_MAPPED).then_some(to.gpa)
}

/// Puts a walk through the nested tables into the answer.
pub(crate) fn nested_walk(to: &mut abi::v3_walk, trace: &NestedTrace, at: Place) {
    to.place = place(at);
    to.nested_count = entries(&mut to.nested, trace.entries());
    if let Some(leaf) = &trace.leaf {
        to.hpa = leaf.frame.0.wrapping_add(to.gpa.wrapping_sub(leaf.gpa.0));
        to.nested_page_bytes = leaf.size.bytes();
        to.nested_rights = rights(leaf.write, false, leaf.execute);
    }
}

/// Takes what tells of the host's memory out of the answer.
pub(crate) fn hide_host_addresses(to: &mut abi::v3_walk) {
    to.hpa = 0;
    for entry in &mut to.nested {
        (entry.at, entry.value) = (0, 0);
    }
}

/// Entries on a way; how many there are.
fn entries(to: &mut [abi::v3_walk_entry], from: &[TracedEntry]) -> u32 {
    for (to, from) in to.iter_mut().zip(from) {
        *to = abi::v3_walk_entry {
            at: from.at,
            value: from.value,
            level: from.level.into(),
            flags: from.bits.bits(),
        };
    }
    from.len() as u32
}

fn rights(write: bool, user: bool, execute: bool) -> u32 {
    flag(write, abi::V3_ENTRY_WRITE)
        | flag(user, abi::V3_ENTRY_USER)
        | flag(execute, abi::V3_ENTRY_EXECUTE)
}

fn flag(is: bool, flag: u32) -> u32 {
    if is {
        flag
    } else {
        0
    }
}

/// What is on its way to a virtual CPU.
pub(crate) fn interrupts(vcpu: u32, from: &VcpuInterrupts) -> abi::v3_interrupts {
    abi::v3_interrupts {
        vcpu,
        flags: flag(from.takes_interrupts, abi::V3_TAKES_INTERRUPTS)
            | flag(from.takes_nmis, abi::V3_TAKES_NMIS)
            | flag(from.pic_waits, abi::V3_PIC_WAITS),
        apic: local_apic(&from.apic),
        waiting_nmis: from.waiting_nmis.into(),
        next_vector: from.next_vector.map_or(abi::V3_NO_VECTOR, u32::from),
        raised: event(from.raised),
        cut_short: event(from.cut_short),
        held: event(from.held),
    }
}

fn local_apic(from: &LocalApicRegisters) -> abi::v3_local_apic {
    abi::v3_local_apic {
        base: from.base,
        icr: from.icr,
        tsc_deadline: from.tsc_deadline,
        id: from.id,
        version: from.version,
        tpr: from.tpr,
        ppr: from.ppr,
        ldr: from.ldr,
        dfr: from.dfr,
        spurious: from.spurious,
        errors: from.errors,
        lvt: from.lvt,
        initial_count: from.initial_count,
        current_count: from.current_count,
        divide: from.divide,
        pad: 0,
        in_service: from.in_service,
        level: from.level,
        requests: from.requests,
    }
}

fn event(event: Option<Event>) -> abi::v3_event {
    let (kind, vector, error_code) = match event {
        None => (abi::V3_EVENT_NONE, 0, None),
        Some(Event::Exception(e)) => (abi::V3_EVENT_EXCEPTION, e.vector, e.error_code),
        Some(Event::Nmi) => (abi::V3_EVENT_NMI, 2, None),
        Some(Event::Interrupt(vector)) => (abi::V3_EVENT_INTERRUPT, vector, None),
        Some(Event::Software { vector, .. }) => (abi::V3_EVENT_SOFTWARE, vector, None),
    };
    abi::v3_event {
        kind,
        vector: vector.into(),
        has_error_code: error_code.is_some().into(),
        error_code: error_code.unwrap_or(0),
    }
}

/// The interrupt controllers that all virtual CPUs share.
pub(crate) fn chipset(from: &ChipsetRegisters) -> abi::v3_chipset {
    abi::v3_chipset {
        ioapic_id: from.ioapic.id.into(),
        ioapic_lines: from.ioapic.lines,
        ioapic: from.ioapic.entries,
        pics: from.pics.map(pic),
        flags: flag(from.legacy_replacement, abi::V3_CHIPSET_LEGACY),
        pad: 0,
    }
}

fn pic(from: PicRegisters) -> abi::v3_pic {
    let flags =
        flag(from.initialised, abi::V3_PIC_INITIALISED) | flag(from.auto_eoi, abi::V3_PIC_AUTO_EOI);
    abi::v3_pic {
        lines: from.lines,
        requests: from.requests,
        in_service: from.in_service,
        mask: from.mask,
        level_triggered: from.level_triggered,
        vector_base: from.vector_base,
        lowest: from.lowest,
        flags: flags as u8,
    }
}
