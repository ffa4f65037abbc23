// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is on its way to a virtual CPU, and what the interrupt controllers hold, in words.

mod text;

use crate::vcpu_report::Hex;
use serde::Serialize;
use v3_abi::*;

const LVT: [&str; 6] = ["timer", "thermal", "performance", "lint0", "lint1", "error"];
/// Bits of an entry of the local vector table and of the I/O APIC (SDM 3A: figure 10-8; 82093AA: 3.2.4).
const LOGICAL: u64 = 1 << 11;
const ACTIVE_LOW: u64 = 1 << 13;
const REMOTE_IRR: u64 = 1 << 14;
const LEVEL: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;
/// Bits of IA32_APIC_BASE and of the spurious-interrupt vector register.
const X2APIC: u64 = 1 << 10;
const ENABLED: u64 = 1 << 11;
const SOFTWARE_ENABLED: u32 = 1 << 8;

/// What is on its way to a virtual CPU.
#[derive(Clone, Debug, Serialize)]
pub struct Interrupts {
    /// Its local APIC.
    pub apic: LocalApic,
    /// The guest takes interrupts: they are on, and no instruction's shadow holds them back.
    pub takes_interrupts: bool,
    /// The guest takes NMIs: it handles none.
    pub takes_nmis: bool,
    /// The PIC pair has said that it has an interrupt for it.
    pub pic_waits: bool,
    /// The vector that the local APIC would have the processor take now.
    pub next_vector: Option<u32>,
    /// NMIs that were taken in, and not delivered yet.
    pub waiting_nmis: u32,
    /// An exception that the module raised, for the next entry.
    pub raised: Option<Event>,
    /// An event whose delivery an exit cut short.
    pub cut_short: Option<Event>,
    /// An event that waits behind an exception.
    pub held: Option<Event>,
}

/// A local APIC.
#[derive(Clone, Debug, Serialize)]
pub struct LocalApic {
    /// `disabled`, `xapic` or `x2apic`.
    pub mode: &'static str,
    /// The page of its registers.
    pub address: Hex,
    /// Its id.
    pub id: u32,
    /// Software has enabled it.
    pub enabled: bool,
    /// The task priority.
    pub task_priority: Hex,
    /// The processor priority.
    pub processor_priority: Hex,
    /// The logical destination.
    pub logical_destination: Hex,
    /// The destination format.
    pub destination_format: Hex,
    /// The spurious-interrupt vector register.
    pub spurious: Hex,
    /// The error status.
    pub errors: Hex,
    /// The interrupt command.
    pub command: Hex,
    /// The local vector table.
    pub lvt: Vec<LocalVector>,
    /// The timer's initial count.
    pub initial_count: u32,
    /// The timer's current count.
    pub current_count: u32,
    /// By what the timer divides.
    pub divisor: u32,
    /// IA32_TSC_DEADLINE.
    pub tsc_deadline: Hex,
    /// The vectors that are requested.
    pub requests: Vec<u32>,
    /// The vectors in service.
    pub in_service: Vec<u32>,
    /// Of both, those that are level-triggered.
    pub level: Vec<u32>,
}

/// An entry of the local vector table.
#[derive(Clone, Debug, Serialize)]
pub struct LocalVector {
    /// Whose it is.
    pub name: &'static str,
    /// The register.
    pub value: Hex,
    /// How it interrupts.
    pub delivery: &'static str,
    /// Its vector.
    pub vector: u32,
    /// It is masked.
    pub masked: bool,
}

/// An event under way.
#[derive(Clone, Debug, Serialize)]
pub struct Event {
    /// `exception`, `interrupt`, `nmi` or `software`.
    pub kind: &'static str,
    /// Its vector.
    pub vector: u32,
    /// Its error code, if it has one.
    pub error_code: Option<Hex>,
}

/// The interrupt controllers that all virtual CPUs share.
#[derive(Clone, Debug, Serialize)]
pub struct Chipset {
    /// The I/O APIC.
    pub ioapic: IoApic,
    /// The primary 8259A, and the secondary.
    pub pics: Vec<Pic>,
    /// The HPET has the lines of the 8254 and the real-time clock.
    pub legacy_replacement: bool,
}

/// An I/O APIC.
#[derive(Clone, Debug, Serialize)]
pub struct IoApic {
    /// Its id.
    pub id: u32,
    /// Its inputs.
    pub inputs: Vec<IoApicInput>,
}

/// An input of an I/O APIC.
#[derive(Clone, Debug, Serialize)]
pub struct IoApicInput {
    /// Its number, that of the global system interrupt.
    pub input: u32,
    /// The redirection entry.
    pub entry: Hex,
    /// The vector.
    pub vector: u32,
    /// How it interrupts.
    pub delivery: &'static str,
    /// `physical` or `logical`.
    pub destination_mode: &'static str,
    /// Whom it is for.
    pub destination: u32,
    /// It is level-triggered.
    pub level: bool,
    /// It is active low.
    pub active_low: bool,
    /// It is masked.
    pub masked: bool,
    /// It waits for the end of its last interrupt.
    pub remote_irr: bool,
    /// It is asserted.
    pub asserted: bool,
}

/// An 8259A. Each list is of inputs.
#[derive(Clone, Debug, Serialize)]
pub struct Pic {
    /// `primary` or `secondary`.
    pub name: &'static str,
    /// It was initialised.
    pub initialised: bool,
    /// The vector of input 0.
    pub vector_base: u32,
    /// Inputs that are asserted.
    pub asserted: Vec<u32>,
    /// Inputs that are requested.
    pub requests: Vec<u32>,
    /// Inputs in service.
    pub in_service: Vec<u32>,
    /// Inputs that are masked.
    pub masked: Vec<u32>,
    /// Inputs that are level-triggered.
    pub level: Vec<u32>,
    /// The input of lowest priority.
    pub lowest: u32,
    /// Its interrupts end when they are acknowledged.
    pub auto_eoi: bool,
}

/// The numbers of the bits that are set, of words of `size` bits.
fn bits(words: impl IntoIterator<Item = u64>, size: u32) -> Vec<u32> {
    let words = (0..).step_by(size as usize).zip(words);
    words
        .flat_map(|(first, word)| {
            (0..size)
                .filter(move |bit| word >> bit & 1 != 0)
                .map(move |bit| first + bit)
        })
        .collect()
}

fn vectors(words: &[u32; 8]) -> Vec<u32> {
    bits(words.map(u64::from), 32)
}

/// A delivery mode (SDM 3A: 10.6.1).
fn delivery(entry: u64) -> &'static str {
    match entry >> 8 & 7 {
        0 => "fixed",
        1 => "lowest-priority",
        2 => "smi",
        4 => "nmi",
        5 => "init",
        6 => "startup",
        7 => "extint",
        _ => "reserved",
    }
}

impl From<&v3_interrupts> for Interrupts {
    fn from(raw: &v3_interrupts) -> Self {
        let flag = |flag| raw.flags & flag != 0;
        Self {
            apic: LocalApic::from(&raw.apic),
            takes_interrupts: flag(V3_TAKES_INTERRUPTS),
            takes_nmis: flag(V3_TAKES_NMIS),
            pic_waits: flag(V3_PIC_WAITS),
            next_vector: (raw.next_vector != V3_NO_VECTOR).then_some(raw.next_vector),
            waiting_nmis: raw.waiting_nmis,
            raised: event(&raw.raised),
            cut_short: event(&raw.cut_short),
            held: event(&raw.held),
        }
    }
}

fn event(raw: &v3_event) -> Option<Event> {
    let kind = match raw.kind {
        V3_EVENT_NONE => return None,
        V3_EVENT_EXCEPTION => "exception",
        V3_EVENT_INTERRUPT => "interrupt",
        V3_EVENT_NMI => "nmi",
        V3_EVENT_SOFTWARE => "software",
        _ => "unknown",
    };
    Some(Event {
        kind,
        vector: raw.vector,
        error_code: (raw.has_error_code != 0).then_some(Hex(raw.error_code.into())),
    })
}

impl From<&v3_local_apic> for LocalApic {
    fn from(raw: &v3_local_apic) -> Self {
        let hex = |register: u32| Hex(register.into());
        let mode = match (raw.base & ENABLED != 0, raw.base & X2APIC != 0) {
            (false, _) => "disabled",
            (true, false) => "xapic",
            (true, true) => "x2apic",
        };
        let lvt = LVT.into_iter().zip(raw.lvt);
        // Bits 3, 1 and 0 are 000 for 2 to 110 for 128, and 111 for 1 (SDM 3A: figure 10-10).
        let code = raw.divide & 3 | raw.divide >> 1 & 4;
        let divide = (code + 1) & 7;
        Self {
            mode,
            address: Hex(raw.base & 0x000f_ffff_ffff_f000),
            id: if mode == "x2apic" {
                raw.id
            } else {
                raw.id >> 24
            },
            enabled: raw.spurious & SOFTWARE_ENABLED != 0,
            task_priority: hex(raw.tpr),
            processor_priority: hex(raw.ppr),
            logical_destination: hex(raw.ldr),
            destination_format: hex(raw.dfr),
            spurious: hex(raw.spurious),
            errors: hex(raw.errors),
            command: Hex(raw.icr),
            lvt: lvt.map(|(name, value)| local_vector(name, value)).collect(),
            initial_count: raw.initial_count,
            current_count: raw.current_count,
            divisor: 1 << divide,
            tsc_deadline: Hex(raw.tsc_deadline),
            requests: vectors(&raw.requests),
            in_service: vectors(&raw.in_service),
            level: vectors(&raw.level),
        }
    }
}

fn local_vector(name: &'static str, value: u32) -> LocalVector {
    let entry = u64::from(value);
    // The timer and errors have no delivery mode: they are fixed.
    let delivery = match (name, value >> 17 & 3) {
        ("timer", 0) => "one-shot",
        ("timer", 1) => "periodic",
        ("timer", 2) => "tsc-deadline",
        ("timer", _) => "reserved",
        _ => delivery(entry),
    };
    LocalVector {
        name,
        value: Hex(entry),
        delivery,
        vector: value & 0xff,
        masked: entry & MASKED != 0,
    }
}

impl From<&v3_chipset> for Chipset {
    fn from(raw: &v3_chipset) -> Self {
        let inputs = (0..).zip(raw.ioapic);
        let names = ["primary", "secondary"].into_iter();
        Self {
            ioapic: IoApic {
                id: raw.ioapic_id,
                inputs: inputs
                    .map(|(n, entry)| input(n, entry, raw.ioapic_lines >> n & 1 != 0))
                    .collect(),
            },
            pics: names
                .zip(&raw.pics)
                .map(|(name, raw)| pic(name, raw))
                .collect(),
            legacy_replacement: raw.flags & V3_CHIPSET_LEGACY != 0,
        }
    }
}

fn input(input: u32, entry: u64, asserted: bool) -> IoApicInput {
    let has = |bit: u64| entry & bit != 0;
    IoApicInput {
        input,
        entry: Hex(entry),
        vector: (entry & 0xff) as u32,
        delivery: delivery(entry),
        destination_mode: if has(LOGICAL) { "logical" } else { "physical" },
        destination: (entry >> 56) as u32,
        level: has(LEVEL),
        active_low: has(ACTIVE_LOW),
        masked: has(MASKED),
        remote_irr: has(REMOTE_IRR),
        asserted,
    }
}

fn pic(name: &'static str, raw: &v3_pic) -> Pic {
    let inputs = |byte: u8| bits([u64::from(byte)], 8);
    let flags = u32::from(raw.flags);
    Pic {
        name,
        initialised: flags & V3_PIC_INITIALISED != 0,
        vector_base: raw.vector_base.into(),
        asserted: inputs(raw.lines),
        requests: inputs(raw.requests),
        in_service: inputs(raw.in_service),
        masked: inputs(raw.mask),
        level: inputs(raw.level_triggered),
        lowest: raw.lowest.into(),
        auto_eoi: flags & V3_PIC_AUTO_EOI != 0,
    }
}
