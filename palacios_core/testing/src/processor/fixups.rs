// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where code goes on whose instruction has faulted: the section `__ex_table` of this program, as a kernel reads that of a
//! module. Entries are three words: the instruction and where to go on, each relative to its own place, and a type.

use std::sync::OnceLock;

const ENTRY_BYTES: usize = 12;

extern "C" {
    /// The first byte of the program in memory; defined by the linker.
    #[link_name = "__executable_start"]
    static PROGRAM: u8;
}

/// Where to go on after a fault at `rip`.
pub fn after(rip: u64) -> Option<u64> {
    let table = TABLE.get_or_init(read);
    table.iter().find(|(at, _)| *at == rip).map(|(_, to)| *to)
}

static TABLE: OnceLock<Vec<(u64, u64)>> = OnceLock::new();

/// Reads the table, so that a signal handler need not.
pub fn prepare() {
    TABLE.get_or_init(read);
}

fn read() -> Vec<(u64, u64)> {
    let program = std::fs::read("/proc/self/exe").expect("this program's own file");
    let Some((file_offset, address, bytes)) = section(&program, b"__ex_table") else {
        return Vec::new();
    };
    let base = (&raw const PROGRAM).addr() as u64;
    let word = |at: usize| i32::from_le_bytes(field(&program, file_offset + at));
    (0..bytes)
        .step_by(ENTRY_BYTES)
        .map(|entry| {
            let here = base + address + entry as u64;
            let at = here.wrapping_add_signed(word(entry).into());
            let to = (here + 4).wrapping_add_signed(word(entry + 4).into());
            (at, to)
        })
        .collect()
}

/// A section of this program in memory, if it has one of that name.
pub fn section_of_this_program(name: &[u8]) -> Option<&'static [u8]> {
    let program = std::fs::read("/proc/self/exe").expect("this program's own file");
    let (_, address, bytes) = section(&program, name)?;
    let base = &raw const PROGRAM;
    // SAFETY: a section that is loaded with the program, and never unloaded.
    Some(unsafe { std::slice::from_raw_parts(base.add(address as usize), bytes) })
}

fn field<const N: usize>(file: &[u8], at: usize) -> [u8; N] {
    file[at..at + N].try_into().expect("N bytes")
}

/// Offset in the file, address before relocation, and length of a section (ELF-64, 2 and 3).
fn section(elf: &[u8], name: &[u8]) -> Option<(usize, u64, usize)> {
    let u16_at = |at| usize::from(u16::from_le_bytes(field(elf, at)));
    let u32_at = |at| u32::from_le_bytes(field(elf, at)) as usize;
    let u64_at = |at| u64::from_le_bytes(field(elf, at));
    let header = |n: usize| u64_at(0x28) as usize + n * u16_at(0x3a);
    let names = u64_at(header(u16_at(0x3e)) + 0x18) as usize;
    let named = |at: &usize| {
        let rest = &elf[names + u32_at(*at)..];
        rest.starts_with(name) && rest[name.len()] == 0
    };
    let at = (0..u16_at(0x3c)).map(header).find(named)?;
    Some((
        u64_at(at + 0x18) as usize,
        u64_at(at + 0x10),
        u64_at(at + 0x20) as usize,
    ))
}
