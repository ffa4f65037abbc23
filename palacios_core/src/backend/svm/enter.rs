// SPDX-License-Identifier: MIT OR Apache-2.0
//! The way into the guest and out again (APM 2: 15.5, 15.6, 15.17).
//!
//! VMRUN switches what the processor needs to come back; FS, GS, TR, LDTR, SYSENTER and SYSCALL registers go by VMLOAD and
//! VMSAVE. The host's are saved once a window, by [`save_host`], since nothing in a window changes them; they are loaded
//! after each exit, because the host's code wants its GS. From CLGI to STGI nothing interrupts, NMIs included, so that no
//! handler of the host runs on the guest's GS. STI in between lets host interrupts end the guest (APM 2: 15.21.1); they,
//! and NMIs, are taken after STGI and when the window closes.
//!
//! SVME may be cleared under us: a host that goes down does so on all CPUs, by an NMI if need be. It then happens before
//! CLGI or after STGI, and the next SVM instruction is a #UD. All have entries in the exception table (see
//! [`super::super::cpu`]), and the vCPU exits with `Gone`.
//!
//! Against speculation: buffers are cleared by VERW before the entry where the processor says that VERW does so, and
//! registers that held the guest's values are zeroed after the exit; see [`super::vcpu`] for what else is done. No return
//! is executed before [`crate::host::Host::guest_exit`], in which the host may refill its return stack.

use super::super::cpu::ex_table;
use crate::state::Gprs;
use core::arch::asm;

/// SVM was switched off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Gone;

/// Saves the part of the host's state that VMLOAD will load again (APM 2: 15.5.2).
///
/// # Safety
/// In a window; `to` is a page for this CPU's use, with the C-bit if the host's memory is encrypted.
pub(super) unsafe fn save_host(to: u64) -> Result<(), Gone> {
    let gone: u32;
    // SAFETY: by the contract above; a fault is caught.
    unsafe {
        asm!(
            "mov {gone:e}, 1",
            "2: vmsave rax",
            "xor {gone:e}, {gone:e}",
            "3:",
            ex_table!("2b", "3b"),
            gone = out(reg) gone,
            in("rax") to,
            options(nostack),
        )
    };
    match gone {
        0 => Ok(()),
        _ => Err(Gone),
    }
}

/// Runs the guest until it exits. RAX and RSP go by the VMCB, the other general registers by `gprs`.
///
/// # Safety
/// In a window, on the CPU where [`save_host`] filled `host`; `guest` is a VMCB whose nested tables, permission maps and
/// intercepts keep the guest in, and no reference to it is alive. The guest's floating-point state is in the registers.
#[inline(always)]
pub(super) unsafe fn run(
    guest: u64,
    gprs: &mut Gprs,
    host: u64,
    clear_buffers: bool,
) -> Result<(), Gone> {
    let gone: u64;
    // SAFETY: by the contract above. The assembly puts back RBX, RBP and the stack, and names all else as clobbered.
    unsafe {
        asm!(
            "push rbp",
            "push rbx",
            "push rdx",                     // [rsp + 24]: whether VERW clears buffers
            "mov ecx, ss",
            "push rcx",                     // [rsp + 16]: a selector for VERW to look at
            "push rsi",                     // [rsp + 8]: the host's VMCB
            "push rdi",                     // [rsp]: the guest's registers
            "2: clgi",
            "sti",
            "3: vmload rax",
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
            "cmp byte ptr [rsp + 24], 0",
            "je 4f",
            "verw word ptr [rsp + 16]",
            "4: vmrun rax",
            // The host's RAX and RSP are back.
            "5: vmsave rax",
            "mov rax, [rsp]",
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
            "mov rax, [rsp + 8]",
            "6: vmload rax",
            "cli",
            "7: stgi",
            "xor eax, eax",
            "jmp 9f",
            "8: cli",
            "mov eax, 1",
            "9: xor ecx, ecx",
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
            "add rsp, 32",
            "pop rbx",
            "pop rbp",
            ex_table!("2b", "8b"),
            ex_table!("3b", "8b"),
            ex_table!("4b", "8b"),
            ex_table!("5b", "8b"),
            ex_table!("6b", "8b"),
            ex_table!("7b", "8b"),
            inlateout("rax") guest => gone,
            inlateout("rdi") gprs.0.as_mut_ptr() => _,
            inlateout("rsi") host => _,
            inlateout("rdx") u64::from(clear_buffers) => _,
            lateout("rcx") _, lateout("r8") _, lateout("r9") _, lateout("r10") _, lateout("r11") _,
            lateout("r12") _, lateout("r13") _, lateout("r14") _, lateout("r15") _,
        )
    };
    match gone {
        0 => Ok(()),
        _ => Err(Gone),
    }
}
