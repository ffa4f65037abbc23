// SPDX-License-Identifier: MIT OR Apache-2.0
//! The functions that the compiler calls by itself: copying, filling and comparing bytes. They are string instructions, which are
//! quick on every processor that has virtualization, and use no wide register.

use core::arch::global_asm;

global_asm!(
    ".pushsection .text.intrinsics, \"ax\"",
    ".globl memcpy, memmove, memset, memcmp, bcmp",
    "memmove:",
    "mov rcx, rdi",
    "sub rcx, rsi",
    "cmp rcx, rdx", // The destination begins inside of the source: from the end down.
    "jb 2f",
    "memcpy:",
    "mov rax, rdi",
    "mov rcx, rdx",
    "rep movsb",
    "ret",
    "2:",
    "mov rax, rdi",
    "mov rcx, rdx",
    "lea rdi, [rdi + rdx - 1]",
    "lea rsi, [rsi + rdx - 1]",
    "std",
    "rep movsb",
    "cld",
    "ret",
    "memset:",
    "mov r8, rdi",
    "mov eax, esi",
    "mov rcx, rdx",
    "rep stosb",
    "mov rax, r8",
    "ret",
    "memcmp:",
    "bcmp:",
    "xor eax, eax",
    "mov rcx, rdx",
    "test rcx, rcx",
    "jz 3f",
    "repe cmpsb",
    "je 3f",
    "movzx eax, byte ptr [rdi - 1]",
    "movzx ecx, byte ptr [rsi - 1]",
    "sub eax, ecx",
    "3: ret",
    ".popsection",
);
