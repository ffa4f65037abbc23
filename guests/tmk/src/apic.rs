// SPDX-License-Identifier: MIT OR Apache-2.0
//! The local APIC of the CPU that asks, in whichever mode it is: registers in memory, or as MSRs (SDM 3A: 10.12).

use crate::io::{mmio_read, mmio_write, rdmsr, wrmsr};
use crate::trap::{self, CPUS};
use core::arch::asm;
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// Where the registers are in memory.
pub const XAPIC: u64 = 0xfee0_0000;
/// The registers, by their offsets in memory.
pub const ID: u64 = 0x20;
pub const VERSION: u64 = 0x30;
pub const TPR: u64 = 0x80;
pub const PPR: u64 = 0xa0;
pub const EOI: u64 = 0xb0;
pub const LDR: u64 = 0xd0;
pub const DFR: u64 = 0xe0;
pub const SPURIOUS: u64 = 0xf0;
pub const ISR: u64 = 0x100;
pub const TMR: u64 = 0x180;
pub const IRR: u64 = 0x200;
pub const ERROR: u64 = 0x280;
pub const ICR_LOW: u64 = 0x300;
pub const ICR_HIGH: u64 = 0x310;
pub const LVT_TIMER: u64 = 0x320;
pub const LVT_LINT0: u64 = 0x350;
pub const LVT_LINT1: u64 = 0x360;
pub const LVT_ERROR: u64 = 0x370;
pub const TIMER_INITIAL: u64 = 0x380;
pub const TIMER_CURRENT: u64 = 0x390;
pub const TIMER_DIVIDE: u64 = 0x3e0;
pub const SELF_IPI: u64 = 0x3f0;
/// Bits of the LVT, of redirection entries, and of the interrupt command.
pub const MASKED: u32 = 1 << 16;
pub const LEVEL: u32 = 1 << 15;
pub const LOGICAL: u32 = 1 << 11;
pub const LOWEST: u32 = 1 << 8;
pub const NMI: u32 = 4 << 8;
pub const INIT: u32 = 5 << 8;
pub const STARTUP: u32 = 6 << 8;
pub const EXT_INT: u32 = 7 << 8;
const ASSERT: u32 = 1 << 14;
/// Shorthands of the interrupt command.
pub const MYSELF: u32 = 1 << 18;
pub const ALL: u32 = 2 << 18;
pub const OTHERS: u32 = 3 << 18;

const MSR_BASE: u32 = 0x1b;
const ENABLE: u64 = 1 << 11;
const X2APIC: u64 = 1 << 10;

/// How the registers are reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Off,
    XApic,
    X2Apic,
}

/// Which CPUs are in x2APIC mode.
static X2: [AtomicBool; CPUS] = [const { AtomicBool::new(false) }; CPUS];

fn x2() -> bool {
    X2[trap::me()].load(Relaxed)
}

/// The MSR of a register.
pub const fn msr(register: u64) -> u32 {
    0x800 + (register >> 4) as u32
}

pub fn read(register: u64) -> u32 {
    if x2() {
        rdmsr(msr(register)) as u32
    } else {
        mmio_read(XAPIC + register)
    }
}

pub fn write(register: u64, value: u32) {
    if x2() {
        wrmsr(msr(register), value.into());
    } else {
        mmio_write(XAPIC + register, value);
    }
}

/// The mode that IA32_APIC_BASE says.
pub fn mode() -> Mode {
    match rdmsr(MSR_BASE) & (ENABLE | X2APIC) {
        0 => Mode::Off,
        ENABLE => Mode::XApic,
        _ => Mode::X2Apic,
    }
}

/// Goes to another mode, by those in between if there is no direct way (SDM 3A: figure 10-27). By way of "off" all
/// registers are forgotten.
pub fn set_mode(mode: Mode) {
    let bits = rdmsr(MSR_BASE) & !(ENABLE | X2APIC);
    if self::mode() == Mode::X2Apic && mode != Mode::X2Apic {
        wrmsr(MSR_BASE, bits);
    }
    if mode == Mode::Off {
        wrmsr(MSR_BASE, bits);
    } else {
        wrmsr(MSR_BASE, bits | rdmsr(MSR_BASE) & X2APIC | ENABLE);
    }
    if mode == Mode::X2Apic {
        wrmsr(MSR_BASE, bits | ENABLE | X2APIC);
    }
    X2[trap::me()].store(mode == Mode::X2Apic, Relaxed);
}

/// Uses the registers as they are reached now; whether that is as MSRs.
pub fn take_over() -> bool {
    let x2 = mode() == Mode::X2Apic;
    X2[trap::me()].store(x2, Relaxed);
    x2
}

/// Enables the local APIC; the handler ends what comes there.
pub fn on() {
    write(SPURIOUS, 0x1ff);
    trap::on_interrupt(|_| eoi());
    trap::reset_counts();
}

pub fn eoi() {
    write(EOI, 0);
}

/// This CPU's APIC's number.
pub fn id() -> u32 {
    if x2() {
        read(ID)
    } else {
        read(ID) >> 24
    }
}

/// Writes the interrupt command register: `to` whom, if `command` has no shorthand. Everybody is all ones.
pub fn send(to: u32, command: u32) {
    if x2() {
        wrmsr(
            msr(ICR_LOW),
            u64::from(to) << 32 | u64::from(command | ASSERT),
        );
    } else {
        write(ICR_HIGH, to << 24);
        write(ICR_LOW, command | ASSERT);
    }
}

/// Sends `vector` to this CPU.
pub fn self_ipi(vector: u32) {
    send(0, MYSELF | vector);
}

/// Sends an NMI to this CPU, by its number: the shorthand for "self" takes no NMI.
pub fn self_nmi() {
    send(id(), NMI);
}

/// Whether a vector is set in one of the registers of 256 bits.
pub fn has(register: u64, vector: u8) -> bool {
    read(register + u64::from(vector >> 5) * 0x10) >> (vector & 31) & 1 != 0
}

/// Switches this CPU's interrupts on or off.
pub fn interrupts(on: bool) {
    // SAFETY: handlers are in place.
    unsafe {
        if on {
            asm!("sti")
        } else {
            asm!("cli")
        }
    }
}

/// Lets in what waits.
pub fn let_in() {
    // SAFETY: handlers are in place.
    unsafe { asm!("sti", "nop", "nop", "cli") };
}
