// SPDX-License-Identifier: MIT OR Apache-2.0
//! The kernel's own symbols, by which a backtrace names functions. The boot loader brings them.

use super::sync::Once;
use core::ffi::CStr;

/// The type of a symbol that is a function.
const STT_FUNC: u8 = 2;

/// An entry of an ELF symbol table.
#[repr(C)]
pub struct Symbol {
    name: u32,
    info: u8,
    other: u8,
    section: u16,
    value: u64,
    size: u64,
}

const _: () = assert!(size_of::<Symbol>() == 24);

/// A symbol table, and the strings that it refers to.
pub struct Symbols {
    /// The section `.symtab`.
    pub table: &'static [Symbol],
    /// The section `.strtab`.
    pub names: &'static [u8],
}

static SYMBOLS: Once<Symbols> = Once::new();

/// Keeps the kernel's symbols.
///
/// # Safety
/// Once, while only one CPU and thread runs.
pub unsafe fn set(symbols: Symbols) {
    // SAFETY: the same contract.
    unsafe { SYMBOLS.set(symbols) };
}

/// The function that holds `address`, and how far into it that is.
pub fn function_at(address: u64) -> Option<(&'static str, u64)> {
    let symbols = SYMBOLS.get()?;
    let holds = |symbol: &&Symbol| {
        symbol.info & 0xf == STT_FUNC && address.wrapping_sub(symbol.value) < symbol.size
    };
    let symbol = symbols.table.iter().find(holds)?;
    let name = CStr::from_bytes_until_nul(symbols.names.get(symbol.name as usize..)?).ok()?;
    Some((name.to_str().ok()?, address - symbol.value))
}
