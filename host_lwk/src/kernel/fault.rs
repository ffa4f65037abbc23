// SPDX-License-Identifier: MIT OR Apache-2.0
//! Exceptions of the processor: each is a panic, but for those that the code means to raise.
//!
//! An instruction that is meant to fault has an entry in the section `__ex_table`, which says where to go on.

use super::frame::Frame;
use super::memory::is_below_a_stack;
use super::{panic, stop};
use x86_64::registers::control::Cr2;
use x86_64::registers::model_specific::Msr;

const DEBUG: u64 = 1;
/// The vector of a non-maskable interrupt.
pub const NMI: u64 = 2;
/// The vector of a double fault.
pub const DOUBLE_FAULT: u64 = 8;
/// The vector of a machine check.
pub const MACHINE_CHECK: u64 = 18;

extern "C" {
    static ex_table_begin: Fixup;
    static ex_table_end: Fixup;
}

/// An entry of `__ex_table`: where a fault may happen and where it goes on, both relative to their own place.
#[repr(C)]
struct Fixup {
    at: i32,
    to: i32,
    kind: i32,
}

/// Where to go on after a fault at `rip`, if the instruction there is meant to fault.
fn fixup(rip: u64) -> Option<u64> {
    let (begin, end) = (&raw const ex_table_begin, &raw const ex_table_end);
    let count = (end as usize - begin as usize) / size_of::<Fixup>();
    // SAFETY: the linker script puts the entries there, one after the other.
    let all = unsafe { core::slice::from_raw_parts(begin, count) };
    let place = |field: &i32| (field as *const i32 as u64).wrapping_add_signed((*field).into());
    all.iter()
        .find(|entry| place(&entry.at) == rip)
        .map(|entry| place(&entry.to))
}

/// Does what the exception in `frame` asks for.
pub fn exception(frame: &mut Frame) {
    let vector = frame.vector;
    match vector {
        NMI if stop::going_down() => stop::halt(),
        // Only a panic sends NMIs. One of another origin, such as hardware, is ignored.
        NMI => return,
        MACHINE_CHECK if !machine_check_in_progress() => return,
        DEBUG => {}
        _ => {
            if let Some(to) = fixup(frame.rip) {
                frame.rip = to;
                return;
            }
        }
    }
    let cr2 = Cr2::read_raw();
    let name = NAMES
        .get(vector as usize)
        .copied()
        .unwrap_or("an exception");
    let why = match vector {
        DOUBLE_FAULT if is_below_a_stack(cr2) => " (stack overflow)",
        _ => "",
    };
    let error = frame.error;
    panic::die(
        frame.rbp,
        Some(frame.rip),
        format_args!("{name}{why}, error {error:#x}, cr2 {cr2:#x}, {frame:x?}"),
    )
}

/// IA32_MCG_STATUS.MCIP: a machine check is in progress (SDM 3B: 16.3.1.2).
fn machine_check_in_progress() -> bool {
    // SAFETY: every CPU with virtualization has it.
    unsafe { Msr::new(0x17a).read() & 4 != 0 }
}

const NAMES: [&str; 20] = [
    "#DE, division",
    "#DB, debug",
    "NMI",
    "#BP, breakpoint",
    "#OF, overflow",
    "#BR, bound",
    "#UD, undefined instruction",
    "#NM, no FPU",
    "#DF, double fault",
    "vector 9",
    "#TS, task segment",
    "#NP, segment not present",
    "#SS, stack segment",
    "#GP, general protection",
    "#PF, page fault",
    "vector 15",
    "#MF, x87",
    "#AC, alignment",
    "#MC, machine check",
    "#XM, SIMD",
];
