// SPDX-License-Identifier: MIT OR Apache-2.0
//! The decoder against `iced-x86`, which shares no code with the one that is used.

use super::decode::length;
use super::instruction::*;
use crate::state::{DescriptorTable, Reg, Seg};
use iced_x86::{Code, Decoder, DecoderOptions, EncodingKind, Mnemonic, OpKind, Register as R};

const SIZES: [(CodeSize, u32); 3] = [
    (CodeSize::Bits16, 16),
    (CodeSize::Bits32, 32),
    (CodeSize::Bits64, 64),
];

/// The instructions that must be known, by the oracle's names.
fn op(mnemonic: Mnemonic) -> Option<Op> {
    use Mnemonic as M;
    Some(match mnemonic {
        M::Mov | M::Movnti => Op::Mov,
        M::Movzx => Op::MovZeroExtend,
        M::Movsx | M::Movsxd => Op::MovSignExtend,
        M::Movbe => Op::MovBigEndian,
        M::Add => Op::Binary(Binary::Add),
        M::Or => Op::Binary(Binary::Or),
        M::Adc => Op::Binary(Binary::Adc),
        M::Sbb => Op::Binary(Binary::Sbb),
        M::And => Op::Binary(Binary::And),
        M::Sub => Op::Binary(Binary::Sub),
        M::Xor => Op::Binary(Binary::Xor),
        M::Cmp => Op::Cmp,
        M::Test => Op::Test,
        M::Inc => Op::Inc,
        M::Dec => Op::Dec,
        M::Neg => Op::Neg,
        M::Not => Op::Not,
        M::Rol => Op::Shift(Shift::Rol),
        M::Ror => Op::Shift(Shift::Ror),
        M::Rcl => Op::Shift(Shift::Rcl),
        M::Rcr => Op::Shift(Shift::Rcr),
        M::Shl | M::Sal => Op::Shift(Shift::Shl),
        M::Shr => Op::Shift(Shift::Shr),
        M::Sar => Op::Shift(Shift::Sar),
        M::Shld => Op::ShiftLeftDouble,
        M::Shrd => Op::ShiftRightDouble,
        M::Bt => Op::Bit(Bit::Test),
        M::Bts => Op::Bit(Bit::Set),
        M::Btr => Op::Bit(Bit::Reset),
        M::Btc => Op::Bit(Bit::Complement),
        M::Xchg => Op::Xchg,
        M::Xadd => Op::Xadd,
        M::Cmpxchg => Op::Cmpxchg,
        M::Cmpxchg8b | M::Cmpxchg16b => Op::CmpxchgPair,
        M::Mul => Op::Mul,
        M::Imul => Op::Imul,
        M::Div => Op::Div,
        M::Idiv => Op::Idiv,
        M::Bsf => Op::BitScan { reverse: false },
        M::Bsr => Op::BitScan { reverse: true },
        M::Tzcnt => Op::CountZeros { leading: false },
        M::Lzcnt => Op::CountZeros { leading: true },
        M::Popcnt => Op::CountOnes,
        M::Crc32 => Op::Crc32,
        M::Push => Op::Push,
        M::Pop => Op::Pop,
        M::Pusha | M::Pushad => Op::PushAll,
        M::Popa | M::Popad => Op::PopAll,
        M::Pushf | M::Pushfd | M::Pushfq => Op::PushFlags,
        M::Popf | M::Popfd | M::Popfq => Op::PopFlags,
        M::Enter => Op::Enter,
        M::Leave => Op::Leave,
        M::Ret => Op::Return,
        M::Retf => Op::FarReturn,
        M::Iret | M::Iretd | M::Iretq => Op::InterruptReturn,
        M::Int => Op::Interrupt,
        M::Int3 => Op::Breakpoint,
        M::Into => Op::Overflow,
        M::Les => Op::LoadFarPointer(Seg::Es),
        M::Lds => Op::LoadFarPointer(Seg::Ds),
        M::Lss => Op::LoadFarPointer(Seg::Ss),
        M::Lfs => Op::LoadFarPointer(Seg::Fs),
        M::Lgs => Op::LoadFarPointer(Seg::Gs),
        M::Lgdt => Op::LoadTable(DescriptorTable::Global),
        M::Lidt => Op::LoadTable(DescriptorTable::Interrupt),
        M::Sgdt => Op::StoreTable(DescriptorTable::Global),
        M::Sidt => Op::StoreTable(DescriptorTable::Interrupt),
        M::Lldt => Op::LoadSystemSegment(Seg::Ldtr),
        M::Ltr => Op::LoadSystemSegment(Seg::Tr),
        M::Sldt => Op::StoreSystemSegment(Seg::Ldtr),
        M::Str => Op::StoreSystemSegment(Seg::Tr),
        M::Fnstcw => Op::Fpu(FpuOp::StoreControlWord),
        M::Fnstsw => Op::Fpu(FpuOp::StoreStatusWord),
        M::Ldmxcsr | M::Vldmxcsr => Op::Fpu(FpuOp::LoadMxcsr),
        M::Stmxcsr | M::Vstmxcsr => Op::Fpu(FpuOp::StoreMxcsr),
        M::Fxsave | M::Fxsave64 => Op::Fpu(FpuOp::Save),
        M::Fxrstor | M::Fxrstor64 => Op::Fpu(FpuOp::Restore),
        M::Xlatb => Op::Xlat,
        M::Movsb | M::Movsw | M::Movsq => Op::String(StringOp::Movs),
        M::Stosb | M::Stosw | M::Stosd | M::Stosq => Op::String(StringOp::Stos),
        M::Lodsb | M::Lodsw | M::Lodsd | M::Lodsq => Op::String(StringOp::Lods),
        M::Cmpsb | M::Cmpsw | M::Cmpsq => Op::String(StringOp::Cmps),
        M::Scasb | M::Scasw | M::Scasd | M::Scasq => Op::String(StringOp::Scas),
        M::Insb | M::Insw | M::Insd => Op::String(StringOp::Ins),
        M::Outsb | M::Outsw | M::Outsd => Op::String(StringOp::Outs),
        M::In => Op::In,
        M::Out => Op::Out,
        M::Clts => Op::Clts,
        M::Lmsw => Op::Lmsw,
        M::Smsw => Op::Smsw,
        M::Invlpg => Op::Invlpg,
        other => return vector(other).map(Op::Vector),
    })
}

/// The same of vector registers.
fn vector(mnemonic: Mnemonic) -> Option<VectorOp> {
    let name = format!("{mnemonic:?}");
    // AVX's names have a V in front.
    let name = name.strip_prefix('V').unwrap_or(&name).to_lowercase();
    Some(match name.as_str() {
        "movups" | "movupd" | "movdqu" | "lddqu" | "movss" | "movsd" | "movd" | "movq" => {
            VectorOp::Move
        }
        "movntq" | "movntss" | "movntsd" => VectorOp::Move,
        "movaps" | "movapd" | "movdqa" => VectorOp::MoveAligned,
        "movntdq" | "movntdqa" | "movntps" | "movntpd" => VectorOp::MoveAligned,
        "movlps" | "movlpd" => VectorOp::MoveHalf { high: false },
        "movhps" | "movhpd" => VectorOp::MoveHalf { high: true },
        "movddup" => VectorOp::Duplicate {
            width: 8,
            high: false,
        },
        "movsldup" => VectorOp::Duplicate {
            width: 4,
            high: false,
        },
        "movshdup" => VectorOp::Duplicate {
            width: 4,
            high: true,
        },
        "pinsrb" | "pinsrw" | "pinsrd" | "pinsrq" => VectorOp::Element,
        "pextrb" | "pextrw" | "pextrd" | "pextrq" | "extractps" => VectorOp::Element,
        "extractf128" | "extracti128" | "insertf128" | "inserti128" => VectorOp::Element,
        "insertps" => VectorOp::ElementAndClear,
        "broadcastss" | "broadcastsd" | "broadcastf128" | "broadcasti128" => VectorOp::Broadcast,
        "pbroadcastb" | "pbroadcastw" | "pbroadcastd" | "pbroadcastq" => VectorOp::Broadcast,
        "maskmovps" | "pmaskmovd" => VectorOp::Masked(4),
        "maskmovpd" | "pmaskmovq" => VectorOp::Masked(8),
        "maskmovq" | "maskmovdqu" => VectorOp::MaskedBytes,
        _ => return None,
    })
}

/// As [`op`], for names that say more than the mnemonic, and for conditions.
fn op_of(oracle: &iced_x86::Instruction) -> Option<Op> {
    let condition = oracle.condition_code() as u8;
    match oracle.code() {
        Code::Movsd_m32_m32 => return Some(Op::String(StringOp::Movs)),
        Code::Cmpsd_m32_m32 => return Some(Op::String(StringOp::Cmps)),
        _ => {}
    }
    if oracle.encoding() == EncodingKind::EVEX {
        return None;
    }
    match oracle.mnemonic() {
        Mnemonic::Call if oracle.is_call_far() || oracle.is_call_far_indirect() => {
            return Some(Op::FarCall)
        }
        Mnemonic::Jmp if oracle.is_jmp_far() || oracle.is_jmp_far_indirect() => {
            return Some(Op::FarJump)
        }
        Mnemonic::Call => return Some(Op::Call),
        Mnemonic::Jmp => return Some(Op::Jump),
        _ => {}
    }
    let name = format!("{:?}", oracle.mnemonic());
    // The oracle numbers conditions from 1, in the order of their encoding.
    if condition > 0 && name.starts_with("Set") {
        return Some(Op::Set(condition - 1));
    }
    if condition > 0 && name.starts_with("Cmov") {
        return Some(Op::MovIf(condition - 1));
    }
    op(oracle.mnemonic())
}

fn general(reg: R) -> Option<Register> {
    let width = reg.size() as u8;
    if !reg.is_gpr() {
        return None;
    }
    let high = matches!(reg, R::AH | R::CH | R::DH | R::BH);
    let number = reg.full_register().number() as u8;
    Some(Register {
        reg: Reg::from_number(number),
        width,
        high,
    })
}

fn segment(reg: R) -> Option<Seg> {
    [
        (R::ES, Seg::Es),
        (R::CS, Seg::Cs),
        (R::SS, Seg::Ss),
        (R::DS, Seg::Ds),
        (R::FS, Seg::Fs),
        (R::GS, Seg::Gs),
    ]
    .into_iter()
    .find_map(|(theirs, ours)| (theirs == reg).then_some(ours))
}

fn memory(oracle: &iced_x86::Instruction) -> Operand {
    let (base, displacement) = match oracle.memory_base() {
        R::None => (Base::None, oracle.memory_displacement64()),
        R::RIP | R::EIP => (
            Base::NextInstruction,
            oracle
                .memory_displacement64()
                .wrapping_sub(oracle.next_ip()),
        ),
        reg => (
            Base::Register(general(reg).unwrap().reg),
            oracle.memory_displacement64(),
        ),
    };
    let index = match oracle.memory_index() {
        R::None => None,
        reg => Some((general(reg).unwrap().reg, oracle.memory_index_scale() as u8)),
    };
    Operand::Memory(Address {
        seg: segment(oracle.memory_segment()).unwrap(),
        base,
        index,
        displacement,
    })
}

fn operand(oracle: &iced_x86::Instruction, i: u32) -> Operand {
    if i >= oracle.op_count() {
        return Operand::None;
    }
    match oracle.op_kind(i) {
        OpKind::Register => {
            let reg = oracle.op_register(i);
            match (general(reg), segment(reg)) {
                (Some(register), _) => Operand::Register(register),
                (_, Some(seg)) => Operand::Segment(seg),
                _ if reg.is_cr() => Operand::Control(reg.number() as u8),
                _ if reg.is_dr() => Operand::Debug(reg.number() as u8),
                _ if reg.is_mm() || reg.is_xmm() || reg.is_ymm() => Operand::Vector(Vector {
                    number: reg.number() as u8,
                    width: reg.size() as u8,
                }),
                _ => Operand::None,
            }
        }
        OpKind::Memory => memory(oracle),
        OpKind::FarBranch16 | OpKind::FarBranch32 => Operand::Far {
            selector: oracle.far_branch_selector(),
            offset: match oracle.op_kind(i) {
                OpKind::FarBranch16 => oracle.far_branch16().into(),
                _ => oracle.far_branch32(),
            },
        },
        OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64 => Operand::Immediate(
            oracle
                .near_branch_target()
                .wrapping_sub(oracle.len() as u64),
        ),
        _ => Operand::Immediate(oracle.immediate(i)),
    }
}

/// The part of an operand that has a meaning: displacements cut to the address size, immediates to the operation's, no
/// segments but FS and GS in 64-bit mode.
fn meaning(operand: Operand, bits: u32, address_width: u8, width: u8) -> Operand {
    match operand {
        Operand::Memory(address) => Operand::Memory(Address {
            displacement: address.displacement & super::alu::mask(address_width),
            seg: match address.seg {
                Seg::Es | Seg::Cs | Seg::Ss if bits == 64 => Seg::Ds,
                seg => seg,
            },
            ..address
        }),
        Operand::Immediate(value) => Operand::Immediate(value & super::alu::mask(width)),
        other => other,
    }
}

/// Whether the lengths differ, of an instruction that both decoders know. UD0 never exits.
fn length_differs(bytes: &[u8], size: CodeSize, bits: u32) -> Option<String> {
    let of = |options| Decoder::with_ip(bits, bytes, 0, options).decode();
    let mut oracle = of(DecoderOptions::AMD);
    // Lengths are those of Intel's near branches, also where an operand-size prefix makes AMD's shorter.
    if oracle.is_jcc_near() || oracle.is_jmp_near() || oracle.is_call_near() {
        oracle = of(DecoderOptions::NONE);
    }
    if oracle.mnemonic() == Mnemonic::Ud0 {
        return None;
    }
    match length(bytes, size) {
        Ok(ours) if !oracle.is_invalid() && usize::from(ours) != oracle.len() => {
            Some(format!("{bits}-bit {bytes:02x?} {oracle}: {ours} bytes"))
        }
        _ => None,
    }
}

/// Compares the two decoders on one input; says what differs.
fn differs(bytes: &[u8], size: CodeSize, bits: u32) -> Option<String> {
    let ours = Instruction::decode(bytes, size);
    let names_cr8 = |i: &Instruction| i.lock && i.op == Op::Mov;
    let options = match ours.as_ref().is_ok_and(names_cr8) {
        true => DecoderOptions::AMD,
        false => DecoderOptions::NONE,
    };
    let mut decoder = Decoder::with_ip(bits, bytes, 0, options);
    let oracle = decoder.decode();
    let expected = (!oracle.is_invalid()).then(|| op_of(&oracle)).flatten();
    let show = |what: &str| Some(format!("{bits}-bit {bytes:02x?} {oracle}: {what}"));
    let ours = match (ours, expected) {
        (Err(_), None) => return None,
        // REX.R before a segment register is ignored by processors and refused by the decoder.
        (Err(_), Some(_)) if (0..2).any(|i| segment(oracle.op_register(i)).is_some()) => {
            return None
        }
        // The decoder takes VEX.W of these for another instruction.
        (Err(_), Some(_)) if matches!(oracle.mnemonic(), Mnemonic::Vpextrb | Mnemonic::Vpextrw) => {
            return None
        }
        (Err(error), Some(_)) => return show(&format!("{error:?}")),
        (Ok(ours), None) if ours.op == Op::Hint => return None,
        // The oracle takes REX.B and 0x90 under F3 for PAUSE.
        (Ok(ours), None) if ours.op == Op::Xchg && oracle.mnemonic() == Mnemonic::Pause => {
            return None
        }
        (Ok(ours), None) => return show(&format!("known as {ours:x?}")),
        (Ok(ours), Some(_)) => ours,
    };
    if Some(ours.op) != expected || usize::from(ours.length) != oracle.len() {
        return show(&format!("{ours:x?}"));
    }
    if ours.lock != oracle.has_lock_prefix() && !names_cr8(&ours) {
        return show("lock");
    }
    if let Op::String(_) = ours.op {
        let prefixed = match ours.repeat {
            Repeat::No => !oracle.has_rep_prefix() && !oracle.has_repne_prefix(),
            Repeat::WhileEqual => oracle.has_rep_prefix(),
            Repeat::WhileNotEqual => oracle.has_repne_prefix(),
        };
        let same = prefixed
            && usize::from(ours.memory_width) == oracle.memory_size().size()
            && ours
                .segment
                .is_none_or(|seg| Some(seg) == segment(oracle.segment_prefix()));
        return if same {
            None
        } else {
            show(&format!("{ours:x?}"))
        };
    }
    // Of vector registers, and of x87's, only moves to and from memory are executed.
    let mut operands = ours.operands.iter();
    let memory = operands.any(|operand| matches!(operand, Operand::Memory(_)));
    let implied = ours.op == Op::Vector(VectorOp::MaskedBytes);
    if matches!(ours.op, Op::Vector(_) | Op::Fpu(_)) && !memory && !implied {
        return None;
    }
    // XLAT's operands are implied; PUSH of an immediate and loads of segment registers are not executed.
    let first = ours.operands[0];
    if ours.op == Op::Xlat || matches!(first, Operand::Immediate(_) | Operand::Segment(_)) {
        return None;
    }
    let width = match ours.operands[0] {
        Operand::Register(register) => register.width,
        _ => ours.memory_width,
    };
    // The oracle names the memory that is implied.
    let theirs = [0, 1, 2, 3].map(|i| operand(&oracle, i + u32::from(implied)));
    let width_of = |i| match ours.op {
        Op::Shift(_) | Op::Bit(_) | Op::Vector(_) => 1,
        Op::ShiftLeftDouble | Op::ShiftRightDouble if i == 2 => 1,
        _ => width,
    };
    let agree = |i: usize, j: usize| {
        let meaning = |operand| meaning(operand, bits, ours.address_width, width_of(i));
        meaning(ours.operands[i]) == meaning(theirs[j])
    };
    let swapped = ours.op == Op::Xchg && agree(0, 1) && agree(1, 0);
    for (i, mine) in ours.operands.into_iter().enumerate() {
        if !swapped && !agree(i, i) {
            return show(&format!("operand {i} is {mine:x?}, not {:x?}", theirs[i]));
        }
        let sized = !matches!(ours.op, Op::Invlpg | Op::Fpu(FpuOp::Save | FpuOp::Restore));
        let accessed = matches!(mine, Operand::Memory(_)) && sized;
        if accessed && usize::from(ours.memory_width) != oracle.memory_size().size() {
            return show(&format!("{} bytes", ours.memory_width));
        }
    }
    None
}

/// Deterministic noise for the bytes after the opcode.
fn noise(seed: &mut u64) -> u8 {
    *seed = seed
        .wrapping_mul(6364136223846793005)
        .wrapping_add(1442695040888963407);
    (*seed >> 33) as u8
}

/// All prefixes, all opcodes, every `step`th ModRM byte from a random one on; noise for the rest.
fn agree(step: usize) {
    let prefixes: &[&[u8]] = &[
        &[],
        &[0x66],
        &[0x67],
        &[0x66, 0x67],
        &[0xf0],
        &[0xf2],
        &[0xf3],
        &[0x2e],
        &[0x3e],
        &[0x64],
        &[0x65, 0x66],
        &[0x36],
        &[0x26, 0xf3],
        &[0x48],
        &[0x41],
        &[0x44],
        &[0x66, 0x4f],
        &[0x67, 0x4a],
        &[0xf0, 0x48],
        &[0x40],
        &[0x48, 0x66],
        &[0xf3, 0x48],
        &[0xf2, 0x66],
    ];
    let maps: &[&[u8]] = &[&[], &[0x0f], &[0x0f, 0x38], &[0x0f, 0x3a], &[0x0f, 0x01]];
    // VEX prefixes of two and of three bytes: all maps, widths, implied prefixes and both REX.W, with and without a second
    // source.
    let two = (0..8u8).flat_map(|l_pp| [0xf8 | l_pp, 0xb8 | l_pp].map(|byte| vec![0xc5, byte]));
    let three = (1..4u8).flat_map(|map| {
        let bytes = (0..8u8).flat_map(|l_pp| [0x78, 0xf8, 0x48].map(|byte| byte | l_pp));
        bytes.map(move |byte| vec![0xc4, 0xe0 | map, byte])
    });
    let vex: Vec<Vec<u8>> = two.chain(three).collect();
    let mut seed = 1;
    let mut found = std::collections::BTreeMap::new();
    let mut compared = 0u32;
    for (size, bits) in SIZES {
        for (i, prefix) in prefixes.iter().enumerate() {
            let vex = vex.iter().map(Vec::as_slice).filter(|_| i == 0);
            for map in maps.iter().copied().chain(vex) {
                for opcode in 0..=255u8 {
                    let first = noise(&mut seed) % step.min(255) as u8;
                    for modrm in (first..=255).step_by(step) {
                        let mut bytes = [prefix, map, &[opcode, modrm]].concat();
                        bytes.resize_with(15, || noise(&mut seed));
                        compared += 1;
                        let difference = differs(&bytes, size, bits);
                        let difference = difference.or_else(|| length_differs(&bytes, size, bits));
                        if let Some(difference) = difference {
                            let key = (bits, map.to_vec(), opcode);
                            found.entry(key).or_insert(difference);
                        }
                    }
                }
            }
        }
    }
    let shown: Vec<_> = found.values().take(60).cloned().collect();
    assert!(
        found.is_empty(),
        "{} of {compared}:\n{}",
        found.len(),
        shown.join("\n")
    );
}

/// A sample. After a change of the decoder or its version, `DECODE_STEP=1` compares everything, in minutes.
#[test]
fn agrees_with_the_oracle() {
    let step = std::env::var("DECODE_STEP").map_or(41, |step| step.parse().unwrap());
    agree(step);
}

#[test]
fn truncated_instructions_ask_for_more() {
    let long = [0x48, 0xc7, 0x84, 0x88, 1, 2, 3, 4, 5, 6, 7, 8];
    for len in 0..long.len() {
        let cut = &long[..len];
        assert_eq!(length(cut, CodeSize::Bits64), Err(DecodeError::Incomplete));
    }
    assert_eq!(length(&long, CodeSize::Bits64), Ok(12));
    for (code, expected) in [
        (&[0x0f, 0xa2][..], 2),
        (&[0x0f, 0x32], 2),
        (&[0x66, 0x48, 0x0f, 0x30], 4),
        (&[0xf4], 1),
        (&[0x0f, 0x01, 0xd9], 3),
        (&[0x0f, 0x01, 0xf9], 3),
    ] {
        assert_eq!(length(code, CodeSize::Bits64), Ok(expected), "{code:02x?}");
    }
    assert_eq!(
        length(&[0x66; 15], CodeSize::Bits64),
        Err(DecodeError::TooLong)
    );
    assert_eq!(
        length(&[0x66; 40], CodeSize::Bits16),
        Err(DecodeError::TooLong)
    );
}
