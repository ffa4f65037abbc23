// SPDX-License-Identifier: MIT OR Apache-2.0
//! Hostile code, registers and page tables. Nothing may panic or touch an address that was not checked, and an
//! instruction that faults must not have happened.
#![forbid(unsafe_code)]

use crate::Target;
use palacios_core::emulator::{self, Fault, Interruption, Source};
use palacios_core::state::{cr0, cr4, efer, rflags, Reg, Seg, SegmentAttributes};

#[allow(dead_code, missing_docs)]
#[path = "../../tests/emulator/machine.rs"]
mod machine;
#[allow(dead_code, missing_docs)]
#[path = "../../tests/emulator/system.rs"]
mod system;
use machine::{Event, TestCpu};
use system::System;

const RAM: u64 = 0x1000;

/// Bits of an input's first byte: 16-bit code where it was 32-bit, or the reverse; valid descriptor tables and a stack on the
/// device; an event is delivered instead of an instruction.
const OTHER_SIZE: u8 = 0x80;
const TABLES: u8 = 0x40;
const EVENT: u8 = 0x20;

/// The target.
pub const TARGET: Target = Target {
    name: "emulator",
    run,
    header_bytes: 12,
    step_bytes: 8,
};

fn run(data: &[u8]) {
    let Some((header, rest)) = data.split_first_chunk::<12>() else {
        return;
    };
    let (code, rest) = rest.split_at(rest.len().min(15));
    let mut cpu = machine(header, rest);
    match header[0] & EVENT {
        0 => execute(&mut cpu, code),
        _ => deliver(&mut cpu, code),
    }
}

fn execute(cpu: &mut TestCpu, code: &[u8]) {
    for _ in 0..4 {
        let before = cpu.clone();
        let result = cpu.run(code);
        let _ = emulator::length_at(cpu);
        let repeated = code.iter().take(14).any(|byte| matches!(byte, 0xf2 | 0xf3));
        match result {
            Ok(_) => cpu.log.clear(),
            Err(Fault::Exception(_)) if !repeated && cpu.dr == before.dr => {
                assert_unchanged(cpu, &before);
                break;
            }
            Err(_) => break,
        }
    }
}

fn deliver(cpu: &mut TestCpu, input: &[u8]) {
    let Some([vector, source, code]) = input.first_chunk() else {
        return;
    };
    let what = Interruption {
        vector: *vector,
        error_code: (code & 1 != 0).then_some((*code).into()),
        source: [Source::Software, Source::Exception, Source::Interrupt][usize::from(source % 3)],
        rip: cpu.rip,
    };
    let before = cpu.clone();
    if let Err(Fault::Exception(_)) = emulator::deliver(cpu, &what) {
        assert_unchanged(cpu, &before);
    }
}

/// A divisor, a selector or a table may have been read from the device; nothing else has happened.
fn assert_unchanged(cpu: &TestCpu, before: &TestCpu) {
    let read = |event: &Event| matches!(event, Event::Read(..));
    assert!(cpu.log.iter().all(read), "{:x?}", cpu.log);
    let registers = |cpu: &TestCpu| (cpu.gprs, cpu.rip, cpu.rflags, cpu.segments, cpu.cpl);
    assert_eq!(registers(cpu), registers(before));
    let others = |cpu: &TestCpu| (cpu.gdtr, cpu.idtr, cpu.shadow, cpu.nmi_blocked);
    assert_eq!(others(cpu), others(before));
    assert!(cpu.fpu == before.fpu, "a vector register changed");
}

/// A CPU in a mode, with registers, segments and RAM as the input says.
fn machine(header: &[u8; 12], rest: &[u8]) -> TestCpu {
    let [mode, paging, cpl, flags0, flags1, flags2, seg, limit, attr0, attr1, cr4_low, cr4_high] =
        *header;
    let tables = mode & TABLES != 0;
    let mut cpu = match (mode % 3, tables) {
        (0, false) => TestCpu::long(RAM, 0x4000),
        (0, true) => System::long(cpl & 3).cpu,
        (1, false) => TestCpu::protected(RAM, 0x4000),
        (1, true) => System::protected(cpl & 3).cpu,
        _ => TestCpu::real(0x5000),
    };
    if mode & OTHER_SIZE != 0 {
        cpu.segments[Seg::Cs as usize].attributes.0 ^= SegmentAttributes::DB;
    }
    cpu.cpl = cpl & 3;
    cpu.rflags =
        u64::from_le_bytes([flags0, flags1, flags2, 0, 0, 0, 0, 0]) & 0x3f_7fd5 | rflags::FIXED;
    cpu.cr[4] = u64::from(cr4_low) & (cr4::PSE | cr4::PAE | cr4::DE)
        | u64::from(cr4_low) << 2 & cr4::OSFXSR
        | u64::from(cr4_high) << 16;
    if paging & 1 != 0 {
        cpu.cr[0] |= cr0::PE | cr0::PG | u64::from(paging) << 11 & cr0::WP | cr0::AM;
        cpu.cr[3] = RAM;
        cpu.efer |= u64::from(paging) << 4 & efer::NXE;
    }
    let segment = &mut cpu.segments[usize::from(seg & 7)];
    segment.limit = u32::from(limit) << 4;
    segment.attributes.0 ^= u16::from_le_bytes([attr0, attr1]) & !SegmentAttributes::L;
    let (gprs, ram) = rest.split_at(rest.len().min(128));
    for (reg, bytes) in Reg::ALL.into_iter().zip(gprs.chunks(8)) {
        let mut value = [0; 8];
        value[..bytes.len()].copy_from_slice(bytes);
        *cpu.reg(reg) = u64::from_le_bytes(value);
    }
    match tables {
        true => change(&mut cpu.ram, ram),
        false => fill(&mut cpu.ram, ram),
    }
    cpu
}

/// RAM made of the input, again and again.
fn fill(ram: &mut [u8], input: &[u8]) {
    for (to, from) in ram.iter_mut().zip(input.iter().cycle()) {
        *to = *from;
    }
}

/// Changes six bytes of RAM at a time: where, says the input too.
fn change(ram: &mut [u8], input: &[u8]) {
    for step in input.chunks_exact(8) {
        let at = usize::from(u16::from_le_bytes([step[0], step[1]])) % (ram.len() - 6);
        ram[at..at + 6].copy_from_slice(&step[2..]);
    }
}
