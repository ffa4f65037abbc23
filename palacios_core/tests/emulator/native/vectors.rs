// SPDX-License-Identifier: MIT OR Apache-2.0
//! Loads and stores of vector registers, from and to all states of an XSAVE area.

use super::calculations::{aim, memory_operand};
use super::{Hex, Native, Noise, State, COMPONENTS, DATA_BYTES, STATUS};
use crate::machine::TestCpu;
use core::arch::x86_64::{__cpuid_count, _xgetbv};
use iced_x86::{Decoder, DecoderOptions, EncodingKind, Instruction, Mnemonic, OpKind};
use palacios_core::emulator::{Fault, Step};
use palacios_core::state::{cr4, rflags, Exception};
use palacios_core::xsave::{XsaveArea, XsaveLayout};

const AREA_BYTES: usize = 4096;
/// Where an area says which components are not in their initial state.
const HEADER: usize = 512;
const MXCSR: usize = 24;
const ZMM_HIGH: u64 = 1 << 6;

/// This processor's areas.
struct Areas {
    /// The components that there are.
    components: u64,
    layout: XsaveLayout,
    /// Bytes 24 to 31 as the processor saves them: MXCSR and its mask.
    mxcsr: [u8; 8],
}

impl Areas {
    #[allow(unused_unsafe)]
    fn new(native: &mut Native) -> Areas {
        // SAFETY: the processor has XSAVE, and the system has switched it on.
        let components = unsafe { _xgetbv(0) } & u64::from(COMPONENTS);
        let place = |component: u32| {
            // SAFETY: as above.
            let at = unsafe { __cpuid_count(0xd, component) }.ebx;
            (components >> component & 1 != 0).then_some(at)
        };
        let mut areas = Areas {
            components,
            layout: XsaveLayout {
                header: true,
                avx: place(2),
                zmm_high: place(6),
            },
            mxcsr: [0; 8],
        };
        let mut state = State {
            gprs: [0; 16],
            flags: rflags::FIXED,
            data: vec![0; DATA_BYTES],
            fpu: vec![0; AREA_BYTES],
        };
        areas.of(&mut state.fpu).clear();
        native.run(&[0x90], &mut state);
        areas.mxcsr.copy_from_slice(&state.fpu[MXCSR..MXCSR + 8]);
        areas
    }

    fn of<'a>(&self, bytes: &'a mut [u8]) -> XsaveArea<'a> {
        XsaveArea::new(bytes, self.layout)
    }

    /// Noise in all registers, and in the header. What must not be noise is as it must be.
    fn noise(&self, noise: &mut Noise) -> Vec<u8> {
        let mut bytes = noise.bytes(AREA_BYTES);
        // The control and status words, of which the top of the stack is any; and no last instruction.
        bytes[..MXCSR].fill(0);
        bytes[..2].copy_from_slice(&0x37fu16.to_le_bytes());
        bytes[3] = (noise.below(8) as u8) << 3;
        bytes[4] = noise.next() as u8;
        bytes[MXCSR..MXCSR + 8].copy_from_slice(&self.mxcsr);
        for register in 0..8 {
            bytes[32 + 16 * register..][10..16].fill(0);
        }
        bytes[416..HEADER + 64].fill(0);
        let held = noise.next() & self.components;
        bytes[HEADER..HEADER + 8].copy_from_slice(&held.to_le_bytes());
        bytes
    }

    /// What software sees of an area.
    fn registers(&self, bytes: &mut [u8]) -> Registers {
        let held = u64::from_le_bytes(bytes[HEADER..HEADER + 8].try_into().unwrap());
        let zmm_high = match self.layout.zmm_high {
            Some(at) if held & ZMM_HIGH != 0 => bytes[at as usize..][..16 * 32].to_vec(),
            _ => vec![0; 16 * 32],
        };
        let area = self.of(bytes);
        // Not the last instruction and operand, which AMD does not always keep.
        let mut head = [0; 16];
        head[..6].copy_from_slice(&area.legacy(0)[..6]);
        let x87 = [head].into_iter().chain((2..10).map(|n| area.legacy(n)));
        Registers {
            ymm: (0..16).map(|n| area.ymm(n)).collect(),
            zmm_high,
            x87: x87.collect(),
            mxcsr: area.mxcsr(),
        }
    }
}

#[derive(PartialEq, Eq)]
struct Registers {
    ymm: Vec<[u8; 32]>,
    zmm_high: Vec<u8>,
    x87: Vec<[u8; 16]>,
    mxcsr: u32,
}

impl Registers {
    /// All of them in turn: 16 YMM, the upper halves of 16 ZMM, x87's head and its stack.
    fn list(&self) -> Vec<&[u8]> {
        let ymm = self.ymm.iter().map(|register| &register[..]);
        let x87 = self.x87.iter().map(|register| &register[..]);
        ymm.chain(self.zmm_high.chunks(32)).chain(x87).collect()
    }

    /// What differs.
    fn difference(&self, other: &Registers) -> String {
        let pairs = self.list().into_iter().zip(other.list()).enumerate();
        let differing = pairs.filter(|(_, (a, b))| a != b);
        let shown = differing.map(|(n, (a, b))| format!("{n}: {a:02x?} and {b:02x?}\n"));
        format!(
            "{}{:x} {:x}",
            shown.collect::<String>(),
            self.mxcsr,
            other.mxcsr
        )
    }
}

/// Opcodes under test, without prefixes; some are other instructions under some of them.
const MAP_1: [u8; 20] = [
    0x10, 0x11, 0x12, 0x13, 0x16, 0x17, 0x28, 0x29, 0x2b, 0x6e, 0x6f, 0x7e, 0x7f, 0xae, 0xc4, 0xd6,
    0xe7, 0xf0, 0xf7, 0xf7,
];
const MAP_2: [u8; 16] = [
    0x18, 0x19, 0x1a, 0x2a, 0x2c, 0x2d, 0x2e, 0x2f, 0x58, 0x59, 0x5a, 0x78, 0x79, 0x8c, 0x8e, 0x2a,
];
const MAP_3: [u8; 11] = [
    0x14, 0x15, 0x16, 0x17, 0x18, 0x19, 0x20, 0x21, 0x22, 0x38, 0x39,
];

/// Random bytes of an instruction with an opcode of a map.
fn encode(noise: &mut Noise, map: u8, opcode: u8, vex: bool) -> Vec<u8> {
    let mut bytes = Vec::new();
    if noise.below(8) == 0 {
        bytes.push(0x67);
    }
    if vex {
        let rxb = (noise.next() as u8) & 0xe0;
        let source = match noise.below(2) {
            0 => 0x78,
            _ => noise.next() as u8 & 0x78,
        };
        let w = noise.next() as u8 & 0x80;
        bytes.extend([0xc4, rxb | map, w | source | noise.below(8) as u8]);
    } else {
        bytes.extend(noise.pick::<&[u8]>(&[&[], &[0x66], &[0xf2], &[0xf3]]));
        if noise.below(2) == 0 {
            bytes.push(0x40 | noise.below(16) as u8);
        }
        bytes.extend([&[0x0f][..], &[0x0f, 0x38], &[0x0f, 0x3a]][usize::from(map) - 1]);
    }
    bytes.push(opcode);
    bytes.extend(noise.bytes(8));
    bytes
}

/// Whether this processor executes it, and it is of the kind that is tested.
fn is_tested(instruction: &Instruction) -> bool {
    use Mnemonic as M;
    let known = match instruction.encoding() {
        EncodingKind::VEX => is_x86_feature_detected!("avx2"),
        EncodingKind::Legacy => is_x86_feature_detected!("sse4.1"),
        _ => false,
    };
    let memory = (0..instruction.op_count()).any(|i| {
        matches!(
            instruction.op_kind(i),
            OpKind::Memory | OpKind::MemorySegRDI | OpKind::MemorySegEDI
        )
    });
    let system = matches!(
        instruction.mnemonic(),
        M::Xsave | M::Xsave64 | M::Xrstor | M::Xrstor64 | M::Xsaveopt | M::Xsaveopt64
    );
    let amd = matches!(instruction.mnemonic(), M::Movntss | M::Movntsd);
    known && memory && !system && (!amd || is_x86_feature_detected!("sse4a"))
}

/// Runs the instruction in the emulator.
fn emulate(code: &[u8], areas: &Areas, state: &mut State, data_at: u64) -> Result<Step, Fault> {
    let mut cpu = TestCpu::long(data_at, DATA_BYTES);
    cpu.gprs.0 = state.gprs;
    cpu.rflags = state.flags;
    cpu.ram = state.data.clone();
    cpu.fpu = state.fpu.clone();
    cpu.layout = areas.layout;
    cpu.xcr0 = areas.components;
    cpu.cr[4] = cr4::OSFXSR | cr4::OSXSAVE;
    let result = cpu.run(code);
    assert_eq!(cpu.log, [], "{code:02x?} leaves its memory");
    state.gprs = cpu.gprs.0;
    state.flags = cpu.rflags;
    state.data = cpu.ram;
    state.fpu = cpu.fpu;
    result
}

/// Puts valid values where the instruction reads, at `at`, what not every value is good for.
fn prepare(instruction: &Instruction, data: &mut [u8], at: usize) {
    let mxcsr = match instruction.mnemonic() {
        Mnemonic::Ldmxcsr | Mnemonic::Vldmxcsr => at,
        Mnemonic::Fxrstor | Mnemonic::Fxrstor64 => {
            // A status without exceptions, of no instruction.
            let top = data[at + 3] & 0x38;
            data[at..at + MXCSR].fill(0);
            data[at] = 0x7f;
            data[at + 1] = 3;
            data[at + 3] = top;
            for register in 0..8 {
                data[at + 32 + 16 * register..][10..16].fill(0);
            }
            at + MXCSR
        }
        _ => return,
    };
    // All that each processor has but "denormals are zeroes", which not each has.
    data[mxcsr] &= !0x40;
    data[mxcsr + 2..mxcsr + 4].fill(0);
}

/// What two executions may disagree on: FXSAVE's last instruction and operand, which AMD does not always save.
fn mask(instruction: &Instruction, data: &mut [u8], at: usize) {
    if let Mnemonic::Fxsave | Mnemonic::Fxsave64 = instruction.mnemonic() {
        data[at + 6..at + MXCSR].fill(0);
    }
}

#[test]
fn moves_agree_with_the_processor() {
    if !is_x86_feature_detected!("xsave") {
        return;
    }
    let mut noise = Noise(0x1234_5678_9abc_def1);
    let mut native = Native::new();
    let areas = Areas::new(&mut native);
    let data_at = native.data_at();
    let (mut compared, mut forms) = (0, std::collections::BTreeSet::new());
    let all = (1..4u8).zip([&MAP_1[..], &MAP_2, &MAP_3]);
    let all = all.flat_map(|(map, opcodes)| opcodes.iter().map(move |opcode| (map, *opcode)));
    for (map, opcode) in all {
        for i in 0..1000 {
            let mut code = encode(&mut noise, map, opcode, i % 2 == 0);
            let instruction = Decoder::with_ip(64, &code, 0, DecoderOptions::NONE).decode();
            if instruction.is_invalid()
                || !is_tested(&instruction)
                || instruction.is_ip_rel_memory_operand()
            {
                continue;
            }
            code.truncate(instruction.len());
            let Some(gprs) = aim(&mut noise, &instruction, data_at) else {
                continue;
            };
            let operand = memory_operand(&instruction).unwrap_or(0);
            let at = instruction.virtual_address(operand, 0, |reg, _, _| {
                let full = reg.full_register();
                Some(if full.is_gpr64() {
                    gprs[full.number()]
                } else {
                    0
                })
            });
            let from = at.map_or(0, |at| at.wrapping_sub(data_at) as usize);
            let mut data = noise.bytes(DATA_BYTES);
            prepare(&instruction, &mut data, from);
            let flags = noise.next() & STATUS | rflags::FIXED | rflags::IF;
            let fpu = areas.noise(&mut noise);
            let before = State {
                gprs,
                flags,
                data,
                fpu,
            };
            let (mut ours, mut theirs) = (before.clone(), before.clone());
            let show = || format!("{instruction} {code:02x?} at {at:x?}");
            match emulate(&code, &areas, &mut ours, data_at) {
                Err(Fault::Unsupported(_)) => continue,
                Err(fault) => {
                    let misaligned = at.is_some_and(|at| at & 31 != 0);
                    assert_eq!(fault, Exception::general_protection(0).into(), "{}", show());
                    assert!(misaligned && ours == before, "{}", show());
                    continue;
                }
                Ok(_) => {}
            }
            native.run(&code, &mut theirs);
            mask(&instruction, &mut ours.data, from);
            mask(&instruction, &mut theirs.data, from);
            assert_eq!(ours.gprs.map(Hex), theirs.gprs.map(Hex), "{}", show());
            assert_eq!(Hex(ours.flags), Hex(theirs.flags), "{}", show());
            assert!(ours.data == theirs.data, "memory after {}", show());
            let (mine, real) = (
                areas.registers(&mut ours.fpu),
                areas.registers(&mut theirs.fpu),
            );
            assert!(mine == real, "{}:\n{}", show(), mine.difference(&real));
            compared += 1;
            forms.insert(format!("{:?}", instruction.code()));
        }
    }
    assert!(compared > 1000, "{compared} comparisons are too few");
    let expected = match is_x86_feature_detected!("avx2") {
        true => 160,
        false => 70,
    };
    assert!(forms.len() > expected, "{} forms are too few", forms.len());
}
