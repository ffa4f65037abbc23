// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a virtual CPU looks like inside, in words: registers, code, stack, and its last exits.

use crate::answers::text;
use iced_x86::{Decoder, DecoderOptions, Formatter, NasmFormatter};
use serde::{Serialize, Serializer};
use std::fmt::{self, Write};
use v3_abi::*;

/// How many instructions are shown, and how many words of the stack.
const INSTRUCTIONS: usize = 6;
const WORDS: usize = 8;
/// Such a virtual CPU has done nothing yet.
const UNSTARTED: &str = "unstarted";
const GPRS: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15",
];
const SEGMENTS: [&str; 8] = ["es", "cs", "ss", "ds", "fs", "gs", "ldtr", "tr"];

/// A virtual CPU, out of the guest. One that runs was called out for it.
#[derive(Clone, Debug, Serialize)]
pub struct VcpuReport {
    /// Its number.
    pub vcpu: u32,
    /// What it would do if it ran.
    pub activity: &'static str,
    /// How its instructions are to be read: 16, 32 or 64 bits.
    pub code_bits: u32,
    /// The privilege level.
    pub cpl: u32,
    /// What began the triple fault that ended the guest.
    pub cause: Option<Cause>,
    /// General, control and debug registers.
    #[serde(serialize_with = "as_map")]
    pub registers: Vec<(&'static str, Hex)>,
    /// Segment registers, and the tables of descriptors.
    #[serde(serialize_with = "as_map")]
    pub segments: Vec<(&'static str, Segment)>,
    /// The instructions from RIP on, as far as they could be read.
    pub code: Vec<Instruction>,
    /// The words from the top of the stack on.
    pub stack: Vec<Word>,
    /// The last exits, the oldest first.
    pub exits: Vec<Exit>,
}

/// A number that people read in hexadecimal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hex(pub u64);

impl fmt::Display for Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl Serialize for Hex {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

/// An exception or interrupt whose handler the guest did not reach.
#[derive(Clone, Debug, Serialize)]
pub struct Cause {
    /// `exception` or `interrupt`.
    pub kind: &'static str,
    /// Its vector.
    pub vector: u32,
    /// Its error code, if it has one.
    pub error_code: Option<Hex>,
    /// The address, of a page fault.
    pub address: Option<Hex>,
    /// All of that in words.
    pub meaning: String,
}

/// A segment register, or a table of descriptors, which has neither selector nor attributes.
#[derive(Clone, Debug, Serialize)]
pub struct Segment {
    /// The visible part.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<Hex>,
    /// The linear address of its first byte.
    pub base: Hex,
    /// The offset of its last byte.
    pub limit: Hex,
    /// Type and rights, as `v3vee.h` packs them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attributes: Option<Hex>,
}

/// An instruction.
#[derive(Clone, Debug, Serialize)]
pub struct Instruction {
    /// Its linear address.
    pub at: Hex,
    /// Its bytes.
    pub bytes: String,
    /// What it is, in Intel's notation.
    pub text: String,
}

/// A word of the stack.
#[derive(Clone, Debug, Serialize)]
pub struct Word {
    /// Its linear address.
    pub at: Hex,
    /// Its value.
    pub value: Hex,
}

/// An exit that is past.
#[derive(Clone, Debug, Serialize)]
pub struct Exit {
    /// RIP when the guest was left.
    pub rip: Hex,
    /// The name of the counter of such exits.
    pub kind: String,
    /// What it means.
    pub meaning: &'static str,
}

fn as_map<S: Serializer, T: Serialize>(
    pairs: &[(&'static str, T)],
    to: S,
) -> Result<S::Ok, S::Error> {
    to.collect_map(pairs.iter().map(|(name, value)| (name, value)))
}

impl From<&v3_vcpu_report> for VcpuReport {
    fn from(raw: &v3_vcpu_report) -> Self {
        Self {
            vcpu: raw.vcpu,
            activity: match raw.activity {
                V3_ACTIVITY_RUNS => "runs",
                V3_ACTIVITY_HALTED => "halted",
                V3_ACTIVITY_UNSTARTED => UNSTARTED,
                _ => "unknown",
            },
            code_bits: raw.code_bits,
            cpl: raw.cpl,
            cause: cause(raw),
            registers: registers(raw),
            segments: segments(raw),
            code: instructions(raw),
            stack: words(raw),
            exits: exits(raw),
        }
    }
}

fn registers(raw: &v3_vcpu_report) -> Vec<(&'static str, Hex)> {
    let others = [
        ("rip", raw.rip),
        ("rflags", raw.rflags),
        ("cr0", raw.cr0),
        ("cr2", raw.cr2),
        ("cr3", raw.cr3),
        ("cr4", raw.cr4),
        ("cr8", raw.cr8),
        ("efer", raw.efer),
        ("xcr0", raw.xcr0),
        ("dr0", raw.dr[0]),
        ("dr1", raw.dr[1]),
        ("dr2", raw.dr[2]),
        ("dr3", raw.dr[3]),
        ("dr6", raw.dr6),
        ("dr7", raw.dr7),
    ];
    let all = GPRS.into_iter().zip(raw.gprs).chain(others);
    all.map(|(name, value)| (name, Hex(value))).collect()
}

fn segments(raw: &v3_vcpu_report) -> Vec<(&'static str, Segment)> {
    let table = |base, limit: u32| Segment {
        selector: None,
        base: Hex(base),
        limit: Hex(limit.into()),
        attributes: None,
    };
    let registers = raw.segments.iter().map(|from| Segment {
        selector: Some(Hex(from.selector.into())),
        base: Hex(from.base),
        limit: Hex(from.limit.into()),
        attributes: Some(Hex(from.attributes.into())),
    });
    let tables = [
        ("gdtr", table(raw.gdt_base, raw.gdt_limit)),
        ("idtr", table(raw.idt_base, raw.idt_limit)),
    ];
    SEGMENTS.into_iter().zip(registers).chain(tables).collect()
}

fn instructions(raw: &v3_vcpu_report) -> Vec<Instruction> {
    let bytes = raw.code.get(..raw.code_len as usize).unwrap_or(&[]);
    let bits = if matches!(raw.code_bits, 16 | 32) {
        raw.code_bits
    } else {
        64
    };
    let mut decoder = Decoder::with_ip(bits, bytes, raw.code_at, DecoderOptions::NONE);
    let mut formatter = NasmFormatter::new();
    let options = formatter.options_mut();
    options.set_hex_prefix("0x");
    options.set_hex_suffix("");
    options.set_uppercase_hex(false);
    options.set_branch_leading_zeros(false);
    let mut found = Vec::new();
    while decoder.can_decode() && found.len() < INSTRUCTIONS {
        let from = decoder.position();
        let instruction = decoder.decode();
        let mut text = String::new();
        formatter.format(&instruction, &mut text);
        let its_bytes = bytes.get(from..decoder.position()).unwrap_or(&[]);
        found.push(Instruction {
            at: Hex(raw.code_at.wrapping_add(from as u64)),
            bytes: its_bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
            text,
        });
    }
    found
}

fn words(raw: &v3_vcpu_report) -> Vec<Word> {
    let bytes = raw.stack.get(..raw.stack_len as usize).unwrap_or(&[]);
    let size = match raw.code_bits {
        16 => 2,
        32 => 4,
        _ => 8,
    };
    let value = |word: &[u8]| {
        let bytes = word.iter().rev();
        bytes.fold(0, |value, byte| value << 8 | u64::from(*byte))
    };
    let words = bytes.chunks_exact(size).enumerate().take(WORDS);
    words
        .map(|(n, word)| Word {
            at: Hex(raw.stack_at.wrapping_add((n * size) as u64)),
            value: Hex(value(word)),
        })
        .collect()
}

fn exits(raw: &v3_vcpu_report) -> Vec<Exit> {
    let exits = raw.exits.iter().take(raw.exit_count as usize);
    exits
        .map(|exit| {
            let kind = text(&exit.kind);
            Exit {
                rip: Hex(exit.rip),
                meaning: meaning_of_exit(&kind),
                kind,
            }
        })
        .collect()
}

/// What an exit means, by the name of its counter.
fn meaning_of_exit(kind: &str) -> &'static str {
    match kind {
        "exit_host_interrupt" => "the host had an interrupt",
        "exit_window" => "the guest can take an interrupt that waited",
        "exit_cpuid" => "CPUID",
        "exit_rdmsr" => "RDMSR: it read a model-specific register",
        "exit_wrmsr" => "WRMSR: it wrote a model-specific register",
        "exit_hlt" => "HLT: it waits for an interrupt",
        "exit_pause" => "PAUSE, many times: it spins",
        "exit_hypercall" => "VMCALL or VMMCALL: it asked the VMM for something",
        "exit_port_in" => "IN: it read a port",
        "exit_port_out" => "OUT: it wrote a port",
        "exit_ram_fault" => "it touched memory that had no page of the host yet",
        "exit_mmio" => "it touched a device's memory, or none at all",
        "exit_emulate" => "a control or debug register, or INVLPG",
        "exit_exception" => "an exception that the VMM must see",
        "exit_triple_fault" => "a fault while a double fault was delivered",
        "exit_other" => "of another kind",
        _ => "a kind that this tool does not know",
    }
}

fn cause(raw: &v3_vcpu_report) -> Option<Cause> {
    const PAGE_FAULT: u32 = 14;
    let kind = match raw.cause {
        V3_CAUSE_EXCEPTION => "exception",
        V3_CAUSE_INTERRUPT => "interrupt",
        _ => return None,
    };
    let vector = raw.cause_vector;
    let is_exception = raw.cause == V3_CAUSE_EXCEPTION;
    let error_code = (raw.cause_has_error_code != 0).then_some(Hex(raw.cause_error_code.into()));
    let address = (is_exception && vector == PAGE_FAULT).then_some(Hex(raw.cr2));
    let mut meaning = match is_exception {
        true => exception(vector),
        false => format!("interrupt {vector}"),
    };
    if let Some(address) = address {
        let _ = write!(meaning, " at {address}"); // A string takes everything.
    }
    if let Some(code) = error_code {
        let _ = write!(meaning, ", error code {code}");
    }
    Some(Cause {
        kind,
        vector,
        error_code,
        address,
        meaning,
    })
}

/// An exception by the names that the manuals give it (SDM 3A: table 6-1).
pub(crate) fn exception(vector: u32) -> String {
    let name = match vector {
        0 => "#DE, division error",
        1 => "#DB, debug exception",
        3 => "#BP, breakpoint",
        4 => "#OF, overflow",
        5 => "#BR, bound range exceeded",
        6 => "#UD, invalid opcode",
        7 => "#NM, no floating-point unit",
        8 => "#DF, double fault",
        10 => "#TS, invalid TSS",
        11 => "#NP, segment not present",
        12 => "#SS, stack segment fault",
        13 => "#GP, general protection",
        14 => "#PF, page fault",
        16 => "#MF, floating-point error",
        17 => "#AC, alignment check",
        18 => "#MC, machine check",
        19 => "#XM, SIMD floating-point error",
        21 => "#CP, control protection",
        _ => return format!("exception {vector}"),
    };
    name.into()
}

impl fmt::Display for VcpuReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "vcpu {}: {}, {}-bit code, privilege level {}",
            self.vcpu, self.activity, self.code_bits, self.cpl
        )?;
        if self.activity == UNSTARTED {
            return Ok(());
        }
        if let Some(cause) = &self.cause {
            writeln!(f, "  it began with {}", cause.meaning)?;
        }
        for line in self.registers.chunks(4) {
            let cells = line.iter().map(|(name, value)| {
                let value = format!("{:#018x}", value.0);
                format!("{name:6} {value}")
            });
            writeln!(f, "  {}", cells.collect::<Vec<_>>().join("  "))?;
        }
        for (name, segment) in &self.segments {
            let (base, limit) = (segment.base.0, segment.limit.0);
            write!(f, "  {name:6} base {base:#018x}  limit {limit:#010x}")?;
            if let (Some(selector), Some(attributes)) = (segment.selector, segment.attributes) {
                let (selector, attributes) = (selector.0, attributes.0);
                write!(
                    f,
                    "  selector {selector:#06x}  attributes {attributes:#06x}"
                )?;
            }
            writeln!(f)?;
        }
        self.list(f, "code", &self.code, |i| {
            format!("{}  {:20}  {}", i.at, i.bytes, i.text)
        })?;
        self.list(f, "stack", &self.stack, |word| {
            format!("{}  {}", word.at, word.value)
        })?;
        self.list(f, "last exits, the oldest first", &self.exits, |exit| {
            format!(
                "{:20}  {:20} {}",
                exit.rip.to_string(),
                exit.kind,
                exit.meaning
            )
        })
    }
}

impl VcpuReport {
    /// A list under its title, or that there is nothing.
    fn list<T>(
        &self,
        f: &mut fmt::Formatter<'_>,
        title: &str,
        entries: &[T],
        line: impl Fn(&T) -> String,
    ) -> fmt::Result {
        match entries {
            [] => writeln!(f, "  {title}: cannot be read, or there is none"),
            entries => {
                writeln!(f, "  {title}:")?;
                let lines: Vec<String> = entries.iter().map(line).collect();
                let mut runs = lines.chunk_by(|a, b| a == b);
                runs.try_for_each(|run| {
                    let times = match run.len() {
                        1 => String::new(),
                        times => format!(", {times} times"),
                    };
                    writeln!(f, "    {}{times}", run[0].trim_end())
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw() -> v3_vcpu_report {
        let mut raw = v3_vcpu_report {
            vcpu: 1,
            activity: V3_ACTIVITY_RUNS,
            rip: 0x10_0000,
            rflags: 2,
            cr2: 0xdead_f000,
            code_bits: 32,
            cause: V3_CAUSE_EXCEPTION,
            cause_vector: 14,
            cause_has_error_code: 1,
            cause_error_code: 2,
            code_at: 0x10_0000,
            code_len: 5,
            stack_at: 0x7ff8,
            stack_len: 10,
            exit_count: 2,
            ..v3_vcpu_report::zeroed()
        };
        raw.code[..5].copy_from_slice(&[0x0f, 0x0b, 0xf4, 0xeb, 0xfe]);
        raw.stack[..10].copy_from_slice(&[1, 0, 0, 0, 2, 3, 0, 0, 9, 9]);
        raw.exits[0].rip = 0xf_ffff;
        put_text(&mut raw.exits[0].kind, b"exit_cpuid");
        put_text(&mut raw.exits[1].kind, b"exit_of_tomorrow");
        raw
    }

    #[test]
    fn says_what_began_it_and_shows_code_stack_and_exits() {
        let report = VcpuReport::from(&raw());
        let text = report.to_string();
        for expected in [
            "vcpu 1: runs, 32-bit code, privilege level 0\n",
            "  it began with #PF, page fault at 0xdeadf000, error code 0x2\n",
            "0x100000  0f0b                  ud2\n",
            "0x100002  f4                    hlt\n",
            "0x100003  ebfe                  jmp short 0x100003\n",
            "    0x7ff8  0x1\n    0x7ffc  0x302\n  last exits",
            "    0xfffff               exit_cpuid           CPUID\n",
            "exit_of_tomorrow     a kind that this tool does not know\n",
        ] {
            assert!(text.contains(expected), "{expected:?} in\n{text}");
        }
    }

    #[test]
    fn what_repeats_is_counted_and_who_did_nothing_has_nothing_to_show() {
        let mut raw = raw();
        raw.exits[1] = raw.exits[0];
        let text = VcpuReport::from(&raw).to_string();
        assert!(
            text.contains("exit_cpuid           CPUID, 2 times\n"),
            "{text}"
        );
        raw.activity = V3_ACTIVITY_UNSTARTED;
        assert_eq!(VcpuReport::from(&raw).to_string().lines().count(), 1);
    }

    #[test]
    fn json_has_numbers_in_hexadecimal_and_registers_by_name() {
        let json = serde_json::to_value(VcpuReport::from(&raw())).unwrap();
        assert_eq!(json["registers"]["cr2"], "0xdeadf000");
        assert_eq!(json["segments"]["idtr"]["limit"], "0x0");
        assert_eq!(json["cause"]["vector"], 14);
        assert_eq!(json["code"][0]["text"], "ud2");
        assert_eq!(json["exits"][0]["kind"], "exit_cpuid");
        assert_eq!(json["exits"].as_array().unwrap().len(), 2);
    }

    #[test]
    fn a_module_that_says_too_much_is_not_believed() {
        let wild = v3_vcpu_report {
            code_len: u32::MAX,
            stack_len: u32::MAX,
            exit_count: u32::MAX,
            code_bits: 7,
            cause: 9,
            activity: 9,
            stack_at: u64::MAX,
            ..raw()
        };
        let report = VcpuReport::from(&wild);
        assert!(report.code.is_empty() && report.stack.is_empty() && report.cause.is_none());
        assert_eq!(report.exits.len(), V3_LAST_EXITS as usize);
        assert!(report.to_string().contains("code: cannot be read"));
    }
}
