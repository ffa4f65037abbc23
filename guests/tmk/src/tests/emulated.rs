// SPDX-License-Identifier: MIT OR Apache-2.0
//! Instructions that the VMM executes: memory-mapped registers by all kinds of instruction, and string port I/O.

use crate::io::{cpuid, inb, inl, inw, mmio_read, mmio_write, outb};
use crate::{check, fault, multiboot, tests, Outcome};
use core::arch::asm;

tests!(
    mmio_moves, mmio_read_modify_write, mmio_string, mmio_across_pages, mmio_faults_like_memory, port_widths,
    port_string_out, port_string_in, port_string_faults, empty_space; only by name: counted
);

const LAPIC: u64 = 0xfee0_0000;
const IOAPIC: u64 = 0xfec0_0000;
/// The task-priority register: eight bits that may be read and written freely.
const TPR: u64 = LAPIC + 0x80;

fn mmio_moves() -> Outcome {
    mmio_write(TPR, 0x40);
    let (mut a, mut b, mut c, mut d): (u64, u64, u64, u64);
    // SAFETY: reads of a register.
    unsafe {
        asm!("mov {:e}, [{}]", out(reg) a, in(reg) TPR);
        asm!("movzx {}, byte ptr [{}]", out(reg) b, in(reg) TPR);
        asm!("mov r9, [{}]", in(reg) TPR, out("r9") c);
        asm!("mov eax, [{} + {} * 4]", in(reg) TPR - 64, in(reg) 16u64, out("rax") d);
    }
    check!(a == 0x40 && b == 0x40 && c & 0xffff_ffff == 0x40 && d == 0x40);
    (a, b) = (0, 0);
    mmio_write(TPR, 0xf0);
    // SAFETY: as above.
    unsafe {
        asm!("movsx {}, byte ptr [{}]", out(reg) a, in(reg) TPR);
        asm!("movabs eax, [0xfee00080]", out("rax") b);
        asm!("mov dword ptr [{}], 0x20", in(reg) TPR);
    }
    check!(a as i64 == -16 && b as u32 == 0xf0);
    (c, d) = (u64::from(mmio_read(TPR)), 0);
    check!(c == 0x20 && d == 0);
    mmio_write(TPR, 0);
    Ok(())
}

fn mmio_read_modify_write() -> Outcome {
    mmio_write(TPR, 0x10);
    let (old, flags): (u32, u64);
    // SAFETY: the register keeps what is written.
    unsafe {
        asm!("or dword ptr [{}], 0x20", in(reg) TPR);
        check!(mmio_read(TPR) == 0x30);
        asm!("and dword ptr [{}], 0x20", in(reg) TPR);
        check!(mmio_read(TPR) == 0x20);
        asm!("add dword ptr [{}], 0x10", in(reg) TPR);
        check!(mmio_read(TPR) == 0x30);
        asm!("lock btr dword ptr [{}], 4", in(reg) TPR);
        check!(mmio_read(TPR) == 0x20);
        asm!("xchg [{}], {:e}", in(reg) TPR, inout(reg) 0x50u32 => old);
        check!(old == 0x20 && mmio_read(TPR) == 0x50);
        asm!("cmp dword ptr [{}], 0x50", "pushfq", "pop {}", in(reg) TPR, lateout(reg) flags);
        check!(flags & 0x40 != 0, "ZF");
        asm!("test dword ptr [{}], 0x40", "jnz 2f", "ud2", "2:", in(reg) TPR);
        asm!("inc dword ptr [{}]", in(reg) TPR);
        check!(mmio_read(TPR) == 0x51);
    }
    mmio_write(TPR, 0);
    Ok(())
}

fn mmio_string() -> Outcome {
    let mut buffer = [0u32; 4];
    mmio_write(TPR, 0x60);
    // SAFETY: four dwords from one register page; only the first is a register.
    unsafe {
        asm!("rep movsd", inout("rsi") TPR => _, inout("rdi") buffer.as_mut_ptr() => _, inout("rcx") 1u64 => _);
        check!(buffer[0] == 0x60);
        asm!("rep stosd", in("eax") 0x30, inout("rdi") TPR => _, inout("rcx") 1u64 => _);
        check!(mmio_read(TPR) == 0x30);
        let value: u64;
        asm!("lodsd", inout("rsi") TPR => _, out("rax") value);
        check!(value as u32 == 0x30);
    }
    mmio_write(TPR, 0);
    Ok(())
}

fn mmio_across_pages() -> Outcome {
    // The last four bytes of the I/O APIC's page and the first of the next, where nothing answers.
    let value: u64;
    // SAFETY: nothing there changes.
    unsafe { asm!("mov {}, [{}]", out(reg) value, in(reg) IOAPIC + 0xffc) };
    check!(value >> 32 == 0xffff_ffff, "empty space reads all ones");
    Ok(())
}

fn mmio_faults_like_memory() -> Outcome {
    // A page-crossing push whose second half is not mapped: nothing may be written.
    const UNMAPPED: u64 = 0x1_0000_0000;
    let seen =
        fault!("mov [{at}], rax", at = in(reg) UNMAPPED - 4, in("rax") 0x1234_5678_9abc_def0u64)
            .ok_or("no fault")?;
    check!(seen.vector == 14 && seen.error == 2 && seen.cr2 == UNMAPPED);
    Ok(())
}

fn port_widths() -> Outcome {
    // The CMOS index and data ports answer byte-wise; an empty port reads all ones in each width.
    outb(0x70, 0x0f);
    outb(0x71, 0x5a);
    outb(0x70, 0x0f);
    check!(inb(0x71) == 0x5a);
    check!(inb(0x5678) == 0xff && inw(0x5678) == 0xffff && inl(0x5678) == 0xffff_ffff);
    let kept: u64;
    // SAFETY: reads a port.
    unsafe { asm!("in al, dx", in("dx") 0x5678u16, inout("rax") 0x1122_3344_5566_7700u64 => kept) };
    check!(kept == 0x1122_3344_5566_77ff, "upper bytes stay");
    // SAFETY: reads a port.
    let wide: u64;
    unsafe { asm!("in eax, dx", in("dx") 0x5678u16, inout("rax") u64::MAX << 40 => wide) };
    check!(wide == 0xffff_ffff, "the upper half is cleared");
    Ok(())
}

fn port_string_out() -> Outcome {
    let text = b"out by string\n";
    let (rest, rsi): (u64, u64);
    // SAFETY: writes our text to the debug port.
    unsafe {
        asm!("rep outsb", in("dx") 0xe9u16, inout("rsi") text.as_ptr() => rsi, inout("rcx") text.len() as u64 => rest)
    };
    check!(rest == 0 && rsi == text.as_ptr() as u64 + text.len() as u64);
    Ok(())
}

fn port_string_in() -> Outcome {
    let mut buffer = [0u8; 8192];
    let rest: u64;
    // SAFETY: fills our buffer, which spans pages.
    unsafe {
        asm!("rep insb", in("dx") 0x5678u16, inout("rdi") buffer.as_mut_ptr() => _, inout("rcx") 8192u64 => rest)
    };
    check!(rest == 0 && buffer.iter().all(|byte| *byte == 0xff));
    // Backwards, in words.
    let mut words = [0u16; 4];
    // SAFETY: fills our buffer from its end.
    unsafe {
        asm!("std", "rep insw", "cld", in("dx") 0x5678u16, inout("rdi") &mut words[3] => _, inout("rcx") 3u64 => _)
    };
    check!(words == [0, 0xffff, 0xffff, 0xffff]);
    Ok(())
}

fn port_string_faults() -> Outcome {
    const UNMAPPED: u64 = 0x1_0000_0000;
    let mut left: u64;
    let seen = {
        let slot = crate::trap::recover_slot();
        // SAFETY: the handler goes on at the label.
        unsafe {
            asm!(
                "lea {tmp}, [rip + 77f]", "mov [{slot}], {tmp}", "rep insb", "77:",
                slot = in(reg) slot, tmp = out(reg) _, in("dx") 0x5678u16,
                inout("rdi") UNMAPPED - 4 => _, inout("rcx") 8u64 => left,
            )
        };
        crate::trap::caught().ok_or("no fault")?
    };
    check!(seen.vector == 14 && seen.cr2 == UNMAPPED);
    check!(left == 4 || left == 8, "what was done is counted");
    left = 0;
    check!(left == 0);
    Ok(())
}

fn empty_space() -> Outcome {
    check!(mmio_read(0xd000_0000) == u32::MAX);
    mmio_write(0xd000_0000, 0);
    check!(mmio_read(0xd000_0000) == u32::MAX);
    Ok(())
}

/// Executes `cpuids=` CPUIDs and `outs=` OUTs between two marks, for the counters outside.
fn counted() -> Outcome {
    let (cpuids, outs) = (
        multiboot::number("cpuids").unwrap_or(0),
        multiboot::number("outs").unwrap_or(0),
    );
    (0..cpuids).for_each(|_| {
        cpuid(0, 0);
    });
    (0..outs).for_each(|_| outb(0x80, 0));
    Ok(())
}
