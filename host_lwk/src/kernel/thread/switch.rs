// SPDX-License-Identifier: MIT OR Apache-2.0
//! The change from one thread's stack to another's.

use core::arch::global_asm;

extern "C" {
    /// Saves the callee-saved registers on the stack and the stack pointer at `from`; goes on with the stack of `to`, whose
    /// registers it takes off.
    pub(super) fn switch_stacks(from: *mut *mut u8, to: *mut u8);
    fn thread_begin();
}

global_asm!(
    ".globl switch_stacks, thread_begin",
    "switch_stacks:",
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "mov [rdi], rsp",
    "mov rsp, rsi",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "ret",
    "thread_begin:",
    "call rbx",
    "ud2",
);

/// Prepares a stack so that [`switch_stacks`] to what is returned calls `main`.
///
/// # Safety
/// `top` is the top of a stack that nobody uses.
pub(super) unsafe fn first_stack_pointer(top: u64, main: extern "C" fn() -> !) -> *mut u8 {
    // What `switch_stacks` takes off, and two words: at `thread_begin` the stack is aligned, as before a call.
    let [r15, r14, r13, r12, rbp] = [0; 5];
    let (rbx, begin) = (main as usize, thread_begin as *const () as usize);
    let words = [r15, r14, r13, r12, rbp, rbx, begin, 0, 0];
    let at = (top as *mut [usize; 9]).wrapping_sub(1);
    // SAFETY: the topmost words of a stack that is the caller's.
    unsafe { at.write(words) };
    at.cast()
}
