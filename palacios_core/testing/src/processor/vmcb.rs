// SPDX-License-Identifier: MIT OR Apache-2.0
//! A virtual machine control block as the processor reads it: by offsets, out of APM 2, appendix B.

use super::HostMachine;
use palacios_core::addr::Hpa;
use palacios_core::state::{CpuState, Segment, SegmentAttributes, TableRegister};

/// Offsets of fields.
pub mod at {
    pub const CR_READS: usize = 0x000;
    pub const CR_WRITES: usize = 0x002;
    pub const EXCEPTIONS: usize = 0x008;
    pub const INTERCEPTS_3: usize = 0x00c;
    pub const INTERCEPTS_4: usize = 0x010;
    pub const IOPM: usize = 0x040;
    pub const MSRPM: usize = 0x048;
    pub const TSC_OFFSET: usize = 0x050;
    pub const ASID: usize = 0x058;
    pub const TLB_CONTROL: usize = 0x05c;
    pub const V_INTR: usize = 0x060;
    pub const SHADOW: usize = 0x068;
    pub const EXIT_CODE: usize = 0x070;
    pub const EXIT_INFO_1: usize = 0x078;
    pub const EXIT_INFO_2: usize = 0x080;
    pub const EXIT_INT_INFO: usize = 0x088;
    pub const NP_ENABLE: usize = 0x090;
    pub const EVENT_INJ: usize = 0x0a8;
    pub const N_CR3: usize = 0x0b0;
    pub const CLEAN: usize = 0x0c0;
    pub const NEXT_RIP: usize = 0x0c8;
    pub const ES: usize = 0x400;
    pub const GDTR: usize = 0x460;
    pub const LDTR: usize = 0x470;
    pub const IDTR: usize = 0x480;
    pub const TR: usize = 0x490;
    pub const CPL: usize = 0x4cb;
    pub const EFER: usize = 0x4d0;
    pub const CR4: usize = 0x548;
    pub const CR3: usize = 0x550;
    pub const CR0: usize = 0x558;
    pub const DR7: usize = 0x560;
    pub const DR6: usize = 0x568;
    pub const RFLAGS: usize = 0x570;
    pub const RIP: usize = 0x578;
    pub const RSP: usize = 0x5d8;
    pub const RAX: usize = 0x5f8;
    pub const CR2: usize = 0x640;
}

/// What VMLOAD and VMSAVE move, in quadwords: FS, GS, LDTR, TR, STAR to SFMASK, KernelGSBase, SYSENTER (APM 2: 15.5.2).
pub const HIDDEN: [usize; 16] = [
    0x440, 0x448, 0x450, 0x458, 0x470, 0x478, 0x490, 0x498, 0x600, 0x608, 0x610, 0x618, 0x620,
    0x628, 0x630, 0x638,
];

/// Groups of fields that the processor may keep, by their bit in the clean field (APM 2: 15.15.3): name, quadwords.
pub const GROUPS: [(&str, &[usize]); 10] = [
    ("I", &[0x000, 0x008, 0x010, 0x038, 0x050]),
    ("IOPM", &[0x040, 0x048]),
    ("ASID", &[0x058]),
    ("TPR", &[0x060]),
    ("NP", &[0x090, 0x0b0, 0x668]),
    ("CRX", &[0x4d0, 0x548, 0x550, 0x558]),
    ("DRX", &[0x560, 0x568]),
    ("DT", &[0x460, 0x468, 0x480, 0x488]),
    (
        "SEG",
        &[
            0x400, 0x408, 0x410, 0x418, 0x420, 0x428, 0x430, 0x438, 0x4c8,
        ],
    ),
    ("CR2", &[0x640]),
];

/// One VMCB.
#[derive(Clone, Copy)]
pub struct Vmcb(*mut u8);

macro_rules! access {
    ($get:ident, $set:ident, $word:ty) => {
        pub fn $get(self, at: usize) -> $word {
            // SAFETY: a field of a page that is given, and that only this thread uses while its vCPU runs.
            unsafe { self.0.add(at).cast::<$word>().read_volatile() }
        }
        #[allow(dead_code)]
        pub fn $set(self, at: usize, value: $word) {
            // SAFETY: as above.
            unsafe { self.0.add(at).cast::<$word>().write_volatile(value) }
        }
    };
}

impl Vmcb {
    pub fn new(host: &dyn HostMachine, at: u64) -> Self {
        assert!(at % 4096 == 0, "a VMCB at {at:#x}");
        Self(host.phys_to_virt(Hpa(at)).as_ptr())
    }
    access!(u8, set_u8, u8);
    access!(u16, set_u16, u16);
    access!(u32, set_u32, u32);
    access!(u64, set_u64, u64);

    /// The quadwords at these offsets. Of the one that shares its place with TLB_CONTROL, only the ASID.
    pub fn words(self, at: &[usize]) -> Vec<u64> {
        let word = |at: &usize| match *at {
            at::ASID => u64::from(self.u32(at::ASID)),
            at => self.u64(at),
        };
        at.iter().map(word).collect()
    }

    fn segment(self, at: usize) -> Segment {
        Segment {
            selector: self.u16(at),
            attributes: SegmentAttributes(self.u16(at + 2)),
            limit: self.u32(at + 4),
            base: self.u64(at + 8),
        }
    }
    fn set_segment(self, at: usize, segment: Segment) {
        self.set_u16(at, segment.selector);
        self.set_u16(at + 2, segment.attributes.0);
        self.set_u32(at + 4, segment.limit);
        self.set_u64(at + 8, segment.base);
    }
    fn table(self, at: usize) -> TableRegister {
        TableRegister {
            base: self.u64(at + 8),
            limit: self.u32(at + 4) as u16,
        }
    }
    fn set_table(self, at: usize, table: TableRegister) {
        self.set_u32(at + 4, table.limit.into());
        self.set_u64(at + 8, table.base);
    }

    /// Where the segment registers are, in the order of [`palacios_core::state::Seg`].
    fn segments() -> [usize; 8] {
        let [es, cs, ss, ds, fs, gs] = [0, 1, 2, 3, 4, 5].map(|n| at::ES + n * 16);
        [es, cs, ss, ds, fs, gs, at::LDTR, at::TR]
    }

    /// All of the guest's state that is in here, over what else is in `state`.
    pub fn load(self, state: &mut CpuState) {
        state.rip = self.u64(at::RIP);
        state.rflags = self.u64(at::RFLAGS);
        state.control.cr0 = self.u64(at::CR0);
        state.control.cr2 = self.u64(at::CR2);
        state.control.cr3 = self.u64(at::CR3);
        state.control.cr4 = self.u64(at::CR4);
        state.control.efer = self.u64(at::EFER);
        state.dr6 = self.u64(at::DR6);
        state.dr7 = self.u64(at::DR7);
        state.gdtr = self.table(at::GDTR);
        state.idtr = self.table(at::IDTR);
        state.segments = Self::segments().map(|at| self.segment(at));
    }

    /// Puts it back after the guest has run.
    pub fn store(self, state: &CpuState) {
        self.set_u8(at::CPL, state.segments[2].attributes.dpl());
        self.set_u64(at::RIP, state.rip);
        self.set_u64(at::RFLAGS, state.rflags);
        self.set_u64(at::CR0, state.control.cr0);
        self.set_u64(at::CR2, state.control.cr2);
        self.set_u64(at::CR3, state.control.cr3);
        self.set_u64(at::CR4, state.control.cr4);
        self.set_u64(at::EFER, state.control.efer);
        self.set_u64(at::DR6, state.dr6);
        self.set_u64(at::DR7, state.dr7);
        self.set_table(at::GDTR, state.gdtr);
        self.set_table(at::IDTR, state.idtr);
        for (at, segment) in Self::segments().into_iter().zip(state.segments) {
            self.set_segment(at, segment);
        }
    }
}
