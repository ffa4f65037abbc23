// SPDX-License-Identifier: MIT OR Apache-2.0
//! Exceptions and interrupts: all 256 vectors, on a stack of their own, with a way to expect a fault and go on.

use crate::{println, user};
use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// What the stub pushed, and above it what the processor did.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Frame {
    /// R15 to R8, RDI, RSI, RBP, RBX, RDX, RCX, RAX.
    pub gprs: [u64; 15],
    pub vector: u64,
    pub error: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

impl Frame {
    pub fn rax(&self) -> u64 {
        self.gprs[14]
    }
    pub fn rcx(&self) -> u64 {
        self.gprs[13]
    }
}

/// An exception or interrupt that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    pub vector: u64,
    pub error: u64,
    pub cr2: u64,
    /// Where it came back to.
    pub rip: u64,
}

/// The vector by which user code ends ([`user::run`]).
pub const USER_END: u8 = 0x2f;
/// The interrupt stacks of the TSS that a test may set.
pub const IST_COUNT: usize = 7;
const IST_OWN: u8 = 1;
const GATE_USER: u32 = 0xee00;

static RECOVER_RIP: AtomicU64 = AtomicU64::new(0);
static LAST: [AtomicU64; 4] = [const { AtomicU64::new(0) }; 4];
static LAST_INTERRUPT: [AtomicU64; 3] = [const { AtomicU64::new(0) }; 3];
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
    "mov rbp, rsp",
    "and rsp, -16",
    "call trap_entry",
    "mov rsp, rbp",
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
    if vector >= 32 && vector != usize::from(USER_END) {
        interrupt(frame);
    } else {
        exception(frame);
    }
}

fn interrupt(frame: &Frame) {
    let vector = frame.vector;
    for (slot, value) in LAST_INTERRUPT.iter().zip([vector, frame.rip, frame.rcx()]) {
        slot.store(value, Ordering::Relaxed);
    }
    if let Some(slot) = ORDER.get(NEXT.fetch_add(1, Ordering::Relaxed) as usize) {
        slot.store(vector as u32, Ordering::Relaxed);
    }
    let end = END.load(Ordering::Relaxed);
    if end != 0 {
        // SAFETY: only `on_interrupt` stores here.
        unsafe { core::mem::transmute::<u64, fn(u8)>(end)(vector as u8) };
    }
}

fn exception(frame: &mut Frame) {
    let cr2: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, cr2", out(reg) cr2, options(nomem, nostack)) };
    for (slot, value) in LAST.iter().zip([frame.vector, frame.error, cr2, frame.rip]) {
        slot.store(value, Ordering::Relaxed);
    }
    if frame.vector == 1 {
        debug(frame);
    }
    let returns = [1, 2, 3].contains(&frame.vector);
    match RECOVER_RIP.load(Ordering::Relaxed) {
        _ if user::caught(frame) => {}
        0 if returns => {}
        0 => {
            println!(
                "unexpected exception {} error {:#x} rip {:#x} cr2 {cr2:#x}",
                frame.vector, frame.error, frame.rip
            );
            crate::io::exit(100 + frame.vector as u32);
        }
        rip => {
            RECOVER_RIP.store(0, Ordering::Relaxed);
            frame.rip = rip;
        }
    }
}

/// Notes where a debug exception came, and lets the instruction there run when it is gone back to.
fn debug(frame: &mut Frame) {
    const RF: u64 = 1 << 16;
    frame.rflags |= RF;
    if let Some(slot) = DEBUG_AT.get(COUNT[1].load(Ordering::Relaxed) as usize - 1) {
        slot.store(frame.rip, Ordering::Relaxed);
    }
}
static DEBUG_AT: [AtomicU64; 16] = [const { AtomicU64::new(0) }; 16];

/// Where the first debug exceptions came since the counts were forgotten.
pub fn debug_at(n: usize) -> u64 {
    DEBUG_AT.get(n).map_or(0, |at| at.load(Ordering::Relaxed))
}

/// Sets `f` to be called for each interrupt.
pub fn on_interrupt(f: fn(u8)) {
    END.store(f as usize as u64, Ordering::Relaxed);
}
/// How often `vector` came since the counts were forgotten.
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
/// The last interrupt: its vector, where it came back to, and RCX there.
pub fn last_interrupt() -> [u64; 3] {
    [0, 1, 2].map(|i: usize| LAST_INTERRUPT[i].load(Ordering::Relaxed))
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

/// Has `vector` come on interrupt stack `ist` (1 to 7; 0 stays on the current stack).
pub fn use_stack(vector: u8, ist: u8) {
    // SAFETY: the stubs lie one every 16 bytes.
    let at = unsafe { (&raw const trap_stubs).add(16 * usize::from(vector)) } as u64;
    set_gate(vector, at, ist);
}

/// Has `vector` go to other code: user code may call it too.
pub fn set_gate(vector: u8, handler: u64, ist: u8) {
    let gate = [
        (handler & 0xffff) as u32 | 8 << 16,
        (handler & 0xffff_0000) as u32 | GATE_USER | u32::from(ist),
        (handler >> 32) as u32,
        0,
    ];
    // SAFETY: the table is ours, and nothing interrupts a test that changes it.
    unsafe { (&raw mut trap_idt[usize::from(vector)]).write_volatile(gate) };
}

/// Makes `vector`'s gate one with these type and attribute bits, and stack 1.
pub fn set_gate_kind(vector: u8, kind: u8) {
    // SAFETY: as above.
    unsafe {
        let word = &raw mut trap_idt[usize::from(vector)][1];
        word.write_volatile(word.read_volatile() & 0xffff_00ff | u32::from(kind) << 8);
    }
}

/// Sets the stack that the TSS names: 0 for calls from user mode, 1 to 7 for interrupts.
pub fn set_stack(index: usize, top: u64) {
    // APM 2: figure 12-8: RSP0 at byte 4, IST1 at byte 36.
    let at = if index == 0 { 1 } else { 7 + 2 * index };
    // SAFETY: as above.
    unsafe {
        let tss = &raw mut trap_tss;
        (&raw mut (*tss)[at]).write_volatile(top as u32);
        (&raw mut (*tss)[at + 1]).write_volatile((top >> 32) as u32);
    }
}

/// All gates, stacks and handlers as a test finds them at its beginning.
pub fn restore() {
    END.store(0, Ordering::Relaxed);
    let stack = (&raw const trap_stack_top) as u64;
    (0..=IST_COUNT).for_each(|index| set_stack(index, stack));
    (0..=255).for_each(|vector| use_stack(vector, IST_OWN));
}

/// Loads IDT and TSS; every vector has a stack of its own, so that code compiled with a red zone is safe.
pub fn init() {
    restore();
    // SAFETY: done once, before anything can interrupt.
    unsafe {
        let tss = &raw mut trap_tss;
        (*tss)[25] = 104 << 16;
        let base = tss as u64;
        let descriptor = &raw mut boot_tss_descriptor;
        (*descriptor)[0] = 103 | (base & 0xff_ffff) << 16 | 0x89 << 40 | (base >> 24 & 0xff) << 56;
        (*descriptor)[1] = base >> 32;
    }
    load_idt();
    // SAFETY: the descriptor is in place.
    unsafe { asm!("mov ax, 0x40", "ltr ax", out("ax") _) };
}

/// Loads the IDT register.
pub fn load_idt() {
    let base = (&raw const trap_idt) as u64;
    let register: [u16; 5] = [
        4095,
        base as u16,
        (base >> 16) as u16,
        (base >> 32) as u16,
        (base >> 48) as u16,
    ];
    // SAFETY: the table is complete.
    unsafe { asm!("lidt [{}]", in(reg) &register) };
}
