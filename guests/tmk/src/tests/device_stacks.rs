// SPDX-License-Identifier: MIT OR Apache-2.0
//! A stack, and the frames of interrupts, in a device's memory.

use super::emulated::{scratch, LAPIC, SCRATCH};
use crate::io::mmio_write;
use crate::{apic, check_eq, tests, trap, Outcome};
use core::arch::{asm, global_asm};
use core::cell::UnsafeCell;

tests!(
    stack_on_a_device,
    event_frames_on_a_device,
    nmi_frame_on_a_device
);

/// What the 32-bit code finds, in its order.
const FOUND: usize = 14;

// 32-bit code, whose stack has elements of 4 bytes: the register at 0xfee00380 holds one. RDI points to what it finds.
global_asm!(
    ".pushsection .text",
    ".globl device_stack, device_stack_called",
    "device_stack:",
    "push rbx",
    "push rbp",
    // A test of user code may have left them empty, which only 64-bit code can live with.
    "mov eax, 0x10",
    "mov ds, eax",
    "mov ss, eax",
    "push 0x18",
    "push offset device_stack_32",
    "retfq",
    ".code32",
    "device_stack_32:",
    "mov esi, esp",
    "mov esp, 0xfee00384",
    "push 0x11223344",
    "mov eax, [0xfee00380]",
    "mov [edi], eax",
    "mov [edi + 4], esp",
    "pop dword ptr [edi + 8]",
    "call 2f",
    "device_stack_called:",
    "mov [edi + 12], esp",
    "jmp 3f",
    "2: mov eax, [0xfee00380]",
    "mov [edi + 16], eax",
    "ret",
    "3: mov ebp, 0x55667788",
    "enter 0, 0",
    "mov [edi + 20], ebp",
    "leave",
    "mov [edi + 24], ebp",
    "stc",
    "pushfd",
    "mov eax, [0xfee00380]",
    "mov [edi + 28], eax",
    "clc",
    "popfd",
    "setc [edi + 32]",
    ".byte 0x1e", // PUSH DS, to which assemblers give a prefix that makes it 16 bits wide
    "pop eax",
    "mov [edi + 36], eax",
    "push 0",
    ".byte 0x0f, 0xa1", // POP FS
    "mov [edi + 40], fs",
    "mov [edi + 44], esp",
    // Branches through the register, with the stack in memory again.
    "mov esp, esi",
    "mov dword ptr [0xfee00380], offset device_stack_jumped",
    "mov ebx, 0xfee00380",
    "jmp dword ptr [ebx]",
    "jmp 5f",
    "device_stack_jumped:",
    "mov dword ptr [edi + 48], 1",
    "mov dword ptr [0xfee00380], offset device_stack_last",
    "call dword ptr [ebx]",
    "5: .byte 0xea",
    ".long device_stack_64",
    ".word 8",
    "device_stack_last:",
    "mov dword ptr [edi + 52], 1",
    "ret",
    ".code64",
    "device_stack_64:",
    "pop rbp",
    "pop rbx",
    "ret",
    ".popsection",
);

extern "C" {
    static device_stack: u8;
    static device_stack_called: u8;
}

fn stack_on_a_device() -> Outcome {
    scratch(0);
    static PLACE: StaticCell<[u32; FOUND]> = StaticCell(UnsafeCell::new([0; FOUND]));
    let place = PLACE.0.get();
    // SAFETY: keeps RBX and RBP; 32-bit code leaves the upper halves of the others undefined. The place is its own.
    let found = unsafe {
        place.write([0; FOUND]);
        asm!(
            "call {}", in(reg) (&raw const device_stack) as u64, inout("rdi") place => _,
            out("rax") _, out("rcx") _, out("rdx") _, out("rsi") _, out("r8") _, out("r9") _,
            out("r10") _, out("r11") _, out("r12") _, out("r13") _, out("r14") _, out("r15") _,
        );
        place.read_volatile()
    };
    mmio_write(SCRATCH, 0);
    let (top, below) = (SCRATCH as u32 + 4, SCRATCH as u32);
    check_eq!(
        found[..3],
        [0x1122_3344, below, 0x1122_3344],
        "PUSH and POP"
    );
    let back = (&raw const device_stack_called) as u32;
    check_eq!(found[3..5], [top, back], "CALL and RET");
    check_eq!(found[5..7], [below, 0x5566_7788], "ENTER and LEAVE");
    check_eq!((found[7] & 1, found[8] & 0xff), (1, 1), "PUSHF and POPF");
    check_eq!(
        (found[9] & 0xffff, found[10] & 0xffff),
        (0x10, 0),
        "segments"
    );
    check_eq!(found[11], top, "the stack pointer");
    check_eq!(found[12..], [1, 1], "JMP and CALL through the register");
    Ok(())
}

/// What only the first CPU uses, and its handlers.
struct StaticCell<T>(UnsafeCell<T>);
// SAFETY: only the first CPU does these tests.
unsafe impl<T> Sync for StaticCell<T> {}

// frame_on_device(how): takes an event with its stack where no device answers. Its handler goes back to the caller, with the flags that it
// found in RAX. `how`: 0 is INT, 1 #UD, 2 an interrupt that waits, 3 an NMI.
global_asm!(
    ".pushsection .text",
    ".globl frame_on_device, frame_handler",
    "frame_on_device:",
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "mov [frame_kept_rsp], rsp",
    "mov rsp, 0xd0001000",
    "cmp edi, 1",
    "je 2f",
    "ja 3f",
    "int 0x50",
    "2: ud2",
    "3: cmp edi, 3",
    "je 4f",
    "sti",
    "jmp 5f",
    "4: mov eax, 0xfee00300",
    "mov dword ptr [rax], 0x4400",
    "5: pause",
    "jmp 5b",
    "frame_handler:",
    "mov rsp, [frame_kept_rsp]",
    "pushfq",
    "pop rax",
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
    "frame_kept_rsp: .skip 8",
    ".popsection",
);

extern "C" {
    fn frame_on_device(how: u64) -> u64;
    static frame_handler: u8;
}

/// Calls `f` with a table in which each vector leads to the handler above, on the stack that there is.
fn with_own_gates<R>(f: impl FnOnce() -> R) -> R {
    static GATES: StaticCell<[[u64; 2]; 256]> = StaticCell(UnsafeCell::new([[0; 2]; 256]));
    let handler = (&raw const frame_handler) as u64;
    let gate = handler & 0xffff | 8 << 16 | 0x8e00 << 32 | (handler >> 16 & 0xffff) << 48;
    #[repr(C, packed)]
    struct Register(u16, u64);
    let mut before = Register(0, 0);
    let own = Register(0xfff, GATES.0.get() as u64);
    // SAFETY: nothing but the tests' events comes meanwhile, and the table before is put back.
    unsafe {
        GATES.0.get().write([[gate, handler >> 32]; 256]);
        asm!("sidt [{}]", "lidt [{}]", in(reg) &mut before, in(reg) &own);
        let result = f();
        asm!("cli", "lidt [{}]", in(reg) &before);
        result
    }
}

const IF: u64 = 1 << 9;

fn event_frames_on_a_device() -> Outcome {
    apic::on();
    for how in 0..2 {
        // SAFETY: the handler comes back.
        let flags = with_own_gates(|| unsafe { frame_on_device(how) });
        check_eq!(flags & IF, 0);
    }
    for _ in 0..3 {
        // An interrupt waits, and is taken when interrupts are let in.
        // SAFETY: the handler comes back, and keeps interrupts off.
        let flags = with_own_gates(|| {
            apic::self_ipi(0x51);
            // SAFETY: as above.
            unsafe { frame_on_device(2) }
        });
        check_eq!(flags & IF, 0);
        check_eq!(apic::has(apic::ISR, 0x51), true, "it was taken");
        apic::eoi();
    }
    Ok(())
}

/// An NMI whose frame is lost holds others back like any, until the next IRET.
fn nmi_frame_on_a_device() -> Outcome {
    apic::on();
    trap::reset_counts();
    mmio_write(LAPIC + 0x310, apic::id() << 24);
    // SAFETY: the handler comes back.
    with_own_gates(|| unsafe { frame_on_device(3) });
    apic::self_nmi();
    check_eq!(trap::count(2), 0, "one is being handled");
    // SAFETY: goes on behind itself.
    unsafe {
        asm!(
            "mov {t}, rsp", "push 0x10", "push {t}", "pushfq", "push 8", "lea {t}, [rip + 22f]", "push {t}", "iretq", "22:",
            t = out(reg) _
        )
    };
    check_eq!(trap::count(2), 1, "the next comes behind IRET");
    Ok(())
}
