// SPDX-License-Identifier: MIT OR Apache-2.0
//! Instructions on memory-mapped registers, which a VMM executes, and ports.

use crate::io::{cpuid, inb, inl, inw, mmio_read, mmio_write, outb};
use crate::paging::{self, NO_CACHE, PAGE, PRESENT, USER, WRITE};
use crate::trap::USER_END;
use crate::{boot_info, check, check_eq, fault, tests, user, Outcome};
use core::arch::asm;

tests!(
    mmio_moves,
    mmio_read_modify_write,
    mmio_bits,
    mmio_counts,
    mmio_exchanges,
    mmio_compares,
    mmio_conditional_moves,
    mmio_addressing,
    mmio_string,
    mmio_string_faults,
    mmio_beside_ram,
    mmio_of_user,
    crossing_faults_like_memory,
    port_widths;
    ours: mmio_narrow, mmio_wide, mmio_segments, mmio_across_pages, empty_space, mmio_unknown_of_user;
    named: counted
);

pub const LAPIC: u64 = 0xfee0_0000;
const IOAPIC: u64 = 0xfec0_0000;
/// The task-priority register: eight bits that may be read and written freely.
const TPR: u64 = LAPIC + 0x80;
/// The timer's initial count: 32 bits that may be read and written freely while the timer is masked.
pub const SCRATCH: u64 = LAPIC + 0x380;

/// A register with nothing behind it.
pub fn scratch(value: u32) -> u64 {
    mmio_write(LAPIC + 0x320, 1 << 16);
    mmio_write(SCRATCH, value);
    SCRATCH
}

fn mmio_moves() -> Outcome {
    let at = scratch(0x8234_5678);
    let (a, b, c, d): (u64, u64, u64, u64);
    // SAFETY: reads of a register.
    unsafe {
        asm!("mov {0}, -1", "mov {0:e}, [{1}]", out(reg) a, in(reg) at);
        asm!("movsxd {}, dword ptr [{}]", out(reg) b, in(reg) at);
        asm!("movabs eax, [0xfee00380]", out("rax") c);
        asm!("mov r11d, [{}]", in(reg) at, out("r11") d);
    }
    check_eq!((a, b), (0x8234_5678, 0xffff_ffff_8234_5678));
    check_eq!((c, d), (0x8234_5678, 0x8234_5678));
    // SAFETY: writes of a register.
    unsafe { asm!("mov dword ptr [{}], 0x20212223", in(reg) at) };
    check_eq!(mmio_read(at), 0x2021_2223);
    unsafe { asm!("movabs [0xfee00380], eax", in("eax") 0x3031_3233) };
    check_eq!(mmio_read(at), 0x3031_3233);
    unsafe { asm!("mov [{}], r13d", in(reg) at, in("r13") 0x4041_4243u64) };
    check_eq!(mmio_read(at), 0x4041_4243);
    mmio_write(at, 0);
    Ok(())
}

/// Runs one instruction on the scratch register that holds `$before`; gives its value and the arithmetic flags after it.
macro_rules! on_scratch {
    ($before:expr, $instruction:literal $(, $($operand:tt)*)?) => {{
        let at = scratch($before);
        let flags: u64;
        // SAFETY: the register keeps what is written.
        unsafe { asm!($instruction, "pushfq", "pop {f}", at = in(reg) at, f = lateout(reg) flags, $($($operand)*)?) };
        (mmio_read(at), flags & 0x8d5)
    }};
}

const CF: u64 = 1;
const PF: u64 = 4;
const AF: u64 = 1 << 4;
const ZF: u64 = 1 << 6;
const SF: u64 = 1 << 7;
const OF: u64 = 1 << 11;

fn mmio_read_modify_write() -> Outcome {
    check_eq!(on_scratch!(0x10, "or dword ptr [{at}], 0x20"), (0x30, PF));
    check_eq!(
        on_scratch!(0x30, "and dword ptr [{at}], 0x40"),
        (0, ZF | PF)
    );
    check_eq!(
        on_scratch!(0x55, "xor dword ptr [{at}], -1"),
        (0xffff_ffaa, SF | PF)
    );
    check_eq!(
        on_scratch!(0xffff_fff0, "add dword ptr [{at}], 0x10"),
        (0, CF | ZF | PF)
    );
    check_eq!(
        on_scratch!(0x7fff_ffff, "inc dword ptr [{at}]"),
        (0x8000_0000, OF | SF | AF | PF)
    );
    check_eq!(
        on_scratch!(0, "clc; dec dword ptr [{at}]"),
        (u32::MAX, SF | AF | PF)
    );
    check_eq!(on_scratch!(5, "stc; adc dword ptr [{at}], 1"), (7, 0));
    check_eq!(
        on_scratch!(5, "stc; sbb dword ptr [{at}], 5"),
        (u32::MAX, CF | SF | AF | PF)
    );
    check_eq!(
        on_scratch!(1, "sub [{at}], {n:e}", n = in(reg) 2),
        (u32::MAX, CF | SF | AF | PF)
    );
    check_eq!(
        on_scratch!(1, "neg dword ptr [{at}]"),
        (u32::MAX, CF | SF | AF | PF)
    );
    let at = scratch(0x0f0f_0f0f);
    // SAFETY: the register keeps what is written.
    unsafe { asm!("not dword ptr [{}]", in(reg) at) };
    check_eq!(mmio_read(at), 0xf0f0_f0f0);
    // Into a register.
    let sum: u64;
    scratch(40);
    unsafe { asm!("add {:e}, [{}]", inout(reg) 0xffff_ffff_0000_0002u64 => sum, in(reg) at) };
    check_eq!(sum, 42);
    Ok(())
}

fn mmio_bits() -> Outcome {
    check_eq!(on_scratch!(0x10, "lock btr dword ptr [{at}], 4").0, 0);
    check_eq!(
        on_scratch!(0x10, "lock bts dword ptr [{at}], 31").0,
        0x8000_0010
    );
    check_eq!(on_scratch!(0x10, "btc dword ptr [{at}], 4").0, 0);
    check_eq!(on_scratch!(0x10, "btc dword ptr [{at}], 4").1 & CF, CF);
    check_eq!(on_scratch!(0x10, "bt dword ptr [{at}], 4").1 & CF, CF);
    check_eq!(on_scratch!(0x10, "bt dword ptr [{at}], 5").1 & CF, 0);
    // A bit number in a register reaches beyond the operand: bit -1 of the next dword is bit 31 of this one.
    let value =
        on_scratch!(0, "add {at}, 4; bts dword ptr [{at}], {n:e}; sub {at}, 4", n = in(reg) -1).0;
    check_eq!(value, 0x8000_0000);
    Ok(())
}

/// What looks for bits or counts them, and CRC32. TZCNT and LZCNT are BSF and BSR to a processor that does not know them.
fn mmio_counts() -> Outcome {
    let at = scratch(0x0001_4000);
    let (forward, reverse, ones, crc): (u64, u64, u64, u64);
    let (trailing, leading): (u64, u64);
    // SAFETY: reads of a register.
    unsafe {
        asm!("bsf {:e}, [{}]", out(reg) forward, in(reg) at);
        asm!("bsr {:e}, [{}]", out(reg) reverse, in(reg) at);
        asm!("popcnt {:e}, [{}]", out(reg) ones, in(reg) at);
        asm!("tzcnt {:e}, [{}]", out(reg) trailing, in(reg) at);
        asm!("lzcnt {:e}, [{}]", out(reg) leading, in(reg) at);
        asm!("crc32 {:e}, dword ptr [{}]", inout(reg) 0u64 => crc, in(reg) at);
    }
    check_eq!((forward, reverse, ones, trailing), (14, 16, 2, 14));
    let known = cpuid(0x8000_0001, 0)[2] & 1 << 5 != 0;
    check_eq!(leading, if known { 15 } else { 16 });
    // The same of a register.
    let expected: u64;
    // SAFETY: calculates.
    unsafe { asm!("crc32 {:e}, {:e}", inout(reg) 0u64 => expected, in(reg) 0x0001_4000) };
    check_eq!(crc, expected);
    check_eq!(
        on_scratch!(0, "bsf {n:e}, [{at}]", n = out(reg) _).1 & ZF,
        ZF
    );
    Ok(())
}

/// Selectors on a device: one that is good, none, and one beyond the table.
fn mmio_segments() -> Outcome {
    let at = scratch(0x10);
    let (good, none): (u32, u32);
    // SAFETY: nothing uses FS here.
    unsafe { asm!("mov fs, [{}]", "mov {:e}, fs", in(reg) at, out(reg) good) };
    scratch(0);
    // SAFETY: as above.
    unsafe { asm!("mov fs, [{}]", "mov {:e}, fs", in(reg) at, out(reg) none) };
    check_eq!((good, none), (0x10, 0));
    scratch(0xffe8);
    let seen = fault!("mov fs, [{at}]", at = in(reg) at);
    check_eq!(seen.map(|f| (f.vector, f.error)), Some((13, 0xffe8)));
    let seen = fault!("lldt word ptr [{at}]", at = in(reg) at);
    check_eq!(seen.map(|f| (f.vector, f.error)), Some((13, 0xffe8)));
    scratch(0);
    // SAFETY: there is no local table, before and after.
    unsafe { asm!("lldt word ptr [{}]", in(reg) at) };
    Ok(())
}

/// A program that has an instruction on a device which no emulator knows gets #UD; the machine goes on.
fn mmio_unknown_of_user() -> Outcome {
    let at = paging::window(1);
    let code = paging::user_code(&[0xdd, 0x07, 0xcd, USER_END])?; // fld qword ptr [rdi]; int
    paging::map(at, LAPIC, PRESENT | WRITE | NO_CACHE | USER)?;
    let frame = user::run(code, paging::user_stack()?, user::RFLAGS, at + 0x380)?;
    check_eq!((frame.vector, frame.rip), (6, code));
    Ok(())
}

fn mmio_exchanges() -> Outcome {
    let at = scratch(0x20);
    let old: u64;
    // SAFETY: the register keeps what is written.
    unsafe { asm!("xchg [{}], {:e}", in(reg) at, inout(reg) 0x50u64 => old) };
    check_eq!((old, mmio_read(at)), (0x20, 0x50));
    let old: u64;
    // SAFETY: as above.
    unsafe { asm!("lock xadd [{}], {:e}", in(reg) at, inout(reg) 3u64 => old) };
    check_eq!((old, mmio_read(at)), (0x50, 0x53));
    let (seen, flags): (u64, u64);
    // SAFETY: as above.
    unsafe {
        asm!("lock cmpxchg [{}], {:e}", "pushfq", "pop {}", in(reg) at, in(reg) 9, lateout(reg) flags,
            inout("rax") 0x53u64 => seen)
    };
    check_eq!((seen, mmio_read(at), flags & ZF), (0x53, 9, ZF), "equal");
    let (seen, flags): (u64, u64);
    // SAFETY: as above.
    unsafe {
        asm!("lock cmpxchg [{}], {:e}", "pushfq", "pop {}", in(reg) at, in(reg) 1, lateout(reg) flags,
            inout("rax") 0x53u64 => seen)
    };
    check_eq!((seen, mmio_read(at), flags & ZF), (9, 9, 0), "not equal");
    Ok(())
}

fn mmio_compares() -> Outcome {
    check_eq!(on_scratch!(0x50, "cmp dword ptr [{at}], 0x50").1, ZF | PF);
    check_eq!(on_scratch!(0x50, "cmp dword ptr [{at}], 0x51").1 & CF, CF);
    check_eq!(
        on_scratch!(0x50, "cmp {n:e}, [{at}]", n = in(reg) 0x51).1 & (CF | ZF),
        0
    );
    check_eq!(on_scratch!(0x40, "test dword ptr [{at}], 0x40").1, 0);
    check_eq!(
        on_scratch!(0x40, "test [{at}], {n:e}", n = in(reg) 0x20).1,
        ZF | PF
    );
    Ok(())
}

fn mmio_conditional_moves() -> Outcome {
    let at = scratch(0x1234);
    let (taken, not_taken): (u64, u64);
    // SAFETY: reads. A 32-bit CMOV clears the upper half even when it moves nothing.
    unsafe {
        asm!("stc", "cmovc {:e}, [{}]", inout(reg) u64::MAX => taken, in(reg) at);
        asm!("clc", "cmovc {:e}, [{}]", inout(reg) u64::MAX => not_taken, in(reg) at);
    }
    check_eq!((taken, not_taken), (0x1234, 0xffff_ffff));
    Ok(())
}

fn mmio_addressing() -> Outcome {
    let at = scratch(0x77);
    let (a, b, c, d): (u32, u32, u32, u32);
    // SAFETY: reads of a register, by FS's base, by 32-bit addresses that wrap, and with RSP's neighbours as index.
    unsafe {
        asm!("mov eax, [{} + {} * 8 + 8]", in(reg) at - 88, in(reg) 10u64, out("eax") a);
        crate::io::wrmsr(0xc000_0100, at - 0x100);
        asm!("mov eax, fs:[0x100]", out("eax") b);
        crate::io::wrmsr(0xc000_0100, 0);
        asm!("mov eax, [{:e} + 16]", in(reg) (at - 16) | 0xdead_0000_0000_0000, out("eax") c);
        asm!("mov eax, [r12 + r13 * 2]", in("r12") at + 8, in("r13") -4i64, out("eax") d);
    }
    check_eq!([a, b, c, d], [0x77; 4]);
    Ok(())
}

fn mmio_string() -> Outcome {
    let at = scratch(0x60);
    let mut buffer = [0u32; 2];
    let (rsi, rdi): (u64, u64);
    // SAFETY: one register.
    unsafe {
        asm!("rep movsd", inout("rsi") at => rsi, inout("rdi") buffer.as_mut_ptr() => rdi, inout("rcx") 1u64 => _)
    };
    check_eq!(buffer, [0x60, 0]);
    check_eq!((rsi, rdi), (at + 4, buffer.as_ptr() as u64 + 4));
    buffer[1] = 0x31;
    // SAFETY: one register, downwards.
    unsafe {
        asm!("std", "movsd", "cld", inout("rsi") &buffer[1] => _, inout("rdi") at => _);
        check_eq!(mmio_read(at), 0x31);
        asm!("rep stosd", in("eax") 0x30, inout("rdi") at => _, inout("rcx") 1u64 => _);
        check_eq!(mmio_read(at), 0x30);
        let value: u64;
        asm!("lodsd", inout("rsi") at => _, out("rax") value);
        check_eq!(value, 0x30);
        let (scanned, compared): (u64, u64);
        asm!("scasd", "pushfq", "pop {}", out(reg) scanned, in("eax") 0x30, inout("rdi") at => _);
        check_eq!(scanned & ZF, ZF);
        buffer[0] = 0x30;
        asm!("cmpsd", "pushfq", "pop {}", out(reg) compared, inout("rsi") &buffer => _, inout("rdi") at => _);
        check_eq!(compared & ZF, ZF);
        // None at all.
        asm!("rep movsd", inout("rsi") at => _, inout("rdi") 0u64 => _, inout("rcx") 0u64 => _);
    }
    Ok(())
}

/// A string instruction between a device and memory that is not there: what was done is counted, and the device saw
/// nothing more.
fn mmio_string_faults() -> Outcome {
    let at = scratch(0x60);
    let missing = paging::window(1);
    let read = fault!("rep movsd", inout("rsi") at => _, inout("rdi") missing => _, inout("rcx") 4u64 => _);
    check_eq!(
        read.map(|f| (f.vector, f.error, f.cr2)),
        Some((14, 2, missing))
    );
    let write = fault!("rep movsd", inout("rsi") missing => _, inout("rdi") at => _, inout("rcx") 4u64 => _);
    check_eq!(
        write.map(|f| (f.vector, f.error, f.cr2)),
        Some((14, 0, missing))
    );
    check_eq!(mmio_read(at), 0x60);
    paging::map(missing, paging::frame()?, PRESENT)?;
    let read_only = fault!("movsd", inout("rsi") at => _, inout("rdi") missing => _);
    check_eq!(
        read_only.map(|f| (f.vector, f.error, f.cr2)),
        Some((14, 3, missing))
    );
    Ok(())
}

/// An access half in RAM and half in a device; the device's half is a byte or two that mean nothing.
fn mmio_beside_ram() -> Outcome {
    let at = paging::window(2);
    let frame = paging::frame()?;
    paging::map(at, frame, PRESENT | WRITE)?;
    paging::map(at + PAGE, IOAPIC, PRESENT | WRITE | NO_CACHE)?;
    let low = at + PAGE - 2;
    let ram = (frame + PAGE - 2) as *mut u16;
    // SAFETY: the frame is ours, and the I/O APIC's index register takes any value.
    unsafe {
        ram.write_volatile(0xbeef);
        let value: u32;
        asm!("mov {:e}, [{}]", out(reg) value, in(reg) low);
        check_eq!(value as u16, 0xbeef);
        asm!("mov [{}], {:e}", in(reg) low, in(reg) 0x0001_1234u32);
        check_eq!(ram.read_volatile(), 0x1234);
    }
    mmio_write(IOAPIC, 1);
    check_eq!(mmio_read(IOAPIC + 0x10) >> 16 & 0xff, 23, "24 inputs");
    Ok(())
}

/// User mode reaches a device if the page is its own, and not otherwise.
fn mmio_of_user() -> Outcome {
    scratch(0x99);
    let at = paging::window(1);
    let code = paging::user_code(&[0x8b, 0x07, 0xcd, USER_END])?; // mov eax, [rdi]; int
    let run = || user::run(code, paging::user_stack()?, user::RFLAGS, at + 0x380);
    paging::map(at, LAPIC, PRESENT | WRITE | NO_CACHE | USER)?;
    check_eq!(run()?.rax(), 0x99);
    paging::map(at, LAPIC, PRESENT | WRITE | NO_CACHE)?;
    let frame = run()?;
    check_eq!((frame.vector, frame.error), (14, 5));
    Ok(())
}

/// A page-crossing write whose second half is not mapped: nothing may be written.
fn crossing_faults_like_memory() -> Outcome {
    let at = paging::window(2);
    let frame = paging::frame()?;
    paging::map(at, frame, PRESENT | WRITE)?;
    let last = (frame + PAGE - 4) as *mut u32;
    // SAFETY: our frame.
    unsafe { last.write_volatile(1) };
    let seen =
        fault!("mov [{at}], rax", at = in(reg) at + PAGE - 4, in("rax") 0x1234_5678_9abc_def0u64);
    check_eq!(
        seen.map(|f| (f.vector, f.error, f.cr2)),
        Some((14, 2, at + PAGE))
    );
    // SAFETY: our frame.
    check_eq!(unsafe { last.read_volatile() }, 1);
    // The same with a device in front.
    paging::map(at, IOAPIC, PRESENT | WRITE | NO_CACHE)?;
    let seen = fault!("mov [{at}], rax", at = in(reg) at + PAGE - 4, in("rax") 0u64);
    check_eq!(
        seen.map(|f| (f.vector, f.error, f.cr2)),
        Some((14, 2, at + PAGE))
    );
    Ok(())
}

fn port_widths() -> Outcome {
    // The CMOS index and data ports answer byte-wise; an empty port reads all ones in each width.
    outb(0x70, 0x0f);
    outb(0x71, 0x5a);
    outb(0x70, 0x0f);
    check_eq!(inb(0x71), 0x5a);
    check_eq!(
        (inb(0x5678), inw(0x5678), inl(0x5678)),
        (0xff, 0xffff, 0xffff_ffff)
    );
    let (byte, word, dword): (u64, u64, u64);
    // SAFETY: reads of an empty port.
    unsafe {
        asm!("in al, dx", in("dx") 0x5678u16, inout("rax") 0x1122_3344_5566_7700u64 => byte);
        asm!("in ax, dx", in("dx") 0x5678u16, inout("rax") 0x1122_3344_5566_7700u64 => word);
        asm!("in eax, dx", in("dx") 0x5678u16, inout("rax") u64::MAX << 40 => dword);
    }
    check_eq!(byte, 0x1122_3344_5566_77ff, "upper bytes stay");
    check_eq!(word, 0x1122_3344_5566_ffff, "upper bytes stay");
    check_eq!(dword, 0xffff_ffff, "the upper half is cleared");
    // The forms with a constant port: 0x80 keeps nothing that matters.
    // SAFETY: the post-code port.
    unsafe { asm!("out 0x80, al", "out 0x80, ax", "out 0x80, eax", "in al, 0x80", out("rax") _) };
    Ok(())
}

/// Parts of a register; which widths an APIC takes is model-specific, and this VMM's takes all.
fn mmio_narrow() -> Outcome {
    mmio_write(TPR, 0xf0);
    let (zero, sign, word, kept): (u64, u64, u64, u64);
    // SAFETY: reads of a register.
    unsafe {
        asm!("movzx {}, byte ptr [{}]", out(reg) zero, in(reg) TPR);
        asm!("movsx {}, byte ptr [{}]", out(reg) sign, in(reg) TPR);
        asm!("movzx {:e}, word ptr [{}]", out(reg) word, in(reg) TPR);
        asm!("mov al, [{}]", in(reg) TPR, inout("rax") 0x1122_3344_5566_7700u64 => kept);
    }
    mmio_write(TPR, 0);
    check_eq!((zero, sign as i64, word), (0xf0, -16, 0xf0));
    check_eq!(kept, 0x1122_3344_5566_77f0);
    Ok(())
}

fn mmio_wide() -> Outcome {
    let at = scratch(0x1234_5678);
    let wide: u64;
    // SAFETY: a register, and the hole behind it.
    unsafe { asm!("mov {}, [{}]", out(reg) wide, in(reg) at) };
    check_eq!(wide as u32, 0x1234_5678);
    Ok(())
}

/// The last four bytes of the I/O APIC's page and the first of the next, where nothing answers.
fn mmio_across_pages() -> Outcome {
    let value: u64;
    // SAFETY: nothing there changes.
    unsafe { asm!("mov {}, [{}]", out(reg) value, in(reg) IOAPIC + 0xffc) };
    check_eq!(value >> 32, 0xffff_ffff, "empty space reads all ones");
    Ok(())
}

fn empty_space() -> Outcome {
    check_eq!(mmio_read(0xd000_0000), u32::MAX);
    mmio_write(0xd000_0000, 0);
    check_eq!(mmio_read(0xd000_0000), u32::MAX);
    Ok(())
}

/// Executes `cpuids=` CPUIDs and `outs=` OUTs, for the counters outside.
fn counted() -> Outcome {
    let (cpuids, outs) = (
        boot_info::number("cpuids").unwrap_or(0),
        boot_info::number("outs").unwrap_or(0),
    );
    (0..cpuids).for_each(|_| {
        cpuid(0, 0);
    });
    (0..outs).for_each(|_| outb(0x80, 0));
    check!(cpuids + outs > 0, "say cpuids= or outs=");
    Ok(())
}
