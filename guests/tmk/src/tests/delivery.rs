// SPDX-License-Identifier: MIT OR Apache-2.0
//! Delivery of exceptions and interrupts when it is cut short: by RAM that the VMM has not given yet, so that the event
//! must be delivered again, or by a fault of its own (APM 2: 8.2.9, 15.20).

use super::cpu::enable_avx;
use crate::apic::{self, self_ipi, self_nmi};
use crate::paging::{self, PAGE};
use crate::trap::{self, Fault, USER_END};
use crate::{check, check_eq, fault, tests, user, Outcome};
use core::arch::{asm, global_asm};

tests!(
    fault_on_untouched_stack,
    fault_code_on_untouched_stack,
    page_fault_on_untouched_stack,
    emulated_fault_on_untouched_stack,
    single_step_on_untouched_stack,
    software_interrupts_on_untouched_stack,
    interrupt_on_untouched_stack,
    nmi_on_untouched_stack,
    user_interrupt_on_untouched_stack,
    interrupt_return_from_untouched_stack,
    fault_on_unmapped_stack,
    double_fault,
    benign_faults_make_no_double_fault,
    contributory_faults_make_one,
    page_fault_and_another_make_one,
    contributory_fault_and_page_fault_make_none,
    interrupt_through_a_bad_gate,
    nmi_waits_for_iret,
    nmis_do_not_pile_up
);

/// The interrupt stack that these tests change.
const IST: u8 = 2;

/// Has `vector` come on a stack whose page was never touched.
fn untouched_stack(vector: u8) -> Result<u64, &'static str> {
    let top = paging::untouched_page()? + PAGE;
    trap::set_stack(IST.into(), top);
    trap::use_stack(vector, IST);
    Ok(top)
}

fn expect(seen: Option<Fault>, vector: u64, error: u64) -> Outcome {
    let seen = seen.ok_or("no fault")?;
    check_eq!((seen.vector, seen.error), (vector, error));
    Ok(())
}

fn fault_on_untouched_stack() -> Outcome {
    for _ in 0..4 {
        untouched_stack(6)?;
        expect(fault!("ud2"), 6, 0)?;
    }
    Ok(())
}

fn fault_code_on_untouched_stack() -> Outcome {
    untouched_stack(13)?;
    expect(fault!("mov ds, {s:e}", s = in(reg) 0x1230), 13, 0x1230)
}

/// CR2 and the error code survive.
fn page_fault_on_untouched_stack() -> Outcome {
    for write in [false, true] {
        untouched_stack(14)?;
        let at = paging::window(1) + 0x123;
        let seen = if write {
            fault!("mov [{at}], al", at = in(reg) at)
        } else {
            fault!("mov al, [{at}]", at = in(reg) at, out("al") _)
        };
        check_eq!(seen.map(|f| f.cr2), Some(at));
        expect(seen, 14, u64::from(write) * 2)?;
    }
    Ok(())
}

/// XCR0 without its lowest bit: #GP(0), which a VMM injects.
fn no_xcr0() -> Option<Fault> {
    fault!("xsetbv", in("ecx") 0, in("eax") 0, in("edx") 0)
}

/// The fault of an instruction that a VMM executes, which it has to inject.
fn emulated_fault_on_untouched_stack() -> Outcome {
    enable_avx()?;
    untouched_stack(13)?;
    expect(no_xcr0(), 13, 0)?;
    untouched_stack(14)?;
    // A device register read into a page that is not there.
    let to = paging::window(1);
    let seen = fault!("movsd", inout("rsi") 0xfee0_0080u64 => _, inout("rdi") to => _);
    check_eq!(seen.map(|f| f.cr2), Some(to));
    expect(seen, 14, 2)
}

fn single_step_on_untouched_stack() -> Outcome {
    untouched_stack(1)?;
    trap::reset_counts();
    let second: u64;
    // SAFETY: the handler comes back.
    unsafe {
        asm!("push rbx", "pushfq", "or qword ptr [rsp], 0x100", "popfq", "cpuid", "22: nop",
            "pushfq", "and qword ptr [rsp], -257", "popfq", "pop rbx", "lea {}, [rip + 22b]",
            out(reg) second, inout("eax") 0 => _, out("ecx") _, out("edx") _)
    };
    check_eq!((trap::count(1), trap::debug_at(0)), (5, second));
    Ok(())
}

/// Software interrupts come back behind the instruction, once.
fn software_interrupts_on_untouched_stack() -> Outcome {
    trap::reset_counts();
    let behind: u64;
    untouched_stack(0xa5)?;
    // SAFETY: the handler comes back.
    unsafe { asm!("int 0xa5", "22:", "lea {}, [rip + 22b]", out(reg) behind) };
    check_eq!(
        (trap::count(0xa5), trap::last_interrupt()[1]),
        (1, behind),
        "INT"
    );
    untouched_stack(3)?;
    let behind: u64;
    // SAFETY: as above.
    unsafe { asm!("int3", "22:", "lea {}, [rip + 22b]", out(reg) behind) };
    check_eq!((trap::count(3), trap::last().rip), (1, behind), "INT3");
    untouched_stack(1)?;
    let behind: u64;
    // SAFETY: as above.
    unsafe { asm!(".byte 0xf1", "22:", "lea {}, [rip + 22b]", out(reg) behind) };
    check_eq!((trap::count(1), trap::last().rip), (1, behind), "ICEBP");
    Ok(())
}

fn interrupt_on_untouched_stack() -> Outcome {
    apic::on();
    for n in 1..4 {
        untouched_stack(0x73)?;
        self_ipi(0x73);
        // SAFETY: lets it in.
        unsafe { asm!("sti", "nop", "nop", "cli") };
        check_eq!(trap::count(0x73), n);
    }
    // It was ended: another one of the same vector comes, and a lower one too.
    self_ipi(0x33);
    // SAFETY: as above.
    unsafe { asm!("sti", "nop", "nop", "cli") };
    check_eq!(trap::count(0x33), 1);
    Ok(())
}

fn nmi_on_untouched_stack() -> Outcome {
    apic::on();
    for n in 1..4 {
        untouched_stack(2)?;
        self_nmi();
        // SAFETY: instruction boundaries.
        unsafe { asm!("nop", "nop") };
        check_eq!(trap::count(2), n);
    }
    Ok(())
}

/// From user mode, onto the stack that RSP0 names.
fn user_interrupt_on_untouched_stack() -> Outcome {
    let stack = paging::user_stack()?;
    let code = paging::user_code(&[0x0f, 0x0b, 0xcd, USER_END])?; // ud2
    trap::use_stack(6, 0);
    trap::set_stack(0, paging::untouched_page()? + PAGE);
    let frame = user::run(code, stack, user::RFLAGS, 0)?;
    check_eq!((frame.vector, frame.rip, frame.rsp), (6, code, stack));
    Ok(())
}

/// IRET reads zeros: a null CS, which is #GP(0), and nothing has changed.
fn interrupt_return_from_untouched_stack() -> Outcome {
    let at = paging::untouched_page()?;
    let after: u64;
    let slot = trap::recover_slot();
    // SAFETY: the handler goes on at the label with RSP as it was before IRET.
    unsafe {
        asm!(
            "mov {keep}, rsp", "lea {t}, [rip + 77f]", "mov [{slot}], {t}", "mov rsp, {at}", "iretq",
            "77:", "mov {t}, rsp", "mov rsp, {keep}",
            keep = out(reg) _, t = out(reg) after, slot = in(reg) slot, at = in(reg) at,
        )
    };
    expect(trap::caught(), 13, 0)?;
    check_eq!(after, at);
    Ok(())
}

/// A benign fault whose delivery faults: the second one is delivered (APM 2: table 8-3).
fn fault_on_unmapped_stack() -> Outcome {
    let stack = paging::window(2) + PAGE;
    trap::set_stack(IST.into(), stack);
    trap::use_stack(6, IST);
    let seen = fault!("ud2");
    check_eq!(seen.map(|f| f.cr2), Some(stack - 8));
    expect(seen, 14, 2)?;
    trap::use_stack(13, IST);
    // The same for a fault that a VMM injects.
    enable_avx()?;
    let seen = no_xcr0();
    check_eq!(seen.map(|f| f.cr2), Some(stack - 8));
    expect(seen, 14, 2)
}

/// A page fault whose delivery faults is a double fault.
fn double_fault() -> Outcome {
    trap::set_stack(IST.into(), paging::window(2) + PAGE);
    trap::use_stack(14, IST);
    let missing = paging::window(1);
    expect(
        fault!("mov al, [{at}]", at = in(reg) missing, out("al") _),
        8,
        0,
    )?;
    // The same for a page fault that a VMM injects, and with the double fault's stack on untouched RAM.
    let seen = fault!("movsd", inout("rsi") 0xfee0_0080u64 => _, inout("rdi") missing => _);
    expect(seen, 8, 0)?;
    trap::set_stack(3, paging::untouched_page()? + PAGE);
    trap::use_stack(8, 3);
    expect(
        fault!("mov al, [{at}]", at = in(reg) missing, out("al") _),
        8,
        0,
    )
}

/// The type of a gate that is not present: what comes through it is #NP.
const NOT_PRESENT: u8 = 0x0e;
/// The error code of a fault on the way through a gate: its number in the IDT, and whether something else came first,
/// which emulators leave out (APM 2: 8.4.1).
const fn through_gate(vector: u64) -> u64 {
    vector << 3 | 2
}

fn expect_through_gate(seen: Option<Fault>, vector: u64) -> Outcome {
    let seen = seen.ok_or("no fault")?;
    check_eq!((seen.vector, seen.error & !1), (11, through_gate(vector)));
    Ok(())
}

/// The second fault counts, if the first is neither contributory nor a page fault.
fn benign_faults_make_no_double_fault() -> Outcome {
    trap::set_gate_kind(6, NOT_PRESENT);
    expect_through_gate(fault!("ud2"), 6)?;
    trap::set_gate_kind(3, NOT_PRESENT);
    expect_through_gate(fault!("int3"), 3)?;
    trap::set_gate_kind(1, NOT_PRESENT);
    expect_through_gate(fault!(".byte 0xf1"), 1)
}

/// #DE and #GP with #NP. Not for faults that the VMM injects: QEMU forgets that they came first.
fn contributory_faults_make_one() -> Outcome {
    trap::set_gate_kind(0, NOT_PRESENT);
    let divided = fault!("xor edx, edx; xor eax, eax; div eax", out("eax") _, out("edx") _);
    expect(divided, 8, 0)?;
    trap::set_gate_kind(13, NOT_PRESENT);
    expect(fault!("mov ds, {s:e}", s = in(reg) 0x1230), 8, 0)
}

fn page_fault_and_another_make_one() -> Outcome {
    trap::set_gate_kind(14, NOT_PRESENT);
    let missing = paging::window(1);
    let read = fault!("mov al, [{at}]", at = in(reg) missing, out("al") _);
    expect(read, 8, 0)
}

fn contributory_fault_and_page_fault_make_none() -> Outcome {
    let stack = paging::window(2) + PAGE;
    trap::set_stack(IST.into(), stack);
    trap::use_stack(13, IST);
    let seen = fault!("mov ds, {s:e}", s = in(reg) 0x1230);
    check_eq!(seen.map(|f| f.cr2), Some(stack - 8));
    expect(seen, 14, 2)
}

/// An interrupt that cannot be delivered was taken all the same: it is in service until its end, and does not come again.
fn interrupt_through_a_bad_gate() -> Outcome {
    apic::on();
    trap::set_gate_kind(0x77, NOT_PRESENT);
    self_ipi(0x77);
    let seen = fault!("sti; nop; nop");
    apic::interrupts(false);
    expect_through_gate(seen, 0x77)?;
    let served = (apic::has(apic::IRR, 0x77), apic::has(apic::ISR, 0x77));
    trap::use_stack(0x77, 1);
    apic::let_in();
    apic::eoi();
    check_eq!((served, trap::count(0x77)), ((false, true), 0));
    Ok(())
}

global_asm!(
    ".pushsection .text",
    ".globl nmi_nest, nmi_entered, nmi_inside",
    // An NMI handler that sends itself two more NMIs, waits, and notes whether one came before it returned.
    "nmi_nest:",
    "push rax",
    "push rcx",
    "push rdx",
    "push rbx",
    "inc dword ptr [nmi_entered]",
    "mov eax, [nmi_entered]",
    "cmp eax, 1",
    "jne 2f",
    "mov rcx, 0xfee00300",
    "mov dword ptr [rcx], 0x4400",
    "mov dword ptr [rcx], 0x4400",
    "xor eax, eax",
    "cpuid", // exits do not end the blocking
    "out 0x80, al",
    "mov ecx, 1000",
    "3: pause",
    "dec ecx",
    "jnz 3b",
    "mov eax, [nmi_entered]",
    "mov [nmi_inside], eax",
    "2: pop rbx",
    "pop rdx",
    "pop rcx",
    "pop rax",
    "iretq",
    ".popsection",
    ".pushsection .bss",
    ".balign 4",
    "nmi_entered: .skip 4",
    "nmi_inside: .skip 4",
    ".popsection",
);

extern "C" {
    static nmi_nest: u8;
    static mut nmi_entered: u32;
    static mut nmi_inside: u32;
}

/// Sends one NMI to the handler above; gives how many it took, and how many had come when the first returned.
fn nest() -> (u32, u32) {
    apic::on();
    trap::set_gate(2, (&raw const nmi_nest) as u64, 0);
    // SAFETY: the handler alone writes them, on this CPU. It uses the current stack: no red zone is in use in this asm.
    unsafe {
        (&raw mut nmi_entered).write_volatile(0);
        (&raw mut nmi_inside).write_volatile(0);
        asm!("mov dword ptr [{}], 0x4400", "mov ecx, 1000", "2: pause", "dec ecx", "jnz 2b",
            in(reg) 0xfee0_0300u64, out("ecx") _);
        (
            (&raw const nmi_entered).read_volatile(),
            (&raw const nmi_inside).read_volatile(),
        )
    }
}

fn nmi_waits_for_iret() -> Outcome {
    let (entered, inside) = nest();
    check_eq!(inside, 1, "none comes before IRET");
    check!(entered >= 2, "it comes behind it");
    Ok(())
}

/// One NMI can wait, a second is lost (APM 2: 8.2.3).
fn nmis_do_not_pile_up() -> Outcome {
    check_eq!(nest().0, 2);
    Ok(())
}
