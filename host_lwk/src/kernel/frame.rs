// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a trap leaves on the stack.

/// What the stubs in `trap.rs` push, from `r15` to `vector`, and above it what the processor pushes (SDM 3A: 6.14.2).
#[repr(C)]
#[derive(Debug)]
pub struct Frame {
    r15: u64,
    r14: u64,
    r13: u64,
    r12: u64,
    /// The frame pointer.
    pub rbp: u64,
    rbx: u64,
    r11: u64,
    r10: u64,
    r9: u64,
    r8: u64,
    rdi: u64,
    rsi: u64,
    rdx: u64,
    rcx: u64,
    rax: u64,
    /// Which exception or interrupt it is.
    pub vector: u64,
    /// The error code that some exceptions have; 0 for the others.
    pub error: u64,
    /// Where it happened.
    pub rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

const _: () = assert!(size_of::<Frame>() == 22 * 8);
