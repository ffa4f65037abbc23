// SPDX-License-Identifier: MIT OR Apache-2.0
//! Loads for what is done to a guest from outside while it runs.

use crate::{check, multiboot, println, tests, Outcome};
use core::ptr::{read_volatile, write_volatile};

tests!(memory_keeps; only by name: memory_while_moved, spin_without_interrupts, halt_without_interrupts, chatter);

const FIRST: u64 = 16 << 20;

fn ram_end() -> u64 {
    (u64::from(multiboot::info().mem_upper_kib) + 1024) * 1024
}

fn fill_and_check(seed: u64, step: usize) -> Outcome {
    let end = ram_end().min(1 << 30);
    let value = |at: u64| at.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ seed;
    // SAFETY: RAM above what the kernel uses, in the mapped 4 GiB.
    unsafe {
        for at in (FIRST..end).step_by(step) {
            write_volatile(at as *mut u64, value(at));
        }
        for at in (FIRST..end).step_by(step) {
            check!(
                read_volatile(at as *const u64) == value(at),
                "memory lost what was written"
            );
        }
    }
    Ok(())
}

fn memory_keeps() -> Outcome {
    check!(ram_end() > FIRST, "give it more than 16 MiB");
    fill_and_check(1, 4096)
}

/// Fills and checks again and again, `rounds=` times, while the host moves pages about.
fn memory_while_moved() -> Outcome {
    println!("ready");
    (0..multiboot::number("rounds").unwrap_or(10)).try_for_each(|round| fill_and_check(round, 1024))
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

fn chatter() -> Outcome {
    (0..multiboot::number("lines").unwrap_or(1000)).for_each(|n| println!("line {n}"));
    Ok(())
}
