// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is looked at before a guest is entered: what the manual has a processor check (SDM 3C: 26.2, 26.3), and what only
//! this VMM's contract asks for.

use super::caps;
use super::field::*;
use super::host::{self, Registers};
use super::vmcs::{Vmcs, UNUSABLE};
use crate::processor::{Config, HostMachine};
use palacios_core::addr::Hpa;
use palacios_core::state::{cr0, cr4, efer, rflags};

/// A condition that must hold, and what is wrong if not.
type Check = (bool, &'static str);

fn first(checks: &[Check]) -> Result<(), &'static str> {
    match checks.iter().find(|(good, _)| !good) {
        Some(&(_, what)) => Err(what),
        None => Ok(()),
    }
}

/// Bits of controls.
mod bit {
    pub const PIN: u32 = 1 << 0 | 1 << 3 | 1 << 5;
    pub const TPR_SHADOW: u32 = 1 << 21;
    pub const HLT_IO_MSR_SECONDARY: u32 = 1 << 7 | 1 << 24 | 1 << 28 | 1 << 31;
    pub const MWAIT_RDPMC_MONITOR: u32 = 1 << 10 | 1 << 11 | 1 << 29;
    pub const EPT_VPID_WBINVD_UNRESTRICTED: u32 = 1 << 1 | 1 << 5 | 1 << 6 | 1 << 7;
    pub const EXIT: u32 = 1 << 2 | 1 << 9 | 1 << 18 | 1 << 19 | 1 << 20 | 1 << 21;
    pub const ENTRY: u32 = 1 << 2 | 1 << 14 | 1 << 15;
    pub const LONG_MODE: u32 = 1 << 9;
    pub const DB_AC_MC: u32 = 1 << 1 | 1 << 17 | 1 << 18;
}

/// What this VMM has to see to before each entry. No processor would say a word.
pub fn contract(vmcs: &Vmcs, registers: &Registers) -> Result<(), &'static str> {
    let set = |field, bits| vmcs.get_32(field) & bits == bits;
    first(&[
        (set(PIN, bit::PIN), "interrupts or NMIs do not exit"),
        (
            set(PRIMARY, bit::HLT_IO_MSR_SECONDARY | bit::TPR_SHADOW),
            "a primary control is missing",
        ),
        (
            set(PRIMARY, bit::MWAIT_RDPMC_MONITOR),
            "MWAIT, RDPMC or MONITOR does not exit",
        ),
        (
            set(SECONDARY, bit::EPT_VPID_WBINVD_UNRESTRICTED),
            "a secondary control is missing",
        ),
        (set(EXIT, bit::EXIT), "an exit control is missing"),
        (set(ENTRY, bit::ENTRY), "an entry control is missing"),
        (
            set(EXCEPTIONS, bit::DB_AC_MC),
            "#DB, #AC or #MC does not exit",
        ),
        (
            [EXIT_MSR_STORES, DEBUGCTL]
                .iter()
                .all(|field| vmcs.get(*field) == 0),
            "registers are loaded or stored that nobody asked for",
        ),
        (
            vmcs.get(CR0_MASK) & (cr0::CD | cr0::NW) == cr0::CD | cr0::NW
                && vmcs.get(CR0) & (cr0::CD | cr0::NW) == 0,
            "the guest has the caches for its own",
        ),
        (
            vmcs.get(CR4_MASK) & cr4::MCE != 0
                && vmcs.get(CR4) & cr4::MCE == registers.cr4 & cr4::MCE,
            "machine checks are not as the host has them",
        ),
    ])
}

/// An exit would not come back to the host as it is now.
pub fn stale_host(vmcs: &Vmcs, r: &Registers) -> Result<(), &'static str> {
    let is = |field, value: u64| vmcs.get(field) == value;
    let is_msr = |field, index| is(field, r.msr(index));
    first(&[
        (is(HOST_CR0, r.cr0), "HOST_CR0"),
        (is(HOST_CR3, r.cr3), "HOST_CR3"),
        (is(HOST_CR4, r.cr4), "HOST_CR4"),
        (is_msr(HOST_FS_BASE, host::FS_BASE), "HOST_FS_BASE"),
        (is_msr(HOST_GS_BASE, host::GS_BASE), "HOST_GS_BASE"),
        (is(HOST_TR, r.task.into()), "HOST_TR"),
        (is(HOST_TR_BASE, r.task_base), "HOST_TR_BASE"),
        (is(HOST_GDTR_BASE, r.gdt.base), "HOST_GDTR_BASE"),
        (is(HOST_IDTR_BASE, r.idt.base), "HOST_IDTR_BASE"),
        (
            is_msr(HOST_SYSENTER_CS, host::SYSENTER_CS),
            "HOST_SYSENTER_CS",
        ),
        (
            is_msr(HOST_SYSENTER_ESP, host::SYSENTER_ESP),
            "HOST_SYSENTER_ESP",
        ),
        (
            is_msr(HOST_SYSENTER_EIP, host::SYSENTER_EIP),
            "HOST_SYSENTER_EIP",
        ),
        (is_msr(HOST_PAT, host::PAT), "HOST_PAT"),
        (is_msr(HOST_EFER, host::EFER), "HOST_EFER"),
    ])
}

/// SDM 3C: 26.2.1. Failing, the entry does not begin, with error 7.
pub fn controls(host: &dyn HostMachine, vmcs: &Vmcs) -> Result<(), &'static str> {
    let config = &host.processors().config;
    let allowed = |field, index| {
        let (must, may) = caps::controls(config, index);
        vmcs.get_32(field) & must == must && vmcs.get_32(field) & !may == 0
    };
    let vpid = vmcs.get_32(VPID);
    let is_list = |count, at| vmcs.get(count) == 0 || vmcs.get(at) % 16 == 0;
    let pages = [MSR_MAP, VIRTUAL_APIC].map(|field| vmcs.get(field));
    first(&[
        (allowed(PIN, caps::PIN), "reserved pin-based controls"),
        (
            allowed(PRIMARY, caps::PIN + 1),
            "reserved primary processor-based controls",
        ),
        (
            allowed(SECONDARY, caps::SECONDARY),
            "reserved secondary processor-based controls",
        ),
        (allowed(EXIT, caps::PIN + 2), "reserved exit controls"),
        (allowed(ENTRY, caps::PIN + 3), "reserved entry controls"),
        (vmcs.get(CR3_TARGETS) <= 4, "CR3-target count"),
        (pages.iter().all(|at| at % 4096 == 0), "page addresses"),
        (
            is_list(ENTRY_MSR_LOADS, ENTRY_MSR_LOAD_LIST)
                && is_list(EXIT_MSR_LOADS, EXIT_MSR_LOAD_LIST),
            "MSR lists",
        ),
        (vpid != 0 && vpid < config.tags, "VPID"),
        (is_ept_pointer(config, vmcs.get(EPT_POINTER)), "EPT pointer"),
        (event_to_inject(vmcs), "event to inject"),
    ])?;
    // Of a page that is there.
    first(&[(threshold(host, vmcs), "TPR threshold")])
}

fn is_ept_pointer(config: &Config, pointer: u64) -> bool {
    let dirty = caps::read(config, caps::EPT_VPID).is_some_and(|c| c & 1 << 21 != 0);
    let bits = if dirty { 1 << 6 } else { 0 };
    let levels = u64::from(config.format.levels) - 1;
    pointer & 0xfff & !bits == 6 | levels << 3 && pointer >> 46 == 0
}

/// Not above the priority in the virtual-APIC page, or the guest is below it from the start.
fn threshold(host: &dyn HostMachine, vmcs: &Vmcs) -> bool {
    vmcs.get(TPR_THRESHOLD) <= u64::from(virtual_tpr(host, vmcs) >> 4)
}

/// The task priority in the virtual-APIC page.
pub fn virtual_tpr(host: &dyn HostMachine, vmcs: &Vmcs) -> u8 {
    let page = host.phys_to_virt(Hpa(vmcs.get(VIRTUAL_APIC)));
    // SAFETY: a byte of a page that is the vCPU's own.
    unsafe { page.as_ptr().add(0x80).read_volatile() }
}

/// SDM 3C: 26.2.1.3.
fn event_to_inject(vmcs: &Vmcs) -> bool {
    let info = vmcs.get_32(ENTRY_EVENT);
    let (vector, kind) = (info & 0xff, info >> 8 & 7);
    if info & 1 << 31 == 0 {
        return true;
    }
    let protected = vmcs.get(CR0) & cr0::PE != 0;
    let has_code = kind == 3 && protected && matches!(vector, 8 | 10..=14 | 17);
    let length = vmcs.get(ENTRY_LENGTH);
    let of_kind = match kind {
        0 => true,
        2 => vector == 2,
        3 => vector < 32 && vector != 2,
        4..=6 => (1..=15).contains(&length),
        _ => false,
    };
    of_kind
        && info & 0x7fff_f000 == 0
        && (info & 1 << 11 != 0) == has_code
        && (!has_code || vmcs.get(ENTRY_ERROR_CODE) >> 16 == 0)
}

/// SDM 3C: 26.2.2 to 26.2.4. Failing, the entry does not begin, with error 8. (That TI and RPL are 0 cannot be asked of the
/// selectors that a test has.)
pub fn host_area(vmcs: &Vmcs) -> Result<(), &'static str> {
    let selector = |n: u16| vmcs.get(HOST_SELECTORS + 2 * n);
    let canonical = |field| {
        let at = vmcs.get(field) as i64;
        at << 16 >> 16 == at
    };
    first(&[
        (vmcs.get(HOST_CR0) & 0x8000_0021 == 0x8000_0021, "host CR0"),
        (
            vmcs.get(HOST_CR4) & host::CR4_VMXE != 0 && vmcs.get(HOST_CR4) & cr4::PAE != 0,
            "host CR4",
        ),
        (
            selector(1) != 0 && selector(6) != 0,
            "host CS or TR is null",
        ),
        (
            [0, 3, 4, 5].iter().all(|n| selector(*n) & 7 == 0),
            "a host selector of a user's",
        ),
        (
            [
                HOST_FS_BASE,
                HOST_GS_BASE,
                HOST_TR_BASE,
                HOST_GDTR_BASE,
                HOST_IDTR_BASE,
                HOST_SYSENTER_ESP,
                HOST_SYSENTER_EIP,
                HOST_RIP,
            ]
            .into_iter()
            .all(canonical),
            "a host address is not canonical",
        ),
        (
            vmcs.get(HOST_EFER) & (efer::LMA | efer::LME) == efer::LMA | efer::LME,
            "host EFER",
        ),
    ])
}

/// SDM 3C: 26.3.1. Failing, the entry exits at once, with reason 33 and this qualification.
pub fn guest_area(vmcs: &Vmcs) -> Result<(), u64> {
    let nmi = 1 << 31 | 2 << 8;
    let injects_nmi = vmcs.get_32(ENTRY_EVENT) & (1 << 31 | 7 << 8) == nmi;
    let blocked = vmcs.get(INTERRUPTIBILITY);
    match () {
        () if injects_nmi && blocked & 2 != 0 => Err(3),
        () if vmcs.get(LINK) != u64::MAX => Err(4),
        () => {
            let good = control_registers(vmcs)
                && (0..6).all(|n| is_segment(vmcs, n))
                && system_segments(vmcs)
                && flags_and_rip(vmcs)
                && interruptibility(vmcs);
            if good {
                Ok(())
            } else {
                Err(0)
            }
        }
    }
}

/// SDM 3C: 26.3.1.1, with an unrestricted guest.
fn control_registers(vmcs: &Vmcs) -> bool {
    let (real_0, real_4, real_efer) = (vmcs.get(CR0), vmcs.get(CR4), vmcs.get(EFER));
    let long = vmcs.get_32(ENTRY) & bit::LONG_MODE != 0;
    let paging = real_0 & cr0::PG != 0;
    let lma = real_efer & efer::LMA != 0;
    let pat = vmcs.get(PAT).to_le_bytes();
    real_0 & 0x20 != 0
        && real_0 >> 32 == 0
        && (!paging || real_0 & cr0::PE != 0)
        && real_4 & host::CR4_VMXE != 0
        && real_4 & !0x0017_67ff == 0
        && (!long || paging && real_4 & cr4::PAE != 0)
        && (long || real_4 & cr4::PCIDE == 0)
        && vmcs.get(CR3) >> 46 == 0
        && vmcs.get(DR7) >> 32 == 0
        && pat.iter().all(|kind| matches!(kind, 0 | 1 | 4..=7))
        && real_efer & !0xd01 == 0
        && lma == long
        && (!paging || lma == (real_efer & efer::LME != 0))
}

fn rights(vmcs: &Vmcs, n: u16) -> u32 {
    vmcs.get_32(RIGHTS + 2 * n)
}

/// ES, CS, SS, DS, FS or GS (SDM 3C: 26.3.1.2), not in virtual-8086 mode.
fn is_segment(vmcs: &Vmcs, n: u16) -> bool {
    const CS: u16 = 1;
    const SS: u16 = 2;
    let rights = rights(vmcs, n);
    if rights & UNUSABLE != 0 {
        return n != CS;
    }
    let kind = rights & 15;
    let fits = match n {
        CS => matches!(kind, 3 | 9 | 11 | 13 | 15),
        SS => matches!(kind, 3 | 7),
        _ => kind & 1 != 0 && (kind & 8 == 0 || kind & 2 != 0),
    };
    let limit = vmcs.get(LIMITS + 2 * n);
    let long = vmcs.get_32(ENTRY) & bit::LONG_MODE != 0;
    let in_pages = rights & 1 << 15 != 0;
    fits && rights & 0x90 == 0x90
        && rights & 0xfffe_0f00 == 0
        && (n > SS || vmcs.get(BASES + 2 * n) >> 32 == 0)
        && !(n == CS && long && rights >> 13 & 3 == 3)
        && (!in_pages || limit & 0xfff == 0xfff)
        && (in_pages || limit >> 20 == 0)
}

/// TR and LDTR.
fn system_segments(vmcs: &Vmcs) -> bool {
    const LDTR: u16 = 6;
    const TR: u16 = 7;
    let task = rights(vmcs, TR);
    let long = vmcs.get_32(ENTRY) & bit::LONG_MODE != 0;
    let table = rights(vmcs, LDTR);
    let is_table = table & 0x9f == 0x82 && table & 0xfffe_0f00 == 0;
    task & UNUSABLE == 0
        && (task & 15 == 11 || task & 15 == 3 && !long)
        && task & 0x90 == 0x80
        && task & 0xfffe_0f00 == 0
        && vmcs.get(SELECTORS + 2 * TR) & 4 == 0
        && (table & UNUSABLE != 0 || is_table)
        && vmcs.get(GDTR_LIMIT) >> 16 == 0
        && vmcs.get(IDTR_LIMIT) >> 16 == 0
}

/// SDM 3C: 26.3.1.4.
fn flags_and_rip(vmcs: &Vmcs) -> bool {
    const RESERVED: u64 = !0x3f_7fff | 1 << 15 | 1 << 5 | 1 << 3;
    let flags = vmcs.get(RFLAGS);
    let long_code = vmcs.get_32(ENTRY) & bit::LONG_MODE != 0 && rights(vmcs, 1) & 1 << 13 != 0;
    let event = vmcs.get_32(ENTRY_EVENT);
    let interrupt = event & (1 << 31 | 7 << 8) == 1 << 31;
    (long_code || vmcs.get(RIP) >> 32 == 0)
        && flags & RESERVED == 0
        && flags & rflags::FIXED != 0
        && (!interrupt || flags & rflags::IF != 0)
}

/// SDM 3C: 26.3.1.5.
fn interruptibility(vmcs: &Vmcs) -> bool {
    let blocked = vmcs.get(INTERRUPTIBILITY);
    let flags = vmcs.get(RFLAGS);
    let event = vmcs.get_32(ENTRY_EVENT);
    let injects = |kind: u32| event & (1 << 31 | 7 << 8) == 1 << 31 | kind << 8;
    let shadow = blocked & 3 != 0;
    let pending = vmcs.get(PENDING_DEBUG);
    let traced = flags & rflags::TF != 0;
    vmcs.get(ACTIVITY) == 0
        && blocked & !0b1011 == 0
        && blocked & 3 != 3
        && (blocked & 1 == 0 || flags & rflags::IF != 0)
        && !(shadow && injects(0))
        // With virtual NMIs, also what blocks those.
        && !(injects(2) && blocked & 0b1010 != 0)
        && (!shadow || (pending & 1 << 14 != 0) == traced)
        && pending & !0x1_500f == 0
}
