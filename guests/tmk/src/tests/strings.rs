// SPDX-License-Identifier: MIT OR Apache-2.0
//! String port I/O: what each round reads and writes, across pages, with faults and with interrupts in between.

use super::interrupts::{halt_until, timer_off};
use crate::apic;
use crate::io::{inb, outb};
use crate::paging::{self, PAGE, PRESENT, USER, WRITE};
use crate::trap::{self, USER_END};
use crate::{check, check_eq, tests, user, Outcome};
use core::arch::asm;
use core::sync::atomic::{AtomicBool, Ordering};

tests!(
    port_string_out,
    port_string_in,
    port_string_backwards,
    port_string_address_size,
    port_string_into_untouched_pages,
    port_string_faults,
    port_string_of_user,
    port_string_lets_interrupts_in,
    memory_string_lets_interrupts_in
);

const EMPTY: u16 = 0x5678;
/// The first serial port's scratch register keeps a byte.
const SCRATCH: u16 = 0x3ff;

fn port_string_out() -> Outcome {
    let bytes = *b"out by string\n";
    let (rest, rsi): (u64, u64);
    // SAFETY: writes our bytes to a register that keeps the last.
    unsafe {
        asm!("rep outsb", in("dx") SCRATCH, inout("rsi") bytes.as_ptr() => rsi, inout("rcx") 13u64 => rest)
    };
    check_eq!(
        (rest, rsi, inb(SCRATCH)),
        (0, bytes.as_ptr() as u64 + 13, b'g')
    );
    // One without REP, of a word: the register above the scratch register does not exist.
    // SAFETY: as above.
    unsafe { asm!("outsb", in("dx") SCRATCH, inout("rsi") bytes.as_ptr() => _) };
    check_eq!(inb(SCRATCH), b'o');
    Ok(())
}

fn port_string_in() -> Outcome {
    outb(SCRATCH, 0x5a);
    let mut buffer = [0u8; 8193];
    let (rest, rdi): (u64, u64);
    // SAFETY: fills our buffer, which spans pages, but for its last byte.
    unsafe {
        asm!("rep insb", in("dx") SCRATCH, inout("rdi") buffer.as_mut_ptr() => rdi, inout("rcx") 8192u64 => rest)
    };
    check_eq!((rest, rdi), (0, &buffer[8192] as *const u8 as u64));
    check!(buffer[..8192].iter().all(|byte| *byte == 0x5a) && buffer[8192] == 0);
    let mut dwords = [0u32; 2];
    // SAFETY: fills one dword.
    unsafe { asm!("insd", in("dx") EMPTY, inout("rdi") dwords.as_mut_ptr() => _) };
    check_eq!(dwords, [u32::MAX, 0]);
    Ok(())
}

fn port_string_backwards() -> Outcome {
    let mut words = [0u16; 4];
    let rdi: u64;
    // SAFETY: fills our buffer from its end.
    unsafe {
        asm!("std", "rep insw", "cld", in("dx") EMPTY, inout("rdi") &mut words[3] => rdi, inout("rcx") 3u64 => _)
    };
    check_eq!(
        (words, rdi),
        ([0, 0xffff, 0xffff, 0xffff], words.as_ptr() as u64)
    );
    Ok(())
}

/// With 32-bit addresses the upper halves of the registers do not count, and end as zero.
fn port_string_address_size() -> Outcome {
    let mut bytes = [0u8; 4];
    let (rdi, rcx): (u64, u64);
    // SAFETY: fills our buffer, which is below 4 GiB.
    unsafe {
        asm!("addr32 rep insb", in("dx") EMPTY, inout("rdi") bytes.as_mut_ptr() as u64 | 7 << 32 => rdi,
            inout("rcx") 3u64 | 9 << 32 => rcx)
    };
    check_eq!(bytes, [0xff, 0xff, 0xff, 0]);
    check_eq!((rdi, rcx), (&bytes[3] as *const u8 as u64, 0));
    Ok(())
}

fn port_string_into_untouched_pages() -> Outcome {
    let at = paging::window(3);
    for page in 0..3 {
        paging::map(at + page * PAGE, paging::untouched()?, PRESENT | WRITE)?;
    }
    outb(SCRATCH, 0x5a);
    let count = 2 * PAGE;
    // SAFETY: fills mapped RAM from the middle of the first page.
    unsafe {
        asm!("rep insb", in("dx") SCRATCH, inout("rdi") at + 100 => _, inout("rcx") count => _)
    };
    // SAFETY: mapped RAM.
    let bytes = unsafe { core::slice::from_raw_parts(at as *const u8, 3 * PAGE as usize) };
    let filled = 100..100 + count as usize;
    let right = |(n, byte): (usize, &u8)| *byte == if filled.contains(&n) { 0x5a } else { 0 };
    check!(bytes.iter().enumerate().all(right));
    Ok(())
}

/// A fault in the middle: what was done is counted, and a restart would go on there.
fn port_string_faults() -> Outcome {
    let at = paging::window(2);
    paging::map(at, paging::frame()?, PRESENT | WRITE)?;
    for (read, error) in [(true, 2), (false, 0)] {
        let slot = trap::recover_slot();
        let (left, index): (u64, u64);
        // SAFETY: the handler goes on at the label.
        unsafe {
            asm!(
                "lea {tmp}, [rip + 77f]", "mov [{slot}], {tmp}",
                "test {read:e}, {read:e}", "jz 76f", "rep insb", "76: rep outsb", "77:",
                slot = in(reg) slot, tmp = out(reg) _, read = in(reg) u32::from(read), in("dx") 0x80u16,
                inout("rdi") at + PAGE - 4 => index, inout("rsi") at + PAGE - 4 => _, inout("rcx") 8u64 => left,
            )
        };
        let seen = trap::caught().ok_or("no fault")?;
        check_eq!((seen.vector, seen.error, seen.cr2), (14, error, at + PAGE));
        check_eq!(left, 4, "what was done is counted");
        check!(!read || index == at + PAGE);
    }
    Ok(())
}

/// The ports may be open to user mode while the memory is not.
fn port_string_of_user() -> Outcome {
    const IOPL_3: u64 = 3 << 12;
    let code = paging::user_code(&[0x66, 0xba, 0x78, 0x56, 0x6c, 0xcd, USER_END])?; // mov dx, 0x5678; insb
    let at = paging::window(1);
    let frame = paging::frame()?;
    let run = || user::run(code, paging::user_stack()?, user::RFLAGS | IOPL_3, at);
    paging::map(at, frame, PRESENT | WRITE | USER)?;
    check_eq!(run()?.vector, u64::from(USER_END));
    // SAFETY: our frame.
    check_eq!(unsafe { (frame as *const u8).read_volatile() }, 0xff);
    paging::map(at, frame, PRESENT | WRITE)?;
    let seen = run()?;
    check_eq!((seen.vector, seen.error, trap::last().cr2), (14, 7, at));
    paging::map(at, frame, PRESENT | USER)?;
    let seen = run()?;
    check_eq!((seen.vector, seen.error), (14, 7));
    Ok(())
}

/// Has one interrupt come a while after a string instruction begins, and runs that; later each time, until it came inside.
/// A periodic timer will not do: on a slow machine it leaves the guest no time for anything else.
fn interrupted_inside(vector: u8, string: impl Fn() -> Outcome) -> Outcome {
    static INSIDE: AtomicBool = AtomicBool::new(false);
    INSIDE.store(false, Ordering::Relaxed);
    apic::on();
    trap::on_interrupt(|_| {
        let [_, _, rcx] = trap::last_interrupt();
        INSIDE.store(rcx > 0 && rcx < ROUNDS, Ordering::Relaxed);
        apic::eoi();
    });
    apic::write(apic::TIMER_DIVIDE, 0b1011);
    apic::write(apic::LVT_TIMER, vector.into());
    for n in 1..200 {
        apic::write(apic::TIMER_INITIAL, 10_000 << (n % 12));
        string()?;
        if trap::count(vector) == n && INSIDE.load(Ordering::Relaxed) {
            return Ok(());
        }
        halt_until(vector, n);
    }
    Err("no interrupt between the rounds")
}

const ROUNDS: u64 = 200_000;

fn port_string_lets_interrupts_in() -> Outcome {
    let outcome = interrupted_inside(0x67, || {
        let (rest, rsi): (u64, u64);
        // SAFETY: the post-code port keeps nothing.
        unsafe {
            asm!("sti", "nop", "rep outsb", "cli", in("dx") 0x80u16, inout("rsi") 0x10_0000u64 => rsi, inout("rcx") ROUNDS => rest)
        };
        check_eq!(
            (rest, rsi),
            (0, 0x10_0000 + ROUNDS),
            "it goes on to its end"
        );
        Ok(())
    });
    timer_off();
    outcome
}

fn memory_string_lets_interrupts_in() -> Outcome {
    let at = paging::frames(ROUNDS.div_ceil(PAGE))?;
    let outcome = interrupted_inside(0x68, || {
        let (rest, to): (u64, u64);
        // SAFETY: frames of ours.
        unsafe {
            asm!("sti", "nop", "rep stosb", "cli", in("al") 7u8, inout("rdi") at => to, inout("rcx") ROUNDS => rest)
        };
        check_eq!((rest, to), (0, at + ROUNDS), "it goes on to its end");
        Ok(())
    });
    timer_off();
    outcome
}
