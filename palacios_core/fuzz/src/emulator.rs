// SPDX-License-Identifier: MIT OR Apache-2.0
//! Hostile code, registers and page tables. Nothing may panic or touch an address that was not checked, and an
//! instruction that faults must not have happened.
#![forbid(unsafe_code)]

use crate::Target;
use palacios_core::emulator::{self, Fault};
use palacios_core::state::{cr0, cr4, efer, rflags, Reg, Seg, SegmentAttributes};

#[allow(dead_code, missing_docs)]
#[path = "../../tests/emulator/machine.rs"]
mod machine;
use machine::{Event, TestCpu};

const RAM: u64 = 0x1000;

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
    for _ in 0..4 {
        let before = cpu.clone();
        let result = cpu.run(code);
        let _ = emulator::length_at(&mut cpu);
        let repeated = code.iter().take(14).any(|byte| matches!(byte, 0xf2 | 0xf3));
        match result {
            Ok(_) => cpu.log.clear(),
            Err(Fault::Exception(_)) if !repeated && cpu.dr == before.dr => {
                // A divisor, or the I/O map of a TSS, may have been read from a device.
                let read = |event: &Event| matches!(event, Event::Read(..));
                assert!(cpu.log.iter().all(read), "{:x?}", cpu.log);
                assert_eq!(
                    (cpu.gprs, cpu.rip, cpu.rflags),
                    (before.gprs, before.rip, before.rflags)
                );
                break;
            }
            Err(_) => break,
        }
    }
}

/// A CPU in a mode, with registers, segments and RAM as the input says.
fn machine(header: &[u8; 12], rest: &[u8]) -> TestCpu {
    let [mode, paging, cpl, flags0, flags1, flags2, seg, limit, attr0, attr1, cr4_low, cr4_high] =
        *header;
    let mut cpu = match mode % 3 {
        0 => TestCpu::long(RAM, 0x4000),
        1 => TestCpu::protected(RAM, 0x4000),
        _ => TestCpu::real(0x5000),
    };
    if mode & 0x80 != 0 {
        cpu.segments[Seg::Cs as usize].attributes.0 ^= SegmentAttributes::DB;
    }
    cpu.cpl = cpl & 3;
    cpu.rflags =
        u64::from_le_bytes([flags0, flags1, flags2, 0, 0, 0, 0, 0]) & 0x3f_7fd5 | rflags::FIXED;
    cpu.cr[4] = u64::from(cr4_low) & (cr4::PSE | cr4::PAE | cr4::DE) | u64::from(cr4_high) << 16;
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
    for (to, from) in cpu.ram.iter_mut().zip(ram.iter().cycle()) {
        *to = *from;
    }
    cpu
}
