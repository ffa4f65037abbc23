// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a hostile guest does. None of it may harm the host; some of it ends the VM.

use crate::io::{inb, inl, inw};
use crate::{fault, println, tests, Outcome};
use core::arch::asm;

tests!(read_every_port, touch_every_msr; only by name: write_every_port, triple_fault, jump_to_nothing, unknown_instruction,
    reset_by_keyboard, power_off);

fn read_every_port() -> Outcome {
    for port in 0..=u16::MAX {
        inb(port);
        inw(port);
        inl(port);
    }
    Ok(())
}

/// Writes each port in each width, but those that end the VM.
fn write_every_port() -> Outcome {
    for port in 0..=u16::MAX {
        if [0xf4, 0x64, 0x92, 0xcf9, 0x604, 0x605]
            .iter()
            .any(|end: &u16| port.abs_diff(*end) < 4)
            || (0x3f8..0x400).contains(&port)
        {
            continue;
        }
        for value in [0u32, 0xffff_ffff, 0x5555_5555] {
            // SAFETY: that is the test.
            unsafe {
                asm!("out dx, al", in("dx") port, in("eax") value);
                asm!("out dx, ax", in("dx") port, in("eax") value);
                asm!("out dx, eax", in("dx") port, in("eax") value);
            }
        }
    }
    println!("wrote every port");
    Ok(())
}

/// Reads and writes back all registers in the ranges where CPUs have any.
fn touch_every_msr() -> Outcome {
    for base in [0u32, 0x4000_0000, 0xc000_0000, 0xc001_0000] {
        for index in base..base + 0x2000 {
            let mut low: u32;
            let mut high: u32;
            let slot = crate::trap::recover_slot();
            // SAFETY: a fault goes on at the label.
            unsafe {
                asm!("lea {t}, [rip + 77f]", "mov [{s}], {t}", "rdmsr", "77:", s = in(reg) slot, t = out(reg) _,
                    in("ecx") index, out("eax") low, out("edx") high)
            };
            // Not what would take the ground from under us: the APIC's page, FS and GS, the entry points stay.
            if crate::trap::caught().is_none() {
                fault!("wrmsr", in("ecx") index, in("eax") low, in("edx") high);
            }
            (low, high) = (u32::MAX, u32::MAX);
            if !matches!(
                index,
                0x10 | 0x1b | 0x6e0 | 0x277 | 0xc000_0080..=0xc000_0103
            ) {
                fault!("wrmsr", in("ecx") index, in("eax") low, in("edx") high);
            }
        }
    }
    Ok(())
}

fn triple_fault() -> Outcome {
    println!("about to triple-fault");
    let nothing = [0u16; 5];
    // SAFETY: that is the test.
    unsafe { asm!("lidt [{}]", "ud2", in(reg) &nothing, options(noreturn)) }
}

fn jump_to_nothing() -> Outcome {
    println!("about to jump to nothing");
    // SAFETY: that is the test.
    unsafe { asm!("jmp {}", in(reg) 0xd000_0000u64, options(noreturn)) }
}

/// An instruction on device memory that no emulator here knows.
fn unknown_instruction() -> Outcome {
    println!("about to use FXSAVE on a device");
    // SAFETY: that is the test.
    unsafe { asm!("fxsave [{}]", in(reg) 0xfec0_0000u64) };
    Err("it went through")
}

fn reset_by_keyboard() -> Outcome {
    println!("about to reset");
    crate::io::outb(0x64, 0xfe);
    Err("still here")
}

fn power_off() -> Outcome {
    println!("about to power off");
    crate::io::outw(0x604, 5 << 10 | 1 << 13);
    Err("still here")
}
