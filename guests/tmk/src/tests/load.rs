// SPDX-License-Identifier: MIT OR Apache-2.0
//! Loads for what is done to a guest from outside while it runs.

use super::interrupts::{timer_every, timer_off};
use super::time::{pm_ticks_since, pm_timer, PM_HZ};
use crate::apic::{self, LVT_TIMER};
use crate::io::{cpuid, inb, mmio_read, rdtsc, wrmsr};
use crate::paging::{self, ram_end, UNTOUCHED};
use crate::{boot_info, check, check_eq, fault, println, smp, tests, trap, Outcome};
use core::arch::asm;
use core::ptr::{read_volatile, write_volatile};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

tests!(
    memory_keeps; named: memory_while_moved, events_while_moved, modes_while_moved, spin_without_interrupts, halt_without_interrupts,
    halt_for_ever, chatter, chatter_for_ever, saved_in_the_middle
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

/// The vectors that are served meanwhile, that wait, and of the deadline.
const SERVED: u8 = 0x81;
const WAITING: u8 = 0x71;
const DEADLINE: u8 = 0x61;
const DEADLINE_S: u64 = 8;
const HPET: u64 = 0xfed0_0000;
/// How long the deadline took, in ticks of the PM timer.
static TOOK: AtomicU64 = AtomicU64::new(0);
static COPIES: AtomicU64 = AtomicU64::new(0);

/// How many words are copied at once: the registers of the HPET, and behind them of what is not there. A VMM carries out a part at a time. All of it takes less than
/// a turn of the PM timer on the slowest machine.
const WORDS: usize = 8 << 10;
static COPY: AtomicU64 = AtomicU64::new(0);

/// Two CPUs that are at much when somebody saves them. The first copies a device's registers, all the time until its deadline comes: while it serves
/// one interrupt, and another waits. The second keeps a value in its widest registers alone.
fn saved_in_the_middle() -> Outcome {
    smp::start()?;
    apic::on();
    COPY.store(paging::frames(WORDS as u64 * 4 / 4096)?, Relaxed);
    let begin = (rdtsc(), pm_timer());
    while pm_ticks_since(begin.1) < PM_HZ / 10 {}
    let per_s = (rdtsc() - begin.0) * 10;
    trap::on_interrupt(|vector| {
        if vector == SERVED {
            apic::self_ipi(WAITING.into());
            TOOK.store(copies_until(DEADLINE), Relaxed);
        }
        apic::eoi();
    });
    apic::write(LVT_TIMER, 0x4_0000 | u32::from(DEADLINE));
    wrmsr(0x6e0, rdtsc() + DEADLINE_S * per_s);
    println!("copying");
    let over = AtomicBool::new(false);
    smp::with(1, &|| keeps_wide_registers(&over), || {
        apic::self_ipi(SERVED.into());
        apic::let_in();
        over.store(true, Relaxed);
        Ok(())
    })?;
    apic::write(LVT_TIMER, 0x1_0000);
    let took = TOOK.load(Relaxed);
    println!(
        "copied {} times in {} ms",
        COPIES.load(Relaxed),
        took * 1000 / PM_HZ
    );
    check_eq!([SERVED, WAITING, DEADLINE].map(trap::count), [1; 3]);
    check!(took >= DEADLINE_S * PM_HZ * 99 / 100, "not early");
    // Late it may be on a slow host, but not as late as by a counter of another rate.
    check!(took < 2 * DEADLINE_S * PM_HZ, "not late");
    check!(COPIES.load(Relaxed) != 0, "what is there can be read");
    Ok(())
}

/// Copies the registers of the HPET until a vector waits; returns how long that took.
fn copies_until(vector: u8) -> u64 {
    let (mut last, mut took) = (pm_timer(), 0);
    let capabilities = mmio_read(HPET);
    while !apic::has(apic::IRR, vector) {
        let to = COPY.load(Relaxed);
        // SAFETY: frames of our own, with room for so many words.
        let ends = unsafe {
            asm!("rep movsd", inout("rsi") HPET => _, inout("rdi") to => _, inout("rcx") WORDS => _);
            let to = to as *const u32;
            [read_volatile(to), read_volatile(to.add(WORDS - 1))]
        };
        if ends == [capabilities, u32::MAX] {
            COPIES.fetch_add(1, Relaxed);
        } else {
            println!("wrong: {ends:x?}");
        }
        took += pm_ticks_since(last);
        last = pm_timer();
    }
    took
}

/// Fills registers, and looks at them when it is over: nobody else uses any here.
fn keeps_wide_registers(over: &AtomicBool) -> Outcome {
    const XSAVE_AND_AVX: u32 = 1 << 26 | 1 << 28;
    let wide = cpuid(1, 0)[2] & XSAVE_AND_AVX == XSAVE_AND_AVX;
    let pattern = [
        0x1111_2222u32,
        0x3333_4444,
        0x5555_6666,
        0x7777_8888,
        0x9999_aaaa,
        0xbbbb_cccc,
        0xdddd_eeee,
        0xffff_0000,
    ];
    let mut found = [0u32; 8];
    // SAFETY: XSAVE and AVX are there where they are used; the arrays are as long as the registers.
    unsafe {
        if wide {
            asm!("mov {0}, cr4", "or {0}, 1 << 18", "mov cr4, {0}", out(reg) _);
            asm!("xsetbv", in("ecx") 0, in("eax") 7, in("edx") 0);
            asm!("vmovups ymm9, [{}]", in(reg) pattern.as_ptr());
        } else {
            asm!("movups xmm9, [{}]", in(reg) pattern.as_ptr());
        }
        while !over.load(Relaxed) {
            core::hint::spin_loop();
        }
        if wide {
            asm!("vmovups [{}], ymm9", in(reg) found.as_mut_ptr());
        } else {
            asm!("movups [{}], xmm9", in(reg) found.as_mut_ptr());
        }
    }
    let len = if wide { 8 } else { 4 };
    println!("{} bytes of a register", 4 * len);
    check!(
        found[..len] == pattern[..len],
        "a register lost what was in it"
    );
    Ok(())
}
