// SPDX-License-Identifier: MIT OR Apache-2.0
//! Real mode, protected mode with and without paging, 32-bit code in long mode: the same exits from each.

use super::interrupts::{pic_mask_all, pic_on};
use crate::io::{cpuid, outb};
use crate::paging;
use crate::{check, check_eq, tests, Outcome};
use core::arch::{asm, global_asm};
use core::cell::UnsafeCell;

tests!(
    real_mode,
    real_mode_interrupts,
    real_mode_devices,
    protected_mode,
    interrupt_frame_in_protected_mode,
    paging_with_32_bit_entries,
    paging_with_pae,
    compatibility_mode;
    named: as_firmware_leaves_it
);

/// Where the code is copied to, and where its results, parameters and saved registers lie.
const LOW: u64 = 0x8000;
const RESULTS: u64 = 0x9000;
const SAVED_RSP: u64 = 0x9100;
const SAVED_IDT: u64 = 0x9110;
const REAL_IDT: u64 = 0x9120;
const CR3: u64 = 0x9130;
const CR4: u64 = 0x9138;
/// Not 0: the 32-bit code executes INT with its stack on a device.
const STACK_ON_DEVICE: u64 = 0x9148;
const ONLY_FIRMWARE: u64 = 0x9160;

/// Results, by their place.
mod result {
    pub const VENDOR_32: u64 = 0;
    pub const IO_APIC_32: u64 = 4;
    pub const PORT_32: u64 = 8;
    pub const STRING_32: u64 = 12;
    pub const CR_32: u64 = 16;
    pub const FRAME_32: u64 = 0x14;
    pub const STACK_32: u64 = 0x18;
    pub const BACK_32: u64 = 0x1c;
    pub const SIGNATURE: u64 = 0x20;
    pub const SOFTWARE_INTERRUPT: u64 = 0x24;
    pub const STRING: u64 = 0x28;
    pub const PORT: u64 = 0x2c;
    pub const INTERRUPTS: u64 = 0x30;
    pub const IO_APIC: u64 = 0x34;
    pub const SERVICE_FAILED: u64 = 0x38;
    pub const BYTES: u64 = 0x80;
}

// Down from 64-bit mode, first to protected mode, then to real mode, some instructions that exit in each, and back up.
// It runs at LOW, so that addresses are computed from its own beginning.
global_asm!(
    ".pushsection .rodata",
    ".globl low_begin, low_end",
    "low_begin:",
    ".code64",
    "mov [0x9100], rsp",
    "sidt [0x9110]",
    "push 0x18",
    "push offset at_32",
    "retfq",
    //
    ".code32",
    "low_32:",
    "mov eax, 0x10",
    "mov ds, eax",
    "mov es, eax",
    "mov ss, eax",
    "mov esp, 0x7000",
    "mov eax, cr0",
    "and eax, 0x7fffffff",
    "mov cr0, eax", // paging off
    "mov ecx, 0xc0000080",
    "rdmsr",
    "and eax, 0xfffffeff",
    "wrmsr", // long mode off
    "mov eax, [0x9130]",
    "test eax, eax",
    "jz 2f",
    "mov ecx, [0x9138]",
    "mov cr4, ecx",
    "mov cr3, eax",
    "mov eax, cr0",
    "or eax, 0x80000000",
    "mov cr0, eax", // paging of another kind
    "2:",
    "call low_payload_32",
    "mov eax, cr0",
    "and eax, 0x7fffffff",
    "mov cr0, eax",
    ".byte 0xea; .long 0x8000 + (low_16 - low_begin); .word 0x20",
    //
    "low_payload_32:",
    "mov eax, 0x12345678",
    "mov dx, 0x80",
    "out dx, eax",
    "xor eax, eax",
    "cpuid",
    "mov [0x9000], ebx",
    "mov ebx, 0xfec00000",
    "mov dword ptr [ebx], 1",
    "mov eax, [ebx + 0x10]",
    "mov [0x9004], eax",
    "mov edx, 0x5678",
    "xor eax, eax",
    "in al, dx",
    "mov [0x9008], eax",
    "mov edi, 0x9080",
    "mov ecx, 3",
    "cld",
    "rep insb",
    "mov [0x900c], ecx",
    "mov eax, cr0",
    "mov [0x9010], eax",
    "cmp dword ptr [0x9148], 0",
    "jz 3f",
    // A software interrupt whose frame goes to the local APIC. Its register at 0x380 gets what lies lowest, EIP.
    "mov word ptr [0x9150], 0x1ff",
    "mov dword ptr [0x9152], 0x9200",
    "lidt [0x9150]",
    "mov word ptr [0x9200 + 8 * 0x30], offset at_device_interrupt",
    "mov word ptr [0x9202 + 8 * 0x30], 0x18",
    "mov dword ptr [0x9204 + 8 * 0x30], 0x8e00",
    "mov dword ptr [0xfee00320], 0x10000",
    "mov dword ptr [0x901c], offset at_device_back",
    "mov esi, esp",
    "mov esp, 0xfee0038c",
    "int 0x30",
    "low_device_back:",
    "low_device_interrupt:",
    "mov eax, [0xfee00380]",
    "mov [0x9014], eax",
    "mov [0x9018], esp",
    "mov dword ptr [0xfee00380], 0",
    "mov esp, esi",
    "3: ret",
    //
    ".code16",
    "low_16:",
    "mov ax, 0x28",
    "mov es, ax",
    "mov ss, ax",
    "mov ax, 0x10", // with this limit real mode reaches 4 GiB through DS
    "mov ds, ax",
    "mov eax, cr0",
    "and al, 0xfe",
    "mov cr0, eax",
    ".byte 0xea; .word low_real - low_begin; .word 0x800",
    "low_real:",
    "xor ax, ax",
    "mov ds, ax",
    "mov es, ax",
    "mov ss, ax",
    "mov sp, 0x7000",
    "lidt [0x9120]",
    "cmp dword ptr [0x9160], 0",
    "jne low_firmware",
    "mov ebx, 0xfec00000",
    "mov dword ptr [ebx], 1",
    "mov eax, [ebx + 0x10]",
    "mov [0x9034], eax",
    "xor eax, eax",
    "cpuid",
    "mov [0x9020], ebx",
    // A software interrupt and a hardware interrupt, through the real-mode table.
    "mov word ptr [0x80 * 4], offset in_software",
    "mov word ptr [0x80 * 4 + 2], 0x800",
    "mov word ptr [0x20 * 4], offset in_timer",
    "mov word ptr [0x20 * 4 + 2], 0x800",
    "mov cx, 0",
    "int 0x80",
    "mov [0x9024], cx",
    "mov cx, 5",
    "3:",
    "mov al, 0x30",
    "out 0x43, al",
    "mov al, 0",
    "out 0x40, al",
    "mov al, 8",
    "out 0x40, al",
    "mov ax, [0x9030]",
    "4: sti",
    "hlt",
    "cli",
    "cmp ax, [0x9030]",
    "je 4b",
    "loop 3b",
    // String output, and a port read.
    "mov ax, 0x800",
    "mov ds, ax",
    "mov si, offset in_text",
    "mov cx, 4",
    "mov dx, 0x3ff",
    "cld",
    "rep outsb",
    "in al, dx",
    "xor bx, bx",
    "mov ds, bx",
    "mov [0x9028], cx",
    "mov [0x902c], al",
    // And back: protected mode, paging, long mode.
    "low_back:",
    "mov eax, cr0",
    "or al, 1",
    "mov cr0, eax",
    ".byte 0x66, 0xea; .long 0x8000 + (low_up - low_begin); .word 0x18",
    "low_software:",
    "mov cx, 0x4321",
    "iret",
    "low_timer:",
    "push ax",
    "inc word ptr [0x9030]",
    "mov al, 0x20",
    "out 0x20, al",
    "pop ax",
    "iret",
    "low_text: .ascii \"real\"",
    // What firmware left: its timer's interrupts, and a service that is not there.
    "low_firmware:",
    "mov cx, 3",
    "5: sti",
    "hlt",
    "cli",
    "loop 5b",
    "mov ah, 0x88",
    "clc",
    "int 0x15",
    "mov al, 0",
    "adc al, 0",
    "mov [0x9038], al",
    "jmp low_back",
    //
    ".code32",
    "low_up:",
    "mov eax, 0x10",
    "mov ds, eax",
    "mov es, eax",
    "mov ss, eax",
    "mov eax, [0x9138 + 8]",
    "mov cr4, eax",
    "mov eax, offset boot_pml4",
    "mov cr3, eax",
    "mov ecx, 0xc0000080",
    "rdmsr",
    "or eax, 0x100",
    "wrmsr",
    "mov eax, cr0",
    "or eax, 0x80000000",
    "mov cr0, eax",
    ".byte 0xea; .long 0x8000 + (low_64 - low_begin); .word 8",
    ".code64",
    "low_64:",
    "mov rsp, [0x9100]",
    "lidt [0x9110]",
    "ret",
    "low_end:",
    ".set at_32, 0x8000 + low_32 - low_begin",
    ".set at_device_interrupt, 0x8000 + low_device_interrupt - low_begin",
    ".set at_device_back, 0x8000 + low_device_back - low_begin",
    ".set in_software, low_software - low_begin",
    ".set in_timer, low_timer - low_begin",
    ".set in_text, low_text - low_begin",
    ".popsection",
);

extern "C" {
    static low_begin: u8;
    static low_end: u8;
    static boot_pd: [u64; 2048];
}

fn poke(at: u64, value: u64) {
    // SAFETY: low memory is ours.
    unsafe { (at as *mut u64).write_volatile(value) };
}

fn read_cr4() -> u64 {
    let value;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, cr4", out(reg) value) };
    value
}

/// Goes down and up, in protected mode with these tables and CR4 (none: without paging).
fn go_down_and_up(tables: Option<(u64, u64)>) {
    poke(STACK_ON_DEVICE, 0);
    go(tables);
}

fn go(tables: Option<(u64, u64)>) {
    pic_on(0x20);
    outb(0x21, 0xfe);
    down_and_up(tables, false);
    pic_mask_all();
}

/// The same with the interrupts as they are. In real mode it may see what firmware left, and no more.
fn down_and_up(tables: Option<(u64, u64)>, only_firmware: bool) {
    let (cr3, cr4) = tables.unwrap_or((0, 0));
    // SAFETY: low memory is ours; the code comes back in the mode it left, with all callee-saved registers as they were.
    unsafe {
        let (begin, end) = (&raw const low_begin, &raw const low_end);
        core::ptr::copy_nonoverlapping(begin, LOW as *mut u8, end as usize - begin as usize);
        core::ptr::write_bytes(RESULTS as *mut u8, 0, 0x100);
        poke(SAVED_RSP, 0);
        poke(SAVED_IDT, 0);
        // The real-mode interrupt table: at 0, 0x400 bytes.
        poke(REAL_IDT, 0x3ff);
        poke(CR3, cr3);
        poke(CR4, cr4);
        poke(CR4 + 8, read_cr4());
        poke(ONLY_FIRMWARE, only_firmware.into());
        asm!(
            "push rbx", "push rbp", "call {}", "pop rbp", "pop rbx",
            in(reg) LOW, out("rax") _, out("rcx") _, out("rdx") _, out("rsi") _, out("rdi") _,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _, out("r12") _, out("r13") _, out("r14") _, out("r15") _,
        );
    }
}

fn result(offset: u64) -> u32 {
    // SAFETY: low memory is ours.
    unsafe { ((RESULTS + offset) as *const u32).read_volatile() }
}

fn real_mode() -> Outcome {
    go_down_and_up(None);
    check_eq!(result(result::SIGNATURE), cpuid(0, 0)[1], "CPUID");
    check_eq!(
        result(result::SOFTWARE_INTERRUPT),
        0x4321,
        "a software interrupt"
    );
    check_eq!(result(result::STRING), 0, "string output ends");
    check_eq!(
        result(result::PORT),
        u32::from(b'l'),
        "what string output wrote"
    );
    Ok(())
}

fn real_mode_interrupts() -> Outcome {
    go_down_and_up(None);
    check_eq!(result(result::INTERRUPTS), 5);
    Ok(())
}

/// The PIC pair, the timer and the interrupt vector table, before anybody has programmed them; but that we masked the pair.
fn as_firmware_leaves_it() -> Outcome {
    // SAFETY: the BIOS data area.
    let ticks = || unsafe { (0x46c as *const u32).read_volatile() };
    let before = ticks();
    outb(0x21, 0xfa);
    poke(STACK_ON_DEVICE, 0);
    down_and_up(None, true);
    pic_mask_all();
    check!(ticks() >= before + 3, "HLT woke three times");
    check_eq!(result(result::SERVICE_FAILED) & 0xff, 1, "carry");
    Ok(())
}

/// With a segment limit from protected mode, real mode reaches devices.
fn real_mode_devices() -> Outcome {
    go_down_and_up(None);
    check_eq!(result(result::IO_APIC) >> 16 & 0xff, 23);
    Ok(())
}

/// Those of the modes that leave this one altogether.
pub fn go_through() -> Outcome {
    real_mode()?;
    real_mode_interrupts()?;
    paging_with_pae()
}

fn check_32() -> Outcome {
    check_eq!(result(result::VENDOR_32), cpuid(0, 0)[1], "CPUID");
    check_eq!(result(result::IO_APIC_32) >> 16 & 0xff, 23, "a device");
    check_eq!(result(result::PORT_32), 0xff, "a port");
    check_eq!(
        (result(result::STRING_32), result(result::BYTES)),
        (0, 0x00ff_ffff),
        "string input"
    );
    Ok(())
}

fn protected_mode() -> Outcome {
    go_down_and_up(None);
    check_32()?;
    check_eq!(result(result::CR_32) >> 31, 0, "paging is off");
    Ok(())
}

fn interrupt_frame_in_protected_mode() -> Outcome {
    poke(STACK_ON_DEVICE, 1);
    go(None);
    check_eq!(result(result::STACK_32), 0xfee0_0380, "ESP");
    check_eq!(result(result::FRAME_32), result(result::BACK_32), "EIP");
    Ok(())
}

/// Two levels, 4 MiB pages.
fn paging_with_32_bit_entries() -> Outcome {
    const PAE: u64 = 1 << 5;
    const PSE: u64 = 1 << 4;
    let directory = paging::frame()?;
    for n in 0..1024u32 {
        // SAFETY: our frame.
        unsafe {
            (directory as *mut u32)
                .add(n as usize)
                .write_volatile(n << 22 | 0x83)
        };
    }
    go_down_and_up(Some((directory, read_cr4() & !PAE | PSE)));
    check_32()?;
    check_eq!(result(result::CR_32) >> 31, 1, "paging is on");
    Ok(())
}

/// Three levels, 2 MiB pages.
fn paging_with_pae() -> Outcome {
    /// The four entries of the highest table.
    #[repr(align(32))]
    struct Pointers(UnsafeCell<[u64; 4]>);
    // SAFETY: only the first CPU does tests.
    unsafe impl Sync for Pointers {}
    static POINTERS: Pointers = Pointers(UnsafeCell::new([0; 4]));
    let pointers = POINTERS.0.get() as u64;
    let directories = (&raw const boot_pd) as u64;
    (0..4).for_each(|n| poke(pointers + 8 * n, (directories + 4096 * n) | 1));
    go_down_and_up(Some((pointers, read_cr4())));
    check_32()?;
    check_eq!(result(result::CR_32) >> 31, 1, "paging is on");
    Ok(())
}

// 32-bit code in long mode, called with the stack below 4 GiB: EAX is CPUID's vendor, EDX what a device says.
global_asm!(
    ".pushsection .text",
    ".globl compatible",
    "compatible:",
    "push rbx",
    "push rbp",
    "push 0x18",
    "push offset compatible_32",
    "retfq",
    ".code32",
    "compatible_32:",
    "xor eax, eax",
    "cpuid",
    "mov esi, ebx",
    "mov ebx, 0xfec00000",
    "mov dword ptr [ebx], 1",
    "mov edx, [ebx + 0x10]",
    "mov eax, esi",
    ".byte 0xea",
    ".long compatible_64",
    ".word 8",
    ".code64",
    "compatible_64:",
    "pop rbp",
    "pop rbx",
    "ret",
    ".popsection",
);

extern "C" {
    static compatible: u8;
}

fn compatibility_mode() -> Outcome {
    let (vendor, device): (u32, u32);
    // SAFETY: keeps RBX and RBP; 32-bit code leaves the upper halves of the others undefined.
    unsafe {
        asm!(
            "call {}", in(reg) (&raw const compatible) as u64,
            out("eax") vendor, out("rcx") _, out("edx") device, out("rsi") _, out("rdi") _, out("r8") _, out("r9") _,
            out("r10") _, out("r11") _, out("r12") _, out("r13") _, out("r14") _, out("r15") _,
        )
    };
    check_eq!(vendor, cpuid(0, 0)[1]);
    check_eq!(device >> 16 & 0xff, 23, "the I/O APIC, by 32-bit code");
    Ok(())
}
