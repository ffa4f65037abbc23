// SPDX-License-Identifier: MIT OR Apache-2.0
//! The virtual machine control block (APM 2: appendix B), and the tracking of what the processor may keep of it.

use super::super::pages::Pages;
use crate::host::{Host, NoMemory};
use crate::state::{is_64_bit_code, Segment, SegmentAttributes, TableRegister};
use bitflags::bitflags;
use core::mem::offset_of;

bitflags! {
    /// Intercepts of offset 00Ch (APM 2: table B-1).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    #[repr(transparent)]
    pub(super) struct Intercepts3: u32 {
        const INTR          = 1 << 0;
        const NMI           = 1 << 1;
        const SMI           = 1 << 2;
        const INIT          = 1 << 3;
        const VINTR         = 1 << 4;
        const RDPMC         = 1 << 15;
        const CPUID         = 1 << 18;
        const RSM           = 1 << 19;
        const IRET          = 1 << 20;
        const INVD          = 1 << 22;
        const PAUSE         = 1 << 23;
        const HLT           = 1 << 24;
        const INVLPGA       = 1 << 26;
        const IOIO_PROT     = 1 << 27;
        const MSR_PROT      = 1 << 28;
        const TASK_SWITCH   = 1 << 29;
        const FERR_FREEZE   = 1 << 30;
        const SHUTDOWN      = 1 << 31;
    }

    /// Intercepts of offset 010h.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    #[repr(transparent)]
    pub(super) struct Intercepts4: u32 {
        const VMRUN         = 1 << 0;
        const VMMCALL       = 1 << 1;
        const VMLOAD        = 1 << 2;
        const VMSAVE        = 1 << 3;
        const STGI          = 1 << 4;
        const CLGI          = 1 << 5;
        const SKINIT        = 1 << 6;
        const RDTSCP        = 1 << 7;
        const ICEBP         = 1 << 8;
        const WBINVD        = 1 << 9;
        const MONITOR       = 1 << 10;
        const MWAIT         = 1 << 11;
        const XSETBV        = 1 << 13;
        const RDPRU         = 1 << 14;
    }

    /// Exceptions, by vector.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    #[repr(transparent)]
    pub(super) struct Exceptions: u32 {
        const DB            = 1 << 1;
        const AC            = 1 << 17;
        const MC            = 1 << 18;
        // The others have no names here.
        const _             = !0;
    }

    /// The virtual interrupt, offset 060h.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    #[repr(transparent)]
    pub(super) struct VirtualInterrupt: u64 {
        const V_TPR         = 0xf;
        const V_IRQ         = 1 << 8;
        const V_INTR_PRIO   = 0xf << 16;
        const V_IGN_TPR     = 1 << 20;
        const V_INTR_MASKING = 1 << 24;
    }

    /// Groups of fields of which the processor may keep a copy between exit and entry (APM 2: 15.15.3). A set bit in the
    /// VMCB promises that the group was not touched.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    #[repr(transparent)]
    pub(super) struct Clean: u32 {
        /// Intercept vectors, TSC offset, pause filter count and threshold.
        const I             = 1 << 0;
        /// Permission maps.
        const IOPM          = 1 << 1;
        const ASID          = 1 << 2;
        /// The virtual interrupt and V_TPR.
        const TPR           = 1 << 3;
        /// Nested paging: N_CR3 and G_PAT.
        const NP            = 1 << 4;
        /// CR0, CR3, CR4, EFER.
        const CRX           = 1 << 5;
        /// DR6, DR7.
        const DRX           = 1 << 6;
        /// GDT and IDT.
        const DT            = 1 << 7;
        /// CS, DS, SS, ES and the CPL.
        const SEG           = 1 << 8;
        const CR2           = 1 << 9;
    }
}

/// TLB_CONTROL (APM 2: 15.16.1).
pub(super) mod tlb_control {
    pub const NOTHING: u8 = 0;
    /// Everything, of all address spaces and of the host.
    pub const ALL: u8 = 1;
    /// What is tagged with this ASID. Needs FlushByAsid.
    pub const THIS_ASID: u8 = 3;
}

/// EVENTINJ and EXITINTINFO (APM 2: 15.7.2, 15.20).
pub(super) mod event {
    pub const INTERRUPT: u64 = 0 << 8;
    pub const NMI: u64 = 2 << 8;
    pub const EXCEPTION: u64 = 3 << 8;
    pub const SOFTWARE: u64 = 4 << 8;
    pub const TYPE: u64 = 7 << 8;
    pub const ERROR_CODE_VALID: u64 = 1 << 11;
    pub const VALID: u64 = 1 << 31;
}

/// A segment register in a VMCB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub(super) struct VmcbSegment {
    pub selector: u16,
    pub attributes: u16,
    pub limit: u32,
    pub base: u64,
}

impl From<Segment> for VmcbSegment {
    fn from(s: Segment) -> Self {
        Self {
            selector: s.selector,
            attributes: s.attributes.0,
            limit: s.limit,
            base: s.base,
        }
    }
}

impl From<VmcbSegment> for Segment {
    fn from(s: VmcbSegment) -> Self {
        Self {
            selector: s.selector,
            base: s.base,
            limit: s.limit,
            attributes: SegmentAttributes(s.attributes),
        }
    }
}

impl From<TableRegister> for VmcbSegment {
    fn from(t: TableRegister) -> Self {
        Self {
            selector: 0,
            attributes: 0,
            limit: t.limit.into(),
            base: t.base,
        }
    }
}

impl From<VmcbSegment> for TableRegister {
    fn from(s: VmcbSegment) -> Self {
        Self {
            base: s.base,
            limit: s.limit as u16,
        }
    }
}

/// The control area (APM 2: table B-1).
#[derive(Debug)]
#[repr(C)]
pub(super) struct Control {
    pub cr_reads: u16,            // 000h
    pub cr_writes: u16,           // 002h
    pub dr_reads: u16,            // 004h
    pub dr_writes: u16,           // 006h
    pub exceptions: Exceptions,   // 008h
    pub intercepts3: Intercepts3, // 00ch
    pub intercepts4: Intercepts4, // 010h
    _014: [u32; 10],
    pub pause_threshold: u16, // 03ch
    pub pause_count: u16,     // 03eh
    pub iopm: u64,            // 040h
    pub msrpm: u64,           // 048h
    pub tsc_offset: u64,      // 050h
    pub asid: u32,            // 058h
    pub tlb_control: u8,      // 05ch
    _05d: [u8; 3],
    pub virtual_interrupt: VirtualInterrupt, // 060h
    /// Bit 0: the guest is in an interrupt shadow.
    pub interrupt_shadow: u64, // 068h
    pub exit_code: u64,                      // 070h
    pub exit_info1: u64,                     // 078h
    pub exit_info2: u64,                     // 080h
    pub exit_int_info: u64,                  // 088h
    /// Bit 0: NP_ENABLE.
    pub nested_paging: u64, // 090h
    _098: [u64; 2],
    pub event_inj: u64, // 0a8h
    pub n_cr3: u64,     // 0b0h
    _0b8: u64,
    pub clean: Clean, // 0c0h
    _0c4: u32,
    pub next_rip: u64, // 0c8h
    /// How many of `fetched` are instruction bytes.
    pub fetched_len: u8, // 0d0h
    pub fetched: [u8; 15], // 0d1h
    _0e0: [u64; 100],
}

/// The state save area (APM 2: table B-2).
#[derive(Debug)]
#[repr(C)]
pub(super) struct Save {
    pub es: VmcbSegment,   // 400h
    pub cs: VmcbSegment,   // 410h
    pub ss: VmcbSegment,   // 420h
    pub ds: VmcbSegment,   // 430h
    pub fs: VmcbSegment,   // 440h
    pub gs: VmcbSegment,   // 450h
    pub gdtr: VmcbSegment, // 460h
    pub ldtr: VmcbSegment, // 470h
    pub idtr: VmcbSegment, // 480h
    pub tr: VmcbSegment,   // 490h
    _4a0: [u8; 43],
    pub cpl: u8, // 4cbh
    _4cc: u32,
    pub efer: u64, // 4d0h
    _4d8: [u64; 14],
    pub cr4: u64,    // 548h
    pub cr3: u64,    // 550h
    pub cr0: u64,    // 558h
    pub dr7: u64,    // 560h
    pub dr6: u64,    // 568h
    pub rflags: u64, // 570h
    pub rip: u64,    // 578h
    _580: [u64; 11],
    pub rsp: u64, // 5d8h
    _5e0: [u64; 3],
    pub rax: u64,            // 5f8h
    pub star: u64,           // 600h
    pub lstar: u64,          // 608h
    pub cstar: u64,          // 610h
    pub sfmask: u64,         // 618h
    pub kernel_gs_base: u64, // 620h
    pub sysenter_cs: u64,    // 628h
    pub sysenter_esp: u64,   // 630h
    pub sysenter_eip: u64,   // 638h
    pub cr2: u64,            // 640h
    _648: [u64; 4],
    pub g_pat: u64, // 668h
    _670: [u64; 14],
    pub spec_ctrl: u64, // 6e0h
    _6e8: [u64; 291],
}

/// The block, one page.
#[derive(Debug)]
#[repr(C, align(4096))]
pub(super) struct Vmcb {
    pub control: Control,
    pub save: Save,
}

impl Vmcb {
    /// Whether the guest executes 64-bit code.
    pub(super) fn in_64_bit_code(&self) -> bool {
        is_64_bit_code(self.save.efer, SegmentAttributes(self.save.cs.attributes))
    }
}

const _: () = {
    assert!(size_of::<VmcbSegment>() == 16);
    assert!(size_of::<Control>() == 0x400);
    assert!(size_of::<Vmcb>() == 0x1000);
    assert!(offset_of!(Vmcb, control.intercepts4) == 0x10);
    assert!(offset_of!(Vmcb, control.pause_count) == 0x3e);
    assert!(offset_of!(Vmcb, control.asid) == 0x58);
    assert!(offset_of!(Vmcb, control.tlb_control) == 0x5c);
    assert!(offset_of!(Vmcb, control.virtual_interrupt) == 0x60);
    assert!(offset_of!(Vmcb, control.exit_int_info) == 0x88);
    assert!(offset_of!(Vmcb, control.event_inj) == 0xa8);
    assert!(offset_of!(Vmcb, control.n_cr3) == 0xb0);
    assert!(offset_of!(Vmcb, control.clean) == 0xc0);
    assert!(offset_of!(Vmcb, control.next_rip) == 0xc8);
    assert!(offset_of!(Vmcb, control.fetched) == 0xd1);
    assert!(offset_of!(Vmcb, save.tr) == 0x490);
    assert!(offset_of!(Vmcb, save.cpl) == 0x4cb);
    assert!(offset_of!(Vmcb, save.efer) == 0x4d0);
    assert!(offset_of!(Vmcb, save.cr4) == 0x548);
    assert!(offset_of!(Vmcb, save.rip) == 0x578);
    assert!(offset_of!(Vmcb, save.rsp) == 0x5d8);
    assert!(offset_of!(Vmcb, save.rax) == 0x5f8);
    assert!(offset_of!(Vmcb, save.cr2) == 0x640);
    assert!(offset_of!(Vmcb, save.g_pat) == 0x668);
    assert!(offset_of!(Vmcb, save.spec_ctrl) == 0x6e0);
};

use core::mem::size_of;

/// A VMCB in a page of its own.
pub(super) struct VmcbPage<H: Host>(Pages<H>);

impl<H: Host> VmcbPage<H> {
    /// One of zeroes: nothing in it is clean.
    pub(super) fn new(host: &H) -> Result<Self, NoMemory> {
        Pages::inside_large(host).map(Self)
    }
    /// Where the hardware finds it.
    pub(super) fn at(&self) -> crate::addr::Hpa {
        self.0.at()
    }
    /// The fields, to be read.
    pub(super) fn get(&self) -> &Vmcb {
        // SAFETY: a page of the right size and alignment, and any bits are a `Vmcb`. The hardware writes it only inside
        // the assembly of `enter`, across which no reference lives.
        unsafe { self.0.as_ptr().cast().as_ref() }
    }
    /// The fields, to be changed: those of `groups`, and those of which the processor keeps no copy.
    pub(super) fn change(&mut self, groups: Clean) -> &mut Vmcb {
        // SAFETY: as in `get`, and `self` is borrowed for as long.
        let vmcb: &mut Vmcb = unsafe { self.0.as_ptr().cast().as_mut() };
        vmcb.control.clean.remove(groups);
        vmcb
    }
    /// The fields of which the processor keeps no copy, to be changed: RIP, RSP, RAX, RFLAGS, event injection, interrupt
    /// shadow, TLB control, next RIP, and what VMLOAD loads (APM 2: 15.15.3).
    pub(super) fn uncached(&mut self) -> &mut Vmcb {
        self.change(Clean::empty())
    }
}
