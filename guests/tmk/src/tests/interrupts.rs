// SPDX-License-Identifier: MIT OR Apache-2.0
//! Interrupts from their sources to the handler: PIC pair, I/O APIC, local APIC.

use crate::io::{inb, mmio_read, mmio_write, outb, rdmsr, wrmsr};
use crate::{check, tests, trap, Outcome};
use core::arch::asm;

tests!(
    pic_timer,
    pic_mask_and_spurious,
    ioapic_timer,
    apic_timer_one_shot,
    apic_timer_periodic,
    apic_timer_deadline,
    halt_wakes,
    shadow_of_sti,
    priorities,
    cr8_holds_back,
    self_ipi,
    x2apic_mode,
    nmi_to_self,
    uart_interrupt
);

const LAPIC: u64 = 0xfee0_0000;
const IOAPIC: u64 = 0xfec0_0000;
const EOI: u64 = 0xb0;
const SPURIOUS: u64 = 0xf0;
const ICR_LOW: u64 = 0x300;
const LVT_TIMER: u64 = 0x320;
const TIMER_INITIAL: u64 = 0x380;
const TIMER_DIVIDE: u64 = 0x3e0;
const MASKED: u32 = 1 << 16;

fn apic(register: u64) -> u32 {
    mmio_read(LAPIC + register)
}
fn set_apic(register: u64, value: u32) {
    mmio_write(LAPIC + register, value);
}

fn enable_apic() {
    set_apic(SPURIOUS, 0x1ff);
    trap::on_interrupt(|_| set_apic(EOI, 0));
    trap::reset_counts();
}

fn enable_pic(base: u8) {
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
    outb(0x21, 0xff);
    outb(0xa1, 0xff);
    trap::on_interrupt(|vector| {
        if vector >= 0x28 {
            outb(0xa0, 0x20);
        }
        outb(0x20, 0x20);
    });
    trap::reset_counts();
}

fn pit_periodic(count: u16) {
    outb(0x43, 0x34);
    outb(0x40, count as u8);
    outb(0x40, (count >> 8) as u8);
}
/// A PIT that is programmed, but not counting.
fn pit_quiet() {
    outb(0x43, 0x30);
}

fn interrupts(on: bool) {
    // SAFETY: handlers are in place.
    unsafe {
        if on {
            asm!("sti")
        } else {
            asm!("cli")
        }
    }
}

/// Halts until `vector` has come `times` times.
fn halt_until(vector: u8, times: u32) {
    loop {
        interrupts(false);
        if trap::count(vector) >= times {
            return;
        }
        // SAFETY: an interrupt is on its way; STI's shadow lets none in before HLT.
        unsafe { asm!("sti", "hlt", "cli") };
    }
}

fn pic_timer() -> Outcome {
    enable_pic(0x20);
    outb(0x21, 0xfe);
    pit_periodic(11932); // 100 Hz
    halt_until(0x20, 5);
    outb(0x21, 0xff);
    pit_quiet();
    check!(trap::count(0x20) >= 5);
    Ok(())
}

fn pic_mask_and_spurious() -> Outcome {
    enable_pic(0x20);
    pit_periodic(1193); // 1 kHz, masked
    let begin = crate::io::rdtsc();
    interrupts(true);
    while crate::io::rdtsc() - begin < 20_000_000 {}
    interrupts(false);
    check!(trap::count(0x20) == 0, "masked");
    outb(0x20, 0x0a);
    check!(inb(0x20) & 1 == 1, "the request waits");
    outb(0x21, 0xfe);
    halt_until(0x20, 1);
    outb(0x21, 0xff);
    pit_quiet();
    Ok(())
}

fn ioapic_write(register: u32, value: u32) {
    mmio_write(IOAPIC, register);
    mmio_write(IOAPIC + 0x10, value);
}

fn ioapic_timer() -> Outcome {
    enable_pic(0x20);
    enable_apic();
    mmio_write(IOAPIC, 1);
    check!(mmio_read(IOAPIC + 0x10) >> 16 & 0xff == 23, "24 inputs");
    ioapic_write(0x10 + 4 + 1, 0);
    ioapic_write(0x10 + 4, 0x50);
    pit_periodic(11932);
    halt_until(0x50, 3);
    ioapic_write(0x10 + 4, MASKED);
    pit_quiet();
    check!(trap::count(0x50) >= 3);
    Ok(())
}

fn apic_timer_one_shot() -> Outcome {
    enable_apic();
    set_apic(TIMER_DIVIDE, 0b1011);
    set_apic(LVT_TIMER, 0x60);
    set_apic(TIMER_INITIAL, 2_000_000);
    check!(apic(0x390) > 0, "counts down");
    halt_until(0x60, 1);
    check!(apic(0x390) == 0);
    Ok(())
}

fn apic_timer_periodic() -> Outcome {
    enable_apic();
    set_apic(TIMER_DIVIDE, 0b1011);
    set_apic(LVT_TIMER, 0x61 | 1 << 17);
    set_apic(TIMER_INITIAL, 5_000_000);
    halt_until(0x61, 5);
    set_apic(LVT_TIMER, MASKED);
    set_apic(TIMER_INITIAL, 0);
    Ok(())
}

fn apic_timer_deadline() -> Outcome {
    check!(crate::io::cpuid(1, 0)[2] & 1 << 24 != 0);
    enable_apic();
    set_apic(LVT_TIMER, 0x62 | 2 << 17);
    let deadline = crate::io::rdtsc() + 5_000_000;
    wrmsr(0x6e0, deadline);
    halt_until(0x62, 1);
    check!(crate::io::rdtsc() >= deadline, "not early");
    check!(rdmsr(0x6e0) == 0, "disarmed");
    set_apic(LVT_TIMER, MASKED);
    Ok(())
}

fn halt_wakes() -> Outcome {
    apic_timer_one_shot()
}

/// An interrupt that waits comes after the instruction that follows STI, not before.
fn shadow_of_sti() -> Outcome {
    enable_apic();
    interrupts(false);
    set_apic(ICR_LOW, 0x40000 | 0x63);
    let seen: u64;
    let count = trap_count_address(0x63);
    // SAFETY: reads the count in the shadow.
    unsafe { asm!("sti", "mov {:e}, [{}]", "nop", "cli", lateout(reg) seen, in(reg) count) };
    check!(seen as u32 == 0, "nothing in the shadow");
    check!(trap::count(0x63) == 1);
    Ok(())
}

fn trap_count_address(vector: u8) -> u64 {
    trap::count_address(vector)
}

fn priorities() -> Outcome {
    enable_apic();
    interrupts(false);
    trap::record_order();
    for vector in [0x71, 0x91, 0x81] {
        set_apic(ICR_LOW, 0x40000 | vector);
    }
    interrupts(true);
    // SAFETY: lets them in.
    unsafe { asm!("nop", "nop") };
    interrupts(false);
    check!(trap::order() == [0x91, 0x81, 0x71], "the highest first");
    Ok(())
}

fn cr8_holds_back() -> Outcome {
    enable_apic();
    // SAFETY: raises and lowers the task priority.
    unsafe {
        asm!("mov cr8, {}", in(reg) 9u64);
        check!(apic(0x80) == 0x90, "CR8 is the TPR");
        set_apic(ICR_LOW, 0x40000 | 0x8f);
        asm!("sti", "nop", "nop", "cli");
        check!(trap::count(0x8f) == 0, "held back");
        asm!("sti", "mov cr8, {}", "nop", "nop", "cli", in(reg) 0u64);
    }
    check!(trap::count(0x8f) == 1, "let in");
    Ok(())
}

fn self_ipi() -> Outcome {
    enable_apic();
    for n in 0..100 {
        set_apic(ICR_LOW, 0x40000 | 0x70);
        // SAFETY: lets it in.
        unsafe { asm!("sti", "nop", "nop", "cli") };
        check!(trap::count(0x70) == n + 1);
    }
    Ok(())
}

fn x2apic_mode() -> Outcome {
    check!(crate::io::cpuid(1, 0)[2] & 1 << 21 != 0);
    enable_apic();
    let base = rdmsr(0x1b);
    wrmsr(0x1b, base | 1 << 10);
    trap::on_interrupt(|_| wrmsr(0x80b, 0));
    check!(rdmsr(0x802) == 0, "id");
    wrmsr(0x83f, 0x72);
    // SAFETY: lets it in.
    unsafe { asm!("sti", "nop", "nop", "cli") };
    let count = trap::count(0x72);
    wrmsr(0x1b, base & !(1 << 11));
    wrmsr(0x1b, base);
    check!(count == 1);
    Ok(())
}

fn nmi_to_self() -> Outcome {
    enable_apic();
    set_apic(ICR_LOW, 0x40000 | 4 << 8);
    // SAFETY: an instruction boundary.
    unsafe { asm!("nop", "nop") };
    check!(trap::count(2) == 1);
    Ok(())
}

fn uart_interrupt() -> Outcome {
    enable_pic(0x20);
    outb(0x21, 0xef);
    outb(0x3fc, 0x0b); // DTR, RTS, OUT2
    outb(0x3f9, 2); // transmitter empty
    halt_until(0x24, 1);
    outb(0x3f9, 0);
    outb(0x21, 0xff);
    Ok(())
}
