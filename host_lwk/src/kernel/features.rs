// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is switched on in each processor, besides its descriptor tables and its local APIC: machine checks, VT-x, wide registers,
//! isolated predictions.

use super::cpuid::leaf;
use super::predictions;
use x86_64::registers::control::{Cr4, Cr4Flags};
use x86_64::registers::model_specific::Msr;
use x86_64::registers::xcontrol::{XCr0, XCr0Flags};

/// Model-specific registers (SDM 4: 2).
mod msr {
    pub const FEATURE_CONTROL: u32 = 0x3a;
    pub const MCG_CAP: u32 = 0x179;
    pub const MCG_CTL: u32 = 0x17b;
    /// The first bank's; those of the others follow at every fourth.
    pub const MC0_CTL: u32 = 0x400;
}

/// Switches all of it on, on the CPU that this runs on.
///
/// # Safety
/// Once on each; its interrupt table stands.
pub unsafe fn enable() {
    // SAFETY: by the contract above.
    unsafe {
        enable_machine_checks();
        allow_vmx();
        predictions::isolate();
    }
    enable_wide_registers();
}

/// Allows VT-x, and locks that, if firmware left the choice open (SDM 3C: 23.7). The host does this: the core only looks.
///
/// # Safety
/// It stays so until the processor is reset.
unsafe fn allow_vmx() {
    const VMX: u32 = 1 << 5;
    const LOCKED: u64 = 1 << 0;
    const VMX_OUTSIDE_SMX: u64 = 1 << 2;
    if leaf(1)[2] & VMX == 0 {
        return;
    }
    let mut control = Msr::new(msr::FEATURE_CONTROL);
    // SAFETY: a CPU with VT-x has it; by the contract above.
    unsafe {
        if control.read() & LOCKED == 0 {
            control.write(LOCKED | VMX_OUTSIDE_SMX);
        }
    }
}

/// Has errors of the machine raise #MC; without that, they shut the processor down (SDM 3B: 16.8).
///
/// # Safety
/// The interrupt table stands.
unsafe fn enable_machine_checks() {
    const MCE: u32 = 1 << 7;
    const MCA: u32 = 1 << 14;
    /// MCG_CAP: how many banks there are; MCG_CTL is there.
    const BANKS: u64 = 0xff;
    const HAS_CTL: u64 = 1 << 8;
    /// Behind the registers of so many banks begin those of VT-x (IA32_VMX_BASIC, 480H).
    const MOST_BANKS: u32 = 32;
    let has = leaf(1)[3];
    if has & MCE == 0 {
        return;
    }
    // SAFETY: by the contract above there is a handler; the registers are those that the processor says it has.
    unsafe {
        Cr4::update(|cr4| cr4.insert(Cr4Flags::MACHINE_CHECK_EXCEPTION));
        if has & MCA == 0 {
            return;
        }
        let cap = Msr::new(msr::MCG_CAP).read();
        if cap & HAS_CTL != 0 {
            Msr::new(msr::MCG_CTL).write(u64::MAX);
        }
        for bank in 0..((cap & BANKS) as u32).min(MOST_BANKS) {
            Msr::new(msr::MC0_CTL + 4 * bank).write(u64::MAX);
        }
    }
}

/// Switches on all extended state that the CPU has, for guests; the kernel is compiled to use none of it.
fn enable_wide_registers() {
    const XSAVE: u32 = 1 << 26;
    const PKU: u32 = 1 << 3;
    let (basic, extended) = (leaf(1), leaf(7));
    if basic[2] & XSAVE == 0 {
        return;
    }
    let pku = extended[2] & PKU != 0;
    let avx512 = XCr0Flags::OPMASK | XCr0Flags::ZMM_HI256 | XCr0Flags::HI16_ZMM;
    let offered = XCr0Flags::from_bits_truncate(u64::from(leaf(0xd)[0]));
    let mut wanted = XCr0Flags::X87 | XCr0Flags::SSE | XCr0Flags::AVX | avx512;
    let mut flags = Cr4Flags::OSXSAVE;
    if pku {
        flags |= Cr4Flags::PROTECTION_KEY_USER;
        wanted |= XCr0Flags::MPK;
    }
    let mut enabled = offered & wanted;
    if !enabled.contains(avx512) || !enabled.contains(XCr0Flags::AVX) {
        enabled -= avx512;
    }
    // SAFETY: the CPU has what is switched on, and the kernel uses none of it.
    unsafe {
        Cr4::update(|cr4| cr4.insert(flags));
        XCr0::write(enabled | XCr0Flags::X87);
    }
}
