// SPDX-License-Identifier: MIT OR Apache-2.0
//! Interrupts through the I/O APIC: edges, levels and their ends (82093AA; SDM 3A: 10.8.5).

use super::interrupts::{
    halt_until, pic_on, pit_once, pit_periodic, pit_quiet, pit_wait, uart_line_down, uart_line_up,
    UART_IRQ,
};
use crate::apic::{self, has, let_in, IRR, ISR, LEVEL, LOGICAL, LOWEST, MASKED, NMI, TMR};
use crate::io::{mmio_read, mmio_write};
use crate::{check_eq, tests, trap, Outcome};
use core::arch::asm;
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

tests!(
    ioapic_timer,
    ioapic_masked_edge_is_lost,
    ioapic_masked_level_waits,
    ioapic_nmi_wakes,
    ioapic_edge_has_no_remote_irr,
    ioapic_remote_irr_lasts_to_the_end,
    ioapic_level_that_goes_up_again,
    ioapic_edge_detour_clears_remote_irr,
    ioapic_logical_and_lowest,
    ioapic_to_nobody,
    ioapic_takes_any_value;
    ours: no_directed_end
);

const IOAPIC: u64 = 0xfec0_0000;
const REMOTE_IRR: u32 = 1 << 14;
const UART_PIN: u32 = UART_IRQ as u32;

pub fn set_pin(pin: u32, low: u32) {
    mmio_write(IOAPIC, 0x11 + 2 * pin);
    mmio_write(IOAPIC + 0x10, apic::read(0x20));
    mmio_write(IOAPIC, 0x10 + 2 * pin);
    mmio_write(IOAPIC + 0x10, low);
}

fn ioapic_timer() -> Outcome {
    pic_on(0x20);
    apic::on();
    mmio_write(IOAPIC, 1);
    check_eq!(mmio_read(IOAPIC + 0x10) >> 16 & 0xff, 23, "24 inputs");
    set_pin(2, 0x50);
    pit_periodic(11932);
    halt_until(0x50, 3);
    set_pin(2, MASKED);
    pit_quiet();
    Ok(())
}

/// An edge at a masked input is not kept (82093AA: 3.2.4).
fn ioapic_masked_edge_is_lost() -> Outcome {
    pic_on(0x20);
    apic::on();
    set_pin(2, MASKED | 0x51);
    pit_once(100);
    pit_wait();
    set_pin(2, 0x51);
    let_in();
    let lost = trap::count(0x51);
    pit_once(100);
    halt_until(0x51, 1);
    set_pin(2, MASKED);
    check_eq!(lost, 0);
    Ok(())
}

/// A level is still there when the mask goes; it comes again after its end, while the line is up.
fn ioapic_masked_level_waits() -> Outcome {
    pic_on(0x20);
    apic::on();
    trap::on_interrupt(|vector| {
        if trap::count(vector) == 4 {
            uart_line_down();
        }
        apic::eoi();
    });
    set_pin(UART_IRQ.into(), MASKED | LEVEL | 0x52);
    uart_line_up();
    let_in();
    let masked = trap::count(0x52);
    set_pin(UART_IRQ.into(), LEVEL | 0x52);
    let_in();
    let_in();
    set_pin(UART_IRQ.into(), MASKED);
    check_eq!((masked, trap::count(0x52)), (0, 4));
    Ok(())
}

/// An NMI from the I/O APIC wakes a CPU that halts with interrupts off.
fn ioapic_nmi_wakes() -> Outcome {
    pic_on(0x20);
    apic::on();
    set_pin(2, 4 << 8);
    pit_once(11932);
    while trap::count(2) == 0 {
        // SAFETY: the NMI comes.
        unsafe { asm!("cli", "hlt") };
    }
    set_pin(2, MASKED);
    check_eq!(trap::count(2), 1);
    Ok(())
}

fn pin(pin: u32) -> u32 {
    mmio_write(IOAPIC, 0x10 + 2 * pin);
    mmio_read(IOAPIC + 0x10)
}

/// Routes a pin to another destination than this CPU.
pub fn set_pin_to(pin: u32, to: u32, low: u32) {
    mmio_write(IOAPIC, 0x10 + 2 * pin);
    mmio_write(IOAPIC + 0x10, MASKED);
    mmio_write(IOAPIC, 0x11 + 2 * pin);
    mmio_write(IOAPIC + 0x10, to << 24);
    mmio_write(IOAPIC, 0x10 + 2 * pin);
    mmio_write(IOAPIC + 0x10, low);
}

/// An edge: the trigger mode register says so, and its end is nobody's business.
fn ioapic_edge_has_no_remote_irr() -> Outcome {
    pic_on(0x20);
    apic::on();
    set_pin(2, 0x53);
    pit_once(100);
    pit_wait();
    let seen = (has(IRR, 0x53), has(TMR, 0x53), pin(2) & REMOTE_IRR);
    let_in();
    set_pin(2, MASKED);
    pit_quiet();
    check_eq!(seen, (true, false, 0));
    check_eq!(trap::count(0x53), 1);
    Ok(())
}

/// What the handler saw: bits of remote IRR, in service, trigger mode, requested.
static IN_HANDLER: AtomicU32 = AtomicU32::new(0);

/// Remote IRR from the acceptance to the end of interrupt, whatever the line does meanwhile.
fn ioapic_remote_irr_lasts_to_the_end() -> Outcome {
    pic_on(0x20);
    apic::on();
    trap::on_interrupt(|vector| {
        uart_line_down();
        let seen = [
            pin(UART_PIN) & REMOTE_IRR != 0,
            has(ISR, vector),
            has(TMR, vector),
            has(IRR, vector),
        ];
        let bits = (0..).zip(seen).map(|(bit, is)| u32::from(is) << bit).sum();
        IN_HANDLER.store(bits, Relaxed);
        apic::eoi();
    });
    set_pin(UART_PIN, LEVEL | 0x54);
    let before = pin(UART_PIN) & REMOTE_IRR;
    uart_line_up();
    let waiting = (pin(UART_PIN) & REMOTE_IRR, has(IRR, 0x54), has(TMR, 0x54));
    let_in();
    let after = pin(UART_PIN) & REMOTE_IRR;
    let_in();
    set_pin(UART_PIN, MASKED);
    check_eq!((before, waiting), (0, (REMOTE_IRR, true, true)));
    check_eq!(IN_HANDLER.load(Relaxed), 0b0111);
    check_eq!((after, trap::count(0x54)), (0, 1));
    Ok(())
}

/// Down and up again before the end: one more after it, not two.
fn ioapic_level_that_goes_up_again() -> Outcome {
    pic_on(0x20);
    apic::on();
    trap::on_interrupt(|vector| {
        uart_line_down();
        if trap::count(vector) == 1 {
            uart_line_up();
            uart_line_down();
            uart_line_up();
        }
        apic::eoi();
    });
    set_pin(UART_PIN, LEVEL | 0x55);
    uart_line_up();
    let_in();
    let_in();
    let_in();
    set_pin(UART_PIN, MASKED);
    check_eq!(trap::count(0x55), 2);
    Ok(())
}

/// How kernels end a level without an end of interrupt: through edge-triggered and back.
fn ioapic_edge_detour_clears_remote_irr() -> Outcome {
    pic_on(0x20);
    apic::on();
    set_pin(UART_PIN, LEVEL | 0x56);
    uart_line_up();
    uart_line_down();
    let before = pin(UART_PIN) & REMOTE_IRR;
    set_pin(UART_PIN, MASKED | 0x56);
    set_pin(UART_PIN, MASKED | LEVEL | 0x56);
    let after = pin(UART_PIN) & REMOTE_IRR;
    let_in();
    set_pin(UART_PIN, MASKED);
    check_eq!((before, after), (REMOTE_IRR, 0));
    check_eq!(trap::count(0x56), 1, "it was accepted already");
    Ok(())
}

fn ioapic_logical_and_lowest() -> Outcome {
    pic_on(0x20);
    apic::on();
    apic::write(apic::DFR, u32::MAX);
    apic::write(apic::LDR, 0x40 << 24);
    for (n, (to, mode)) in (1..).zip([
        (0x40, LOGICAL),
        (0xc1, LOGICAL),
        (0x40, LOGICAL | LOWEST),
        (apic::id(), LOWEST),
    ]) {
        set_pin_to(2, to, mode | 0x57);
        pit_once(100);
        halt_until(0x57, n);
    }
    set_pin_to(2, 0x3f, LOGICAL | 0x57);
    pit_once(100);
    pit_wait();
    let_in();
    set_pin(2, MASKED);
    apic::write(apic::LDR, 0);
    check_eq!(trap::count(0x57), 4, "not for another's bit");
    Ok(())
}

fn ioapic_to_nobody() -> Outcome {
    pic_on(0x20);
    apic::on();
    set_pin_to(2, 0x7e, 0x58);
    pit_once(100);
    pit_wait();
    let_in();
    set_pin(2, MASKED);
    check_eq!(trap::count(0x58), 0);
    Ok(())
}

/// All registers written with all sorts of values; then it works as before.
fn ioapic_takes_any_value() -> Outcome {
    apic::on();
    for value in [
        0,
        u32::MAX,
        0x5555_5555,
        0xaaaa_aaaa,
        LEVEL,
        NMI | LEVEL,
        0x700,
        0x1_0000,
    ] {
        for register in 0..=0xff {
            mmio_write(IOAPIC, register);
            mmio_write(IOAPIC + 0x10, value);
            mmio_read(IOAPIC + 0x10);
        }
        for offset in (0..0x400).step_by(16) {
            mmio_write(IOAPIC + offset, value);
            mmio_read(IOAPIC + offset);
        }
    }
    (0..24).for_each(|pin| set_pin(pin, MASKED));
    mmio_write(IOAPIC, 0);
    mmio_write(IOAPIC + 0x10, 0);
    let_in();
    ioapic_timer()
}

/// It says that it has none, so an end is always a broadcast (SDM 3A: 10.8.5).
fn no_directed_end() -> Outcome {
    check_eq!(apic::read(apic::VERSION) & 1 << 24, 0);
    apic::write(apic::SPURIOUS, 0x11ff);
    check_eq!(apic::read(apic::SPURIOUS), 0x1ff);
    Ok(())
}
