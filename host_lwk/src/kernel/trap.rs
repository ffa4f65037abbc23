// SPDX-License-Identifier: MIT OR Apache-2.0
//! Exceptions and interrupts: the tables of each CPU, the stubs, and what is done.
//!
//! An instruction that may fault by intent has an entry in the section `__ex_table`, and goes on where that says.

use super::apic::{self, ERROR, IPI, SERIAL, SPURIOUS, TIMER};
use super::memory::{is_below_a_stack, Stack};
use super::{cpu, serial_input, stop, thread};
use alloc::boxed::Box;
use core::arch::global_asm;
use palacios_core::alloc_ext::{try_box, NoMemory};
use x86_64::instructions::segmentation::{Segment, CS, DS, ES, SS};
use x86_64::instructions::tables::load_tss;
use x86_64::registers::control::Cr2;
use x86_64::registers::model_specific::Msr;
use x86_64::structures::gdt::{Descriptor, GlobalDescriptorTable, SegmentSelector};
use x86_64::structures::idt::{Entry, InterruptDescriptorTable};
use x86_64::structures::tss::TaskStateSegment;
use x86_64::VirtAddr;

const DEBUG: u64 = 1;
const NMI: u64 = 2;
const DOUBLE_FAULT: u64 = 8;
const MACHINE_CHECK: u64 = 18;
/// Those that need a stack that is surely there, with its place in the task state segment.
const OWN_STACK: [(u64, u16); 3] = [(DOUBLE_FAULT, 0), (NMI, 1), (MACHINE_CHECK, 2)];

/// What the processor and the stubs leave on the stack.
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
    vector: u64,
    error: u64,
    /// Where it happened.
    pub rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

/// A CPU's descriptor tables.
pub struct Tables {
    gdt: Box<GlobalDescriptorTable>,
    idt: Box<InterruptDescriptorTable>,
    tss: Box<TaskStateSegment>,
}

impl Tables {
    /// Tables for one CPU.
    pub fn new() -> Result<Self, NoMemory> {
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
    pub unsafe fn load(&'static mut self) {
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

/// The code segment: the first that [`Tables::load`] makes.
const CODE: SegmentSelector = SegmentSelector(8);

extern "C" {
    static trap_stubs: u8;
    static ex_table_begin: Fixup;
    static ex_table_end: Fixup;
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

/// An entry of `__ex_table`: where a fault may happen and where it goes on, both relative to their own place.
#[repr(C)]
struct Fixup {
    at: i32,
    to: i32,
    kind: i32,
}

/// Where an instruction that faulted goes on, if it may fault.
fn fixup(rip: u64) -> Option<u64> {
    let (begin, end) = (&raw const ex_table_begin, &raw const ex_table_end);
    let count = (end as usize - begin as usize) / size_of::<Fixup>();
    // SAFETY: the linker script puts the entries there, one after the other.
    let all = unsafe { core::slice::from_raw_parts(begin, count) };
    let place = |field: &i32| (field as *const i32 as u64).wrapping_add_signed((*field).into());
    all.iter()
        .find(|entry| place(&entry.at) == rip)
        .map(|entry| place(&entry.to))
}

/// # Safety
/// For the stubs.
unsafe extern "C" fn trap(frame: &mut Frame) {
    match frame.vector {
        vector @ 0..32 => exception(vector, frame),
        vector => interrupt(vector as u8),
    }
}

fn interrupt(vector: u8) {
    let cpu = cpu::current();
    match vector {
        // It is no interrupt, so it has no end (SDM 3A: 11.9).
        SPURIOUS => return,
        IPI => {
            cpu::take_call(cpu);
            thread::interrupted(cpu);
        }
        TIMER => thread::timer_fired(cpu),
        SERIAL => serial_input::interrupted(),
        ERROR => crate::log!("CPU {}: an error of the local APIC", cpu.id),
        _ => crate::log!("CPU {}: interrupt {vector:#x} is nobody's", cpu.id),
    }
    apic::local(apic::LocalApic::end_of_interrupt);
    thread::preempt();
}

fn exception(vector: u64, frame: &mut Frame) {
    match vector {
        NMI if stop::going_down() => stop::halt(),
        // An NMI in a guest is handed on to here; nobody sends one but in a panic.
        NMI => return,
        MACHINE_CHECK if !machine_check_is_on() => return,
        DEBUG => {}
        _ => {
            if let Some(to) = fixup(frame.rip) {
                frame.rip = to;
                return;
            }
        }
    }
    let cr2 = Cr2::read_raw();
    let name = NAMES
        .get(vector as usize)
        .copied()
        .unwrap_or("an exception");
    let why = match vector {
        DOUBLE_FAULT if is_below_a_stack(cr2) => " (stack overflow)",
        _ => "",
    };
    let error = frame.error;
    super::panic::die(
        frame.rbp,
        Some(frame.rip),
        format_args!("{name}{why}, error {error:#x}, cr2 {cr2:#x}, {frame:x?}"),
    )
}

/// IA32_MCG_STATUS.MCIP: there is one now (SDM 3B: 16.3.1.2).
fn machine_check_is_on() -> bool {
    // SAFETY: every CPU with virtualization has it.
    unsafe { Msr::new(0x17a).read() & 4 != 0 }
}

const NAMES: [&str; 20] = [
    "#DE, division",
    "#DB, debug",
    "NMI",
    "#BP, breakpoint",
    "#OF, overflow",
    "#BR, bound",
    "#UD, undefined instruction",
    "#NM, no FPU",
    "#DF, double fault",
    "vector 9",
    "#TS, task segment",
    "#NP, segment not present",
    "#SS, stack segment",
    "#GP, general protection",
    "#PF, page fault",
    "vector 15",
    "#MF, x87",
    "#AC, alignment",
    "#MC, machine check",
    "#XM, SIMD",
];
