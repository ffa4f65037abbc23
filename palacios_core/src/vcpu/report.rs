// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a vCPU looks like inside, for whoever asks why its guest died. It is out of the guest; one that runs is called out for it.
#![forbid(unsafe_code)]

use super::last_exits::{PastExit, KEPT_EXITS};
use super::owned::{Activity, Vcpu};
use crate::addr::Gva;
use crate::backend::{Backend, BackendVcpu, Event};
use crate::host::Host;
use crate::memory::look::{Place, Untouched};
use crate::memory::walk::{self, Access, AccessKind, Privilege};
use crate::memory::Memory;
use crate::state::{CpuState, Reg, Seg};
use crate::stats::Counter;
use core::fmt;

/// How many bytes of code and stack are shown.
pub const SHOWN_BYTES: usize = 64;

/// A vCPU that is out of the guest.
#[derive(Clone, Debug)]
pub struct VcpuReport {
    /// Its registers.
    pub state: CpuState,
    /// The task priority.
    pub cr8: u8,
    /// The privilege level, 0–3.
    pub cpl: u8,
    /// The size of its instructions' operands and addresses by default: 16, 32 or 64.
    pub code_bits: u8,
    /// What it does between exits.
    pub activity: Activity,
    /// The bytes from RIP on.
    pub code: ShownBytes,
    /// The bytes from the top of the stack on.
    pub stack: ShownBytes,
    /// What the guest could not deliver, when a triple fault ended it: the exception that began it, or an interrupt.
    pub cause: Option<Event>,
    exits: [PastExit; KEPT_EXITS],
    exits_kept: usize,
}

impl VcpuReport {
    /// The last exits, the oldest first.
    pub fn exits(&self) -> &[PastExit] {
        self.exits.get(..self.exits_kept).unwrap_or(&[])
    }

    /// Tells it in lines, for a host that has no tool to do it better.
    pub fn tell(&self, line: &mut dyn FnMut(fmt::Arguments<'_>)) {
        let (state, control) = (&self.state, &self.state.control);
        line(format_args!(
            "{:?}, {}-bit code, privilege level {}",
            self.activity, self.code_bits, self.cpl
        ));
        if let Some(cause) = self.cause {
            line(format_args!("it began with {cause:x?}"));
        }
        line(format_args!(
            "rip {:#x} rflags {:#x} cr0 {:#x} cr2 {:#x} cr3 {:#x} cr4 {:#x} efer {:#x}",
            state.rip,
            state.rflags,
            control.cr0,
            control.cr2,
            control.cr3,
            control.cr4,
            control.efer
        ));
        line(format_args!("general registers {:x?}", state.gprs.0));
        line(format_args!("code  {:02x?}", self.code.bytes()));
        line(format_args!("stack {:02x?}", self.stack.bytes()));
        for exit in self.exits() {
            line(format_args!("{} at {:#x}", exit.kind.label(), exit.rip));
        }
    }
}

/// Bytes of the guest's memory, as far as they can be read.
#[derive(Clone, Copy, Debug)]
pub struct ShownBytes {
    /// The linear address of the first.
    pub at: u64,
    bytes: [u8; SHOWN_BYTES],
    len: usize,
}

impl ShownBytes {
    /// The bytes that could be read.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or(&[])
    }
}

impl<H: Host, B: Backend<H>> Vcpu<H, B> {
    /// Describes it. It is out of the guest.
    pub(crate) fn report(&self, memory: &Memory<H>) -> VcpuReport {
        let mut exits = [PastExit {
            rip: 0,
            kind: Counter::Other,
        }; KEPT_EXITS];
        let mut exits_kept = 0usize;
        for (to, exit) in exits.iter_mut().zip(self.last_exits.all()) {
            *to = exit;
            exits_kept = exits_kept.wrapping_add(1);
        }
        let stack = match self.is_wide(Seg::Ss) {
            true => self.arch.gprs()[Reg::Rsp],
            false => self.arch.gprs()[Reg::Rsp] & 0xffff,
        };
        VcpuReport {
            state: self.arch.state(),
            cr8: self.apic.cr8(),
            cpl: self.arch.cpl(),
            code_bits: match (self.in_64_bit_code(), self.is_wide(Seg::Cs)) {
                (true, _) => 64,
                (_, true) => 32,
                _ => 16,
            },
            activity: self.activity,
            code: self.show(memory, Seg::Cs, self.arch.rip(), AccessKind::Execute),
            stack: self.show(memory, Seg::Ss, stack, AccessKind::Read),
            cause: self.cause_of_death,
            exits,
            exits_kept,
        }
    }

    /// The segment has offsets of 32 bits, or 64.
    fn is_wide(&self, seg: Seg) -> bool {
        use crate::state::SegmentAttributes as Attributes;
        self.in_64_bit_code() || self.arch.segment(seg).attributes.has(Attributes::DB)
    }

    /// Reads what lies at `offset` of a segment, as far as there is something.
    fn show(&self, memory: &Memory<H>, seg: Seg, offset: u64, kind: AccessKind) -> ShownBytes {
        let at = match self.in_64_bit_code() {
            true => offset,
            false => self.arch.segment(seg).base.wrapping_add(offset) & 0xffff_ffff,
        };
        let mut shown = ShownBytes {
            at,
            bytes: [0; SHOWN_BYTES],
            len: 0,
        };
        let privilege = match self.arch.cpl() {
            3 => Privilege::User,
            _ => Privilege::Supervisor,
        };
        let access = Access { kind, privilege };
        let (paging, mut tables) = (self.paging(), Untouched(memory));
        for (n, byte) in shown.bytes.iter_mut().enumerate() {
            let walked =
                walk::look_up(&paging, access, Gva(at.wrapping_add(n as u64)), &mut tables);
            let Ok(page) = walked else {
                break;
            };
            let (place, _) = memory.look(page.gpa, core::slice::from_mut(byte));
            if place != Place::Resident {
                break;
            }
            shown.len = n.wrapping_add(1);
        }
        shown
    }
}
