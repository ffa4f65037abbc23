// SPDX-License-Identifier: MIT OR Apache-2.0
//! Interrupts from their sources to the handler: PIC pair, I/O APIC, local APIC.

use crate::io::{cpuid, inb, mmio_read, mmio_write, outb, rdmsr, rdtsc, wrmsr};
use crate::{check, check_eq, fault, tests, trap, Outcome};
use core::arch::asm;

tests!(
    pic_timer,
    pic_mask,
    pic_edge_comes_once,
    pic_level_comes_again,
    pic_nests,
    ioapic_timer,
    ioapic_masked_edge_is_lost,
    ioapic_masked_level_waits,
    ioapic_nmi_wakes,
    apic_timer_one_shot,
    apic_timer_periodic,
    apic_timer_deadline,
    halt_with_one_waiting,
    halt_without_interrupts_and_nmi,
    shadow_of_sti,
    shadow_over_exits,
    priorities,
    higher_interrupts_lower,
    task_priority_holds_back,
    cr8_holds_back,
    self_ipi,
    x2apic_mode,
    nmi_to_self,
    uart_interrupt;
    here: x2apic_refuses
);

const LAPIC: u64 = 0xfee0_0000;
const IOAPIC: u64 = 0xfec0_0000;
const TPR: u64 = 0x80;
const EOI: u64 = 0xb0;
const SPURIOUS: u64 = 0xf0;
const ICR_LOW: u64 = 0x300;
const ICR_HIGH: u64 = 0x310;
const LVT_TIMER: u64 = 0x320;
const LVT_LINT0: u64 = 0x350;
const LVT_LINT1: u64 = 0x360;
const TIMER_INITIAL: u64 = 0x380;
const TIMER_CURRENT: u64 = 0x390;
const TIMER_DIVIDE: u64 = 0x3e0;
const MASKED: u32 = 1 << 16;
const LEVEL: u32 = 1 << 15;
/// The first serial port's line, at both controllers.
const UART_IRQ: u8 = 4;

fn apic(register: u64) -> u32 {
    mmio_read(LAPIC + register)
}
fn set_apic(register: u64, value: u32) {
    mmio_write(LAPIC + register, value);
}

/// Enables the local APIC; the handler ends what comes there.
pub fn apic_on() {
    set_apic(SPURIOUS, 0x1ff);
    trap::on_interrupt(|_| set_apic(EOI, 0));
    trap::reset_counts();
}

/// Sends `vector` to this CPU.
pub fn self_ipi_of(vector: u32) {
    set_apic(ICR_LOW, 0x40000 | vector);
}

/// Sends an NMI to this CPU, by its number: the shorthand for "self" takes no NMI.
pub fn self_nmi() {
    set_apic(ICR_HIGH, apic(0x20));
    set_apic(ICR_LOW, 0x4400);
}

/// Has the local APIC's timer interrupt every `ticks` bus cycles.
pub fn timer_every(vector: u32, ticks: u32) {
    set_apic(TIMER_DIVIDE, 0b1011);
    set_apic(LVT_TIMER, vector | 1 << 17);
    set_apic(TIMER_INITIAL, ticks);
}

/// Stops it, and takes what it left behind while its handler is still there to end it.
pub fn timer_off() {
    set_apic(LVT_TIMER, MASKED);
    set_apic(TIMER_INITIAL, 0);
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

fn pit_periodic(count: u16) {
    outb(0x43, 0x34);
    outb(0x40, count as u8);
    outb(0x40, (count >> 8) as u8);
}
/// One rising edge after `count` ticks.
fn pit_once(count: u16) {
    outb(0x43, 0x30);
    outb(0x40, count as u8);
    outb(0x40, (count >> 8) as u8);
}
/// A PIT that is programmed, but not counting.
fn pit_quiet() {
    outb(0x43, 0x30);
}
/// Waits until the timer's request shows at the PIC, masked or not.
fn pit_wait() {
    outb(0x20, 0x0a);
    while inb(0x20) & 1 == 0 {}
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

/// Lets in what waits.
fn let_in() {
    // SAFETY: handlers are in place.
    unsafe { asm!("sti", "nop", "nop", "cli") };
}

/// Halts until `vector` has come `times` times.
pub fn halt_until(vector: u8, times: u32) {
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
fn uart_line_up() {
    outb(0x3fc, 0x0b); // DTR, RTS, OUT2
    outb(0x3f9, 0);
    outb(0x3f9, 2);
}
fn uart_line_down() {
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

fn set_pin(pin: u32, low: u32) {
    mmio_write(IOAPIC, 0x11 + 2 * pin);
    mmio_write(IOAPIC + 0x10, apic(0x20));
    mmio_write(IOAPIC, 0x10 + 2 * pin);
    mmio_write(IOAPIC + 0x10, low);
}

fn ioapic_timer() -> Outcome {
    pic_on(0x20);
    apic_on();
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
    apic_on();
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
    apic_on();
    trap::on_interrupt(|vector| {
        if trap::count(vector) == 4 {
            uart_line_down();
        }
        set_apic(EOI, 0);
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
    apic_on();
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

fn apic_timer_one_shot() -> Outcome {
    apic_on();
    set_apic(TIMER_DIVIDE, 0b1011);
    set_apic(LVT_TIMER, 0x60);
    set_apic(TIMER_INITIAL, 2_000_000);
    check!(apic(TIMER_CURRENT) > 0, "counts down");
    halt_until(0x60, 1);
    check_eq!(apic(TIMER_CURRENT), 0);
    timer_off();
    Ok(())
}

fn apic_timer_periodic() -> Outcome {
    apic_on();
    timer_every(0x61, 5_000_000);
    halt_until(0x61, 5);
    timer_off();
    Ok(())
}

fn apic_timer_deadline() -> Outcome {
    if cpuid(1, 0)[2] & 1 << 24 == 0 {
        return Ok(());
    }
    apic_on();
    set_apic(LVT_TIMER, 0x62 | 2 << 17);
    let deadline = rdtsc() + 5_000_000;
    wrmsr(0x6e0, deadline);
    halt_until(0x62, 1);
    let after = rdtsc();
    let armed = rdmsr(0x6e0);
    set_apic(LVT_TIMER, MASKED);
    check!(after >= deadline, "not early");
    check_eq!(armed, 0, "disarmed");
    Ok(())
}

/// HLT does not wait when an interrupt is there already, and comes back behind itself.
fn halt_with_one_waiting() -> Outcome {
    apic_on();
    for n in 1..100 {
        self_ipi_of(0x64);
        let behind: u64;
        // SAFETY: the interrupt waits.
        unsafe { asm!("sti", "hlt", "22: cli", "lea {}, [rip + 22b]", out(reg) behind) };
        check_eq!((trap::count(0x64), trap::last_interrupt()[1]), (n, behind));
    }
    Ok(())
}

fn halt_without_interrupts_and_nmi() -> Outcome {
    apic_on();
    // A timer interrupt, which must not wake it, and long behind it an NMI, which must.
    pic_on(0x20);
    set_apic(LVT_TIMER, 0x65);
    set_apic(TIMER_DIVIDE, 0b1011);
    set_pin(2, 4 << 8);
    pit_once(60_000); // 50 ms
    set_apic(TIMER_INITIAL, 100_000);
    // SAFETY: the NMI comes.
    unsafe { asm!("cli", "hlt") };
    let (nmis, timers) = (trap::count(2), trap::count(0x65));
    trap::on_interrupt(|_| set_apic(EOI, 0));
    let_in();
    set_pin(2, MASKED);
    timer_off();
    check_eq!((nmis, timers), (1, 0));
    check_eq!(trap::count(0x65), 1, "it waited");
    Ok(())
}

/// An interrupt that waits comes after the instruction that follows STI, not before.
fn shadow_of_sti() -> Outcome {
    apic_on();
    self_ipi_of(0x63);
    let seen: u64;
    let count = trap::count_address(0x63);
    // SAFETY: reads the count in the shadow.
    unsafe { asm!("sti", "mov {:e}, [{}]", "nop", "cli", lateout(reg) seen, in(reg) count) };
    check_eq!(seen, 0, "nothing in the shadow");
    check_eq!(trap::count(0x63), 1);
    Ok(())
}

/// Runs one instruction in STI's shadow, with an interrupt waiting: it must come right behind that instruction.
macro_rules! in_shadow {
    ($name:literal, $instruction:literal $(, $($operand:tt)*)?) => {{
        self_ipi_of(0x66);
        let behind: u64;
        // SAFETY: the handler comes back.
        unsafe {
            asm!("push rbx", "sti", $instruction, "22: nop", "cli", "pop rbx", "lea {behind}, [rip + 22b]",
                behind = out(reg) behind, $($($operand)*)?)
        };
        check_eq!(trap::last_interrupt()[1], behind, $name);
    }};
}

fn shadow_over_exits() -> Outcome {
    apic_on();
    in_shadow!("NOP", "nop");
    in_shadow!("CPUID", "cpuid", inout("eax") 0 => _, out("ecx") _, out("edx") _);
    in_shadow!("OUT", "out 0x80, al");
    in_shadow!("IN", "in al, 0x80", out("al") _);
    in_shadow!("RDMSR", "rdmsr", in("ecx") 0x1b, out("eax") _, out("edx") _);
    in_shadow!("MMIO read", "mov {v:e}, [{a}]", a = in(reg) LAPIC + TPR, v = out(reg) _);
    in_shadow!("MMIO write", "mov dword ptr [{a}], 0", a = in(reg) LAPIC + TPR);
    in_shadow!("CR0", "mov cr0, {v}", v = in(reg) 0x8001_0033u64);
    in_shadow!("WBINVD", "wbinvd");
    Ok(())
}

fn priorities() -> Outcome {
    apic_on();
    trap::record_order();
    [0x71, 0x91, 0x81].into_iter().for_each(self_ipi_of);
    let_in();
    check_eq!(trap::order(), [0x91, 0x81, 0x71], "the highest first");
    Ok(())
}

/// Within a handler that lets interrupts in, only a higher class comes.
fn higher_interrupts_lower() -> Outcome {
    apic_on();
    trap::on_interrupt(|vector| {
        if vector == 0x81 {
            self_ipi_of(0x75);
            self_ipi_of(0x85);
            // The class is a vector's upper half: 0x85 is no higher than 0x81.
            let_in();
            SEEN[0].store(trap::count(0x75) + trap::count(0x85), Relaxed);
            self_ipi_of(0x95);
            // The stack of 0x95 is another one.
            let_in();
            SEEN[1].store(trap::count(0x95), Relaxed);
        }
        set_apic(EOI, 0);
    });
    use core::sync::atomic::{AtomicU32, Ordering::Relaxed};
    static SEEN: [AtomicU32; 2] = [const { AtomicU32::new(9) }; 2];
    trap::set_stack(2, crate::paging::frame()? + 4096);
    trap::use_stack(0x95, 2);
    self_ipi_of(0x81);
    let_in();
    let_in();
    check_eq!([SEEN[0].load(Relaxed), SEEN[1].load(Relaxed)], [0, 1]);
    check_eq!(
        (trap::count(0x75), trap::count(0x85), trap::count(0x95)),
        (1, 1, 1)
    );
    Ok(())
}

fn task_priority_holds_back() -> Outcome {
    apic_on();
    set_apic(TPR, 0x90);
    self_ipi_of(0x8f);
    let_in();
    let (held, processor_priority) = (trap::count(0x8f), apic(0xa0));
    set_apic(TPR, 0x80);
    let_in();
    let same_class = trap::count(0x8f);
    set_apic(TPR, 0x70);
    let_in();
    let let_through = trap::count(0x8f);
    set_apic(TPR, 0);
    check_eq!((held, same_class, let_through), (0, 0, 1));
    check_eq!(processor_priority, 0x90);
    Ok(())
}

fn cr8_holds_back() -> Outcome {
    apic_on();
    let held;
    let tpr;
    // SAFETY: raises and lowers the task priority.
    unsafe {
        asm!("mov cr8, {}", in(reg) 9u64);
        tpr = apic(TPR);
        self_ipi_of(0x8f);
        let_in();
        held = trap::count(0x8f);
        asm!("sti", "mov cr8, {}", "nop", "nop", "cli", in(reg) 0u64);
    }
    check_eq!(tpr, 0x90, "CR8 is the TPR");
    check_eq!((held, trap::count(0x8f)), (0, 1));
    Ok(())
}

fn self_ipi() -> Outcome {
    apic_on();
    for n in 1..101 {
        self_ipi_of(0x70);
        let_in();
        check_eq!(trap::count(0x70), n);
    }
    Ok(())
}

/// From x2APIC mode back to xAPIC mode, by way of "off", which forgets all registers; then as firmware had left them.
fn off_and_on(base: u64) {
    wrmsr(0x1b, base & !(1 << 11 | 1 << 10));
    wrmsr(0x1b, base);
    set_apic(SPURIOUS, 0x1ff);
    set_apic(LVT_LINT0, 7 << 8); // the PIC pair
    set_apic(LVT_LINT1, 4 << 8); // NMI
}

fn x2apic_mode() -> Outcome {
    if cpuid(1, 0)[2] & 1 << 21 == 0 {
        return Ok(());
    }
    apic_on();
    let base = rdmsr(0x1b);
    wrmsr(0x1b, base | 1 << 10);
    trap::on_interrupt(|_| wrmsr(0x80b, 0));
    let (id, version) = (rdmsr(0x802), rdmsr(0x803));
    wrmsr(0x83f, 0x72);
    let_in();
    let count = trap::count(0x72);
    off_and_on(base);
    check_eq!((id, count), (0, 1));
    check!(version & 0xff >= 0x10);
    check_eq!(rdmsr(0x1b), base);
    Ok(())
}

fn x2apic_refuses() -> Outcome {
    let refused = |index: u32, value: u32| {
        let seen = fault!("wrmsr", in("ecx") index, in("eax") value, in("edx") 0);
        seen.is_some_and(|f| f.vector == 13)
    };
    let base = rdmsr(0x1b);
    let before = refused(0x80b, 0);
    wrmsr(0x1b, base | 1 << 10);
    let (eoi, back, id) = (
        refused(0x80b, 1),
        refused(0x1b, base as u32),
        refused(0x802, 1),
    );
    off_and_on(base);
    check!(before, "its registers are not there in xAPIC mode");
    check!(eoi, "an end is zero");
    check!(back, "not straight back to xAPIC mode");
    check!(id, "not writable");
    Ok(())
}

fn nmi_to_self() -> Outcome {
    apic_on();
    for n in 1..20 {
        self_nmi();
        // SAFETY: an instruction boundary.
        unsafe { asm!("nop", "nop") };
        check_eq!(trap::count(2), n);
    }
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
