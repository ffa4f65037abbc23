// SPDX-License-Identifier: MIT OR Apache-2.0
//! Encodings of VMCS fields, out of SDM 3D: appendix B.

pub const VPID: u16 = 0x0000;
pub const SELECTORS: u16 = 0x0800;
pub const HOST_SELECTORS: u16 = 0x0c00;
pub const HOST_TR: u16 = 0x0c0c;
pub const MSR_MAP: u16 = 0x2004;
pub const EXIT_MSR_LOAD_LIST: u16 = 0x2008;
pub const ENTRY_MSR_LOAD_LIST: u16 = 0x200a;
pub const TSC_OFFSET: u16 = 0x2010;
pub const VIRTUAL_APIC: u16 = 0x2012;
pub const EPT_POINTER: u16 = 0x201a;
pub const GUEST_PHYSICAL: u16 = 0x2400;
pub const LINK: u16 = 0x2800;
pub const DEBUGCTL: u16 = 0x2802;
pub const PAT: u16 = 0x2804;
pub const EFER: u16 = 0x2806;
pub const HOST_PAT: u16 = 0x2c00;
pub const HOST_EFER: u16 = 0x2c02;
pub const PIN: u16 = 0x4000;
pub const PRIMARY: u16 = 0x4002;
pub const EXCEPTIONS: u16 = 0x4004;
pub const CR3_TARGETS: u16 = 0x400a;
pub const EXIT: u16 = 0x400c;
pub const EXIT_MSR_STORES: u16 = 0x400e;
pub const EXIT_MSR_LOADS: u16 = 0x4010;
pub const ENTRY: u16 = 0x4012;
pub const ENTRY_MSR_LOADS: u16 = 0x4014;
pub const ENTRY_EVENT: u16 = 0x4016;
pub const ENTRY_ERROR_CODE: u16 = 0x4018;
pub const ENTRY_LENGTH: u16 = 0x401a;
pub const TPR_THRESHOLD: u16 = 0x401c;
pub const SECONDARY: u16 = 0x401e;
pub const SPIN_GAP: u16 = 0x4020;
pub const SPIN_WINDOW: u16 = 0x4022;
pub const INSTRUCTION_ERROR: u16 = 0x4400;
pub const EXIT_REASON: u16 = 0x4402;
pub const EXIT_EVENT: u16 = 0x4404;
pub const EXIT_ERROR_CODE: u16 = 0x4406;
pub const VECTORING_EVENT: u16 = 0x4408;
pub const VECTORING_ERROR_CODE: u16 = 0x440a;
pub const EXIT_LENGTH: u16 = 0x440c;
pub const LIMITS: u16 = 0x4800;
pub const GDTR_LIMIT: u16 = 0x4810;
pub const IDTR_LIMIT: u16 = 0x4812;
pub const RIGHTS: u16 = 0x4814;
pub const INTERRUPTIBILITY: u16 = 0x4824;
pub const ACTIVITY: u16 = 0x4826;
pub const SYSENTER_CS: u16 = 0x482a;
pub const PREEMPTION_TIMER: u16 = 0x482e;
pub const HOST_SYSENTER_CS: u16 = 0x4c00;
pub const CR0_MASK: u16 = 0x6000;
pub const CR4_MASK: u16 = 0x6002;
pub const CR0_SHADOW: u16 = 0x6004;
pub const CR4_SHADOW: u16 = 0x6006;
pub const QUALIFICATION: u16 = 0x6400;
pub const CR0: u16 = 0x6800;
pub const CR3: u16 = 0x6802;
pub const CR4: u16 = 0x6804;
pub const BASES: u16 = 0x6806;
pub const GDTR_BASE: u16 = 0x6816;
pub const IDTR_BASE: u16 = 0x6818;
pub const DR7: u16 = 0x681a;
pub const RSP: u16 = 0x681c;
pub const RIP: u16 = 0x681e;
pub const RFLAGS: u16 = 0x6820;
pub const PENDING_DEBUG: u16 = 0x6822;
pub const SYSENTER_ESP: u16 = 0x6824;
pub const SYSENTER_EIP: u16 = 0x6826;
pub const HOST_CR0: u16 = 0x6c00;
pub const HOST_CR3: u16 = 0x6c02;
pub const HOST_CR4: u16 = 0x6c04;
pub const HOST_FS_BASE: u16 = 0x6c06;
pub const HOST_GS_BASE: u16 = 0x6c08;
pub const HOST_TR_BASE: u16 = 0x6c0a;
pub const HOST_GDTR_BASE: u16 = 0x6c0c;
pub const HOST_IDTR_BASE: u16 = 0x6c0e;
pub const HOST_SYSENTER_ESP: u16 = 0x6c10;
pub const HOST_SYSENTER_EIP: u16 = 0x6c12;
pub const HOST_RSP: u16 = 0x6c14;
pub const HOST_RIP: u16 = 0x6c16;

/// The last field of each kind that the processor has; they stand in rows, two apart.
const LAST: [u16; 14] = [
    0x0000, 0x0810, 0x0c0c, 0x201e, 0x2400, 0x2810, 0x2c04, 0x4022, 0x440e, 0x482e, 0x4c00, 0x600e,
    0x640a, 0x6826,
];
const LAST_OF_HOST: u16 = 0x6c16;

/// There is such a field.
pub fn exists(encoding: u16) -> bool {
    let row = encoding & !0x3ff;
    let of_row = |last: &&u16| **last & !0x3ff == row;
    let last = LAST.iter().chain(&[LAST_OF_HOST]).find(of_row);
    // One is missing in its row.
    encoding & 1 == 0 && encoding != 0x482c && last.is_some_and(|last| encoding <= *last)
}

/// Software may only read it (SDM 3C: 24.11.2).
pub fn is_read_only(encoding: u16) -> bool {
    encoding >> 10 & 3 == 1
}

/// The bits that it has (SDM 3C: 24.11.2).
pub fn mask(encoding: u16) -> u64 {
    match encoding >> 13 & 3 {
        0 => 0xffff,
        2 => 0xffff_ffff,
        _ => u64::MAX,
    }
}
