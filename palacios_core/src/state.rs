// SPDX-License-Identifier: MIT OR Apache-2.0
//! The architectural state of a CPU, in no vendor's layout.
#![forbid(unsafe_code)]

use core::ops::{Index, IndexMut};

/// A general register, numbered as instructions encode it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Reg {
    /// RAX, with the number 0.
    Rax,
    /// RCX, with the number 1.
    Rcx,
    /// RDX, with the number 2.
    Rdx,
    /// RBX, with the number 3.
    Rbx,
    /// RSP, with the number 4.
    Rsp,
    /// RBP, with the number 5.
    Rbp,
    /// RSI, with the number 6.
    Rsi,
    /// RDI, with the number 7.
    Rdi,
    /// R8, with the number 8.
    R8,
    /// R9, with the number 9.
    R9,
    /// R10, with the number 10.
    R10,
    /// R11, with the number 11.
    R11,
    /// R12, with the number 12.
    R12,
    /// R13, with the number 13.
    R13,
    /// R14, with the number 14.
    R14,
    /// R15, with the number 15.
    R15,
}

impl Reg {
    /// All of them, in the order of their numbers.
    pub const ALL: [Reg; 16] = [
        Reg::Rax,
        Reg::Rcx,
        Reg::Rdx,
        Reg::Rbx,
        Reg::Rsp,
        Reg::Rbp,
        Reg::Rsi,
        Reg::Rdi,
        Reg::R8,
        Reg::R9,
        Reg::R10,
        Reg::R11,
        Reg::R12,
        Reg::R13,
        Reg::R14,
        Reg::R15,
    ];

    /// The register with the low four bits of `number`.
    pub const fn from_number(number: u8) -> Reg {
        Self::ALL[(number & 15) as usize]
    }
}

/// The sixteen general registers, in the order of their numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Gprs(pub [u64; 16]);

impl Index<Reg> for Gprs {
    type Output = u64;
    #[inline]
    fn index(&self, reg: Reg) -> &u64 {
        &self.0[reg as usize & 15]
    }
}

impl IndexMut<Reg> for Gprs {
    #[inline]
    fn index_mut(&mut self, reg: Reg) -> &mut u64 {
        &mut self.0[reg as usize & 15]
    }
}

/// A segment register, numbered as instructions encode it; the two system registers follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Seg {
    /// The extra segment.
    Es,
    /// The code segment.
    Cs,
    /// The stack segment.
    Ss,
    /// The data segment.
    Ds,
    /// FS, which software uses as it likes.
    Fs,
    /// GS, which software uses as it likes.
    Gs,
    /// The local descriptor table.
    Ldtr,
    /// The task register.
    Tr,
}

/// What a segment register holds, hidden part and all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// The visible part.
    pub selector: u16,
    /// The linear address of its first byte.
    pub base: u64,
    /// The offset of its last byte, already scaled by the granularity.
    pub limit: u32,
    /// Type and access rights.
    pub attributes: SegmentAttributes,
}

impl Segment {
    /// A segment of virtual-8086 mode (SDM 3B: 20.2).
    pub const fn of_8086(selector: u16) -> Segment {
        Segment {
            selector,
            base: (selector as u64) << 4,
            limit: 0xffff,
            attributes: SegmentAttributes(0xf3),
        }
    }
}

/// Access rights of a segment, packed as in a VMCB (APM 2: 15.5.1): type in bits 0–3, S in 4, DPL in 5–6, P in 7, AVL in 8,
/// L in 9, D/B in 10, G in 11.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct SegmentAttributes(pub u16);

impl SegmentAttributes {
    /// Type: accessed.
    pub const ACCESSED: u16 = 1 << 0;
    /// Type: a writable data segment, or a readable code segment.
    pub const WRITE_OR_READ: u16 = 1 << 1;
    /// Type: an expand-down data segment, or a conforming code segment.
    pub const DOWN_OR_CONFORMING: u16 = 1 << 2;
    /// Type: code.
    pub const CODE: u16 = 1 << 3;
    /// Code or data; clear for a system segment.
    pub const S: u16 = 1 << 4;
    /// Present.
    pub const P: u16 = 1 << 7;
    /// 64-bit code.
    pub const L: u16 = 1 << 9;
    /// 32-bit code or stack.
    pub const DB: u16 = 1 << 10;
    /// The descriptor's limit was in pages.
    pub const G: u16 = 1 << 11;

    /// Whether all of `bits` are set.
    pub const fn has(self, bits: u16) -> bool {
        self.0 & bits == bits
    }
    /// The descriptor's privilege level, 0–3.
    pub const fn dpl(self) -> u8 {
        ((self.0 >> 5) & 3) as u8
    }
    /// The four type bits.
    pub const fn kind(self) -> u8 {
        (self.0 & 15) as u8
    }
    /// Whether data can be read through it.
    pub const fn readable(self) -> bool {
        !self.has(Self::CODE) || self.has(Self::WRITE_OR_READ)
    }
    /// Whether data can be written through it.
    pub const fn writable(self) -> bool {
        !self.has(Self::CODE) && self.has(Self::WRITE_OR_READ)
    }
    /// Whether it is data and its offsets lie above the limit.
    pub const fn expands_down(self) -> bool {
        !self.has(Self::CODE) && self.has(Self::DOWN_OR_CONFORMING)
    }
}

/// Whether a CPU executes 64-bit code: it is in long mode, and its code segment, which has the attributes `code`, is a 64-bit one
/// (APM 2: 1.3.1).
pub const fn is_64_bit_code(efer: u64, code: SegmentAttributes) -> bool {
    efer & efer::LMA != 0 && code.has(SegmentAttributes::L)
}

/// The registers that decide how a CPU addresses memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Control {
    /// CR0.
    pub cr0: u64,
    /// CR2, the address of the last page fault.
    pub cr2: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// EFER as the guest sees it.
    pub efer: u64,
}

/// A table of descriptors that a register of its own names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DescriptorTable {
    /// By GDTR.
    Global,
    /// By IDTR.
    Interrupt,
}

/// A descriptor-table register.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableRegister {
    /// The linear address of the table.
    pub base: u64,
    /// The offset of its last byte.
    pub limit: u16,
}

/// What an instruction stream can observe of a CPU, but for what devices hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuState {
    /// The general registers.
    pub gprs: Gprs,
    /// RIP.
    pub rip: u64,
    /// RFLAGS.
    pub rflags: u64,
    /// CR0, CR2, CR3, CR4 and EFER.
    pub control: Control,
    /// The segment registers, LDTR and TR, in the order of [`Seg`].
    pub segments: [Segment; 8],
    /// GDTR.
    pub gdtr: TableRegister,
    /// IDTR.
    pub idtr: TableRegister,
    /// DR0–DR3.
    pub dr: [u64; 4],
    /// DR6.
    pub dr6: u64,
    /// DR7.
    pub dr7: u64,
    /// XCR0.
    pub xcr0: u64,
}

impl CpuState {
    /// The state after power-on or INIT (APM 2: 14.1.3; SDM 3A: 9.1.1), at the reset vector.
    pub const fn reset() -> Self {
        const DATA: Segment = Segment {
            selector: 0,
            base: 0,
            limit: 0xffff,
            attributes: SegmentAttributes(0x93),
        };
        const CODE: Segment = Segment {
            selector: 0xf000,
            base: 0xffff_0000,
            limit: 0xffff,
            attributes: SegmentAttributes(0x9b),
        };
        const LDTR: Segment = Segment {
            attributes: SegmentAttributes(0x82),
            ..DATA
        };
        const TR: Segment = Segment {
            attributes: SegmentAttributes(0x8b),
            ..DATA
        };
        const TABLE: TableRegister = TableRegister {
            base: 0,
            limit: 0xffff,
        };
        let mut gprs = Gprs([0; 16]);
        // The processor's family, model and stepping, as CPUID leaf 1 would say; software hardly looks.
        gprs.0[2] = 0x600;
        Self {
            gprs,
            rip: 0xfff0,
            rflags: rflags::FIXED,
            control: Control {
                cr0: cr0::CD | cr0::NW | cr0::ET,
                cr2: 0,
                cr3: 0,
                cr4: 0,
                efer: 0,
            },
            segments: [DATA, CODE, DATA, DATA, DATA, DATA, LDTR, TR],
            gdtr: TABLE,
            idtr: TABLE,
            dr: [0; 4],
            dr6: 0xffff_0ff0,
            dr7: 0x400,
            xcr0: 1,
        }
    }
}

/// Bits of RFLAGS (SDM 1: 3.4.3).
pub mod rflags {
    /// Carry.
    pub const CF: u64 = 1 << 0;
    /// Always one.
    pub const FIXED: u64 = 1 << 1;
    /// Parity of the result's low byte.
    pub const PF: u64 = 1 << 2;
    /// Carry out of the low four bits.
    pub const AF: u64 = 1 << 4;
    /// The result is zero.
    pub const ZF: u64 = 1 << 6;
    /// The result is negative.
    pub const SF: u64 = 1 << 7;
    /// A #DB after each instruction.
    pub const TF: u64 = 1 << 8;
    /// External interrupts are taken.
    pub const IF: u64 = 1 << 9;
    /// String instructions go downwards.
    pub const DF: u64 = 1 << 10;
    /// Signed overflow.
    pub const OF: u64 = 1 << 11;
    /// Both bits of the I/O privilege level.
    pub const IOPL: u64 = 3 << 12;
    /// The task was called by another.
    pub const NT: u64 = 1 << 14;
    /// Instruction breakpoints are ignored for one instruction.
    pub const RF: u64 = 1 << 16;
    /// Virtual-8086 mode.
    pub const VM: u64 = 1 << 17;
    /// Alignment is checked in user mode; with SMAP, user memory may be reached.
    pub const AC: u64 = 1 << 18;
    /// The virtual interrupt flag.
    pub const VIF: u64 = 1 << 19;
    /// A virtual interrupt is pending.
    pub const VIP: u64 = 1 << 20;
    /// CPUID is there if it can be changed.
    pub const ID: u64 = 1 << 21;
}

/// Bits of CR0 (SDM 3A: 2.5).
pub mod cr0 {
    /// Protected mode.
    pub const PE: u64 = 1 << 0;
    /// WAIT obeys TS.
    pub const MP: u64 = 1 << 1;
    /// There is no x87: its instructions are #NM.
    pub const EM: u64 = 1 << 2;
    /// The task was switched: x87 and SSE instructions are #NM.
    pub const TS: u64 = 1 << 3;
    /// There is an x87; always one.
    pub const ET: u64 = 1 << 4;
    /// Errors of the x87 are #MF.
    pub const NE: u64 = 1 << 5;
    /// The kernel obeys read-only pages.
    pub const WP: u64 = 1 << 16;
    /// RFLAGS.AC has alignment checked.
    pub const AM: u64 = 1 << 18;
    /// Not write-through; allowed only together with CD.
    pub const NW: u64 = 1 << 29;
    /// Caches are off.
    pub const CD: u64 = 1 << 30;
    /// Paging.
    pub const PG: u64 = 1 << 31;
}

/// Bits of CR4 (SDM 3A: 2.5).
pub mod cr4 {
    /// Virtual-8086 mode has virtual interrupts.
    pub const VME: u64 = 1 << 0;
    /// Protected mode has virtual interrupts.
    pub const PVI: u64 = 1 << 1;
    /// RDTSC is the kernel's alone.
    pub const TSD: u64 = 1 << 2;
    /// Breakpoints on I/O; DR4 and DR5 are #UD.
    pub const DE: u64 = 1 << 3;
    /// 4 MiB pages, in 32-bit paging.
    pub const PSE: u64 = 1 << 4;
    /// 64-bit entries in page tables.
    pub const PAE: u64 = 1 << 5;
    /// Machine checks are exceptions.
    pub const MCE: u64 = 1 << 6;
    /// Global pages.
    pub const PGE: u64 = 1 << 7;
    /// RDPMC is for user mode too.
    pub const PCE: u64 = 1 << 8;
    /// The kernel saves SSE registers by FXSAVE.
    pub const OSFXSR: u64 = 1 << 9;
    /// Errors of SSE are #XM.
    pub const OSXMMEXCPT: u64 = 1 << 10;
    /// SGDT, SIDT, SLDT, SMSW and STR are the kernel's alone.
    pub const UMIP: u64 = 1 << 11;
    /// Five levels of page tables.
    pub const LA57: u64 = 1 << 12;
    /// RDFSBASE and its like are there.
    pub const FSGSBASE: u64 = 1 << 16;
    /// Address-space tags in CR3.
    pub const PCIDE: u64 = 1 << 17;
    /// The kernel saves registers by XSAVE.
    pub const OSXSAVE: u64 = 1 << 18;
    /// The kernel does not execute user pages.
    pub const SMEP: u64 = 1 << 20;
    /// The kernel does not reach user pages.
    pub const SMAP: u64 = 1 << 21;
    /// Protection keys for user pages.
    pub const PKE: u64 = 1 << 22;
}

/// Bits of EFER (APM 2: 3.1.7).
pub mod efer {
    /// SYSCALL is there.
    pub const SCE: u64 = 1 << 0;
    /// Long mode, once paging is on.
    pub const LME: u64 = 1 << 8;
    /// Long mode is on.
    pub const LMA: u64 = 1 << 10;
    /// Page tables can forbid execution.
    pub const NXE: u64 = 1 << 11;
    /// SVM is on.
    pub const SVME: u64 = 1 << 12;
    /// Segment limits in long mode.
    pub const LMSLE: u64 = 1 << 13;
    /// FXSAVE in 64-bit mode leaves out the XMM registers.
    pub const FFXSR: u64 = 1 << 14;
}

/// An exception to be delivered to the guest (SDM 3A: 6.15).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception {
    /// 0–31.
    pub vector: u8,
    /// The error code, of those that push one.
    pub error_code: Option<u32>,
    /// What CR2 is to hold; of page faults only.
    pub cr2: Option<u64>,
}

impl Exception {
    /// #DE: a division by zero, or a quotient too large.
    pub const DIVIDE: Exception = Exception::plain(0);
    /// #DB: a debug trap or fault.
    pub const DEBUG: Exception = Exception::plain(1);
    /// #UD: an invalid opcode.
    pub const INVALID_OPCODE: Exception = Exception::plain(6);
    /// #NM: floating-point state is not there.
    pub const NO_FPU: Exception = Exception::plain(7);
    /// #MF: an x87 exception that is not masked.
    pub const X87: Exception = Exception::plain(16);

    /// An exception without an error code.
    pub const fn plain(vector: u8) -> Exception {
        Exception {
            vector,
            error_code: None,
            cr2: None,
        }
    }

    /// The instruction at RIP is executed again after the handler (SDM 3A: 6.5). #DB is no fault here: whichever kind it is of,
    /// it leaves RFLAGS.RF as it was (SDM 3B: 18.3.1.1).
    pub const fn is_fault(&self) -> bool {
        !matches!(self.vector, 1..=4 | 8 | 18)
    }

    /// #TS: the task-state segment, or what it names, is bad.
    pub const fn invalid_tss(error_code: u32) -> Exception {
        Exception {
            vector: 10,
            error_code: Some(error_code),
            cr2: None,
        }
    }
    /// #NP: the segment or gate that a selector names is not present.
    pub const fn not_present(error_code: u32) -> Exception {
        Exception {
            vector: 11,
            error_code: Some(error_code),
            cr2: None,
        }
    }
    /// #GP with an error code, zero unless a selector is at fault.
    pub const fn general_protection(error_code: u32) -> Exception {
        Exception {
            vector: 13,
            error_code: Some(error_code),
            cr2: None,
        }
    }
    /// #SS with an error code, zero unless a selector is at fault.
    pub const fn stack(error_code: u32) -> Exception {
        Exception {
            vector: 12,
            error_code: Some(error_code),
            cr2: None,
        }
    }
    /// #PF at the linear address `at`.
    pub const fn page_fault(error_code: u32, at: u64) -> Exception {
        Exception {
            vector: 14,
            error_code: Some(error_code),
            cr2: Some(at),
        }
    }
    /// The one with this vector. `error_code` and `cr2` count where it has them (SDM 3A: table 6-1).
    pub const fn of_vector(vector: u8, error_code: u32, cr2: u64) -> Exception {
        const WITH_ERROR_CODE: u32 = 1 << 8 | 0x1f << 10 | 1 << 17 | 1 << 21 | 1 << 29 | 1 << 30;
        let has_code = vector < 32 && WITH_ERROR_CODE & 1 << vector != 0;
        Exception {
            vector,
            error_code: if has_code { Some(error_code) } else { None },
            cr2: if vector == 14 { Some(cr2) } else { None },
        }
    }
    /// #AC.
    pub const fn alignment() -> Exception {
        Exception {
            vector: 17,
            error_code: Some(0),
            cr2: None,
        }
    }
}
