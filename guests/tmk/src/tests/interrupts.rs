// SPDX-License-Identifier: MIT OR Apache-2.0
//! Interrupts from the PIC pair, by each way into a processor that its local APIC knows (SDM 3A: 10.5.1), and from the
//! local APIC's timer.

use crate::apic::{
    self, interrupts, let_in, Mode, EXT_INT, LVT_LINT0, LVT_LINT1, LVT_TIMER, MASKED, NMI,
    TIMER_CURRENT, TIMER_DIVIDE, TIMER_INITIAL, TPR,
};
use crate::io::{cpuid, inb, outb, rdmsr, rdtsc, wrmsr};
use crate::{check, check_eq, tests, trap, Outcome};
use core::arch::asm;

tests!(
    pic_timer,
    pic_mask,
    pic_edge_comes_once,
    pic_level_comes_again,
    pic_level_that_went,
    pic_nests,
    lint0_masked_keeps_the_pic_out,
    lint0_as_nmi,
    ext_int_knows_no_task_priority,
    ext_int_and_apic_in_turn,
    pic_without_an_apic,
    apic_timer_one_shot,
    apic_timer_periodic,
    apic_timer_deadline,
    apic_timer_masked,
    apic_timer_stopped,
    uart_interrupt;
    ours: lint0_as_a_vector
);

/// The first serial port's line, at both controllers.
pub const UART_IRQ: u8 = 4;

/// Has the local APIC's timer interrupt every `ticks` bus cycles.
pub fn timer_every(vector: u32, ticks: u32) {
    apic::write(TIMER_DIVIDE, 0b1011);
    apic::write(LVT_TIMER, vector | 1 << 17);
    apic::write(TIMER_INITIAL, ticks);
}

/// Stops it, and takes what it left behind while its handler is still there to end it.
pub fn timer_off() {
    apic::write(LVT_TIMER, MASKED);
    apic::write(TIMER_INITIAL, 0);
    let_in();
}

/// Programs the PIC pair: all masked, vectors from `base`; the handler ends what comes.
pub fn pic_on(base: u8) {
    for (port, value) in [
        (0x20, 0x11),
        (0xa0, 0x11),
        (0x21, base),
        (0xa1, base + 8),
        (0x21, 4),
        (0xa1, 2),
        (0x21, 1),
        (0xa1, 1),
    ] {
        outb(port, value);
    }
    pic_mask_all();
    outb(0x4d0, 0);
    outb(0x4d1, 0);
    trap::on_interrupt(|vector| {
        if vector >= 0x28 {
            outb(0xa0, 0x20);
        }
        outb(0x20, 0x20);
    });
    trap::reset_counts();
}

pub fn pic_mask_all() {
    outb(0x21, 0xff);
    outb(0xa1, 0xff);
}

pub fn pit_periodic(count: u16) {
    outb(0x43, 0x34);
    outb(0x40, count as u8);
    outb(0x40, (count >> 8) as u8);
}
/// One rising edge after `count` ticks.
pub fn pit_once(count: u16) {
    outb(0x43, 0x30);
    outb(0x40, count as u8);
    outb(0x40, (count >> 8) as u8);
}
/// A PIT that is programmed, but not counting.
pub fn pit_quiet() {
    outb(0x43, 0x30);
}
/// Waits until the timer's request shows at the PIC, masked or not.
pub fn pit_wait() {
    outb(0x20, 0x0a);
    while inb(0x20) & 1 == 0 {}
}

/// Halts until `vector` has come `times` times.
pub fn halt_until(vector: u8, times: u32) {
    interrupts(false);
    trap::enough(vector, times);
    while trap::count(vector) < times {
        // SAFETY: an interrupt is on its way; STI's shadow lets none in before HLT.
        unsafe { asm!("sti", "hlt", "cli") };
    }
    trap::enough(0, 0);
}

fn pic_timer() -> Outcome {
    pic_on(0x20);
    outb(0x21, 0xfe);
    pit_periodic(11932); // 100 Hz
    halt_until(0x20, 5);
    pic_mask_all();
    pit_quiet();
    Ok(())
}

fn pic_mask() -> Outcome {
    pic_on(0x20);
    pit_once(1193);
    interrupts(true);
    pit_wait();
    interrupts(false);
    check_eq!(trap::count(0x20), 0, "masked");
    outb(0x21, 0xfe);
    halt_until(0x20, 1);
    pic_mask_all();
    pit_quiet();
    Ok(())
}

/// The UART's transmitter is empty: its line goes up and stays up.
pub fn uart_line_up() {
    outb(0x3fc, 0x0b); // DTR, RTS, OUT2
    outb(0x3f9, 0);
    outb(0x3f9, 2);
}
pub fn uart_line_down() {
    outb(0x3f9, 0);
}

fn pic_edge_comes_once() -> Outcome {
    pic_on(0x20);
    outb(0x21, !(1 << UART_IRQ));
    uart_line_up();
    let_in();
    let_in();
    let once = trap::count(0x24);
    uart_line_down();
    uart_line_up();
    let_in();
    let twice = trap::count(0x24);
    uart_line_down();
    pic_mask_all();
    check_eq!((once, twice), (1, 2));
    Ok(())
}

/// A level-triggered line that stays up interrupts again after each end: here the fourth handler takes it down.
fn pic_level_comes_again() -> Outcome {
    pic_on(0x20);
    outb(0x4d0, 1 << UART_IRQ);
    outb(0x21, !(1 << UART_IRQ));
    trap::on_interrupt(|vector| {
        if trap::count(vector) == 4 {
            uart_line_down();
        }
        outb(0x20, 0x20);
    });
    uart_line_up();
    let_in();
    let_in();
    pic_mask_all();
    outb(0x4d0, 0);
    check_eq!(trap::count(0x24), 4);
    Ok(())
}

/// In service, a line holds back those below it until its end; an in-service register says so.
fn pic_nests() -> Outcome {
    pic_on(0x20);
    trap::on_interrupt(|_| {});
    outb(0x21, !(1 << UART_IRQ | 1));
    pit_once(2);
    pit_wait();
    let_in();
    uart_line_up();
    let_in();
    outb(0x20, 0x0b);
    let (first, held, in_service) = (trap::count(0x20), trap::count(0x24), inb(0x20));
    outb(0x20, 0x60); // a specific end of IRQ 0
    let_in();
    let after = trap::count(0x24);
    outb(0x20, 0x64);
    let rest = inb(0x20);
    uart_line_down();
    pic_mask_all();
    pit_quiet();
    check_eq!((first, held, in_service), (1, 0, 1));
    check_eq!((after, rest), (1, 0));
    Ok(())
}

/// A level that is gone before it is taken does not come, or comes as the spurious vector, which is not in service.
fn pic_level_that_went() -> Outcome {
    pic_on(0x20);
    outb(0x4d0, 1 << UART_IRQ);
    outb(0x21, !(1 << UART_IRQ));
    uart_line_up();
    uart_line_down();
    trap::on_interrupt(|_| {});
    let_in();
    let (came, spurious) = (trap::count(0x24), trap::count(0x27));
    outb(0x20, 0x0b);
    let in_service = inb(0x20);
    outb(0x4d0, 0);
    pic_mask_all();
    check_eq!(came, 0);
    check!(spurious <= 1 && in_service == 0);
    Ok(())
}

/// One edge of the PIT at the PIC pair, with LINT0 as given; what came is counted by the caller.
fn edge_through_lint0(lint0: u32) {
    pic_on(0x20);
    apic::write(LVT_LINT0, lint0);
    outb(0x21, 0xfe);
    pit_once(100);
    pit_wait();
    let_in();
}

/// The pair and its pin as firmware leaves them.
fn pic_as_before() {
    // What still waits is taken by hand (8259A: poll command).
    outb(0x20, 0x0c);
    inb(0x20);
    outb(0x20, 0x20);
    pic_mask_all();
    pit_quiet();
    apic::write(LVT_LINT0, EXT_INT);
}

fn lint0_masked_keeps_the_pic_out() -> Outcome {
    edge_through_lint0(MASKED | EXT_INT);
    let masked = trap::count(0x20);
    apic::write(LVT_LINT0, EXT_INT);
    let_in();
    let unmasked = trap::count(0x20);
    pic_as_before();
    check_eq!((masked, unmasked), (0, 1), "the pair goes on asking");
    Ok(())
}

/// As a fixed interrupt the pin brings its own vector, and the pair is not asked for one.
fn lint0_as_a_vector() -> Outcome {
    trap::restore();
    pic_on(0x20);
    apic::on();
    apic::write(LVT_LINT0, 0x54);
    outb(0x21, 0xfe);
    pit_once(100);
    pit_wait();
    let_in();
    let counts = (trap::count(0x54), trap::count(0x20));
    pic_as_before();
    check_eq!(counts, (1, 0));
    Ok(())
}

fn lint0_as_nmi() -> Outcome {
    edge_through_lint0(NMI);
    let counts = (trap::count(2), trap::count(0x20));
    pic_as_before();
    check_eq!(counts, (1, 0));
    Ok(())
}

fn ext_int_knows_no_task_priority() -> Outcome {
    apic::write(TPR, 0xff);
    edge_through_lint0(EXT_INT);
    apic::write(TPR, 0);
    let came = trap::count(0x20);
    pic_as_before();
    check_eq!(came, 1);
    Ok(())
}

/// One from the pair and one from the APIC wait: both come, each once, and each controller's is ended there.
fn ext_int_and_apic_in_turn() -> Outcome {
    pic_on(0x20);
    trap::on_interrupt(|vector| {
        if vector == 0x20 {
            outb(0x20, 0x20);
        } else {
            apic::eoi();
        }
    });
    apic::write(LVT_LINT0, EXT_INT);
    outb(0x21, 0xfe);
    pit_once(100);
    pit_wait();
    apic::self_ipi(0x91);
    let_in();
    let_in();
    let counts = (
        trap::count(0x20),
        trap::count(0x91),
        apic::has(apic::ISR, 0x91),
    );
    pic_as_before();
    check_eq!(counts, (1, 1, false));
    Ok(())
}

/// Switched off by IA32_APIC_BASE, the local APIC is not in the way: its pin is the processor's.
fn pic_without_an_apic() -> Outcome {
    pic_on(0x20);
    apic::set_mode(Mode::Off);
    outb(0x21, 0xfe);
    pit_once(100);
    pit_wait();
    let_in();
    let came = trap::count(0x20);
    apic::set_mode(Mode::XApic);
    apic::write(apic::SPURIOUS, 0x1ff);
    apic::write(LVT_LINT1, NMI);
    pic_as_before();
    check_eq!(came, 1);
    Ok(())
}

fn apic_timer_one_shot() -> Outcome {
    apic::on();
    apic::write(TIMER_DIVIDE, 0b1011);
    apic::write(LVT_TIMER, 0x60);
    apic::write(TIMER_INITIAL, 50_000_000);
    check!(apic::read(TIMER_CURRENT) > 0, "counts down");
    halt_until(0x60, 1);
    check_eq!(apic::read(TIMER_CURRENT), 0);
    timer_off();
    Ok(())
}

fn apic_timer_periodic() -> Outcome {
    apic::on();
    timer_every(0x61, 5_000_000);
    halt_until(0x61, 5);
    timer_off();
    Ok(())
}

fn apic_timer_deadline() -> Outcome {
    if cpuid(1, 0)[2] & 1 << 24 == 0 {
        return Ok(());
    }
    apic::on();
    apic::write(LVT_TIMER, 0x62 | 2 << 17);
    let deadline = rdtsc() + 5_000_000;
    wrmsr(0x6e0, deadline);
    halt_until(0x62, 1);
    let after = rdtsc();
    let armed = rdmsr(0x6e0);
    apic::write(LVT_TIMER, MASKED);
    check!(after >= deadline, "not early");
    check_eq!(armed, 0, "disarmed");
    Ok(())
}

/// A masked timer counts down and says nothing, then or later.
fn apic_timer_masked() -> Outcome {
    apic::on();
    apic::write(TIMER_DIVIDE, 0b1011);
    apic::write(LVT_TIMER, 0x60 | MASKED);
    apic::write(TIMER_INITIAL, 10_000);
    while apic::read(TIMER_CURRENT) > 0 {}
    apic::write(LVT_TIMER, 0x60);
    let_in();
    check_eq!(trap::count(0x60), 0);
    timer_off();
    Ok(())
}

/// An initial count of zero stops it (SDM 3A: 10.5.4).
fn apic_timer_stopped() -> Outcome {
    apic::on();
    timer_every(0x61, 5_000_000);
    halt_until(0x61, 2);
    apic::write(TIMER_INITIAL, 0);
    let_in();
    let before = trap::count(0x61);
    crate::smp::wait_ms(2);
    let_in();
    let after = trap::count(0x61);
    timer_off();
    check_eq!((after, apic::read(TIMER_CURRENT)), (before, 0));
    Ok(())
}

fn uart_interrupt() -> Outcome {
    pic_on(0x20);
    outb(0x21, !(1 << UART_IRQ));
    uart_line_up();
    halt_until(0x24, 1);
    let reason = inb(0x3fa);
    uart_line_down();
    pic_mask_all();
    check_eq!(reason & 15, 2, "the transmitter is empty");
    Ok(())
}
