// SPDX-License-Identifier: MIT OR Apache-2.0
//! A PC's small parts: address line 20, the text display, the 8254's status, a break on a serial line, and the device of test kernels.

use super::interrupts::{pic_mask_all, pic_on, uart_line_down};
use super::ioapic::set_pin;
use crate::apic::{self, interrupts, MASKED};
use crate::io::{inb, inl, inw, mmio_read, outb, outl, outw};
use crate::paging::{self, PRESENT, WRITE};
use crate::{boot_info, check, check_eq, tests, trap, Outcome};
use core::arch::asm;

tests!(
    address_line_20_reads_back,
    pit_status_shows_the_mode_as_written;
    ours: cursor_reads_back, text_stays, uart_break_in_loopback;
    device: test_ports, test_bytes, test_lines, test_memory, test_forgets_a_page
);

/// Whether the machine has the device of test kernels: a word of it reads back.
pub fn has_test_device() -> bool {
    [0x1234_5678, 0x8765_4321].into_iter().all(|word| {
        outl(0xe0, word);
        inl(0xe0) == word
    })
}

/// By both of its gates. Nothing is masked in between: the gates open it to no more than they did.
fn address_line_20_reads_back() -> Outcome {
    const A20: u8 = 2;
    let port_a = inb(0x92);
    outb(0x92, port_a | A20);
    check_eq!(inb(0x92) & (A20 | 1), A20);
    let output_port = || {
        while inb(0x64) & 2 != 0 {}
        outb(0x64, 0xd0);
        while inb(0x64) & 1 == 0 {}
        inb(0x60)
    };
    let before = output_port();
    check_eq!(before & 1, 1, "the processor is not reset");
    outb(0x64, 0xd1);
    while inb(0x64) & 2 != 0 {}
    outb(0x60, before | A20);
    check_eq!(output_port() & A20, A20);
    Ok(())
}

/// 8254: the status of a read-back says the mode exactly as written: 6 and 7 stay 6 and 7.
fn pit_status_shows_the_mode_as_written() -> Outcome {
    for mode in 0..8 {
        outb(0x43, 0xb0 | mode << 1);
        outb(0x43, 0xe8);
        check_eq!(inb(0x42) & 0x3f, 0x30 | mode << 1);
    }
    Ok(())
}

fn cursor_reads_back() -> Outcome {
    outw(0x3d4, 0x070e);
    outb(0x3d4, 15);
    outb(0x3d5, 0xd0);
    check_eq!((inb(0x3d4), inb(0x3d5)), (15, 0xd0));
    outb(0x3d4, 14);
    check_eq!(inb(0x3d5), 7);
    Ok(())
}

fn text_stays() -> Outcome {
    let text = 0xb_8000 as *mut u32;
    // SAFETY: nobody else writes there.
    unsafe {
        text.write_volatile(0x0741_0742);
        check_eq!(text.read_volatile(), 0x0741_0742);
    }
    Ok(())
}

/// PC16550D: 8.1 (bit 6), 8.4 (bit 4), 8.6.4.
fn uart_break_in_loopback() -> Outcome {
    const BREAK: u8 = 1 << 4;
    const DATA: u8 = 1;
    uart_line_down();
    let (line, modem) = (inb(0x3fb), inb(0x3fc));
    outb(0x3fc, modem | 0x10);
    outb(0x3fb, line | 0x40);
    let seen = [inb(0x3fd), inb(0x3fd)].map(|status| status & (BREAK | DATA));
    let byte = inb(0x3f8);
    outb(0x3fb, line);
    outb(0x3fc, modem);
    check_eq!((seen, byte), ([BREAK | DATA, DATA], 0));
    Ok(())
}

fn test_ports() -> Outcome {
    outl(0xe0, 0x4455_6677);
    check_eq!(
        (inl(0xe0), inw(0xe0), inb(0xe0)),
        (0x4455_6677, 0x6677, 0x77)
    );
    outb(0xe1, 0xaa);
    outw(0xe2, 0xccbb);
    check_eq!(
        (inl(0xe0), inw(0xe2), inb(0xe3)),
        (0xccbb_aa77, 0xccbb, 0xcc)
    );
    Ok(())
}

/// The same word through ports that are a byte wide.
fn test_bytes() -> Outcome {
    outl(0xe8, 0x1234_5678);
    check_eq!(
        (inl(0xe0), inw(0xea), inb(0xe9)),
        (0x1234_5678, 0x1234, 0x56)
    );
    Ok(())
}

/// Each line drives its input of the I/O APIC.
fn test_lines() -> Outcome {
    const VECTOR: u8 = 0x58;
    pic_on(0x20);
    pic_mask_all();
    apic::on();
    // Not the timer's two inputs, nor the serial port's and the power management's. QEMU takes none above 15.
    let pins: [u16; 9] = [1, 5, 7, 10, 11, 15, 16, 19, 23];
    let some = if boot_info::judged_by_another_machine() {
        6
    } else {
        9
    };
    for pin in pins.into_iter().take(some) {
        set_pin(pin.into(), VECTOR.into());
        trap::reset_counts();
        interrupts(true);
        outb(0x2000 + pin, 1);
        outb(0x2000 + pin, 0);
        while trap::count(VECTOR) == 0 {}
        interrupts(false);
        set_pin(pin.into(), MASKED);
        check_eq!(trap::count(VECTOR), 1);
    }
    Ok(())
}

/// Memory that is no RAM: each access goes through the emulator.
fn test_memory() -> Outcome {
    const MEMORY: u64 = 0xff00_0000;
    let at = MEMORY + 0x1238;
    let (wide, narrow): (u64, u64);
    // SAFETY: the device's memory.
    unsafe {
        asm!("mov [{}], {}", in(reg) at, in(reg) 0x1122_3344_5566_7788u64);
        asm!("mov byte ptr [{} + 1], 0xaa", in(reg) at);
        asm!("add word ptr [{} + 2], 1", in(reg) at);
        asm!("mov {}, [{}]", out(reg) wide, in(reg) at);
        asm!("movzx {:e}, word ptr [{} + 1]", out(reg) narrow, in(reg) at);
    }
    check_eq!((wide, narrow), (0x1122_3344_5567_aa88, 0x67aa));
    check_eq!(mmio_read(MEMORY + 0xfffc), 0);
    Ok(())
}

/// The page is gone from all processors' translations, and what was in it is not.
fn test_forgets_a_page() -> Outcome {
    let frame = paging::frame()?;
    let at = paging::window(1);
    paging::map(at, frame, PRESENT | WRITE)?;
    let word = at as *mut u64;
    for n in 0..20u64 {
        // SAFETY: a page of ours.
        unsafe { word.write_volatile(n) };
        outl(0xe4, frame as u32);
        // SAFETY: as above.
        check!(unsafe { word.read_volatile() } == n);
    }
    Ok(())
}
