// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a hostile guest does. None of it may harm the host; some of it ends the VM.

use super::time::{cmos, set_cmos};
use crate::io::{inb, inl, inw, outb, outw, rdmsr, wrmsr};
use crate::smp::wait_ms;
use crate::{boot_info, check_eq, fault, println, tests, Outcome};
use core::arch::asm;

tests!(
    ; named: read_every_port, touch_every_msr, write_every_port, triple_fault, jump_to_nothing, unknown_instruction, interrupt_storm, reset_by_keyboard,
    reset_by_chipset, reset_by_port_a, reset_by_triple_fault, reset_clears_registers, reset_storm, power_off
);

fn read_every_port() -> Outcome {
    for port in 0..=u16::MAX {
        match port % 3 {
            0 => drop(inb(port)),
            1 => drop(inw(port)),
            _ => drop(inl(port)),
        }
    }
    Ok(())
}

/// Whether a write to `port`, of up to four bytes, reaches a port that ends the VM or resets it, or the console.
fn ends_the_run(port: u16) -> bool {
    let ends = [0x64, 0x92, 0xf4, 0x604, 0x605, 0xcf9];
    ends.iter()
        .any(|end| (0..4).any(|n| port.wrapping_add(n) == *end))
        || (0x3f5..0x400).contains(&port)
}

/// Writes each port, in several widths, but those that end the VM.
fn write_every_port() -> Outcome {
    for port in (0..=u16::MAX).filter(|port| !ends_the_run(*port)) {
        // SAFETY: that is the test.
        match port % 3 {
            0 => unsafe { asm!("out dx, al", in("dx") port, in("eax") 0x55) },
            1 => unsafe { asm!("out dx, ax", in("dx") port, in("eax") 0xaaaa) },
            _ => unsafe { asm!("out dx, eax", in("dx") port, in("eax") -1) },
        }
    }
    println!("wrote every port");
    Ok(())
}

/// Reads and writes back all registers in the ranges where CPUs have any, and writes ones.
fn touch_every_msr() -> Outcome {
    for base in [0u32, 0x4000_0000, 0xc000_0000, 0xc001_0000] {
        (base..base + 0x2000).for_each(touch_msr);
    }
    // The APIC and the clock are what they were.
    crate::check_eq!(crate::io::rdmsr(0x1b) & 0xd00, 0x900);
    Ok(())
}

fn touch_msr(index: u32) {
    let (low, high): (u64, u64);
    let slot = crate::trap::recover_slot();
    // SAFETY: a fault goes on at the label.
    unsafe {
        asm!("lea {t}, [rip + 77f]", "mov [{s}], {t}", "rdmsr", "77:", s = in(reg) slot, t = out(reg) _,
            in("ecx") index, inout("rax") 0u64 => low, inout("rdx") 0u64 => high)
    };
    let readable = crate::trap::caught().is_none();
    if readable {
        fault!("wrmsr", in("ecx") index, in("eax") low as u32, in("edx") high as u32);
    }
    // Not what would take the ground from under us: the counter, the APIC, its timer, the PAT, EFER, segment bases, entry points.
    let ours = matches!(index, 0x10 | 0x1b | 0x3b | 0x277 | 0x6e0 | 0x800..=0x8ff | 0xc000_0080..=0xc000_0103);
    if !ours {
        fault!("wrmsr", in("ecx") index, in("eax") u32::MAX, in("edx") u32::MAX);
        if readable {
            fault!("wrmsr", in("ecx") index, in("eax") low as u32, in("edx") high as u32);
        }
    }
}

fn triple_fault() -> Outcome {
    println!("about to triple-fault");
    fail_three_times()
}

/// An exception, its handler and the double fault's handler fail.
fn fail_three_times() -> ! {
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
    println!("about to use FLD on a device");
    // SAFETY: that is the test.
    unsafe { asm!("fld qword ptr [{}]", in(reg) 0xfec0_0000u64) };
    Err("it went through")
}

/// Interrupts as fast as the controllers give them, from all timers at once, for `rounds=` HLTs.
fn interrupt_storm() -> Outcome {
    crate::apic::on();
    super::interrupts::timer_every(0x6a, 1);
    for _ in 0..boot_info::number("rounds").unwrap_or(10_000) {
        // SAFETY: handlers are in place.
        unsafe { asm!("sti", "hlt", "cli") };
    }
    super::interrupts::timer_off();
    Ok(())
}

/// Where a reset is remembered: memory that a PC's battery keeps.
const REMEMBERED: u8 = 0x5e;

/// Resets the machine the first time it is called, and is content the second time.
pub fn once(reset: impl Fn()) -> Outcome {
    const MARK: u8 = 0xa5;
    if cmos(REMEMBERED) == MARK {
        set_cmos(REMEMBERED, 0);
        println!("after the reset");
        return Ok(());
    }
    set_cmos(REMEMBERED, MARK);
    println!("about to reset");
    reset();
    survived()
}

fn reset_by_keyboard() -> Outcome {
    once(|| outb(0x64, 0xfe))
}

fn reset_by_chipset() -> Outcome {
    once(|| outb(0xcf9, 6))
}

fn reset_by_port_a() -> Outcome {
    once(|| outb(0x92, inb(0x92) | 1))
}

/// On a machine that starts anew after one.
fn reset_by_triple_fault() -> Outcome {
    once(|| fail_three_times())
}

/// What one kernel leaves in registers, the next does not find there. Not PAT: in QEMU, VMRUN leaves the host's in.
fn reset_clears_registers() -> Outcome {
    // SYSENTER_ESP, STAR, LSTAR, KERNEL_GS_BASE.
    const OWN: [u32; 4] = [0x175, 0xc000_0081, 0xc000_0082, 0xc000_0102];
    let (mut mxcsr, mut fcw) = (0u32, 0u16);
    // SAFETY: SSE is on.
    unsafe { asm!("stmxcsr [{}]", "fnstcw [{}]", in(reg) &mut mxcsr, in(reg) &mut fcw) };
    let own = OWN.map(rdmsr);
    once(|| {
        OWN.iter().for_each(|index| wrmsr(*index, 0x1_2340));
        // SAFETY: as above; all exceptions stay masked, and nothing here computes.
        unsafe { asm!("ldmxcsr [{}]", "fldcw [{}]", in(reg) &0xffc0u32, in(reg) &0x7fu16) };
        outb(0x64, 0xfe);
    })?;
    check_eq!(own, [0; 4]);
    check_eq!((mxcsr, fcw), (0x1f80, 0x37f));
    Ok(())
}

/// Resets again and again, `times=` times.
fn reset_storm() -> Outcome {
    often(boot_info::number("times").unwrap_or(20), |_| Ok(()))
}

/// Resets the machine so many times. Before each reset does `before`, which is told how many there were; and content behind the last.
pub fn often(times: u64, before: impl Fn(u64) -> Outcome) -> Outcome {
    let done = u64::from(cmos(REMEMBERED));
    if done >= times.min(255) {
        set_cmos(REMEMBERED, 0);
        return Ok(());
    }
    before(done)?;
    set_cmos(REMEMBERED, done as u8 + 1);
    outb(0x64, 0xfe);
    // SAFETY: nothing is left to do.
    unsafe { asm!("2: hlt", "jmp 2b", options(noreturn)) }
}

fn power_off() -> Outcome {
    println!("about to power off");
    let sleep_type = boot_info::number("slp").unwrap_or(5) as u16;
    outw(0x604, sleep_type << 10 | 1 << 13);
    survived()
}

/// The machine goes on behind a reset or power-off. It may for a while: QEMU's other threads see to these.
fn survived() -> Outcome {
    wait_ms(1000);
    Err("still here")
}
