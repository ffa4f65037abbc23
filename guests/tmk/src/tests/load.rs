// SPDX-License-Identifier: MIT OR Apache-2.0
//! Loads for what is done to a guest from outside while it runs.

use super::interrupts::{timer_every, timer_off};
use crate::apic;
use crate::io::inb;
use crate::paging::{ram_end, UNTOUCHED};
use crate::{boot_info, check, check_eq, fault, println, tests, trap, Outcome};
use core::ptr::{read_volatile, write_volatile};

tests!(
    memory_keeps; named: memory_while_moved, events_while_moved, modes_while_moved, spin_without_interrupts, halt_without_interrupts,
    halt_for_ever, chatter, chatter_for_ever
);

fn fill_and_check(first: u64, seed: u64, step: usize) -> Outcome {
    let end = ram_end().min(1 << 30);
    let value = |at: u64| at.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ seed;
    // SAFETY: RAM above what the kernel uses, in the mapped 4 GiB.
    unsafe {
        for at in (first..end).step_by(step) {
            write_volatile(at as *mut u64, value(at));
        }
        for at in (first..end).step_by(step) {
            check!(
                read_volatile(at as *const u64) == value(at),
                "memory lost what was written"
            );
        }
    }
    Ok(())
}

fn memory_keeps() -> Outcome {
    check!(ram_end() > UNTOUCHED.end, "give it more than 160 MiB");
    fill_and_check(UNTOUCHED.end, 1, 4096)
}

/// Does `load` again and again while the host moves pages about, until somebody types at the console.
fn while_moved(mut load: impl FnMut(u64) -> Outcome) -> Outcome {
    println!("ready");
    for round in 0.. {
        load(round)?;
        if inb(0x3fd) & 1 != 0 {
            break;
        }
    }
    Ok(())
}

/// All of memory that nothing else uses, filled and checked.
fn memory_while_moved() -> Outcome {
    while_moved(|round| fill_and_check(UNTOUCHED.start, round, 1024))
}

/// Real mode and the modes between it and this one, whose tables and code lie below 1 MiB.
fn modes_while_moved() -> Outcome {
    while_moved(|_| super::modes::go_through())
}

/// Exceptions, interrupts, device accesses and string I/O, which use code, stacks, tables and data.
fn events_while_moved() -> Outcome {
    apic::on();
    timer_every(0x69, 1_000_000);
    let missing = crate::paging::window(1);
    while_moved(|round| {
        check!(fault!("ud2").is_some_and(|f| f.vector == 6));
        let page = fault!("mov al, [{at}]", at = in(reg) missing, out("al") _);
        check_eq!(
            page.map(|f| (f.vector, f.error, f.cr2)),
            Some((14, 0, missing))
        );
        let value = round as u32 | 1;
        crate::io::mmio_write(0xfee0_0080, value & 0xf);
        check_eq!(crate::io::mmio_read(0xfee0_0080), value & 0xf);
        // SAFETY: interrupts are handled; the kernel's own bytes go to the post-code port.
        unsafe {
            core::arch::asm!("sti", "rep outsb", "cli", in("dx") 0x80u16, inout("rsi") 0x10_0000u64 => _,
                inout("rcx") 64u64 => _)
        };
        crate::io::mmio_write(0xfee0_0080, 0);
        Ok(())
    })?;
    timer_off();
    check!(trap::count(0x69) > 0);
    Ok(())
}

fn spin_without_interrupts() -> Outcome {
    println!("spinning");
    // SAFETY: that is the test.
    unsafe { core::arch::asm!("cli", "2: jmp 2b", options(noreturn)) }
}

fn halt_without_interrupts() -> Outcome {
    println!("halting");
    loop {
        // SAFETY: that is the test.
        unsafe { core::arch::asm!("cli", "hlt") };
    }
}

/// Waits for interrupts that do not come: an idle guest.
fn halt_for_ever() -> Outcome {
    println!("waiting");
    loop {
        // SAFETY: that is the test.
        unsafe { core::arch::asm!("sti", "hlt") };
    }
}

fn chatter() -> Outcome {
    (0..boot_info::number("lines").unwrap_or(1000)).for_each(|n| println!("line {n}"));
    Ok(())
}

/// Prints faster than a port of the host may send.
fn chatter_for_ever() -> Outcome {
    let mut lines = [b'.'; 4096];
    lines.iter_mut().step_by(64).for_each(|end| *end = b'\n');
    println!("without end");
    loop {
        // SAFETY: the console takes whatever comes.
        unsafe {
            core::arch::asm!("rep outsb", in("dx") 0x3f8u16, inout("rsi") lines.as_ptr() => _, inout("rcx") lines.len() => _)
        };
    }
}
