// SPDX-License-Identifier: MIT OR Apache-2.0
//! Code in user mode (CPL 3), until it faults or says `int 0x2f`.

use crate::trap::{self, Frame};
use core::arch::global_asm;
use core::cell::UnsafeCell;

/// Flags of user code.
pub const RFLAGS: u64 = 2;

struct Slot(UnsafeCell<Option<Frame>>);
// SAFETY: one CPU, and the handler writes only while `run` waits for it.
unsafe impl Sync for Slot {}
static FRAME: Slot = Slot(UnsafeCell::new(None));

global_asm!(
    ".pushsection .text",
    ".globl user_enter, user_return, user_rsp",
    // user_enter(rip, rsp, rflags, rdi): an interrupt return down; the handler comes back to user_return.
    "user_enter:",
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "mov [user_rsp], rsp",
    "push 0x33",
    "push rsi",
    "push rdx",
    "push 0x3b",
    "push rdi",
    "mov rdi, rcx",
    "xor eax, eax",
    "xor ebx, ebx",
    "xor ecx, ecx",
    "xor edx, edx",
    "xor ebp, ebp",
    "xor esi, esi",
    "iretq",
    "user_return:",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "ret",
    ".popsection",
    ".pushsection .bss",
    ".balign 8",
    "user_rsp: .skip 8",
    ".popsection",
);

extern "C" {
    fn user_enter(rip: u64, rsp: u64, rflags: u64, rdi: u64);
    static user_return: u8;
    static user_rsp: u64;
}

/// Runs user code at `rip` with a stack, flags and RDI; all other registers are zero. Gives what it ended with.
pub fn run(rip: u64, rsp: u64, rflags: u64, rdi: u64) -> Result<Frame, &'static str> {
    trap::reset_counts();
    // SAFETY: user mode reaches only pages that are its own, and comes back by the handler.
    unsafe {
        *FRAME.0.get() = None;
        user_enter(rip, rsp, rflags, rdi);
        (*FRAME.0.get()).ok_or("user mode did not come back by its end")
    }
}

/// Ends user mode if that is where `frame` comes from: it goes on in [`run`].
pub fn caught(frame: &mut Frame) -> bool {
    if frame.cs & 3 != 3 {
        return false;
    }
    // SAFETY: `run` waits.
    unsafe {
        *FRAME.0.get() = Some(*frame);
        frame.rsp = user_rsp;
        frame.rip = (&raw const user_return) as u64;
    }
    (frame.cs, frame.ss, frame.rflags) = (8, 0x10, RFLAGS);
    true
}
