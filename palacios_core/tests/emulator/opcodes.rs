// SPDX-License-Identifier: MIT OR Apache-2.0
//! Every opcode of all maps, with its operand on a device, in all modes: it is carried out, faults or is reported, and the
//! book's tables say which.

use crate::machine::{Event, TestCpu};
use crate::system::*;
use iced_x86::{
    Decoder, DecoderOptions, EncodingKind, Instruction, InstructionInfoFactory, Mnemonic, OpAccess,
};
use palacios_core::emulator::{self, Fault};
use palacios_core::state::*;
use std::collections::{BTreeMap, BTreeSet};

const BOOK: &str = include_str!("../../../Documentation/instructions.md");
const DEVICE: u64 = 0xfee0_0000;

/// A mode to be in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Long,
    Compatibility,
    Protected,
    Protected16,
    Real,
    Virtual8086,
}

const MODES: [Mode; 6] = [
    Mode::Long,
    Mode::Compatibility,
    Mode::Protected,
    Mode::Protected16,
    Mode::Real,
    Mode::Virtual8086,
];

impl Mode {
    fn bits(self) -> u32 {
        match self {
            Mode::Long => 64,
            Mode::Compatibility | Mode::Protected => 32,
            _ => 16,
        }
    }

    /// All registers point to the device, but those that say how much.
    fn cpu(self) -> TestCpu {
        let mut system = match self {
            Mode::Long => System::long(0),
            Mode::Real => System {
                cpu: TestCpu::real(0x1000),
            },
            _ => System::protected(0),
        };
        let cpu = &mut system.cpu;
        cpu.cr[4] |= cr4::OSFXSR | cr4::OSXSAVE;
        let code = &mut cpu.segment_mut(Seg::Cs).attributes.0;
        match self {
            Mode::Compatibility => cpu.efer = efer::LMA | efer::LME,
            Mode::Protected16 => *code &= !SegmentAttributes::DB,
            Mode::Virtual8086 => {
                cpu.rflags |= rflags::VM | rflags::IOPL;
                cpu.cpl = 3;
                for segment in &mut cpu.segments[..6] {
                    *segment = Segment::of_8086(0x3000);
                }
            }
            _ => {}
        }
        let small = matches!(self, Mode::Real | Mode::Virtual8086);
        for reg in [Reg::Rbx, Reg::Rbp, Reg::Rsp, Reg::Rsi, Reg::Rdi] {
            *cpu.reg(reg) = if small { 0x8800 } else { DEVICE + 0x800 };
        }
        if self == Mode::Protected16 {
            // A 16-bit address must reach the device.
            for seg in [Seg::Ds, Seg::Es, Seg::Ss] {
                cpu.segment_mut(seg).base = DEVICE;
            }
            for reg in [Reg::Rbx, Reg::Rbp, Reg::Rsp, Reg::Rsi, Reg::Rdi] {
                *cpu.reg(reg) = 0x800;
            }
        }
        system.cpu
    }
}

/// One encoding with a memory operand, if its opcode has a ModRM byte.
#[derive(Clone, Copy, Debug)]
struct Encoding {
    vex: bool,
    /// None, 66, F2, F3.
    prefix: usize,
    map: usize,
    opcode: u8,
    reg: u8,
}

const PREFIXES: [&str; 4] = ["NP", "66", "F2", "F3"];
const MAPS: [&str; 4] = ["", "0F", "0F38", "0F3A"];

impl Encoding {
    /// Its bytes: [bx] or [rbx], immediates of zero. A VEX prefix has the given W and L.
    fn bytes(&self, bits: u32, wide: u8) -> Vec<u8> {
        let operand = match (self.map, self.opcode) {
            // MASKMOVQ, whose memory is implied.
            (1, 0xf7) => 0xc1,
            _ if bits == 16 => 7,
            _ => 3,
        };
        let modrm = self.reg << 3 | operand;
        let mut bytes = match self.vex {
            true => {
                let pp = [0, 1, 3, 2][self.prefix];
                vec![
                    0xc4,
                    0xe0 | self.map as u8,
                    (wide & 2) << 6 | 0x78 | (wide & 1) << 2 | pp,
                ]
            }
            false => {
                let mut bytes = [&[][..], &[0x66], &[0xf2], &[0xf3]][self.prefix].to_vec();
                bytes.extend([&[][..], &[0x0f], &[0x0f, 0x38], &[0x0f, 0x3a]][self.map]);
                bytes
            }
        };
        bytes.extend([self.opcode, modrm]);
        bytes.resize(15, 0);
        bytes
    }

    fn all() -> impl Iterator<Item = Encoding> {
        let forms = [false, true].into_iter().flat_map(|vex| {
            let maps = if vex { 1..4 } else { 0..4 };
            maps.flat_map(move |map| (0..4).map(move |prefix| (vex, map, prefix)))
        });
        forms.flat_map(|(vex, map, prefix)| {
            (0..=255u8).flat_map(move |opcode| {
                (0..8).map(move |reg| Encoding {
                    vex,
                    prefix,
                    map,
                    opcode,
                    reg,
                })
            })
        })
    }

    /// Not a prefix, nor an escape to another map.
    fn is_opcode(&self, bits: u32) -> bool {
        match (self.map, self.opcode) {
            (0, 0x0f | 0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3) => false,
            (0, 0x40..=0x4f | 0x62 | 0xc4 | 0xc5) => bits != 64,
            (1, 0x38 | 0x3a) => false,
            _ => true,
        }
    }
}

/// An entry of a table's column "opcodes".
#[derive(Debug)]
struct Opcode {
    mode: Option<u32>,
    vex: bool,
    prefix: Option<usize>,
    map: usize,
    first: u8,
    last: u8,
    reg: Option<u8>,
}

impl Opcode {
    fn parse(text: &str) -> Opcode {
        let mut words: Vec<&str> = text.split(' ').collect();
        let mut take = |known: &[&str]| {
            let at = known.iter().position(|word| words.first() == Some(word))?;
            words.remove(0);
            Some(at)
        };
        let mode = take(&["64:", "32:"]).map(|at| [64, 32][at]);
        let vex = take(&["VEX"]).is_some();
        let prefix = take(&PREFIXES);
        let map = take(&MAPS[1..]).map_or(0, |at| at + 1);
        let (first, last) = words[0].split_once("..").unwrap_or((words[0], words[0]));
        let hex = |text| u8::from_str_radix(text, 16).unwrap_or_else(|_| panic!("{text}"));
        let reg = words
            .get(1)
            .map(|reg| reg.strip_prefix('/').unwrap().parse().unwrap());
        assert!(words.len() <= 2, "{text}");
        Opcode {
            mode,
            vex,
            prefix,
            map,
            first: hex(first),
            last: hex(last),
            reg,
        }
    }

    fn covers(&self, encoding: &Encoding, bits: u32) -> bool {
        self.mode.is_none_or(|mode| (mode == 64) == (bits == 64))
            && self.vex == encoding.vex
            && self.prefix.is_none_or(|prefix| prefix == encoding.prefix)
            && self.map == encoding.map
            && (self.first..=self.last).contains(&encoding.opcode)
            && self.reg.is_none_or(|reg| reg == encoding.reg)
    }
}

struct Row {
    name: String,
    opcodes: Vec<Opcode>,
    carried_out: bool,
}

/// The rows of all tables of instructions.
fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    let mut inside = false;
    for line in BOOK.lines() {
        if !line.starts_with('|') {
            inside = false;
        } else if line.starts_with("| instruction | opcodes |") {
            inside = true;
        } else if inside && !line.starts_with("| ---") {
            let cells: Vec<&str> = line.split('|').map(str::trim).collect();
            let opcodes = cells[2].split('`').skip(1).step_by(2);
            assert!(
                matches!(cells[3].split(',').next(), Some("yes" | "no")),
                "{line}"
            );
            rows.push(Row {
                name: cells[1].into(),
                opcodes: opcodes.map(Opcode::parse).collect(),
                carried_out: cells[3].starts_with("yes"),
            });
        }
    }
    assert!(rows.len() > 60, "{} rows", rows.len());
    rows
}

/// The row that an encoding is in: one that names its prefix is meant before one that names none.
fn row_of(rows: &[Row], encoding: &Encoding, bits: u32) -> Option<usize> {
    [true, false].into_iter().find_map(|named| {
        rows.iter().position(|row| {
            let mut opcodes = row.opcodes.iter();
            opcodes.any(|opcode| opcode.prefix.is_some() == named && opcode.covers(encoding, bits))
        })
    })
}

/// What the oracle says of an encoding: nothing if it is none, or of a kind that is not in the tables.
fn oracle(bytes: &[u8], bits: u32) -> Option<Instruction> {
    let instruction = Decoder::with_ip(bits, bytes, 0, DecoderOptions::NONE).decode();
    let known = matches!(
        instruction.encoding(),
        EncodingKind::Legacy | EncodingKind::VEX
    );
    (known && !instruction.is_invalid()).then_some(instruction)
}

/// It reads or writes memory: its operand, or its stack.
fn accesses_memory(instruction: &Instruction) -> bool {
    use Mnemonic as M;
    let accesses = |access| !matches!(access, OpAccess::None | OpAccess::NoMemAccess);
    let mut factory = InstructionInfoFactory::new();
    let info = factory.info(instruction);
    let used = info
        .used_memory()
        .iter()
        .any(|memory| accesses(memory.access()));
    // What the oracle does not count: the frames of interrupts, the map of ports in a task-state segment.
    used || matches!(
        instruction.mnemonic(),
        M::Int | M::Int3 | M::Into | M::Iret | M::Iretd | M::Iretq | M::In | M::Out
    )
}

/// What became of an instruction: whether the emulator knows it.
fn is_known(cpu: &mut TestCpu, bytes: &[u8], what: &str) -> bool {
    let before = cpu.clone();
    let result = cpu.run(bytes);
    match result {
        Ok(_) | Err(Fault::TaskSwitch) => true,
        Err(Fault::Exception(_)) => {
            let writes = cpu
                .log
                .iter()
                .any(|event| matches!(event, Event::Write(..)));
            assert!(!writes, "{what} wrote and faulted: {:x?}", cpu.log);
            assert_eq!(
                (cpu.gprs, cpu.rip, cpu.rflags),
                (before.gprs, before.rip, before.rflags),
                "{what}"
            );
            assert!(
                cpu.segments == before.segments && cpu.fpu == before.fpu,
                "{what}"
            );
            true
        }
        Err(Fault::Unsupported(report)) => {
            assert!(!report.bytes.is_empty() && cpu.log.is_empty(), "{what}");
            assert_eq!((cpu.gprs, cpu.rip), (before.gprs, before.rip), "{what}");
            false
        }
        other => panic!("{what}: {other:?}"),
    }
}

/// The oracle takes these for more than the decoder does: see the decoder's own tests.
fn is_exempt(instruction: &Instruction) -> bool {
    matches!(
        instruction.mnemonic(),
        Mnemonic::Vpextrb | Mnemonic::Vpextrw
    )
}

#[test]
fn opcodes_are_as_the_book_says() {
    let rows = rows();
    let mut seen = BTreeSet::new();
    let mut wrong = BTreeMap::new();
    let mut known = 0;
    for mode in MODES {
        let bits = mode.bits();
        let template = mode.cpu();
        for encoding in Encoding::all().filter(|encoding| encoding.is_opcode(bits)) {
            for wide in 0..if encoding.vex { 4 } else { 1 } {
                let bytes = encoding.bytes(bits, wide);
                let oracle = oracle(&bytes, bits);
                if wide != 0 && oracle.is_none() {
                    continue;
                }
                let mut cpu = template.clone();
                let name = oracle.as_ref().map_or(String::new(), |i| i.to_string());
                let what = format!("{mode:?} {name} {bytes:02x?}");
                let is_known = is_known(&mut cpu, &bytes, &what);
                cpu.code = bytes;
                let _ = emulator::length_at(&mut cpu);
                let Some(instruction) = oracle.filter(accesses_memory) else {
                    continue;
                };
                let row = row_of(&rows, &encoding, bits);
                seen.extend(row);
                let said = row.is_some_and(|row| rows[row].carried_out);
                known += u32::from(is_known);
                if is_known != said && !is_exempt(&instruction) {
                    let row = row.map_or("no row", |row| &rows[row].name);
                    let key = (encoding.vex, encoding.map, encoding.opcode, encoding.prefix);
                    wrong
                        .entry(key)
                        .or_insert(format!("{what}: known is {is_known}, {row}"));
                }
            }
        }
    }
    let wrong: Vec<_> = wrong.into_values().take(40).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(known > 20_000, "{known} are too few");
    for (i, row) in rows.iter().enumerate() {
        assert!(
            seen.contains(&i) || row.opcodes.is_empty(),
            "no instruction is a {}",
            row.name
        );
    }
}
