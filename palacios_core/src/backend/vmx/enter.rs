// SPDX-License-Identifier: MIT OR Apache-2.0
//! The way into the guest and out again (SDM 3C: 26, 27).
//!
//! VMLAUNCH and VMRESUME switch all but the general registers. An exit goes on at the address in the VMCS with RFLAGS clear;
//! an entry that failed goes on behind the instruction with CF or ZF set (SDM 3C: 30.2). Both lead to one place. An exit is no
//! indirect branch, so ENDBR is not needed there.
//!
//! Against speculation: buffers are cleared by VERW before the entry where that helps, and registers that held the guest's
//! values are zeroed after the exit. No return is executed before [`crate::host::Host::guest_exit`], in which the host may
//! refill its return stack.

use super::super::cpu::ex_table;
use super::field::{HOST_RIP, HOST_RSP};
use super::instructions::Error;
use crate::state::Gprs;
use core::arch::asm;

/// Runs the guest until it exits. RSP goes by the VMCS, the other general registers by `gprs`.
///
/// # Safety
/// In VMX operation with a current VMCS, which `launched` describes, whose host state is this CPU's, and whose nested tables,
/// maps and controls keep the guest in. The guest's floating-point state is in the registers.
#[inline(always)]
pub(super) unsafe fn run(
    gprs: &mut Gprs,
    launched: bool,
    clear_buffers: bool,
) -> Result<(), Error> {
    let outcome: u64;
    // SAFETY: by the contract above. The assembly puts back RBX, RBP and the stack, and names all else as clobbered. A fault
    // of an entry or a VMWRITE comes before any register is the guest's, or with the stack as it was.
    unsafe {
        asm!(
            "push rbp",
            "push rbx",
            "mov eax, ss",
            "push rax",                     // [rsp + 8]: a selector for VERW to look at
            "push rdi",                     // [rsp]: the guest's registers
            "mov eax, {host_rsp}",
            "2: vmwrite rax, rsp",
            "lea rbx, [rip + 6f]",
            "mov eax, {host_rip}",
            "3: vmwrite rax, rbx",
            "test edx, edx",
            "jz 30f",
            "verw word ptr [rsp + 8]",
            "30: test esi, esi",
            // Only moves from here on: the flags say whether to launch or to resume.
            "mov rax, [rdi]",
            "mov rcx, [rdi + 8]",
            "mov rdx, [rdi + 16]",
            "mov rbx, [rdi + 24]",
            "mov rbp, [rdi + 40]",
            "mov rsi, [rdi + 48]",
            "mov r8,  [rdi + 64]",
            "mov r9,  [rdi + 72]",
            "mov r10, [rdi + 80]",
            "mov r11, [rdi + 88]",
            "mov r12, [rdi + 96]",
            "mov r13, [rdi + 104]",
            "mov r14, [rdi + 112]",
            "mov r15, [rdi + 120]",
            "mov rdi, [rdi + 56]",
            "jnz 5f",
            "4: vmlaunch",
            "jmp 6f",
            "5: vmresume",
            "6: push rax",
            "mov rax, [rsp + 8]",
            "mov [rax + 8], rcx",
            "mov [rax + 16], rdx",
            "mov [rax + 24], rbx",
            "mov [rax + 40], rbp",
            "mov [rax + 48], rsi",
            "mov [rax + 56], rdi",
            "mov [rax + 64], r8",
            "mov [rax + 72], r9",
            "mov [rax + 80], r10",
            "mov [rax + 88], r11",
            "mov [rax + 96], r12",
            "mov [rax + 104], r13",
            "mov [rax + 112], r14",
            "mov [rax + 120], r15",
            "pop rcx",
            "mov [rax], rcx",
            "setbe al",
            "movzx eax, al",
            "jmp 8f",
            "7: mov eax, 2",
            "8: xor ecx, ecx",
            "xor edx, edx",
            "xor esi, esi",
            "xor edi, edi",
            "xor r8d, r8d",
            "xor r9d, r9d",
            "xor r10d, r10d",
            "xor r11d, r11d",
            "xor r12d, r12d",
            "xor r13d, r13d",
            "xor r14d, r14d",
            "xor r15d, r15d",
            "add rsp, 16",
            "pop rbx",
            "pop rbp",
            ex_table!("2b", "7b"),
            ex_table!("3b", "7b"),
            ex_table!("4b", "7b"),
            ex_table!("5b", "7b"),
            host_rsp = const HOST_RSP,
            host_rip = const HOST_RIP,
            lateout("rax") outcome,
            inlateout("rdi") gprs.0.as_mut_ptr() => _,
            inlateout("rsi") u64::from(launched) => _,
            inlateout("rdx") u64::from(clear_buffers) => _,
            lateout("rcx") _, lateout("r8") _, lateout("r9") _, lateout("r10") _, lateout("r11") _,
            lateout("r12") _, lateout("r13") _, lateout("r14") _, lateout("r15") _,
        )
    };
    match outcome {
        0 => Ok(()),
        1 => Err(Error::Failed),
        _ => Err(Error::Gone),
    }
}
