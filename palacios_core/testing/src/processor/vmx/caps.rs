// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the processor says that it can do: that of a server of some years ago (SDM 3D: appendix A).

use crate::processor::svm::{EBX_7, ECX_1, ECX_7, EDX_1};
use crate::processor::Config;

pub const FEATURE_CONTROL: u32 = 0x3a;
const ARCH_CAPABILITIES: u32 = 0x10a;
pub const BASIC: u32 = 0x480;
pub const PIN: u32 = 0x481;
pub const MISC: u32 = 0x485;
pub const SECONDARY: u32 = 0x48b;
pub const EPT_VPID: u32 = 0x48c;

/// The revision identifier of a VMCS.
pub const REVISION: u32 = 0x12;
/// IA32_VMX_BASIC: the true controls are there.
pub const TRUE_CONTROLS: u64 = 1 << 55;
const WALK_5: u64 = 1 << 7;
/// It is above CVE-2018-12207.
const PSCHANGE_MC_NO: u64 = 1 << 6;

fn full(index: u32) -> Option<u64> {
    Some(match index {
        // Locked, and on outside of SMX.
        FEATURE_CONTROL => 0b101,
        // RDCL_NO and the like are not there: all that helps against them is done.
        ARCH_CAPABILITIES => 0,
        BASIC => 6 << 50 | 0x400 << 32 | TRUE_CONTROLS | REVISION as u64,
        PIN => 0x7f_0000_0016,
        0x482 => 0xfff9_fffe_0401_e172,
        0x483 => 0x01ff_ffff_0003_6dff,
        0x484 => 0x0003_ffff_0000_11ff,
        // The preemption timer counts at a 128th; no VMWRITE of exit information.
        MISC => 0x0004_c0e7,
        // FIXED0 and FIXED1 of CR0 and CR4; no SMAP.
        0x486 => 0x8000_0021,
        0x487 => 0xffff_ffff,
        0x488 => 0x2000,
        0x489 => 0x0017_67ff,
        0x48a => 0x2e,
        SECONDARY => 0x0000_5cfe_0000_0000,
        EPT_VPID => 0x0f01_0673_4141,
        0x48d => 0x7f_0000_0016,
        0x48e => 0xfff9_fffe_0400_6172,
        0x48f => 0x01ff_ffff_0003_6dfb,
        0x490 => 0x0003_ffff_0000_11fb,
        _ => return None,
    })
}

/// A capability register of a processor of this kind.
pub fn read(config: &Config, index: u32) -> Option<u64> {
    let lacks = config.vmx.iter().flat_map(|vmx| &vmx.lacks);
    let lacking = lacks.filter(|(of, _)| *of == index);
    let lacking = lacking.fold(0, |all, (_, bits)| all | bits);
    let extra = match index {
        EPT_VPID if config.format.levels == 5 => WALK_5,
        ARCH_CAPABILITIES if config.format.large_executable => PSCHANGE_MC_NO,
        _ => 0,
    };
    full(index).map(|value| (value | extra) & !lacking)
}

/// The processor has not even the register.
pub fn is_missing(config: &Config, index: u32) -> bool {
    let lacks = config.vmx.iter().flat_map(|vmx| &vmx.lacks);
    lacks.into_iter().any(|lack| *lack == (index, u64::MAX))
}

/// The controls that an entry may set: those that must be 1 in the lower half, those that may be in the upper.
pub fn controls(config: &Config, index: u32) -> (u32, u32) {
    let truth = read(config, BASIC).is_some_and(|basic| basic & TRUE_CONTROLS != 0);
    let offset = match index {
        SECONDARY => 0,
        _ if truth => 0x48d - PIN,
        _ => 0,
    };
    let value = read(config, index + offset).unwrap_or(0);
    (value as u32, (value >> 32) as u32)
}

/// CPUID of it.
pub fn cpuid(config: &Config, leaf: u32) -> [u32; 4] {
    match leaf {
        0 => [7, 0x756e_6547, 0x6c65_746e, 0x4965_6e69],
        // VMX; a debug store.
        1 => [0, 0, ECX_1 | 1 << 5, EDX_1 | 1 << 21],
        // MD_CLEAR, IBPB, L1D_FLUSH, ARCH_CAPABILITIES.
        7 => [0, EBX_7, ECX_7, 1 << 10 | 1 << 26 | 1 << 28 | 1 << 29],
        // SYSCALL, NX, RDTSCP, long mode.
        0x8000_0001 => [0, 0, 1 << 0, 1 << 11 | 1 << 20 | 1 << 27 | 1 << 29],
        0x8000_0000 => [0x8000_0008, 0, 0, 0],
        0x8000_0008 if config.format.levels == 5 => [52, 0, 0, 0],
        0x8000_0008 => [46, 0, 0, 0],
        _ => [0; 4],
    }
}
