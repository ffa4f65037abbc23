// SPDX-License-Identifier: MIT OR Apache-2.0
//! The tables of the MultiProcessor Specification 1.4, found and read as by a kernel that knows no ACPI.

use crate::io::cpuid;
use crate::{check, check_eq, tests, Outcome};

tests!(mp_table_wires_the_io_apic; ours: mp_table_lists_the_processors);

/// The range of the BIOS, one of those to search (chapter 4).
const SEARCHED: core::ops::Range<usize> = 0xf_0000..0x10_0000;
const IO_APIC: usize = 0xfec0_0000;
const PROCESSOR: u8 = 0;
const IO_APIC_ENTRY: u8 = 2;
const INTERRUPT: u8 = 3;

fn byte(at: usize) -> u8 {
    // SAFETY: tables below 1 MiB; any bytes are numbers.
    unsafe { (at as *const u8).read_volatile() }
}
fn word(at: usize) -> usize {
    usize::from(byte(at)) | usize::from(byte(at + 1)) << 8
}
fn starts_with(at: usize, text: &[u8]) -> bool {
    text.iter().zip(at..).all(|(want, at)| byte(at) == *want)
}
fn adds_up(at: usize, len: usize) -> bool {
    (at..at + len).fold(0u8, |sum, at| sum.wrapping_add(byte(at))) == 0
}

/// The configuration table.
fn table() -> Result<usize, &'static str> {
    let pointer = SEARCHED
        .step_by(16)
        .find(|at| starts_with(*at, b"_MP_") && adds_up(*at, 16))
        .ok_or("no floating pointer")?;
    check_eq!(byte(pointer + 11), 0, "there is a table, not a default");
    let table = word(pointer + 4) | word(pointer + 6) << 16;
    check!(starts_with(table, b"PCMP") && adds_up(table, word(table + 4)));
    Ok(table)
}

/// Calls `f` with the kind and address of each entry.
fn each_entry(table: usize, mut f: impl FnMut(u8, usize)) -> Outcome {
    let (mut at, end) = (table + 44, table + word(table + 4));
    for _ in 0..word(table + 34) {
        f(byte(at), at);
        at += if byte(at) == PROCESSOR { 20 } else { 8 };
    }
    check_eq!(at, end);
    Ok(())
}

/// One a vCPU. (Elsewhere firmware may list one a package.)
fn mp_table_lists_the_processors() -> Outcome {
    const ENABLED: u8 = 1;
    const BOOTSTRAP: u8 = 2;
    let (mut enabled, mut first) = (0, None);
    each_entry(table()?, |kind, at| {
        if kind == PROCESSOR {
            let (id, flags) = (byte(at + 1), byte(at + 3));
            enabled += u32::from(flags & ENABLED != 0);
            if flags & BOOTSTRAP != 0 {
                first = Some(u32::from(id));
            }
        }
    })?;
    let [_, ebx, ..] = cpuid(1, 0);
    check_eq!(enabled, (ebx >> 16 & 0xff).max(1));
    check_eq!(first, Some(ebx >> 24), "this one");
    Ok(())
}

fn mp_table_wires_the_io_apic() -> Outcome {
    let (mut ids, mut timer) = ([None, None], None);
    each_entry(table()?, |kind, at| match kind {
        IO_APIC_ENTRY => ids[0] = Some(u32::from(byte(at + 1))),
        INTERRUPT if byte(at + 5) == 0 => timer = Some(byte(at + 7)),
        _ => {}
    })?;
    // SAFETY: the I/O APIC's index and data registers.
    ids[1] = Some(unsafe {
        (IO_APIC as *mut u32).write_volatile(0);
        ((IO_APIC + 0x10) as *const u32).read_volatile() >> 24
    });
    check_eq!(ids[0], ids[1], "the id that its register says");
    check_eq!(timer, Some(2), "the timer's input");
    Ok(())
}
