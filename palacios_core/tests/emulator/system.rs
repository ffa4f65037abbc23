// SPDX-License-Identifier: MIT OR Apache-2.0
//! A CPU with descriptor tables and a task-state segment in RAM, and its stack in the device.

use super::machine::{Event, TestCpu};
use palacios_core::emulator::{Fault, Step};
use palacios_core::state::*;

pub const RAM: u64 = 0x10_0000;
pub const GDT: u64 = RAM;
pub const LDT: u64 = RAM + 0x400;
pub const IDT: u64 = RAM + 0x1000;
pub const TSS: u64 = RAM + 0x2000;
/// The top of the stack at first.
pub const STACK: u64 = 0xfee0_0800;
/// Tops of the stacks that the task has for levels 0 to 2, and of its first interrupt stack.
pub const INNER: [u64; 3] = [0xfed0_0800, 0xfed1_0800, 0xfed2_0800];
pub const INTERRUPT_STACK: u64 = 0xfed3_0808;

pub const DONE: Result<Step, Fault> = Ok(Step {
    complete: true,
    single_step: false,
});

/// Access bytes of descriptors.
pub const DATA: u8 = 0x92;
pub const CODE: u8 = 0x9a;
pub const CONFORMING: u8 = 0x9e;
pub const TSS_32: u8 = 0x89;
pub const LDT_TYPE: u8 = 0x82;
pub const CALL_GATE: u8 = 0x8c;
pub const INTERRUPT_GATE: u8 = 0x8e;
pub const TRAP_GATE: u8 = 0x8f;
/// The privilege level in an access byte.
pub const fn dpl(level: u8) -> u8 {
    level << 5
}

pub fn gp(code: u32) -> Result<Step, Fault> {
    Err(Exception::general_protection(code).into())
}
pub fn ss(code: u32) -> Result<Step, Fault> {
    Err(Exception::stack(code).into())
}
pub fn np(code: u32) -> Result<Step, Fault> {
    Err(Exception::not_present(code).into())
}
pub fn ts(code: u32) -> Result<Step, Fault> {
    Err(Exception::invalid_tss(code).into())
}
pub fn ud() -> Result<Step, Fault> {
    Err(Exception::INVALID_OPCODE.into())
}

/// A flat descriptor of 4 GiB. 32-bit, or 64-bit if it is code for that.
pub fn flat(access: u8, long: bool) -> u64 {
    let sizes = if long { 0xa } else { 0xc };
    0xf_0000_0000_ffff & 0xffff | u64::from(access) << 40 | 0xf << 48 | sizes << 52
}

/// A descriptor with a base and a limit in bytes.
pub fn descriptor(access: u8, base: u32, limit: u16) -> u64 {
    let base = u64::from(base);
    u64::from(limit) | (base & 0xff_ffff) << 16 | u64::from(access) << 40 | base >> 24 << 56
}

/// A gate of 8 bytes: `parameter` is a call gate's count, or an interrupt gate's stack.
pub fn gate(access: u8, selector: u16, offset: u64, parameter: u8) -> u64 {
    offset & 0xffff
        | u64::from(selector) << 16
        | u64::from(parameter) << 32
        | u64::from(access) << 40
        | (offset & 0xffff_0000) << 32
}

pub struct System {
    pub cpu: TestCpu,
}

/// Selectors of what [`System`] puts into the table, with RPL 0.
pub const CODE_0: u16 = 0x08;
pub const DATA_0: u16 = 0x10;
pub const CODE_3: u16 = 0x18;
pub const DATA_3: u16 = 0x20;
pub const CODE_32: u16 = 0x28;
pub const TASK: u16 = 0x30;
pub const CODE_1: u16 = 0x40;
pub const DATA_1: u16 = 0x48;
/// Free for a test's own.
pub const FREE: u16 = 0x60;

impl System {
    /// 32-bit protected mode at a level.
    pub fn protected(cpl: u8) -> System {
        System::new(TestCpu::protected(RAM, 0x3000), cpl, false)
    }
    /// 64-bit mode at a level.
    pub fn long(cpl: u8) -> System {
        System::new(TestCpu::long(RAM, 0x3000), cpl, true)
    }

    fn new(cpu: TestCpu, cpl: u8, long: bool) -> System {
        let mut system = System { cpu };
        for (selector, access) in [
            (CODE_0, CODE),
            (CODE_3, CODE | dpl(3)),
            (CODE_1, CODE | dpl(1)),
        ] {
            system.describe(selector, flat(access, long));
        }
        for (selector, access) in [
            (DATA_0, DATA),
            (DATA_3, DATA | dpl(3)),
            (DATA_1, DATA | dpl(1)),
        ] {
            system.describe(selector, flat(access, false));
        }
        system.describe(CODE_32, flat(CODE, false));
        system.cpu.gdtr = TableRegister {
            base: GDT,
            limit: 0x3ff,
        };
        system.cpu.idtr = TableRegister {
            base: IDT,
            limit: 0xfff,
        };
        system.fill_task(long);
        system.set_level(cpl, long);
        *system.cpu.reg(Reg::Rsp) = STACK;
        system.cpu.rip = 0x5000;
        system
    }

    fn fill_task(&mut self, long: bool) {
        *self.cpu.segment_mut(Seg::Tr) = Segment {
            selector: TASK,
            base: TSS,
            limit: 0x67,
            attributes: SegmentAttributes(0x8b),
        };
        for (level, pointer) in (0u64..).zip(INNER) {
            self.put(TSS + 4 + 8 * level, &pointer.to_le_bytes());
            if !long {
                let selector = [DATA_0, DATA_1, 0][level as usize] | level as u16;
                self.put(TSS + 8 + 8 * level, &u32::from(selector).to_le_bytes());
            }
        }
        if long {
            self.put(TSS + 0x24, &INTERRUPT_STACK.to_le_bytes());
        }
    }

    /// Sets CS and SS as they are at a level.
    pub fn set_level(&mut self, cpl: u8, long: bool) {
        let (code, data) =
            [(CODE_0, DATA_0), (CODE_1, DATA_1), (0, 0), (CODE_3, DATA_3)][cpl as usize];
        let level = u16::from(cpl);
        let flat = |selector: u16, attributes: u16| Segment {
            selector: selector | level,
            base: 0,
            limit: u32::MAX,
            attributes: SegmentAttributes(attributes | level << 5),
        };
        let code_attributes = if long { 0xa9b } else { 0xc9b };
        *self.cpu.segment_mut(Seg::Cs) = flat(code, code_attributes);
        for seg in [Seg::Ss, Seg::Ds, Seg::Es] {
            *self.cpu.segment_mut(seg) = flat(data, 0xc93);
        }
        self.cpu.cpl = cpl;
    }

    pub fn put(&mut self, at: u64, bytes: &[u8]) {
        self.cpu.at(at, bytes.len()).copy_from_slice(bytes);
    }

    /// Sets an entry of the global table.
    pub fn describe(&mut self, selector: u16, descriptor: u64) {
        self.put(GDT + u64::from(selector & !7), &descriptor.to_le_bytes());
    }
    pub fn described(&mut self, selector: u16) -> u64 {
        let bytes = self.cpu.at(GDT + u64::from(selector & !7), 8);
        u64::from_le_bytes(bytes.try_into().unwrap())
    }

    /// Sets the gate of a vector.
    pub fn set_gate(&mut self, vector: u64, gate: u64) {
        match self.cpu.efer & efer::LMA {
            0 => self.put(IDT + 8 * vector, &gate.to_le_bytes()),
            _ => self.put(IDT + 16 * vector, &gate.to_le_bytes()),
        }
    }

    /// Values of `width` bytes on the device from an address on, the lowest first.
    pub fn store(&mut self, at: u64, width: usize, values: &[u64]) {
        let bytes = values
            .iter()
            .flat_map(|value| value.to_le_bytes().into_iter().take(width));
        let bytes: Vec<u8> = bytes.collect();
        self.cpu.device.extend((at..).zip(bytes));
    }

    /// What the device was written, each as a number with its address.
    pub fn written(&self) -> Vec<(u64, u64)> {
        let writes = self.cpu.log.iter().filter_map(|event| match event {
            Event::Write(at, bytes) => {
                let value = bytes
                    .iter()
                    .rev()
                    .fold(0, |value, byte| value << 8 | u64::from(*byte));
                Some((*at, value))
            }
            _ => None,
        });
        writes.collect()
    }

    pub fn selector(&self, seg: Seg) -> u16 {
        self.cpu.segments[seg as usize].selector
    }
    pub fn rsp(&self) -> u64 {
        self.cpu.gprs[Reg::Rsp]
    }
}
