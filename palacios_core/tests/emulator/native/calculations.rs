// SPDX-License-Identifier: MIT OR Apache-2.0
//! Moves, calculations and stacks, thousands of times. Flags that the manuals leave undefined are not compared; `iced-x86`
//! knows which.

use super::{Hex, Native, Noise, State, DATA_BYTES, STATUS};
use crate::machine::TestCpu;
use iced_x86::{Decoder, DecoderOptions, EncodingKind, FlowControl, Instruction, Mnemonic, OpKind};
use palacios_core::emulator::Fault;
use palacios_core::state::{rflags, Exception, Reg};

/// Opcodes under test; a `/n` in the ModRM byte is left to chance.
fn opcodes() -> Vec<Vec<u8>> {
    let arithmetic = (0..8u8).flat_map(|op| (0..6).map(move |form| op * 8 + form));
    let one_byte = arithmetic
        .chain([
            0x63, 0x69, 0x6b, 0x80, 0x81, 0x83, 0x84, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8a, 0x8b,
        ])
        .chain([
            0x8f, 0xa8, 0xa9, 0xc0, 0xc1, 0xc6, 0xc7, 0xd0, 0xd1, 0xd2, 0xd3, 0xd7,
        ])
        .chain([0xf6, 0xf7, 0xf6, 0xf7, 0xfe, 0xff])
        .chain([0xa4, 0xa5, 0xa6, 0xa7, 0xaa, 0xab, 0xac, 0xad, 0xae, 0xaf])
        .chain([0x51, 0x59, 0x91, 0xb1, 0xb9])
        .chain([0x68, 0x6a, 0x9c, 0x9d, 0xc8, 0xc9]);
    let two_bytes = (0x40..0x50u8)
        .chain(0x90..0xa0)
        .chain([
            0xa3, 0xab, 0xb3, 0xbb, 0xba, 0xa4, 0xa5, 0xac, 0xad, 0xaf, 0xb0, 0xb1,
        ])
        .chain([0xb6, 0xb7, 0xbe, 0xbf, 0xc0, 0xc1, 0xc3, 0xc7, 0xc7])
        .chain([0xb8, 0xbc, 0xbd, 0xbc, 0xbd, 0xa0, 0xa8]);
    one_byte
        .map(|op| vec![op])
        .chain(two_bytes.map(|op| vec![0x0f, op]))
        .chain([vec![0x0f, 0x38, 0xf0], vec![0x0f, 0x38, 0xf1]])
        .collect()
}

/// Random bytes of an instruction with this opcode.
fn encode(noise: &mut Noise, opcode: &[u8]) -> Vec<u8> {
    let string = matches!(opcode, [0xa4..=0xa7 | 0xaa..=0xaf]);
    let counts = matches!(opcode, [0x0f, 0xb8 | 0xbc | 0xbd] | [0x0f, 0x38, _]);
    let mut bytes = Vec::new();
    if noise.below(4) == 0 {
        bytes.push(0x66);
    }
    if noise.below(6) == 0 {
        bytes.push(0x67);
    }
    if string && noise.below(2) == 0 {
        bytes.push(noise.pick(&[0xf2, 0xf3]));
    }
    if counts && noise.below(2) == 0 {
        bytes.push(if opcode.len() == 3 { 0xf2 } else { 0xf3 });
    } else if !string && noise.below(8) == 0 {
        bytes.push(0xf0);
    }
    if noise.below(2) == 0 {
        bytes.push(0x40 | noise.below(16) as u8);
    }
    bytes.extend(opcode);
    let rest = bytes.len();
    bytes.extend(noise.bytes(15));
    if opcode == [0xc8] {
        // ENTER: no more than there is room for.
        bytes[rest + 1] = noise.below(2) as u8;
    }
    bytes
}

/// The register that the oracle means.
fn register(gprs: &[u64; 16], register: iced_x86::Register) -> Option<u64> {
    let full = register.full_register();
    full.is_gpr64().then(|| gprs[full.number()])
}

/// Which operand is in memory, as the ModRM byte says.
pub fn memory_operand(instruction: &Instruction) -> Option<u32> {
    (0..instruction.op_count()).find(|i| instruction.op_kind(*i) == OpKind::Memory)
}

/// Registers under which the instruction stays within the data; `None` if chance did not want it.
pub fn aim(noise: &mut Noise, instruction: &Instruction, data_at: u64) -> Option<[u64; 16]> {
    let mut gprs = [0; 16].map(|_: u64| noise.value());
    let middle = data_at + DATA_BYTES as u64 / 2;
    let mut inside = || middle.wrapping_add(noise.below(1024)).wrapping_sub(512);
    gprs[Reg::Rsp as usize] = inside();
    if matches!(instruction.mnemonic(), Mnemonic::Enter | Mnemonic::Leave) {
        gprs[Reg::Rbp as usize] = inside();
    }
    if instruction.is_string_instruction() {
        gprs[Reg::Rsi as usize] = inside();
        gprs[Reg::Rdi as usize] = inside();
        if instruction.has_rep_prefix() || instruction.has_repne_prefix() {
            gprs[Reg::Rcx as usize] = noise.below(6);
        }
        return Some(gprs);
    }
    if instruction.mnemonic() == Mnemonic::Xlatb {
        gprs[Reg::Rbx as usize] = inside();
        return Some(gprs);
    }
    if let Mnemonic::Maskmovq | Mnemonic::Maskmovdqu | Mnemonic::Vmaskmovdqu =
        instruction.mnemonic()
    {
        gprs[Reg::Rdi as usize] = inside();
        return Some(gprs);
    }
    let Some(operand) = memory_operand(instruction) else {
        return Some(gprs);
    };
    let (base, index) = (instruction.memory_base(), instruction.memory_index());
    if !base.is_gpr() || base.full_register() == index.full_register() {
        return None;
    }
    let mut target = inside();
    if matches!(
        instruction.mnemonic(),
        Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc
    ) {
        if let OpKind::Register = instruction.op_kind(1) {
            let bit = instruction.op_register(1).full_register().number();
            if bit == base.full_register().number() {
                return None;
            }
            gprs[bit] = noise.below(8192).wrapping_sub(4096);
        }
    }
    // Some want their operand aligned; others have it so now and then.
    let bytes = instruction.memory_size().size() as u64;
    if bytes >= 16 && target & 64 == 0 || instruction.mnemonic() == Mnemonic::Cmpxchg16b {
        target &= !(bytes.min(32) - 1);
    }
    let stack = matches!(instruction.mnemonic(), Mnemonic::Push | Mnemonic::Pop);
    if stack && base.full_register().number() == 4 {
        return None;
    }
    let at = instruction.virtual_address(operand, 0, |reg, _, _| {
        Some(register(&gprs, reg).unwrap_or(0))
    })?;
    let base = base.full_register().number();
    gprs[base] = gprs[base].wrapping_add(target.wrapping_sub(at));
    let at = instruction.virtual_address(operand, 0, |reg, _, _| {
        Some(register(&gprs, reg).unwrap_or(0))
    })?;
    (at == target).then_some(gprs)
}

/// Runs the instruction in the emulator, to its end. `None`: it wants memory that is not there.
fn emulate(code: &[u8], state: &mut State, data_at: u64) -> Option<Result<(), Fault>> {
    let mut cpu = TestCpu::long(data_at, DATA_BYTES);
    cpu.gprs.0 = state.gprs;
    cpu.rflags = state.flags;
    cpu.ram = state.data.clone();
    cpu.rip = 0x1000;
    let result = loop {
        match cpu.run(code) {
            Ok(step) if step.complete => break Ok(()),
            Ok(_) => {}
            Err(fault) => break Err(fault),
        }
    };
    if !cpu.log.is_empty() {
        return None;
    }
    if result.is_ok() {
        assert_eq!(
            cpu.rip,
            0x1000 + code.len() as u64,
            "the length of {code:02x?}"
        );
    }
    state.gprs = cpu.gprs.0;
    state.flags = cpu.rflags;
    state.data = cpu.ram;
    Some(result)
}

/// Flags that may differ, with the instruction's registers as they were before it.
fn undefined(instruction: &Instruction, gprs: &[u64; 16]) -> u64 {
    let theirs = instruction.rflags_undefined();
    let table = [
        (iced_x86::RflagsBits::CF, rflags::CF),
        (iced_x86::RflagsBits::PF, rflags::PF),
        (iced_x86::RflagsBits::AF, rflags::AF),
        (iced_x86::RflagsBits::ZF, rflags::ZF),
        (iced_x86::RflagsBits::SF, rflags::SF),
        (iced_x86::RflagsBits::OF, rflags::OF),
    ];
    let mut undefined = table
        .iter()
        .filter(|(bit, _)| theirs & bit != 0)
        .map(|(_, flag)| flag)
        .sum();
    // The count decides what is defined, and the oracle does not see CL.
    let last = instruction.op_count().saturating_sub(1);
    let count = match instruction.op_kind(last) {
        OpKind::Immediate8 => u64::from(instruction.immediate8()),
        _ => gprs[Reg::Rcx as usize],
    };
    use Mnemonic as M;
    match instruction.mnemonic() {
        M::Shl | M::Sal | M::Shr | M::Sar | M::Shld | M::Shrd if count & 0x3f != 1 => {
            undefined |= rflags::OF | rflags::AF;
        }
        M::Rol | M::Ror | M::Rcl | M::Rcr if count & 0x3f != 1 => undefined |= rflags::OF,
        _ => {}
    }
    undefined
}

/// Whether it only shares an opcode with what is under test.
fn is_foreign(instruction: &Instruction) -> bool {
    use Mnemonic as M;
    instruction.encoding() != EncodingKind::Legacy
        || instruction.flow_control() != FlowControl::Next
        || matches!(
            instruction.mnemonic(),
            M::Rdrand | M::Rdseed | M::Rdpid | M::Xabort
        )
        || matches!(
            instruction.mnemonic(),
            M::Xsavec | M::Xsavec64 | M::Xsaves | M::Xsaves64
        )
        || matches!(
            instruction.mnemonic(),
            M::Xrstors | M::Xrstors64 | M::Senduipi
        )
        || matches!(
            instruction.mnemonic(),
            M::Vmptrld | M::Vmptrst | M::Vmclear | M::Vmxon
        )
}

/// Whether the manuals say what the instruction gives.
fn is_defined(instruction: &Instruction, gprs: &[u64; 16]) -> bool {
    let double = matches!(instruction.mnemonic(), Mnemonic::Shld | Mnemonic::Shrd);
    let count = match instruction.op_kind(instruction.op_count().saturating_sub(1)) {
        OpKind::Immediate8 => u64::from(instruction.immediate8()),
        _ => gprs[Reg::Rcx as usize],
    };
    // A double shift of 16 bits by more.
    !(double && instruction.op_register(1).size() == 2 && count & 31 > 16)
}

#[test]
fn agrees_with_the_processor() {
    let mut noise = Noise(0x9e37_79b9_7f4a_7c15);
    let mut native = Native::new();
    let data_at = native.data_at();
    let (mut compared, mut forms) = (0, std::collections::BTreeSet::new());
    for opcode in opcodes() {
        for _ in 0..150 {
            let mut code = encode(&mut noise, &opcode);
            let instruction = Decoder::with_ip(64, &code, 0, DecoderOptions::NONE).decode();
            if instruction.is_invalid() || instruction.is_ip_rel_memory_operand() {
                continue;
            }
            code.truncate(instruction.len());
            let Some(gprs) = aim(&mut noise, &instruction, data_at) else {
                continue;
            };
            if is_foreign(&instruction) || !is_defined(&instruction, &gprs) {
                continue;
            }
            let flags = noise.next() & (STATUS | rflags::DF) | rflags::FIXED | rflags::IF;
            let mut data = noise.bytes(DATA_BYTES);
            if let Mnemonic::Popf | Mnemonic::Popfq = instruction.mnemonic() {
                // Not those that trap, nor those that depend on privilege.
                let flags = noise.next() & (STATUS | rflags::DF) | rflags::IF;
                let top = (gprs[Reg::Rsp as usize] - data_at) as usize;
                data[top..top + 8].copy_from_slice(&flags.to_le_bytes());
            }
            let before = State {
                gprs,
                flags,
                data,
                fpu: Vec::new(),
            };
            let (mut ours, mut theirs) = (before.clone(), before.clone());
            let show = || format!("{instruction} {code:02x?} on {gprs:x?} {flags:x}");
            match emulate(&code, &mut ours, data_at) {
                None => continue,
                Some(Err(Fault::Exception(Exception::DIVIDE))) => continue,
                Some(result) => assert_eq!(result, Ok(()), "{}", show()),
            }
            native.run(&code, &mut theirs);
            let compare = !undefined(&instruction, &gprs);
            assert_eq!(ours.gprs.map(Hex), theirs.gprs.map(Hex), "{}", show());
            assert!(ours.data == theirs.data, "memory after {}", show());
            let (mine, real) = (ours.flags & compare, theirs.flags & compare);
            assert_eq!(Hex(mine), Hex(real), "flags after {}", show());
            compared += 1;
            forms.insert(format!("{:?}", instruction.code()));
        }
    }
    assert!(compared > 10_000, "{compared} comparisons are too few");
    assert!(forms.len() > 480, "{} forms are too few", forms.len());
}
