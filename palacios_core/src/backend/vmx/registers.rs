// SPDX-License-Identifier: MIT OR Apache-2.0
//! A guest's registers in the VMCS.

use super::caps::{msr, Caps};
use super::controls::entry;
use super::field::*;
use super::vmcs::Vmcs;
use crate::host::Host;
use crate::state::{
    cr0, efer, is_64_bit_code, rflags, CpuState, DescriptorTable, Seg, Segment,
    SegmentAttributes as A, TableRegister,
};

/// All segment registers, in the order of their numbers.
const SEGMENTS: [Seg; 8] = [
    Seg::Es,
    Seg::Cs,
    Seg::Ss,
    Seg::Ds,
    Seg::Fs,
    Seg::Gs,
    Seg::Ldtr,
    Seg::Tr,
];

/// Access rights: the register holds no segment (SDM 3C: table 24-2).
const UNUSABLE: u32 = 1 << 16;
/// A task-state segment that is in use.
const BUSY: u16 = 1 << 1;

/// Access rights as in the VMCS: bits 8 to 11 of the attributes stand four bits further up.
pub(super) fn to_rights(seg: Seg, attributes: A) -> u32 {
    let bits = attributes.0 & !0xf000;
    let bits = match seg {
        // TR is always usable, and what it names is in use (SDM 3C: 26.3.1.2).
        Seg::Tr => bits | BUSY | A::P,
        // What is loaded has been accessed.
        Seg::Ldtr => bits,
        _ => bits | A::ACCESSED,
    };
    let rights = u32::from(bits & 0xff) | u32::from(bits & 0xf00) << 4;
    match attributes.has(A::P) || seg == Seg::Tr || seg == Seg::Cs {
        true => rights,
        false => rights | UNUSABLE,
    }
}

/// Attributes from access rights; a register that holds no segment is not present.
pub(super) fn from_rights(rights: u32) -> A {
    let bits = (rights & 0xff | rights >> 4 & 0xf00) as u16;
    match rights & UNUSABLE {
        0 => A(bits),
        _ => A(bits & !A::P),
    }
}

/// A segment register.
pub(super) fn segment<H: Host>(vmcs: &Vmcs<H>, seg: Seg) -> Segment {
    Segment {
        selector: vmcs.get(selector(seg)),
        base: vmcs.get(base(seg)).0,
        limit: vmcs.get(limit(seg)),
        attributes: from_rights(vmcs.get(rights(seg))),
    }
}

/// Sets a segment register; with SS the privilege level.
pub(super) fn set_segment<H: Host>(vmcs: &mut Vmcs<H>, seg: Seg, value: Segment) {
    vmcs.set(selector(seg), value.selector);
    vmcs.set(base(seg), Natural(value.base));
    vmcs.set(limit(seg), value.limit);
    vmcs.set(rights(seg), to_rights(seg, value.attributes));
}

/// The current privilege level: that of SS, whatever it holds (SDM 3C: 24.4.1).
pub(super) fn cpl<H: Host>(vmcs: &Vmcs<H>) -> u8 {
    A(vmcs.get(SS_RIGHTS) as u16).dpl()
}

/// The guest has asked for #AC at what it executes now (SDM 3A: 6.15, "interrupt 17").
pub(super) fn checks_alignment<H: Host>(vmcs: &Vmcs<H>, caps: &Caps) -> bool {
    cpl(vmcs) == 3 && cr0(vmcs, caps) & cr0::AM != 0 && vmcs.get(RFLAGS).0 & rflags::AC != 0
}

/// Whether the guest executes 64-bit code.
pub(super) fn in_64_bit_code<H: Host>(vmcs: &Vmcs<H>) -> bool {
    is_64_bit_code(vmcs.get(EFER), from_rights(vmcs.get(CS_RIGHTS)))
}

/// A control register as the guest sees it: its own bits, and what it wrote to the others (SDM 3C: 24.6.6).
pub(super) fn cr0<H: Host>(vmcs: &Vmcs<H>, caps: &Caps) -> u64 {
    blend(vmcs.get(CR0).0, vmcs.get(CR0_SHADOW).0, caps.cr0_guarded)
}
/// The same of CR4.
pub(super) fn cr4<H: Host>(vmcs: &Vmcs<H>, caps: &Caps) -> u64 {
    blend(vmcs.get(CR4).0, vmcs.get(CR4_SHADOW).0, caps.cr4_guarded)
}
fn blend(real: u64, shadow: u64, guarded: u64) -> u64 {
    real & !guarded | shadow & guarded
}

/// Sets CR0. What the guest has of it for real is without what no guest has, and with what each has.
pub(super) fn set_cr0<H: Host>(vmcs: &mut Vmcs<H>, caps: &Caps, value: u64) {
    let kept_off = cr0::CD | cr0::NW;
    vmcs.set(CR0, Natural(value & !kept_off | caps.cr0_fixed));
    vmcs.set(CR0_SHADOW, Natural(value));
}
/// Sets CR4.
pub(super) fn set_cr4<H: Host>(vmcs: &mut Vmcs<H>, caps: &Caps, value: u64) {
    vmcs.set(CR4, Natural(value & !caps.cr4_guarded | caps.cr4_fixed));
    vmcs.set(CR4_SHADOW, Natural(value));
}
/// Sets EFER, and the control that follows its LMA.
pub(super) fn set_efer<H: Host>(vmcs: &mut Vmcs<H>, value: u64) {
    vmcs.set(EFER, value);
    let controls = vmcs.get(ENTRY_CONTROLS) & !entry::LONG_MODE;
    let long = if value & efer::LMA != 0 {
        entry::LONG_MODE
    } else {
        0
    };
    vmcs.set(ENTRY_CONTROLS, controls | long);
}

/// GDTR.
pub(super) fn gdtr<H: Host>(vmcs: &Vmcs<H>) -> TableRegister {
    TableRegister {
        base: vmcs.get(GDTR_BASE).0,
        limit: vmcs.get(GDTR_LIMIT) as u16,
    }
}
/// IDTR.
pub(super) fn idtr<H: Host>(vmcs: &Vmcs<H>) -> TableRegister {
    TableRegister {
        base: vmcs.get(IDTR_BASE).0,
        limit: vmcs.get(IDTR_LIMIT) as u16,
    }
}

/// Sets GDTR or IDTR.
pub(super) fn set_table<H: Host>(vmcs: &mut Vmcs<H>, table: DescriptorTable, value: TableRegister) {
    let (base, limit) = match table {
        DescriptorTable::Global => (GDTR_BASE, GDTR_LIMIT),
        DescriptorTable::Interrupt => (IDTR_BASE, IDTR_LIMIT),
    };
    vmcs.set(base, Natural(value.base));
    vmcs.set(limit, value.limit.into());
}

/// Whether an address may stand in a register that holds linear addresses: by the width that the guest's CPUID says, whatever it
/// uses of it (SDM 3A: 4.5.2).
pub(super) fn is_canonical(at: u64, caps: &Caps) -> bool {
    let unused = 64u32.saturating_sub(caps.linear_bits.into()) & 63;
    (at as i64) << unused >> unused == at as i64
}

/// A model-specific register that the VMCS holds.
pub(super) fn msr<H: Host>(vmcs: &Vmcs<H>, index: u32) -> Option<u64> {
    Some(match index {
        msr::FS_BASE => vmcs.get(FS_BASE).0,
        msr::GS_BASE => vmcs.get(GS_BASE).0,
        msr::SYSENTER_CS => vmcs.get(SYSENTER_CS).into(),
        msr::SYSENTER_ESP => vmcs.get(SYSENTER_ESP).0,
        msr::SYSENTER_EIP => vmcs.get(SYSENTER_EIP).0,
        msr::PAT => vmcs.get(PAT),
        _ => return None,
    })
}
/// Sets one. `None`: there is no such register here; `Some(false)`: not to this, an entry would be refused.
pub(super) fn set_msr<H: Host>(
    vmcs: &mut Vmcs<H>,
    caps: &Caps,
    index: u32,
    value: u64,
) -> Option<bool> {
    let good = match index {
        msr::PAT => value
            .to_le_bytes()
            .iter()
            .all(|kind| matches!(kind, 0 | 1 | 4..=7)),
        msr::SYSENTER_CS => true,
        _ => is_canonical(value, caps),
    };
    match index {
        msr::FS_BASE if good => vmcs.set(FS_BASE, Natural(value)),
        msr::GS_BASE if good => vmcs.set(GS_BASE, Natural(value)),
        msr::SYSENTER_CS => vmcs.set(SYSENTER_CS, value as u32),
        msr::SYSENTER_ESP if good => vmcs.set(SYSENTER_ESP, Natural(value)),
        msr::SYSENTER_EIP if good => vmcs.set(SYSENTER_EIP, Natural(value)),
        msr::PAT if good => vmcs.set(PAT, value),
        msr::FS_BASE | msr::GS_BASE | msr::SYSENTER_ESP | msr::SYSENTER_EIP | msr::PAT => {}
        _ => return None,
    }
    Some(good)
}

/// Writes all of a state that the VMCS holds.
pub(super) fn fill<H: Host>(vmcs: &mut Vmcs<H>, caps: &Caps, state: &CpuState) {
    vmcs.set(RIP, Natural(state.rip));
    vmcs.set(RFLAGS, Natural(state.rflags | rflags::FIXED));
    set_cr0(vmcs, caps, state.control.cr0);
    vmcs.set(CR3, Natural(state.control.cr3));
    set_cr4(vmcs, caps, state.control.cr4);
    set_efer(vmcs, state.control.efer);
    for (seg, value) in SEGMENTS.into_iter().zip(state.segments) {
        set_segment(vmcs, seg, value);
    }
    set_table(vmcs, DescriptorTable::Global, state.gdtr);
    set_table(vmcs, DescriptorTable::Interrupt, state.idtr);
    vmcs.set(DR7, Natural(state.dr7));
    vmcs.set(INTERRUPTIBILITY, 0);
    vmcs.set(PENDING_DEBUG, Natural(0));
}

/// What [`fill`] wrote, and the guest has made of it; general registers and those that the VMCS does not hold are left out.
pub(super) fn state<H: Host>(vmcs: &Vmcs<H>, to: &mut CpuState) {
    to.rip = vmcs.get(RIP).0;
    to.rflags = vmcs.get(RFLAGS).0;
    for (seg, value) in SEGMENTS.into_iter().zip(&mut to.segments) {
        *value = segment(vmcs, seg);
    }
    to.gdtr = gdtr(vmcs);
    to.idtr = idtr(vmcs);
    to.dr7 = vmcs.get(DR7).0;
}
