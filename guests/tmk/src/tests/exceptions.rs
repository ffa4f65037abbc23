// SPDX-License-Identifier: MIT OR Apache-2.0
//! Exceptions: which one, with which error code, and where it comes back to (APM 2: 8.2).

use crate::paging::{self, NO_EXECUTE, PAGE, PRESENT, USER, WRITE};
use crate::trap::{self, Fault, USER_END};
use crate::{check, check_eq, fault, io, tests, user, Outcome};
use core::arch::asm;

tests!(
    divide_error,
    breakpoint,
    software_interrupt,
    invalid_opcode,
    general_protection_codes,
    not_present_codes,
    stack_fault_codes,
    page_fault_codes,
    write_protect_can_be_off,
    reserved_bits,
    user_page_faults,
    smep,
    smap,
    user_may_not,
    user_may
);

/// Bits of a page fault's error code (APM 2: 8.4.2).
const P: u64 = 1;
const W: u64 = 2;
const U: u64 = 4;
const RSVD: u64 = 8;
const FETCH: u64 = 16;

fn expect(seen: Option<Fault>, vector: u64, error: u64) -> Outcome {
    let seen = seen.ok_or("no fault")?;
    check_eq!((seen.vector, seen.error), (vector, error));
    Ok(())
}

fn expect_at(seen: Option<Fault>, error: u64, cr2: u64) -> Outcome {
    expect(seen, 14, error)?;
    check_eq!(seen.map(|f| f.cr2), Some(cr2));
    Ok(())
}

fn divide_error() -> Outcome {
    expect(
        fault!("xor edx, edx; xor eax, eax; div eax", out("eax") _, out("edx") _),
        0,
        0,
    )
}

/// INT3 is a trap: it comes back behind itself.
fn breakpoint() -> Outcome {
    trap::reset_counts();
    let behind: u64;
    // SAFETY: the handler comes back.
    unsafe { asm!("int3", "2:", "lea {}, [rip + 2b]", out(reg) behind) };
    check_eq!((trap::count(3), trap::last().rip), (1, behind));
    Ok(())
}

fn software_interrupt() -> Outcome {
    trap::reset_counts();
    let behind: u64;
    // SAFETY: the handler comes back.
    unsafe { asm!("int 0xa5", "2:", "lea {}, [rip + 2b]", out(reg) behind) };
    check_eq!((trap::count(0xa5), trap::last_interrupt()[1]), (1, behind));
    Ok(())
}

fn invalid_opcode() -> Outcome {
    expect(fault!("ud2"), 6, 0)
}

fn general_protection_codes() -> Outcome {
    // A selector beyond the table; an address that is not canonical.
    expect(fault!("mov ds, {s:e}", s = in(reg) 0x1000), 13, 0x1000)?;
    expect(
        fault!("mov {t}, [{t}]", t = inout(reg) 1u64 << 47 => _),
        13,
        0,
    )?;
    // The TSS in use is busy: loading it again is refused by its selector.
    expect(fault!("ltr {s:x}", s = in(reg) 0x40), 13, 0x40)?;
    // A gate of no type: the code names the vector, and in bit 1 the IDT.
    trap::set_gate_kind(0xa6, 0x80);
    expect(fault!("int 0xa6"), 13, 0xa6 << 3 | 2)
}

fn not_present_codes() -> Outcome {
    expect(fault!("mov ds, {s:e}", s = in(reg) 0x50), 11, 0x50)?;
    trap::set_gate_kind(0xa7, 0x0e);
    expect(fault!("int 0xa7"), 11, 0xa7 << 3 | 2)
}

fn stack_fault_codes() -> Outcome {
    expect(fault!("mov ss, {s:e}", s = in(reg) 0x50), 12, 0x50)
}

fn page_fault_codes() -> Outcome {
    let frame = paging::frame()?;
    let at = paging::window(1);
    let read = || fault!("mov al, [{at}]", at = in(reg) at + 5, out("al") _);
    let write = || fault!("mov byte ptr [{at}], 1", at = in(reg) at + 6);
    expect_at(read(), 0, at + 5)?;
    expect_at(write(), W, at + 6)?;
    paging::map(at, frame, PRESENT)?;
    check!(read().is_none());
    expect_at(write(), P | W, at + 6)?;
    paging::map(at, frame, PRESENT | WRITE | NO_EXECUTE)?;
    check!(write().is_none());
    expect_at(jump(at), P | FETCH, at)?;
    paging::map(at, frame, 0)?;
    expect_at(jump(at), FETCH, at)
}

fn jump(at: u64) -> Option<Fault> {
    fault!("jmp {at}", at = in(reg) at)
}

/// With CR0.WP clear the supervisor writes where it wants.
fn write_protect_can_be_off() -> Outcome {
    const WP: u64 = 1 << 16;
    let at = paging::window(1);
    let frame = paging::frame()?;
    paging::map(at, frame, PRESENT)?;
    let cr0: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, cr0", out(reg) cr0) };
    let seen =
        fault!("mov cr0, {off}; mov byte ptr [{at}], 7", off = in(reg) cr0 & !WP, at = in(reg) at);
    // SAFETY: as before.
    unsafe { asm!("mov cr0, {}", in(reg) cr0) };
    check!(seen.is_none());
    let again = fault!("mov byte ptr [{at}], 8", at = in(reg) at);
    expect_at(again, P | W, at)?;
    // SAFETY: RAM, mapped one to one.
    check_eq!(unsafe { (frame as *const u8).read_volatile() }, 7);
    Ok(())
}

/// An address bit that the CPU does not have.
fn reserved_bits() -> Outcome {
    let bits = io::cpuid(0x8000_0008, 0)[0] & 0xff;
    if bits >= 52 {
        return Ok(()); // none is reserved
    }
    let at = paging::window(1);
    paging::map(at, 1 << 51, PRESENT | WRITE)?;
    let seen = fault!("mov al, [{at}]", at = in(reg) at, out("al") _).ok_or("no fault")?;
    // The manual has bit 0 set, too; QEMU's interpreter has not.
    check_eq!((seen.vector, seen.error | P, seen.cr2), (14, P | RSVD, at));
    Ok(())
}

fn user(code: &[u8], rdi: u64) -> Result<(u64, u64, u64), &'static str> {
    let frame = user::run(
        paging::user_code(code)?,
        paging::user_stack()?,
        user::RFLAGS,
        rdi,
    )?;
    Ok((frame.vector, frame.error, trap::last().cr2))
}

const READ_RDI: &[u8] = &[0x8a, 0x07, 0xcd, USER_END]; // mov al, [rdi]; int
const WRITE_RDI: &[u8] = &[0x88, 0x07, 0xcd, USER_END]; // mov [rdi], al; int
const JUMP_RDI: &[u8] = &[0xff, 0xe7]; // jmp rdi

fn user_page_faults() -> Outcome {
    let at = paging::window(1);
    check_eq!(user(READ_RDI, at)?, (14, U, at));
    check_eq!(user(WRITE_RDI, at)?, (14, U | W, at));
    let frame = paging::frame()?;
    paging::map(at, frame, PRESENT | WRITE)?;
    check_eq!(user(READ_RDI, at)?, (14, U | P, at));
    check_eq!(user(JUMP_RDI, at)?, (14, U | P | FETCH, at));
    paging::map(at, frame, PRESENT | USER | NO_EXECUTE)?;
    check_eq!(user(READ_RDI, at)?.0, u64::from(USER_END));
    check_eq!(user(WRITE_RDI, at)?, (14, U | P | W, at));
    check_eq!(user(JUMP_RDI, at)?, (14, U | P | FETCH, at));
    Ok(())
}

fn with_cr4(bit: u32, run: impl Fn() -> Option<Fault>) -> Option<Fault> {
    let cr4: u64;
    // SAFETY: the bit restricts what the supervisor does with user pages, of which it has none but the test's.
    unsafe { asm!("mov {}, cr4", out(reg) cr4) };
    unsafe { asm!("mov cr4, {}", in(reg) cr4 | 1 << bit) };
    let seen = run();
    // SAFETY: as above.
    unsafe { asm!("mov cr4, {}", in(reg) cr4) };
    seen
}

fn smep() -> Outcome {
    if io::cpuid(7, 0)[1] & 1 << 7 == 0 {
        return Ok(());
    }
    let code = paging::user_code(&[0x0f, 0x0b])?; // ud2
    expect(jump(code), 6, 0)?;
    expect_at(with_cr4(20, || jump(code)), P | FETCH, code)
}

fn smap() -> Outcome {
    if io::cpuid(7, 0)[1] & 1 << 20 == 0 {
        return Ok(());
    }
    let at = paging::user_stack()? - PAGE;
    let read = || fault!("mov al, [{at}]", at = in(reg) at, out("al") _);
    check!(read().is_none());
    expect_at(with_cr4(21, read), P, at)?;
    check!(
        with_cr4(
            21,
            || fault!("stac; mov al, [{at}]; clac", at = in(reg) at, out("al") _)
        )
        .is_none(),
        "STAC allows it"
    );
    Ok(())
}

/// What needs CPL 0 gives #GP(0), whether or not a VMM wants to hear of it.
fn user_may_not() -> Outcome {
    let codes: &[(&str, &[u8])] = &[
        ("hlt", &[0xf4]),
        ("cli", &[0xfa]),
        ("in al, 0x80", &[0xe4, 0x80]),
        ("out 0x80, al", &[0xe6, 0x80]),
        ("insb", &[0x6c]),
        ("rdmsr", &[0x0f, 0x32]),
        ("wrmsr", &[0x0f, 0x30]),
        ("mov rax, cr0", &[0x0f, 0x20, 0xc0]),
        ("mov cr0, rax", &[0x0f, 0x22, 0xc0]),
        ("mov cr3, rax", &[0x0f, 0x22, 0xd8]),
        ("mov cr4, rax", &[0x0f, 0x22, 0xe0]),
        ("mov cr8, rax", &[0x44, 0x0f, 0x22, 0xc0]),
        ("mov dr7, rax", &[0x0f, 0x23, 0xf8]),
        ("lmsw ax", &[0x0f, 0x01, 0xf0]),
        ("clts", &[0x0f, 0x06]),
        ("invlpg [rax]", &[0x0f, 0x01, 0x38]),
        ("lidt [rsp - 16]", &[0x0f, 0x01, 0x5c, 0x24, 0xf0]),
        ("swapgs", &[0x0f, 0x01, 0xf8]),
    ];
    for (name, code) in codes {
        let (vector, error, _) = user(code, 0)?;
        if (vector, error) != (13, 0) {
            crate::println!("  {name}: vector {vector} error {error:#x}");
            return Err("user mode was let do what needs CPL 0");
        }
    }
    // A gate for the supervisor alone.
    trap::set_gate_kind(0xa8, 0x8e);
    check_eq!(
        user(&[0xcd, 0xa8], 0)?,
        (13, 0xa8 << 3 | 2, trap::last().cr2)
    );
    Ok(())
}

fn user_may() -> Outcome {
    let cpuid = paging::user_code(&[0x31, 0xc0, 0x31, 0xc9, 0x0f, 0xa2, 0xcd, USER_END])?;
    let frame = user::run(cpuid, paging::user_stack()?, user::RFLAGS, 0)?;
    check_eq!(frame.vector, u64::from(USER_END));
    check_eq!(frame.rax() as u32, io::cpuid(0, 0)[0]);
    // With IOPL 3 ports are open.
    let port = paging::user_code(&[0x66, 0xba, 0x78, 0x56, 0xec, 0xcd, USER_END])?; // mov dx, 0x5678; in al, dx
    let frame = user::run(port, paging::user_stack()?, user::RFLAGS | 3 << 12, 0)?;
    check_eq!(frame.vector, u64::from(USER_END));
    check_eq!(frame.rax() & 0xff, 0xff);
    Ok(())
}
