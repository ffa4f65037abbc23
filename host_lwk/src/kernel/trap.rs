// SPDX-License-Identifier: MIT OR Apache-2.0
//! Traps: the descriptor tables of each CPU, the stubs, the numbers of the vectors, and which function is called for each.
//!
//! Exceptions go to `fault.rs`. An interrupt goes to the function that was registered for its vector; then the local APIC is
//! told that it was taken, and then another thread may take the CPU. This file knows none of the handlers: the file that has one
//! registers it, and each of [`vectors`] names that file.
//!
//! To add an interrupt: its vector here; its handler where its work is; and there a call of [`register`], before it can come.

use super::cpu;
use super::fault::{self, DOUBLE_FAULT, MACHINE_CHECK, NMI};
use super::frame::Frame;
use super::memory::Stack;
use super::per_cpu::PerCpu;
use super::sync::Hook;
use crate::log;
use alloc::boxed::Box;
use core::arch::global_asm;
use core::cell::UnsafeCell;
use palacios_core::alloc_ext::{try_box, NoMemory};
use x86_64::instructions::segmentation::{Segment, CS, DS, ES, SS};
use x86_64::instructions::tables::load_tss;
use x86_64::structures::gdt::{Descriptor, GlobalDescriptorTable, SegmentSelector};
use x86_64::structures::idt::{Entry, InterruptDescriptorTable};
use x86_64::structures::tss::TaskStateSegment;
use x86_64::VirtAddr;

/// The vectors of interrupts. All are here, so that no two are alike. Lower ones are the processor's own, or nobody's.
pub mod vectors {
    /// Something came in at a serial port: `serial_input.rs`.
    pub const SERIAL: u8 = 0xe0;
    /// From another CPU: a thread became ready here, or the thread that runs is to leave its guest: `thread/scheduler.rs`.
    pub const RESCHEDULE: u8 = 0xf0;
    /// The CPU's timer: `thread/alarms.rs`.
    pub const TIMER: u8 = 0xf1;
    /// An error of the local APIC: `apic.rs`.
    pub const ERROR: u8 = 0xf2;
    /// From another CPU: call a function: `calls.rs`.
    pub const CALL: u8 = 0xf3;
    /// An interrupt that went away again. It has no handler.
    pub const SPURIOUS: u8 = 0xff;
}

/// The handler of each vector.
static HANDLERS: [Hook; 256] = [const { Hook::new() }; 256];
/// After the handler: tells the interrupt controller that the interrupt was taken. Of `apic.rs`.
static END_OF_INTERRUPT: Hook = Hook::new();
/// After that: lets another thread have the CPU, if one is to. Of `thread/scheduler.rs`.
static PREEMPT: Hook = Hook::new();

/// Has the interrupts of a vector call `handler`, with interrupts off.
pub fn register(vector: u8, handler: fn()) {
    if let Some(hook) = HANDLERS.get(usize::from(vector)) {
        hook.set(handler);
    }
}

/// Has `f` tell the interrupt controller that an interrupt was taken.
pub fn register_end_of_interrupt(f: fn()) {
    END_OF_INTERRUPT.set(f);
}

/// Has `f` let another thread have the CPU at the end of an interrupt; it may return much later.
pub fn register_preempt(f: fn()) {
    PREEMPT.set(f);
}

/// The exceptions that need a stack that is surely there, each with its place in the task state segment.
const OWN_STACK: [(u64, u16); 3] = [(DOUBLE_FAULT, 0), (NMI, 1), (MACHINE_CHECK, 2)];

/// A CPU's descriptor tables.
struct Tables {
    gdt: Box<GlobalDescriptorTable>,
    idt: Box<InterruptDescriptorTable>,
    tss: Box<TaskStateSegment>,
}

impl Tables {
    /// Tables for one CPU.
    fn new() -> Result<Self, NoMemory> {
        let mut tss = try_box(TaskStateSegment::new())?;
        let mut stacks = tss.interrupt_stack_table;
        for (slot, _) in stacks.iter_mut().zip(OWN_STACK) {
            // It stays as long as the CPU.
            *slot = VirtAddr::new(core::mem::ManuallyDrop::new(Stack::new()?).top());
        }
        tss.interrupt_stack_table = stacks;
        let mut idt = try_box(InterruptDescriptorTable::new())?;
        let entries = (&raw mut *idt).cast::<Entry<extern "C" fn()>>();
        for vector in 0..256 {
            let stub = &raw const trap_stubs as u64 + vector * 16;
            // SAFETY: the table is an array of 256 entries, and each stub is 16 bytes long.
            unsafe {
                let mut entry = Entry::missing();
                let options = entry.set_handler_addr(VirtAddr::new(stub));
                options.set_code_selector(CODE);
                if let Some((_, stack)) = OWN_STACK.iter().find(|(own, _)| *own == vector) {
                    options.set_stack_index(*stack);
                }
                entries.add(vector as usize).write(entry);
            }
        }
        let gdt = try_box(GlobalDescriptorTable::new())?;
        Ok(Self { gdt, idt, tss })
    }

    /// Makes them those of the CPU this runs on.
    ///
    /// # Safety
    /// Once; they are never freed.
    unsafe fn load(&'static mut self) {
        let code = self.gdt.append(Descriptor::kernel_code_segment());
        let data = self.gdt.append(Descriptor::kernel_data_segment());
        let task = self.gdt.append(Descriptor::tss_segment(&self.tss));
        self.gdt.load();
        // SAFETY: the segments are those of the table.
        unsafe {
            CS::set_reg(code);
            SS::set_reg(data);
            // Of no use in 64-bit mode; a VT-x host leaves a guest with them null.
            DS::set_reg(SegmentSelector::NULL);
            ES::set_reg(SegmentSelector::NULL);
            load_tss(task);
        }
        self.idt.load();
    }
}

/// The tables of each CPU; the processor reads them, and once they are loaded nobody else does.
static TABLES: PerCpu<Slot> = PerCpu::new();

struct Slot(UnsafeCell<Tables>);

// SAFETY: only the CPU that it belongs to takes a reference to what is in it, and once, in `load`.
unsafe impl Sync for Slot {}
// SAFETY: tables belong to no thread.
unsafe impl Send for Slot {}

/// Makes the descriptor tables of all CPUs.
///
/// # Safety
/// Once, while only the first CPU runs.
pub unsafe fn init(cpus: u32) -> Result<(), NoMemory> {
    // SAFETY: the same contract.
    unsafe { TABLES.fill(cpus, |_| Ok(Slot(UnsafeCell::new(Tables::new()?)))) }
}

/// Loads the tables of the CPU that this runs on, which takes traps from now on.
///
/// # Safety
/// Once on each CPU, after [`init`].
pub unsafe fn load() {
    // SAFETY: by the contract above nobody else refers to them, now or later; they are never freed.
    unsafe { (*TABLES.current().0.get()).load() };
}

/// The code segment: the first that [`Tables::load`] makes.
const CODE: SegmentSelector = SegmentSelector(8);

extern "C" {
    static trap_stubs: u8;
}

global_asm!(
    ".balign 16",
    ".globl trap_stubs",
    "trap_stubs:",
    ".set vector, 0",
    ".rept 256",
    ".balign 16",
    // These bring an error code (SDM 3A: 6.15).
    ".if vector - 8 && vector - 10 && vector - 11 && vector - 12 && vector - 13 && vector - 14 && vector - 17 && vector - 21",
    "push 0",
    ".endif",
    "push vector",
    "jmp trap_common",
    ".set vector, vector + 1",
    ".endr",
    "trap_common:",
    "push rax",
    "push rcx",
    "push rdx",
    "push rsi",
    "push rdi",
    "push r8",
    "push r9",
    "push r10",
    "push r11",
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "cld",
    "mov rdi, rsp",
    "mov rbx, rsp",
    "and rsp, -16",
    "call {trap}",
    "mov rsp, rbx",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "pop r11",
    "pop r10",
    "pop r9",
    "pop r8",
    "pop rdi",
    "pop rsi",
    "pop rdx",
    "pop rcx",
    "pop rax",
    "add rsp, 16",
    "iretq",
    trap = sym trap,
);

/// # Safety
/// For the stubs.
unsafe extern "C" fn trap(frame: &mut Frame) {
    match frame.vector {
        0..32 => fault::exception(frame),
        vector => interrupt(vector as u8),
    }
}

fn interrupt(vector: u8) {
    // It is no interrupt, so it has no end (SDM 3A: 11.9).
    if vector == vectors::SPURIOUS {
        return;
    }
    let handler = HANDLERS.get(usize::from(vector));
    if !handler.is_some_and(Hook::call) {
        log!("CPU {}: interrupt {vector:#x} is nobody's", cpu::current());
    }
    END_OF_INTERRUPT.call();
    PREEMPT.call();
}
