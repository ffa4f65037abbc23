// SPDX-License-Identifier: MIT OR Apache-2.0
//! Instructions that user mode may execute, but that must tell of the test host's processor: SGDT, SIDT, SLDT and STR. A
//! kernel may let them through, or do them itself with values of its own choice (UMIP). In the backend's code, which has them
//! in a row of its own, their first byte is replaced by that of one that user mode may not execute, as a debugger would.

use super::fixups::section_of_this_program;
use iced_x86::{Decoder, DecoderOptions, Mnemonic};
use std::sync::OnceLock;

const HLT: u8 = 0xf4;
/// The first bytes of MOV from a segment register, and of the others.
const MOV: u8 = 0x8c;
const LONG: u8 = 0x0f;
const PAGE: usize = 4096;

/// Where they are, and what stood there.
static PLACES: OnceLock<Vec<(usize, u8)>> = OnceLock::new();

/// Finds and replaces them, once.
pub fn set() {
    PLACES.get_or_init(|| {
        let code = section_of_this_program(b".text").unwrap_or(&[]);
        let begin = code.as_ptr().addr();
        let places = (0..code.len()).flat_map(|at| rows(&code[at..]).map(move |n| at + n));
        let places: Vec<_> = places.map(|at| (begin + at, code[at])).collect();
        for (at, _) in &places {
            replace(*at);
        }
        places
    });
}

/// The offsets of what is to be replaced in the row that begins here, if one does. In front of the first opcode there may be
/// a prefix, which changes nothing about where it is.
fn rows(code: &[u8]) -> impl Iterator<Item = usize> {
    let known: &[(Mnemonic, bool)] = match code {
        [LONG, 0x01, ..] => &[
            (Mnemonic::Sgdt, true),
            (Mnemonic::Sidt, true),
            (Mnemonic::Sldt, true),
        ],
        [MOV, ..] => &[
            (Mnemonic::Mov, false),
            (Mnemonic::Mov, false),
            (Mnemonic::Str, true),
        ],
        _ => &[],
    };
    let mut decoder = Decoder::new(64, &code[..code.len().min(48)], DecoderOptions::NONE);
    let mut found = Vec::new();
    for (mnemonic, wanted) in known {
        let at = decoder.position();
        let i = decoder.decode();
        if i.mnemonic() != *mnemonic {
            found.clear();
            break;
        }
        if *wanted {
            let opcode = code[at..].iter().position(|byte| *byte == LONG);
            found.push(at + opcode.expect("an opcode of two bytes"));
        }
    }
    found.into_iter()
}

fn replace(at: usize) {
    let page = (at & !(PAGE - 1)) as *mut libc::c_void;
    let all = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
    // SAFETY: a byte of this program's code, which nobody has executed yet; others may execute what lies around it.
    unsafe {
        assert_eq!(libc::mprotect(page, PAGE, all), 0, "code can be changed");
        (at as *mut u8).write_volatile(HLT);
        libc::mprotect(page, PAGE, libc::PROT_READ | libc::PROT_EXEC);
    }
}

/// The bytes at `rip` as they were.
pub fn code(rip: u64) -> [u8; 15] {
    // SAFETY: the instruction was fetched just now; what follows it is code of this process as well.
    let mut bytes = unsafe { (rip as *const [u8; 15]).read_unaligned() };
    for (at, byte) in PLACES.get().into_iter().flatten() {
        if let Some(place) = bytes.get_mut(at.wrapping_sub(rip as usize)) {
            *place = *byte;
        }
    }
    bytes
}
