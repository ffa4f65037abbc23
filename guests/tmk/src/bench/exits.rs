// SPDX-License-Identifier: MIT OR Apache-2.0
//! Instructions that exit.

use super::Figure;
use crate::apic::{self, Mode, XAPIC};
use crate::io::{cpuid, is_intel, mmio_write, rdtsc, wrmsr};
use crate::tests::cpu::{read_cr4, write_cr4};
use crate::{acpi, benches, rounds, trap};
use core::arch::global_asm;

benches!(
    empty,
    cpuid_leaf,
    hypercall,
    rdmsr,
    wrmsr_same,
    cr0,
    cr4,
    toggle_pge,
    xsetbv,
    wbinvd,
    invd,
    pause,
    pic_in,
    uart_status,
    post_out,
    pm_timer,
    absent_in,
    pit_in,
    rtc_in,
    string_out,
    ioapic_read,
    xapic_read,
    xapic_eoi,
    xapic_icr,
    mmio_emulated,
    x2apic_read,
    x2apic_eoi,
    x2apic_icr,
    self_ipi,
    self_ipi_hlt,
    deadline_later,
    deadline_sooner,
    deadline_now,
);

/// The vector of interrupts that are measured.
const VECTOR: u8 = 0x41;
const OSXSAVE: u64 = 1 << 18;
/// The timer's mode in its LVT: a time stamp at which it comes.
const DEADLINE: u32 = 2 << 17;

global_asm!(
    // Ends the interrupt, in x2APIC mode, and no more.
    ".pushsection .text",
    ".globl bench_interrupt",
    "bench_interrupt:",
    "push rax; push rcx; push rdx",
    "mov ecx, 0x80b; xor eax, eax; xor edx, edx; wrmsr",
    "pop rdx; pop rcx; pop rax",
    "iretq",
    ".popsection",
);
extern "C" {
    static bench_interrupt: u8;
}

/// What the benches find: a handler for their interrupts, and the extended state enabled.
pub fn prepare() {
    trap::set_gate(VECTOR, (&raw const bench_interrupt) as u64, 1);
    if has_xsave() {
        write_cr4(read_cr4() | OSXSAVE);
    }
}

fn has_xsave() -> bool {
    cpuid(1, 0)[2] & 1 << 26 != 0
}

fn empty() -> Figure {
    rounds!("")
}

fn cpuid_leaf() -> Figure {
    rounds!("mov rsi, rbx", "xor eax, eax", "cpuid", "mov rbx, rsi";
        out("rax") _, out("rcx") _, out("rdx") _, out("rsi") _)
}

fn hypercall() -> Figure {
    // A number that nobody answers.
    match is_intel() {
        true => rounds!("mov eax, 0x7fff", "vmcall"; out("rax") _),
        false => rounds!("mov eax, 0x7fff", "vmmcall"; out("rax") _),
    }
}

fn rdmsr() -> Figure {
    rounds!("rdmsr"; in("ecx") 0x1b, out("eax") _, out("edx") _)
}

fn wrmsr_same() -> Figure {
    // The machine check's status, in which nothing is to be cleared.
    rounds!("wrmsr"; in("ecx") 0x17a, in("eax") 0, in("edx") 0)
}

fn cr0() -> Figure {
    rounds!("mov rax, cr0", "mov cr0, rax"; out("rax") _)
}

fn cr4() -> Figure {
    rounds!("mov rax, cr4", "mov cr4, rax"; out("rax") _)
}

fn toggle_pge() -> Figure {
    rounds!("mov rax, cr4", "xor rax, 0x80", "mov cr4, rax", "xor rax, 0x80", "mov cr4, rax"; out("rax") _)
}

fn xsetbv() -> Figure {
    if !has_xsave() {
        return None;
    }
    rounds!("xgetbv", "xsetbv"; in("ecx") 0, out("eax") _, out("edx") _)
}

fn wbinvd() -> Figure {
    rounds!("wbinvd")
}

fn invd() -> Figure {
    rounds!("invd")
}

fn pause() -> Figure {
    rounds!("pause")
}

fn pic_in() -> Figure {
    rounds!("in al, 0x21"; out("al") _)
}

fn uart_status() -> Figure {
    rounds!("in al, dx"; in("dx") 0x3fdu16, out("al") _)
}

fn post_out() -> Figure {
    rounds!("out 0x80, al"; in("al") 0u8)
}

fn pm_timer() -> Figure {
    rounds!("in eax, dx"; in("dx") acpi::pm_timer()?, out("eax") _)
}

fn absent_in() -> Figure {
    rounds!("in al, dx"; in("dx") 0x1234u16, out("al") _)
}

fn pit_in() -> Figure {
    rounds!("in al, 0x40"; out("al") _)
}

fn rtc_in() -> Figure {
    // A byte of its memory that says nothing of the time.
    rounds!("mov al, 0x0f", "out 0x70, al", "in al, 0x71"; out("al") _)
}

fn string_out() -> Figure {
    let bytes = [0u8; 16];
    rounds!("mov rsi, {bytes}", "mov ecx, 16", "rep outsb";
        bytes = in(reg) bytes.as_ptr(), in("dx") 0x80u16, out("rsi") _, out("rcx") _)
}

fn ioapic_read() -> Figure {
    mmio_write(0xfec0_0000, 0);
    rounds!("mov eax, [{at}]"; at = in(reg) 0xfec0_0010u64, out("eax") _)
}

/// The local APIC with its registers in memory, switched on.
fn xapic() -> u64 {
    apic::set_mode(Mode::XApic);
    apic::write(apic::SPURIOUS, 0x1ff);
    XAPIC
}

fn xapic_read() -> Figure {
    rounds!("mov eax, [{at}]"; at = in(reg) xapic() + apic::ID, out("eax") _)
}

fn xapic_eoi() -> Figure {
    rounds!("mov dword ptr [{at}], 0"; at = in(reg) xapic() + apic::EOI)
}

fn xapic_icr() -> Figure {
    // To all others, of which there are none.
    rounds!("mov dword ptr [{at}], 0xc4041"; at = in(reg) xapic() + apic::ICR_LOW)
}

fn mmio_emulated() -> Figure {
    rounds!("or dword ptr [{at}], 0"; at = in(reg) xapic() + apic::TPR)
}

/// The local APIC with its registers as MSRs, switched on. `None`: it knows no other mode.
fn x2apic() -> Option<()> {
    if cpuid(1, 0)[2] & 1 << 21 == 0 {
        return None;
    }
    apic::set_mode(Mode::X2Apic);
    apic::write(apic::SPURIOUS, 0x1ff);
    Some(())
}

fn x2apic_read() -> Figure {
    x2apic()?;
    rounds!("rdmsr"; in("ecx") apic::msr(apic::ID), out("eax") _, out("edx") _)
}

fn x2apic_eoi() -> Figure {
    x2apic()?;
    rounds!("wrmsr"; in("ecx") apic::msr(apic::EOI), in("eax") 0, in("edx") 0)
}

fn x2apic_icr() -> Figure {
    x2apic()?;
    rounds!("wrmsr"; in("ecx") apic::msr(apic::ICR_LOW), in("eax") 0xc4041, in("edx") 0)
}

fn self_ipi() -> Figure {
    x2apic()?;
    rounds!("mov eax, 0x41", "xor edx, edx", "wrmsr", "sti", "nop", "cli";
        in("ecx") apic::msr(apic::SELF_IPI), out("eax") _, out("edx") _)
}

fn self_ipi_hlt() -> Figure {
    x2apic()?;
    rounds!("mov eax, 0x41", "xor edx, edx", "wrmsr", "sti", "hlt", "cli";
        in("ecx") apic::msr(apic::SELF_IPI), out("eax") _, out("edx") _)
}

const DEADLINE_MSR: u32 = 0x6e0;

/// The timer waits for a time stamp. `None`: it does not know how.
fn deadline() -> Option<()> {
    if cpuid(1, 0)[2] & 1 << 24 == 0 {
        return None;
    }
    x2apic()?;
    apic::write(apic::LVT_TIMER, DEADLINE | u32::from(VECTOR));
    Some(())
}

/// No timer runs behind this.
fn without_deadline(figure: Figure) -> Figure {
    wrmsr(DEADLINE_MSR, 0);
    apic::write(apic::LVT_TIMER, apic::MASKED);
    figure
}

fn deadline_later() -> Figure {
    deadline()?;
    without_deadline(
        rounds!("rdtsc", "add edx, 100", "wrmsr"; in("ecx") DEADLINE_MSR, out("eax") _, out("edx") _),
    )
}

fn deadline_sooner() -> Figure {
    deadline()?;
    let mut at = rdtsc() + (100 << 32);
    without_deadline(
        rounds!("sub {at}, 1000000", "mov eax, {at:e}", "mov rdx, {at}", "shr rdx, 32", "wrmsr";
        at = inout(reg) at, in("ecx") DEADLINE_MSR, out("eax") _, out("rdx") _),
    )
}

fn deadline_now() -> Figure {
    deadline()?;
    without_deadline(
        rounds!("mov eax, 1", "xor edx, edx", "wrmsr", "sti", "nop", "cli";
        in("ecx") DEADLINE_MSR, out("eax") _, out("edx") _),
    )
}
