// SPDX-License-Identifier: MIT OR Apache-2.0
//! Why the processor refused an entry: the checks of SDM 3C: 26.2 and 26.3 again, by name, since it says no more than that one
//! failed.

use super::caps::Caps;
use super::controls::{blocking, entry, event};
use super::exit::{reason, Exited};
use super::field::*;
use super::registers::{cpl, is_canonical};
use super::vmcs::Vmcs;
use crate::host::Host;
use crate::state::{cr0, cr4, efer, rflags, Seg};

/// What was wrong, in words.
pub(super) fn fault<H: Host>(vmcs: &Vmcs<H>, caps: &Caps, exit: &Exited) -> &'static str {
    match exit.reason {
        reason::FAILED => instruction_error(exit.qualification),
        reason::BAD_MSR => "a model-specific register could not be loaded",
        reason::BAD_STATE => match exit.qualification {
            2 => "PDPTEs have reserved bits set",
            3 => "an NMI is injected in an interrupt shadow",
            4 => "the VMCS link pointer is wrong",
            _ => guest_state(vmcs, caps),
        },
        _ => "the entry failed for a reason that is not documented",
    }
}

/// VM-instruction errors (SDM 3C: table 30-1).
fn instruction_error(number: u64) -> &'static str {
    match number {
        2 => "VMCLEAR with an invalid address",
        4 => "VMLAUNCH of a VMCS that is not clear",
        5 => "VMRESUME of a VMCS that is not launched",
        7 => "the VMCS has invalid controls",
        8 => "the VMCS has an invalid host state",
        9 => "VMPTRLD with an invalid address",
        11 => "the VMCS has another revision",
        12 => "the VMCS has no such field",
        26 => "an entry with events blocked by MOV SS",
        _ => "no VMCS is current",
    }
}

/// A check, and whether it fails.
type Check = (bool, &'static str);

fn first(checks: &[Check]) -> Option<&'static str> {
    checks.iter().find_map(|(wrong, why)| wrong.then_some(*why))
}

/// The guest-state area (SDM 3C: 26.3.1).
fn guest_state<H: Host>(vmcs: &Vmcs<H>, caps: &Caps) -> &'static str {
    control_registers(vmcs, caps)
        .or_else(|| system_segments(vmcs))
        .or_else(|| segments(vmcs))
        .or_else(|| bases(vmcs, caps))
        .or_else(|| rip_and_flags(vmcs))
        .or_else(|| events(vmcs))
        .unwrap_or("none of the documented checks fails")
}

/// SDM 3C: 26.3.1.1.
fn control_registers<H: Host>(vmcs: &Vmcs<H>, caps: &Caps) -> Option<&'static str> {
    let (real_0, real_4, efer) = (vmcs.get(CR0).0, vmcs.get(CR4).0, vmcs.get(EFER));
    let long = vmcs.get(ENTRY_CONTROLS) & entry::LONG_MODE != 0;
    let paging = real_0 & cr0::PG != 0;
    let too_high = |at: u64| at.checked_shr(caps.physical_bits.into()).unwrap_or(0) != 0;
    let pat = vmcs.get(PAT).to_le_bytes();
    first(&[
        (
            real_0 & caps.cr0_fixed != caps.cr0_fixed,
            "CR0 lacks a bit that VMX operation needs",
        ),
        (
            paging && real_0 & cr0::PE == 0,
            "CR0.PG is set and CR0.PE is not",
        ),
        (
            real_4 & caps.cr4_fixed != caps.cr4_fixed,
            "CR4 lacks a bit that VMX operation needs",
        ),
        (
            long && !(paging && real_4 & cr4::PAE != 0),
            "long mode needs CR0.PG and CR4.PAE",
        ),
        (
            !long && real_4 & cr4::PCIDE != 0,
            "CR4.PCIDE is set outside of long mode",
        ),
        (
            too_high(vmcs.get(CR3).0 & !(1 << 63)),
            "CR3 has bits set beyond the physical address",
        ),
        (vmcs.get(DR7).0 >> 32 != 0, "DR7 has upper bits set"),
        (
            pat.iter().any(|kind| matches!(kind, 2 | 3 | 8..)),
            "PAT has a reserved memory type",
        ),
        (
            (efer & efer::LMA != 0) != long,
            "EFER.LMA is not what the entry controls say",
        ),
        (
            paging && (efer & efer::LMA != 0) != (efer & efer::LME != 0),
            "EFER.LMA and EFER.LME differ under paging",
        ),
    ])
}

fn is_usable<H: Host>(vmcs: &Vmcs<H>, seg: Seg) -> bool {
    vmcs.get(rights(seg)) & 1 << 16 == 0
}

/// TR and LDTR (SDM 3C: 26.3.1.2).
fn system_segments<H: Host>(vmcs: &Vmcs<H>) -> Option<&'static str> {
    let kind = |seg| vmcs.get(rights(seg)) & 15;
    let long = vmcs.get(ENTRY_CONTROLS) & entry::LONG_MODE != 0;
    let is_system = |seg| vmcs.get(rights(seg)) & 0x90 == 0x80;
    first(&[
        (
            !(is_usable(vmcs, Seg::Tr) && is_system(Seg::Tr)),
            "TR holds no segment of the system's",
        ),
        (
            !(kind(Seg::Tr) == 11 || kind(Seg::Tr) == 3 && !long),
            "TR holds no busy task-state segment",
        ),
        (
            vmcs.get(selector(Seg::Tr)) & 4 != 0,
            "TR has a selector of the LDT",
        ),
        (
            bad_limit(vmcs, Seg::Tr),
            "TR's limit and granularity disagree",
        ),
        (
            is_usable(vmcs, Seg::Ldtr) && !(kind(Seg::Ldtr) == 2 && is_system(Seg::Ldtr)),
            "LDTR holds no LDT",
        ),
    ])
}

/// Bases (SDM 3C: 26.3.1.2).
fn bases<H: Host>(vmcs: &Vmcs<H>, caps: &Caps) -> Option<&'static str> {
    let high = |seg| vmcs.get(base(seg)).0 >> 32 != 0;
    let wild = |seg| !is_canonical(vmcs.get(base(seg)).0, caps);
    let data = [Seg::Ss, Seg::Ds, Seg::Es];
    first(&[
        (
            high(Seg::Cs)
                || data
                    .into_iter()
                    .any(|seg| is_usable(vmcs, seg) && high(seg)),
            "the base of CS, SS, DS or ES has upper bits set",
        ),
        (
            [Seg::Tr, Seg::Fs, Seg::Gs].into_iter().any(wild)
                || is_usable(vmcs, Seg::Ldtr) && wild(Seg::Ldtr),
            "the base of TR, FS, GS or LDTR is not canonical",
        ),
    ])
}

/// The others (SDM 3C: 26.3.1.2).
fn segments<H: Host>(vmcs: &Vmcs<H>) -> Option<&'static str> {
    let usable = |seg| is_usable(vmcs, seg);
    let kind = |seg| vmcs.get(rights(seg)) & 15;
    let absent = |seg| usable(seg) && vmcs.get(rights(seg)) & 0x90 != 0x90;
    let long = vmcs.get(ENTRY_CONTROLS) & entry::LONG_MODE != 0;
    let virtual_8086 = vmcs.get(RFLAGS).0 & rflags::VM != 0;
    let data = [Seg::Ds, Seg::Es, Seg::Fs, Seg::Gs];
    let code = vmcs.get(CS_RIGHTS);
    first(&[
        (
            !virtual_8086 && !matches!(kind(Seg::Cs), 3 | 9 | 11 | 13 | 15),
            "CS holds no code segment",
        ),
        (
            !virtual_8086 && code & 0x90 != 0x90,
            "CS is not present, or a system segment",
        ),
        (
            !virtual_8086 && long && code >> 13 & 3 == 3,
            "CS has both L and D set",
        ),
        (
            !virtual_8086 && usable(Seg::Ss) && !matches!(kind(Seg::Ss), 3 | 7),
            "SS holds no stack segment",
        ),
        (
            !virtual_8086 && (absent(Seg::Ss) || data.into_iter().any(absent)),
            "a segment is not present, or one of the system's",
        ),
        (
            !virtual_8086
                && data
                    .into_iter()
                    .any(|seg| usable(seg) && kind(seg) & 1 == 0),
            "a data segment register holds one that was never accessed",
        ),
        (
            data.into_iter()
                .chain([Seg::Ss, Seg::Cs])
                .any(|seg| usable(seg) && bad_limit(vmcs, seg)),
            "a segment's limit and granularity disagree",
        ),
        (
            virtual_8086 && cpl(vmcs) != 3,
            "virtual-8086 mode at a privilege level that is not 3",
        ),
    ])
}

fn bad_limit<H: Host>(vmcs: &Vmcs<H>, seg: Seg) -> bool {
    let in_pages = vmcs.get(rights(seg)) & 1 << 15 != 0;
    let limit = vmcs.get(limit(seg));
    (in_pages && limit & 0xfff != 0xfff) || (!in_pages && limit >> 20 != 0)
}

/// SDM 3C: 26.3.1.4.
fn rip_and_flags<H: Host>(vmcs: &Vmcs<H>) -> Option<&'static str> {
    const RESERVED: u64 = !0x3f_7fff | 1 << 15 | 1 << 5 | 1 << 3;
    let flags = vmcs.get(RFLAGS).0;
    let long_code =
        vmcs.get(CS_RIGHTS) & 1 << 13 != 0 && vmcs.get(ENTRY_CONTROLS) & entry::LONG_MODE != 0;
    let rip = vmcs.get(RIP).0;
    first(&[
        (
            !long_code && rip >> 32 != 0,
            "RIP has upper bits set outside of 64-bit code",
        ),
        (
            long_code && (rip as i64) << 7 >> 7 != rip as i64,
            "RIP is not canonical",
        ),
        (
            flags & RESERVED != 0 || flags & rflags::FIXED == 0,
            "RFLAGS has reserved bits wrong",
        ),
        (
            flags & rflags::VM != 0 && vmcs.get(ENTRY_CONTROLS) & entry::LONG_MODE != 0,
            "RFLAGS.VM is set in long mode",
        ),
    ])
}

/// SDM 3C: 26.3.1.5.
fn events<H: Host>(vmcs: &Vmcs<H>) -> Option<&'static str> {
    let flags = vmcs.get(RFLAGS).0;
    let blocked = vmcs.get(INTERRUPTIBILITY);
    let injected = vmcs.get(ENTRY_EVENT);
    let injects = |kind| injected & event::VALID != 0 && injected & event::TYPE == kind;
    let interrupt = injects(event::INTERRUPT);
    let pending = vmcs.get(PENDING_DEBUG).0;
    let shadow = blocked & blocking::SHADOW != 0;
    first(&[
        (
            blocked & blocking::SHADOW == blocking::SHADOW,
            "shadows of both STI and MOV SS",
        ),
        (
            blocked & blocking::STI != 0 && flags & rflags::IF == 0,
            "a shadow of STI with RFLAGS.IF clear",
        ),
        (
            interrupt && flags & rflags::IF == 0,
            "an interrupt is injected with RFLAGS.IF clear",
        ),
        (interrupt && shadow, "an interrupt is injected in a shadow"),
        (
            injects(event::NMI) && blocked & (blocking::NMI | blocking::MOV_SS) != 0,
            "an NMI is injected while NMIs are blocked",
        ),
        (
            shadow && (pending & 1 << 14 != 0) != (flags & rflags::TF != 0),
            "a pending single-step does not agree with RFLAGS.TF",
        ),
    ])
}
