// SPDX-License-Identifier: MIT OR Apache-2.0
//! Exceptions and interrupts: all 256 vectors, on a stack of their own, with a way to expect a fault and go on.

use crate::println;
use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// What the processor pushed, below what the stub did.
#[repr(C)]
pub struct Frame {
    pub gprs: [u64; 15],
    pub vector: u64,
    pub error: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

/// A fault that was expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    pub vector: u64,
    pub error: u64,
    pub cr2: u64,
    /// Where.
    pub rip: u64,
}

static RECOVER_RIP: AtomicU64 = AtomicU64::new(0);
static LAST: [AtomicU64; 4] = [const { AtomicU64::new(0) }; 4];
/// How often each vector came.
static COUNT: [AtomicU32; 256] = [const { AtomicU32::new(0) }; 256];
/// Called for each interrupt, to end it at its controller.
static END: AtomicU64 = AtomicU64::new(0);

global_asm!(
    ".globl trap_stubs, trap_idt, trap_tss, trap_stack_top",
    ".altmacro",
    ".pushsection .text",
    ".macro stub n",
    ".balign 16",
    ".if (\\n == 8) || ((\\n >= 10) && (\\n <= 14)) || (\\n == 17) || (\\n == 21) || (\\n == 29) || (\\n == 30)",
    ".else",
    "push 0",
    ".endif",
    "push \\n",
    "jmp trap_common",
    ".endm",
    ".balign 16",
    "trap_stubs:",
    ".set i, 0",
    ".rept 256",
    "stub %i",
    ".set i, i + 1",
    ".endr",
    "trap_common:",
    "push rax", "push rcx", "push rdx", "push rbx", "push rbp", "push rsi", "push rdi",
    "push r8", "push r9", "push r10", "push r11", "push r12", "push r13", "push r14", "push r15",
    "cld",
    "mov rdi, rsp",
    "call trap_entry",
    "pop r15", "pop r14", "pop r13", "pop r12", "pop r11", "pop r10", "pop r9", "pop r8",
    "pop rdi", "pop rsi", "pop rbp", "pop rbx", "pop rdx", "pop rcx", "pop rax",
    "add rsp, 16",
    "iretq",
    ".popsection",
    ".pushsection .bss",
    ".balign 4096",
    "trap_idt: .skip 4096",
    "trap_tss: .skip 128",
    ".balign 16",
    ".skip 32768",
    "trap_stack_top:",
    ".popsection",
);

extern "C" {
    static trap_stubs: u8;
    static mut trap_idt: [[u32; 4]; 256];
    static mut trap_tss: [u32; 26];
    static trap_stack_top: u8;
    static mut boot_tss_descriptor: [u64; 2];
}

#[no_mangle]
extern "C" fn trap_entry(frame: &mut Frame) {
    let vector = frame.vector as usize & 255;
    COUNT[vector].fetch_add(1, Ordering::Relaxed);
    if vector >= 32 {
        if let Some(slot) = ORDER.get(NEXT.fetch_add(1, Ordering::Relaxed) as usize) {
            slot.store(vector as u32, Ordering::Relaxed);
        }
        let end = END.load(Ordering::Relaxed);
        if end != 0 {
            // SAFETY: only `on_interrupt` stores here.
            unsafe { core::mem::transmute::<u64, fn(u8)>(end)(vector as u8) };
        }
        return;
    }
    let cr2: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, cr2", out(reg) cr2, options(nomem, nostack)) };
    for (slot, value) in LAST.iter().zip([frame.vector, frame.error, cr2, frame.rip]) {
        slot.store(value, Ordering::Relaxed);
    }
    match RECOVER_RIP.swap(0, Ordering::Relaxed) {
        0 if vector == 1 || vector == 3 || vector == 2 => {}
        0 => {
            println!(
                "unexpected exception {vector} error {:#x} rip {:#x} cr2 {cr2:#x}",
                frame.error, frame.rip
            );
            crate::io::exit(100 + vector as u32);
        }
        rip => frame.rip = rip,
    }
}

/// Sets `f` to be called for each interrupt.
pub fn on_interrupt(f: fn(u8)) {
    END.store(f as usize as u64, Ordering::Relaxed);
}
/// How often `vector` came since it was last asked for.
pub fn count(vector: u8) -> u32 {
    COUNT[usize::from(vector)].load(Ordering::Relaxed)
}
/// Where that count lies.
pub fn count_address(vector: u8) -> u64 {
    COUNT[usize::from(vector)].as_ptr() as u64
}
/// Forgets all counts.
pub fn reset_counts() {
    COUNT
        .iter()
        .for_each(|count| count.store(0, Ordering::Relaxed));
}
static ORDER: [AtomicU32; 3] = [const { AtomicU32::new(0) }; 3];
static NEXT: AtomicU32 = AtomicU32::new(1 << 30);

/// Notes which three interrupts come next.
pub fn record_order() {
    NEXT.store(0, Ordering::Relaxed);
}
/// The three that came.
pub fn order() -> [u32; 3] {
    [0, 1, 2].map(|i: usize| ORDER[i].load(Ordering::Relaxed))
}

/// The last exception.
pub fn last() -> Fault {
    let [vector, error, cr2, rip] = [0, 1, 2, 3].map(|i: usize| LAST[i].load(Ordering::Relaxed));
    Fault {
        vector,
        error,
        cr2,
        rip,
    }
}
/// Where the next fault is to go on; used by [`crate::fault`].
pub fn recover_slot() -> *mut u64 {
    LAST[0].store(u64::MAX, Ordering::Relaxed);
    RECOVER_RIP.as_ptr()
}
/// The expected fault, or `None` if there was none.
pub fn caught() -> Option<Fault> {
    RECOVER_RIP.store(0, Ordering::Relaxed);
    Some(last()).filter(|fault| fault.vector != u64::MAX)
}

/// Runs instructions that may fault: gives the [`Fault`], or `None`.
#[macro_export]
macro_rules! fault {
    ($instructions:literal $(, $($operand:tt)*)?) => {{
        let slot = $crate::trap::recover_slot();
        // SAFETY: the handler goes on at label 77 and keeps all registers.
        unsafe {
            core::arch::asm!(
                "lea {tmp}, [rip + 77f]",
                "mov [{slot}], {tmp}",
                $instructions,
                "77:",
                slot = in(reg) slot,
                tmp = out(reg) _,
                $($($operand)*)?
            )
        };
        $crate::trap::caught()
    }};
}

/// Loads IDT and TSS; every vector has a stack of its own, so that code compiled with a red zone is safe.
pub fn init() {
    // SAFETY: done once, before anything can interrupt.
    unsafe {
        let stack = (&raw const trap_stack_top) as u64;
        let tss = &raw mut trap_tss;
        (*tss)[9] = stack as u32; // IST1
        (*tss)[10] = (stack >> 32) as u32;
        (*tss)[1] = stack as u32; // RSP0
        (*tss)[2] = (stack >> 32) as u32;
        (*tss)[25] = 104 << 16;
        let base = tss as u64;
        let descriptor = &raw mut boot_tss_descriptor;
        (*descriptor)[0] = 103 | (base & 0xff_ffff) << 16 | 0x89 << 40 | (base >> 24 & 0xff) << 56;
        (*descriptor)[1] = base >> 32;
        let stubs = (&raw const trap_stubs) as u64;
        let idt = &raw mut trap_idt;
        for n in 0..256 {
            let at = stubs + 16 * n as u64;
            (*idt)[n] = [
                (at & 0xffff) as u32 | 8 << 16,
                (at & 0xffff_0000) as u32 | 0xee01,
                (at >> 32) as u32,
                0,
            ];
        }
        let register: [u16; 5] = {
            let base = idt as u64;
            [
                4095,
                base as u16,
                (base >> 16) as u16,
                (base >> 32) as u16,
                (base >> 48) as u16,
            ]
        };
        asm!("lidt [{}]", "mov ax, 0x40", "ltr ax", in(reg) &register, out("ax") _);
    }
}
