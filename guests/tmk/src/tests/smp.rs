// SPDX-License-Identifier: MIT OR Apache-2.0
//! Several processors: started, stopped and started elsewhere (SDM 3A: 8.4, 10.6.1), and what each has for itself.

use super::interrupts::{
    halt_until, pic_on, pit_once, pit_quiet, timer_every, timer_off, uart_line_down, uart_line_up,
    UART_IRQ,
};
use super::ioapic::set_pin_to;
use crate::apic::{
    self, Mode, INIT, LEVEL, LOGICAL, LOWEST, MASKED, MYSELF, NMI, OTHERS, STARTUP, TPR,
};
use crate::paging::{self, PRESENT, WRITE};
use crate::smp::{
    self, all, found_at_start, on, on_all, prepare, settle, starts, until, wait_ms, with,
    START_PAGE,
};
use crate::trap::{self, count_of, me};
use crate::{boot_info, check, check_eq, tests, Outcome};
use core::arch::asm;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::*};

tests!(
    ; several: processors_start, work_is_done_everywhere, timer_of_each, startup_of_a_running_one_is_ignored,
    startup_to_nobody_and_oneself, startup_without_init_is_ignored, init_and_start_elsewhere, init_of_one_that_is_halted,
    init_in_an_nmi_handler, init_of_oneself, init_waits_for_a_startup, init_resets_the_apic, init_keeps_x2apic_mode,
    ioapic_to_each, ioapic_level_ended_elsewhere, ioapic_lowest_among_several, ioapic_nmi_to_another, tlb_shoot_down;
    named: triple_fault_elsewhere, all_halted_without_interrupts, all_spin_without_interrupts, reset_by_init
);

/// Where they are started elsewhere.
const OTHER_PAGE: u8 = 5;

/// As many as the command line says, each once, at the page of the start-up message.
fn processors_start() -> Outcome {
    if let Some(cpus) = boot_info::number("cpus") {
        check_eq!(smp::count() as u64, cpus);
    }
    for cpu in all().skip(1) {
        check_eq!(starts(cpu).1, u32::from(START_PAGE));
    }
    Ok(())
}

fn work_is_done_everywhere() -> Outcome {
    let sum = AtomicU32::new(0);
    for _ in 0..10 {
        on_all(&|| {
            sum.fetch_add(1 << (4 * me().min(4)), Relaxed);
            check_eq!(apic::id(), smp::id(me()));
            Ok(())
        })?;
    }
    let expected: u32 = all().map(|cpu| 10 << (4 * cpu.min(4))).sum();
    check_eq!(sum.load(Relaxed), expected);
    Ok(())
}

/// Each has its own timer.
fn timer_of_each() -> Outcome {
    apic::on();
    on_all(&|| {
        timer_every(0x6b + me() as u32 % 2, 3_000_000);
        halt_until(0x6b + me() as u8 % 2, 5);
        timer_off();
        Ok(())
    })?;
    for cpu in all() {
        check_eq!(count_of(cpu, 0x6c - cpu as u8 % 2), 0, "another's");
    }
    Ok(())
}

/// A start-up message to one CPU.
fn start_up(cpu: usize, page: u8) {
    apic::send(smp::id(cpu), STARTUP | u32::from(page));
}

/// Stops one CPU, and starts it at a page.
fn restart(cpu: usize, page: u8) -> Outcome {
    let (before, _) = starts(cpu);
    apic::send(smp::id(cpu), INIT);
    wait_ms(10);
    smp::forget(cpu);
    prepare(page);
    start_up(cpu, page);
    until(|| starts(cpu).0 != before).map_err(|_| "it did not start again")?;
    check_eq!(starts(cpu), (before + 1, page.into()));
    on(cpu, &|| Ok(()))
}

fn startup_of_a_running_one_is_ignored() -> Outcome {
    let before = starts(1);
    let (ready, over) = (AtomicBool::new(false), AtomicBool::new(false));
    prepare(OTHER_PAGE);
    let run = || {
        ready.store(true, Release);
        until(|| over.load(Acquire))
    };
    with(1, &run, || {
        until(|| ready.load(Acquire))?;
        (0..100).for_each(|_| start_up(1, OTHER_PAGE));
        over.store(true, Release);
        Ok(())
    })?;
    start_up(1, OTHER_PAGE); // now it is halted
    settle()?;
    check_eq!(starts(1), before);
    Ok(())
}

fn startup_to_nobody_and_oneself() -> Outcome {
    let before = starts(1);
    on_all(&|| {
        apic::send(0x7e, STARTUP | u32::from(OTHER_PAGE));
        apic::send(0x7e, INIT);
        apic::send(smp::id(me()), STARTUP | u32::from(OTHER_PAGE));
        apic::send(0, MYSELF | STARTUP | u32::from(OTHER_PAGE));
        apic::send(0, MYSELF | NMI);
        apic::send(smp::id(0), STARTUP | u32::from(OTHER_PAGE));
        Ok(())
    })?;
    settle()?;
    check_eq!(starts(1), before);
    Ok(())
}

/// One that was sent before INIT does not count for it, however late the receiver hears of either. QEMU
/// forgets in which order they came.
fn startup_without_init_is_ignored() -> Outcome {
    if boot_info::judged_by_another_machine() {
        return Ok(());
    }
    for _ in 0..10 {
        let (before, _) = starts(1);
        start_up(1, OTHER_PAGE);
        apic::send(smp::id(1), INIT);
        wait_ms(2);
        check_eq!(starts(1).0, before, "a start-up message ahead of INIT");
        restart(1, START_PAGE)?;
    }
    Ok(())
}

/// Stops one in the middle of its work, with interrupts off, and starts it at another page.
fn init_and_start_elsewhere() -> Outcome {
    for page in [OTHER_PAGE, START_PAGE, OTHER_PAGE] {
        let spinning = AtomicBool::new(false);
        let spin = || {
            spinning.store(true, Release);
            loop {
                core::hint::spin_loop();
            }
        };
        smp::stopped_in(1, &spin, || {
            until(|| spinning.load(Acquire))?;
            restart(1, page)
        })?;
    }
    Ok(())
}

fn init_of_one_that_is_halted() -> Outcome {
    let halting = AtomicBool::new(false);
    let halt = || {
        halting.store(true, Release);
        loop {
            // SAFETY: that is the test.
            unsafe { asm!("cli", "hlt") };
        }
    };
    smp::stopped_in(1, &halt, || {
        until(|| halting.load(Acquire))?;
        restart(1, START_PAGE)
    })
}

/// The handler never returns; started again, the processor takes NMIs.
fn init_in_an_nmi_handler() -> Outcome {
    static STAY: AtomicBool = AtomicBool::new(true);
    STAY.store(true, Release);
    apic::on();
    trap::on_nmi(|| {
        while me() == 1 && STAY.load(Acquire) {
            core::hint::spin_loop();
        }
    });
    apic::send(smp::id(1), NMI);
    until(|| count_of(1, 2) == 1)?;
    restart(1, START_PAGE)?;
    STAY.store(false, Release);
    for n in 2..5 {
        apic::send(smp::id(1), NMI);
        until(|| count_of(1, 2) == n).map_err(|_| "no NMI after INIT")?;
    }
    Ok(())
}

fn init_of_oneself() -> Outcome {
    let stop = || {
        apic::send(smp::id(me()), INIT);
        loop {
            core::hint::spin_loop();
        }
    };
    smp::stopped_in(1, &stop, || {
        wait_ms(10);
        restart(1, START_PAGE)
    })
}

/// Nothing but a start-up message gets it out of there; the obsolete end of INIT is not one.
fn init_waits_for_a_startup() -> Outcome {
    apic::on();
    let before = starts(1);
    apic::send(smp::id(1), INIT);
    wait_ms(5);
    apic::send(smp::id(1), 0x85);
    apic::send(smp::id(1), LEVEL | INIT); // asserted once more
    apic::write(apic::ICR_LOW, LEVEL | INIT); // and no more
    apic::send(0, OTHERS | 0x86);
    wait_ms(20);
    let (seen, vectors) = (starts(1), (count_of(1, 0x85), count_of(1, 0x86)));
    restart(1, START_PAGE)?;
    check_eq!((seen, vectors), (before, (0, 0)));
    check_eq!(
        (count_of(1, 0x85), count_of(1, 0x86)),
        (0, 0),
        "a stopped one takes none"
    );
    Ok(())
}

fn init_resets_the_apic() -> Outcome {
    on(1, &|| {
        apic::write(TPR, 0x20);
        apic::write(apic::LVT_TIMER, 0x66);
        apic::write(apic::LVT_LINT0, 0x67);
        Ok(())
    })?;
    restart(1, START_PAGE)?;
    check_eq!(found_at_start(1), [0xff, 0, MASKED, MASKED, 0]);
    Ok(())
}

fn init_keeps_x2apic_mode() -> Outcome {
    on_all(&|| {
        apic::set_mode(Mode::X2Apic);
        Ok(())
    })?;
    let restarted = restart(1, START_PAGE);
    apic::set_mode(Mode::XApic);
    apic::on();
    restarted?;
    check_eq!(found_at_start(1)[4], 1);
    Ok(())
}

/// The PIT's edge to each in turn.
fn ioapic_to_each() -> Outcome {
    pic_on(0x20);
    apic::on();
    for cpu in all() {
        set_pin_to(2, smp::id(cpu), 0x57);
        pit_once(100);
        apic::interrupts(true);
        let came = until(|| count_of(cpu, 0x57) == 1);
        apic::interrupts(false);
        came?;
    }
    set_pin_to(2, 0, MASKED);
    pit_quiet();
    settle()?;
    check!(all().all(|cpu| count_of(cpu, 0x57) == 1));
    Ok(())
}

/// A level that another processor ends: it comes again until the line is down, with no end lost on the way.
fn ioapic_level_ended_elsewhere() -> Outcome {
    pic_on(0x20);
    apic::on();
    trap::on_interrupt(|vector| {
        if trap::count(vector) == 50 {
            uart_line_down();
        }
        apic::eoi();
    });
    set_pin_to(UART_IRQ.into(), smp::id(1), LEVEL | 0x58);
    uart_line_up();
    let came = until(|| count_of(1, 0x58) >= 50);
    settle()?;
    set_pin_to(UART_IRQ.into(), 0, MASKED);
    came?;
    check_eq!(count_of(1, 0x58), 50);
    Ok(())
}

/// Each edge comes to one of those that it names.
fn ioapic_lowest_among_several() -> Outcome {
    pic_on(0x20);
    apic::on();
    on_all(&|| {
        apic::write(apic::DFR, u32::MAX);
        apic::write(apic::LDR, (1 << (me() % 8)) << 24);
        Ok(())
    })?;
    let total = |vector| all().map(|cpu| count_of(cpu, vector)).sum::<u32>();
    for vector in 0x60..0x68 {
        set_pin_to(2, 0xfe, LOGICAL | LOWEST | u32::from(vector));
        pit_once(100);
        until(|| total(vector) != 0)?;
    }
    set_pin_to(2, 0, MASKED);
    settle()?;
    check!((0x60..0x68).all(|vector| total(vector) == 1 && count_of(0, vector) == 0));
    Ok(())
}

fn ioapic_nmi_to_another() -> Outcome {
    pic_on(0x20);
    apic::on();
    set_pin_to(2, smp::id(1), NMI);
    pit_once(100);
    let came = until(|| count_of(1, 2) == 1);
    set_pin_to(2, 0, MASKED);
    came
}

/// What the handler is to forget, and how many have.
static FORGET: AtomicU64 = AtomicU64::new(0);
static FORGOT: AtomicU32 = AtomicU32::new(0);
const OLD: u64 = u64::MAX;

/// A mapping changes, all others are told by interrupt to forget the old one, and from their answers on nobody sees it.
fn tlb_shoot_down() -> Outcome {
    const ROUNDS: u64 = 200;
    let (at, frames) = (paging::window(1), [paging::frame()?, paging::frame()?]);
    let entry = paging::entry(at)? as u64;
    let write = |frame: u64, value: u64| {
        // SAFETY: our own frames, mapped one to one.
        unsafe { (frame as *mut u64).write_volatile(value) }
    };
    apic::on();
    trap::on_interrupt(|_| {
        // SAFETY: forgets a translation.
        unsafe { asm!("invlpg [{}]", in(reg) FORGET.load(Acquire)) };
        FORGOT.fetch_add(1, AcqRel);
        apic::eoi();
    });
    FORGET.store(at, Release);
    write(frames[0], 0);
    paging::map(at, frames[0], PRESENT | WRITE)?;
    let over = AtomicBool::new(false);
    let others = smp::count() as u32 - 1;
    let change = || {
        for round in 1..=ROUNDS {
            let (new, old) = (frames[round as usize % 2], frames[1 - round as usize % 2]);
            write(new, round);
            // SAFETY: our own table.
            unsafe { (entry as *mut u64).write_volatile(new | PRESENT | WRITE) };
            FORGOT.store(0, Release);
            apic::send(0, OTHERS | 0x8a);
            until(|| FORGOT.load(Acquire) == others).map_err(|_| "not all have answered")?;
            write(old, OLD);
        }
        Ok(())
    };
    let watch = || {
        let mut last = 0;
        apic::interrupts(true);
        while !over.load(Acquire) {
            // SAFETY: mapped, to one frame or the other.
            let value = unsafe { (at as *const u64).read_volatile() };
            check!(value != OLD, "a mapping that all had forgotten");
            check!(value >= last, "an older mapping");
            last = value;
        }
        Ok(())
    };
    on_all(&|| {
        if me() != 0 {
            return watch();
        }
        let changed = change();
        over.store(true, Release);
        changed
    })
}

/// A triple fault of any processor ends the VM.
fn triple_fault_elsewhere() -> Outcome {
    smp::start()?;
    crate::println!("about to triple-fault elsewhere");
    let nothing = [0u16; 5];
    with(
        1,
        // SAFETY: that is the test.
        &|| unsafe { asm!("lidt [{}]", "ud2", in(reg) &nothing, options(noreturn)) },
        || loop {
            core::hint::spin_loop();
        },
    )
}

/// Nobody will ever wake any of them.
fn all_halted_without_interrupts() -> Outcome {
    smp::start()?;
    crate::println!("halting everywhere");
    on_all(&|| loop {
        // SAFETY: that is the test.
        unsafe { asm!("cli", "hlt") };
    })
}

/// All are busy, and no interrupt reaches them: a guest that hangs.
fn all_spin_without_interrupts() -> Outcome {
    smp::start()?;
    crate::println!("spinning everywhere");
    // SAFETY: that is the test.
    on_all(&|| unsafe { asm!("cli", "2: jmp 2b", options(noreturn)) })
}

/// INIT to the first processor, by another one, is a reset of the machine as there is no firmware to go on in.
fn reset_by_init() -> Outcome {
    super::hostile::once(|| {
        let _ = smp::start().and_then(|()| {
            on(1, &|| {
                apic::send(smp::id(0), INIT);
                Ok(())
            })
        });
    })
}
