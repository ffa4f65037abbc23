// SPDX-License-Identifier: MIT OR Apache-2.0
//! Virtual-machine control structures: where the data of each is, and the guest's state in one.
//!
//! The data lives in no page. A CPU has it from VMPTRLD to VMCLEAR; in between, nobody else can have it, and what software
//! finds in the page means nothing (SDM 3C: 24.11.1). What was never written holds garbage.

use super::field;
use palacios_core::state::{CpuState, Segment, SegmentAttributes, TableRegister};
use std::collections::HashMap;

/// What a field holds that nobody has written.
const GARBAGE: u64 = 0xa5a5_a5a5_a5a5_a5a5;
/// A register that holds no segment (SDM 3C: table 24-2).
pub const UNUSABLE: u32 = 1 << 16;

/// The data of one.
#[derive(Debug)]
pub struct Vmcs {
    fields: HashMap<u16, u64>,
    pub launched: bool,
    /// How often its page had changed hands when it was made.
    pub owner: u32,
}

impl Vmcs {
    pub fn new(owner: u32) -> Self {
        Self {
            fields: HashMap::new(),
            launched: false,
            owner,
        }
    }
    pub fn get(&self, encoding: u16) -> u64 {
        let value = self.fields.get(&encoding).copied().unwrap_or(GARBAGE);
        value & field::mask(encoding)
    }
    pub fn get_32(&self, encoding: u16) -> u32 {
        self.get(encoding) as u32
    }
    pub fn set(&mut self, encoding: u16, value: u64) {
        self.fields.insert(encoding, value & field::mask(encoding));
    }

    pub fn segment(&self, n: u16) -> Segment {
        let rights = self.get_32(field::RIGHTS + 2 * n);
        let attributes = (rights & 0xff | rights >> 4 & 0xf00) as u16;
        Segment {
            selector: self.get(field::SELECTORS + 2 * n) as u16,
            base: self.get(field::BASES + 2 * n),
            limit: self.get_32(field::LIMITS + 2 * n),
            attributes: SegmentAttributes(match rights & UNUSABLE {
                0 => attributes,
                _ => attributes & !SegmentAttributes::P,
            }),
        }
    }
    /// After an exit; what was loaded has been accessed.
    fn set_segment(&mut self, n: u16, segment: Segment) {
        let bits = u32::from(segment.attributes.0);
        let unusable = match segment.attributes.has(SegmentAttributes::P) {
            true => 0,
            false => UNUSABLE,
        };
        self.set(field::SELECTORS + 2 * n, segment.selector.into());
        self.set(field::BASES + 2 * n, segment.base);
        self.set(field::LIMITS + 2 * n, segment.limit.into());
        let rights = bits & 0xff | (bits & 0xf00) << 4 | unusable;
        self.set(field::RIGHTS + 2 * n, rights.into());
    }

    /// All of the guest's state that is in here, over what else is in `state` (SDM 3C: 26.3.2).
    pub fn load(&self, state: &mut CpuState) {
        state.rip = self.get(field::RIP);
        state.rflags = self.get(field::RFLAGS);
        state.control.cr0 = self.get(field::CR0);
        state.control.cr3 = self.get(field::CR3);
        state.control.cr4 = self.get(field::CR4);
        state.control.efer = self.get(field::EFER);
        state.dr7 = self.get(field::DR7);
        state.gdtr = self.table(field::GDTR_BASE, field::GDTR_LIMIT);
        state.idtr = self.table(field::IDTR_BASE, field::IDTR_LIMIT);
        for (n, segment) in (0..).zip(&mut state.segments) {
            *segment = self.segment(n);
        }
    }
    fn table(&self, base: u16, limit: u16) -> TableRegister {
        TableRegister {
            base: self.get(base),
            limit: self.get(limit) as u16,
        }
    }
    /// Puts it back after the guest has run (SDM 3C: 27.3).
    pub fn store(&mut self, state: &CpuState) {
        self.set(field::RIP, state.rip);
        self.set(field::RFLAGS, state.rflags);
        self.set(field::CR0, state.control.cr0);
        self.set(field::CR3, state.control.cr3);
        self.set(field::CR4, state.control.cr4);
        self.set(field::EFER, state.control.efer);
        self.set(field::DR7, state.dr7);
        self.set(field::GDTR_BASE, state.gdtr.base);
        self.set(field::GDTR_LIMIT, state.gdtr.limit.into());
        self.set(field::IDTR_BASE, state.idtr.base);
        self.set(field::IDTR_LIMIT, state.idtr.limit.into());
        for (n, segment) in (0..).zip(state.segments) {
            self.set_segment(n, segment);
        }
    }
}

/// Where the data of a VMCS is.
#[derive(Debug)]
enum Place {
    Memory(Box<Vmcs>),
    /// It is active on one.
    Cpu,
}

/// All of them, by the addresses of their regions.
#[derive(Debug, Default)]
pub struct Regions(HashMap<u64, Place>);

impl Regions {
    /// VMPTRLD: the data moves to a CPU.
    pub fn take(&mut self, at: u64, owner: u32) -> Result<Box<Vmcs>, &'static str> {
        match self.0.insert(at, Place::Cpu) {
            Some(Place::Memory(vmcs)) if vmcs.owner == owner => Ok(vmcs),
            Some(Place::Cpu) => Err("VMPTRLD of a VMCS that is active on another CPU"),
            _ => Err("VMPTRLD of a VMCS that was never cleared"),
        }
    }
    /// VMCLEAR: a CPU gives it back, or it is not active anywhere.
    pub fn give(
        &mut self,
        at: u64,
        from: Option<Box<Vmcs>>,
        owner: u32,
    ) -> Result<(), &'static str> {
        let (vmcs, good) = match (from, self.0.remove(&at)) {
            (Some(vmcs), _) => (vmcs, Ok(())),
            (None, Some(Place::Cpu)) => (
                Box::new(Vmcs::new(owner)),
                Err("VMCLEAR of a VMCS that is active on another CPU"),
            ),
            (None, Some(Place::Memory(vmcs))) if vmcs.owner == owner => (vmcs, Ok(())),
            (None, _) => (Box::new(Vmcs::new(owner)), Ok(())),
        };
        self.0.insert(at, Place::Memory(vmcs));
        good
    }
}
