// SPDX-License-Identifier: MIT OR Apache-2.0
//! Exceptions and interrupts: all 256 vectors, on a stack of their own, with a way to expect a fault and go on. Each CPU
//! has its own TSS, stacks and counts; which one a CPU is its task register says.

use crate::{apic, println, user};
use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

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
    /// RFLAGS in its frame.
    pub rflags: u64,
}

/// The vector by which user code ends ([`user::run`]).
pub const USER_END: u8 = 0x2f;
/// The interrupt stacks of the TSS that a test may set.
pub const IST_COUNT: usize = 7;
const IST_OWN: u8 = 1;
/// NMIs come in the middle of any handler, so they have another one, so far below.
const IST_NMI: u8 = 7;
const NMI_STACK_BELOW: u64 = 8192;
const GATE_USER: u32 = 0xee00;

/// The vector that wakes a CPU for work ([`crate::smp`]); it is ended here.
pub const WAKE: u8 = 0xf1;
/// How many CPUs there may be.
pub const CPUS: usize = 64;

/// The traps that a CPU took.
struct TrapRecord {
    recover_rip: AtomicU64,
    last: [AtomicU64; 5],
    last_interrupt: [AtomicU64; 3],
    debug_at: [AtomicU64; 16],
    debug_status: [AtomicU64; 16],
    /// The first interrupts since [`record_order`], and how many came.
    order: [AtomicU32; 16],
    next: AtomicU32,
    /// How often each vector came.
    count: [AtomicU32; 256],
    /// How many of a vector are enough, with the vector in the upper half ([`enough`]).
    enough: AtomicU64,
}

static RECORDS: [TrapRecord; CPUS] = [const {
    TrapRecord {
        recover_rip: AtomicU64::new(0),
        last: [const { AtomicU64::new(0) }; 5],
        last_interrupt: [const { AtomicU64::new(0) }; 3],
        debug_at: [const { AtomicU64::new(0) }; 16],
        debug_status: [const { AtomicU64::new(0) }; 16],
        order: [const { AtomicU32::new(0) }; 16],
        next: AtomicU32::new(1 << 30),
        count: [const { AtomicU32::new(0) }; 256],
        enough: AtomicU64::new(0),
    }
}; CPUS];

/// Called for each interrupt, to end it at its controller.
static END: AtomicU64 = AtomicU64::new(0);

/// Called for each NMI.
static ON_NMI: AtomicU64 = AtomicU64::new(0);

/// The number of the CPU that asks; the first is 0.
pub fn me() -> usize {
    let task: u64;
    // SAFETY: reads a register.
    unsafe { asm!("str {}", out(reg) task, options(nomem, nostack)) };
    (task as usize & 0xfff8).saturating_sub(0x50) / 16
}

/// The selector of a CPU's TSS. Before that of the second one there is a segment that is not present.
const fn tss_selector(cpu: usize) -> u16 {
    match cpu {
        0 => 0x40,
        _ => 0x50 + 16 * cpu as u16,
    }
}

fn seen() -> &'static TrapRecord {
    &RECORDS[me() % CPUS]
}

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
    "trap_tss: .skip 128 * 64",
    ".balign 16",
    ".skip 32768",
    "trap_stack_top:",
    ".popsection",
);

extern "C" {
    static trap_stubs: u8;
    static mut trap_idt: [[u32; 4]; 256];
    static mut trap_tss: [[u32; 32]; CPUS];
    static trap_stack_top: u8;
    static mut boot_gdt: [u64; 10 + 2 * CPUS];
}

#[no_mangle]
extern "C" fn trap_entry(frame: &mut Frame) {
    let vector = frame.vector as u8;
    seen().count[usize::from(vector)].fetch_add(1, Relaxed);
    match vector {
        WAKE => apic::eoi(),
        USER_END | 0..=31 => exception(frame),
        _ => interrupt(frame),
    }
}

fn interrupt(frame: &mut Frame) {
    const IF: u64 = 1 << 9;
    let (vector, seen) = (frame.vector, seen());
    for (slot, value) in seen
        .last_interrupt
        .iter()
        .zip([vector, frame.rip, frame.rcx()])
    {
        slot.store(value, Relaxed);
    }
    if let Some(slot) = seen.order.get(seen.next.fetch_add(1, Relaxed) as usize) {
        slot.store(vector as u32, Relaxed);
    }
    if let Some(end) = handler(&END) {
        // SAFETY: only `on_interrupt` stores here.
        unsafe { core::mem::transmute::<u64, fn(u8)>(end)(vector as u8) };
    }
    let enough = seen.enough.load(Relaxed);
    if enough >> 32 == vector && count(vector as u8) >= enough as u32 {
        frame.rflags &= !IF;
    }
}

fn handler(slot: &AtomicU64) -> Option<u64> {
    Some(slot.load(Relaxed)).filter(|handler| *handler != 0)
}

fn exception(frame: &mut Frame) {
    let cr2: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, cr2", out(reg) cr2, options(nomem, nostack)) };
    let seen = seen();
    let last = [frame.vector, frame.error, cr2, frame.rip, frame.rflags];
    for (slot, value) in seen.last.iter().zip(last) {
        slot.store(value, Relaxed);
    }
    match frame.vector {
        1 => debug(frame, seen),
        2 => nmi(),
        _ => {}
    }
    let returns = [1, 2, 3].contains(&frame.vector);
    match seen.recover_rip.load(Relaxed) {
        _ if user::caught(frame) => {}
        0 if returns => {}
        0 => {
            println!(
                "unexpected exception {} error {:#x} rip {:#x} cr2 {cr2:#x} on CPU {}",
                frame.vector,
                frame.error,
                frame.rip,
                me()
            );
            crate::io::exit(100 + frame.vector as u32);
        }
        rip => {
            seen.recover_rip.store(0, Relaxed);
            frame.rip = rip;
        }
    }
}

fn nmi() {
    if let Some(f) = handler(&ON_NMI) {
        // SAFETY: only `on_nmi` stores here.
        unsafe { core::mem::transmute::<u64, fn()>(f)() };
    }
}

/// Notes where a debug exception came and what DR6 says, and lets the instruction there run when it is gone back to.
fn debug(frame: &mut Frame, seen: &TrapRecord) {
    const RF: u64 = 1 << 16;
    frame.rflags |= RF;
    let dr6: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, dr6", out(reg) dr6, options(nomem, nostack)) };
    let number = seen.count[1].load(Relaxed) as usize - 1;
    for (slots, value) in [(&seen.debug_at, frame.rip), (&seen.debug_status, dr6)] {
        if let Some(slot) = slots.get(number) {
            slot.store(value, Relaxed);
        }
    }
}

/// Where the first debug exceptions came since the counts were forgotten.
pub fn debug_at(n: usize) -> u64 {
    seen().debug_at.get(n).map_or(0, |at| at.load(Relaxed))
}

/// What DR6 said at them.
pub fn debug_status(n: usize) -> u64 {
    let status = seen().debug_status.get(n);
    status.map_or(0, |status| status.load(Relaxed))
}

/// Sets `f` to be called for each interrupt, on the CPU that takes it.
pub fn on_interrupt(f: fn(u8)) {
    END.store(f as usize as u64, Relaxed);
}
/// Sets `f` to be called for each NMI, on the CPU that takes it.
pub fn on_nmi(f: fn()) {
    ON_NMI.store(f as usize as u64, Relaxed);
}
/// How often `vector` came to this CPU since the counts were forgotten.
pub fn count(vector: u8) -> u32 {
    count_of(me(), vector)
}
/// How often it came to another one.
pub fn count_of(cpu: usize, vector: u8) -> u32 {
    RECORDS[cpu].count[usize::from(vector)].load(Relaxed)
}
/// Once `vector` has come to this CPU so often, its handler returns with interrupts off: on a slow machine the next one may
/// be there always, and leave no time to look.
pub fn enough(vector: u8, times: u32) {
    seen()
        .enough
        .store(u64::from(vector) << 32 | u64::from(times), Relaxed);
}
/// Where this CPU's count lies.
pub fn count_address(vector: u8) -> u64 {
    seen().count[usize::from(vector)].as_ptr() as u64
}
/// Forgets all counts, of all CPUs.
pub fn reset_counts() {
    let counts = RECORDS.iter().flat_map(|seen| &seen.count);
    counts.for_each(|count| count.store(0, Relaxed));
}

/// Notes which interrupts come next.
pub fn record_order() {
    seen().next.store(0, Relaxed);
}
/// The first `N` that came; zeros, if fewer did.
pub fn order<const N: usize>() -> [u32; N] {
    let (seen, mut order) = (seen(), [0; N]);
    let came = (seen.next.load(Relaxed) as usize).min(N);
    for (slot, vector) in order.iter_mut().zip(&seen.order).take(came) {
        *slot = vector.load(Relaxed);
    }
    order
}
/// The last interrupt: its vector, where it came back to, and RCX there.
pub fn last_interrupt() -> [u64; 3] {
    [0, 1, 2].map(|i: usize| seen().last_interrupt[i].load(Relaxed))
}

/// The last exception.
pub fn last() -> Fault {
    let [vector, error, cr2, rip, rflags] = seen().last.each_ref().map(|slot| slot.load(Relaxed));
    Fault {
        vector,
        error,
        cr2,
        rip,
        rflags,
    }
}
/// Where the next fault is to go on; used by [`crate::fault`].
pub fn recover_slot() -> *mut u64 {
    seen().last[0].store(u64::MAX, Relaxed);
    seen().recover_rip.as_ptr()
}
/// The expected fault, or `None` if there was none.
pub fn caught() -> Option<Fault> {
    seen().recover_rip.store(0, Relaxed);
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

/// Sets the stack that this CPU's TSS names: 0 for calls from user mode, 1 to 7 for interrupts.
pub fn set_stack(index: usize, top: u64) {
    set_stack_of(me(), index, top);
}

fn set_stack_of(cpu: usize, index: usize, top: u64) {
    // APM 2: figure 12-8: RSP0 at byte 4, IST1 at byte 36.
    let at = if index == 0 { 1 } else { 7 + 2 * index };
    // SAFETY: as above.
    unsafe {
        let tss = &raw mut trap_tss[cpu];
        (&raw mut (*tss)[at]).write_volatile(top as u32);
        (&raw mut (*tss)[at + 1]).write_volatile((top >> 32) as u32);
    }
}

/// All gates, stacks and handlers as a test finds them at its beginning. The other CPUs get theirs when they start.
pub fn restore() {
    END.store(0, Relaxed);
    ON_NMI.store(0, Relaxed);
    let stack = (&raw const trap_stack_top) as u64;
    set_stacks_of(0, stack);
    (0..=255).for_each(|vector| use_stack(vector, IST_OWN));
    use_stack(2, IST_NMI);
}

/// Loads IDT and TSS; every vector has a stack of its own, so that code compiled with a red zone is safe.
pub fn init() {
    restore();
    load(0);
}

/// The same on another CPU, whose traps come on the stack that ends at `stack`.
pub fn init_other(cpu: usize, stack: u64) {
    set_stacks_of(cpu, stack);
    load(cpu);
}

fn set_stacks_of(cpu: usize, top: u64) {
    (0..=IST_COUNT).for_each(|index| set_stack_of(cpu, index, top));
    set_stack_of(cpu, IST_NMI.into(), top - NMI_STACK_BELOW);
}

fn load(cpu: usize) {
    // SAFETY: done once by each CPU, before anything can interrupt.
    unsafe {
        let tss = &raw mut trap_tss[cpu];
        (*tss)[25] = 104 << 16;
        let base = tss as u64;
        let descriptor = (&raw mut boot_gdt[usize::from(tss_selector(cpu) / 8)]).cast::<[u64; 2]>();
        let low = 103 | (base & 0xff_ffff) << 16 | 0x89 << 40 | (base >> 24 & 0xff) << 56;
        descriptor.write_volatile([low, base >> 32]);
    }
    load_idt();
    // SAFETY: the descriptor is in place.
    unsafe { asm!("ltr {:x}", in(reg) tss_selector(cpu)) };
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
