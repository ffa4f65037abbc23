// SPDX-License-Identifier: MIT OR Apache-2.0
//! The registers of a CPU as the host has them: no two CPUs, and no two windows, have the same. What a window leaves in them
//! is looked at when it closes.

use super::super::svm::{host_xcr0, HOST_XSS, TSC_AUX};
use super::field;
use super::vmcs::Vmcs;
use palacios_core::host::CpuId;
use std::collections::BTreeMap;

pub const MEMORY_CTRL: u32 = 0x33;
/// Of it: split locks fault (SDM 3A: 8.1.2.3).
pub const SPLIT_LOCKS_FAULT: u64 = 1 << 29;
pub const DEBUGCTL: u32 = 0x1d9;
pub const PERF_GLOBAL_CTRL: u32 = 0x38f;
pub const PEBS_ENABLE: u32 = 0x3f1;
pub const EFER: u32 = 0xc000_0080;
pub const FS_BASE: u32 = 0xc000_0100;
pub const GS_BASE: u32 = 0xc000_0101;
pub const PAT: u32 = 0x277;
pub const SYSENTER_CS: u32 = 0x174;
pub const SYSENTER_ESP: u32 = 0x175;
pub const SYSENTER_EIP: u32 = 0x176;
const XSS: u32 = 0xda0;
/// STAR, LSTAR, CSTAR, SFMASK, KERNEL_GS_BASE.
pub const UNSWITCHED: [u32; 5] = [
    0xc000_0081,
    0xc000_0082,
    0xc000_0083,
    0xc000_0084,
    0xc000_0102,
];

/// It holds a linear address: LSTAR, CSTAR, and bases.
pub fn is_address(index: u32) -> bool {
    matches!(
        index,
        0xc000_0082 | 0xc000_0083 | 0xc000_0100..=0xc000_0102 | SYSENTER_ESP | SYSENTER_EIP
    )
}

pub const CR4_VMXE: u64 = 1 << 13;
/// Registers that an exit loads, and from where.
const LOADED: [(u32, u16); 7] = [
    (FS_BASE, field::HOST_FS_BASE),
    (GS_BASE, field::HOST_GS_BASE),
    (SYSENTER_CS, field::HOST_SYSENTER_CS),
    (SYSENTER_ESP, field::HOST_SYSENTER_ESP),
    (SYSENTER_EIP, field::HOST_SYSENTER_EIP),
    (PAT, field::HOST_PAT),
    (EFER, field::HOST_EFER),
];
/// DR7 after an exit (SDM 3C: 27.5.1).
const DR7_OFF: u64 = 0x400;
const DR6_INITIAL: u64 = 0xffff_0ff0;

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Table {
    pub base: u64,
    pub limit: u16,
}

/// A CPU's registers.
#[derive(Clone, Debug)]
pub struct Registers {
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub dr: [u64; 8],
    pub gdt: Table,
    pub idt: Table,
    pub ldt: u16,
    pub task: u16,
    pub task_base: u64,
    pub msrs: BTreeMap<u32, u64>,
    /// What XSETBV put in.
    pub xcr0: Option<u64>,
    /// The limit of the task-state segment is the smallest, and the host was not told.
    pub task_cut: bool,
}

impl Registers {
    /// The host's own, in a window of a CPU.
    pub fn own(cpu: CpuId, window: u64) -> Self {
        let (n, per_cpu) = (u64::from(cpu.0), u64::from(cpu.0) << 20);
        let armed = window % 4 == 3;
        let breakpoint = |k: u64| 0xffff_ffff_8100_0000 | window << 8 | k;
        let area = 0xffff_fe00_0000_0000 | per_cpu;
        let mut msrs = BTreeMap::from([
            (EFER, 0xd01),
            (PAT, 0x0407_0506_0007_0106),
            (FS_BASE, 0x7f00_0000_0000 | window << 12),
            (GS_BASE, 0xffff_8880_0000_0000 | per_cpu),
            (SYSENTER_CS, 0x10),
            (SYSENTER_ESP, area | 0x3200),
            (SYSENTER_EIP, 0xffff_ffff_8100_1230 + n),
            (MEMORY_CTRL, (window % 2) * SPLIT_LOCKS_FAULT),
            (PERF_GLOBAL_CTRL, 0x7_0000_000f),
            (PEBS_ENABLE, if window % 5 == 1 { 0x2_0000_0005 } else { 0 }),
            (DEBUGCTL, if window % 3 == 2 { 1 << 14 } else { 0 }),
            (TSC_AUX, n),
            (XSS, HOST_XSS),
        ]);
        for (k, index) in (1..).zip(UNSWITCHED) {
            msrs.insert(index, 0x1_0000 * k + window * 16 + n);
        }
        Self {
            cr0: 0x8005_0033,
            cr2: 0x7f12_3456_7000,
            cr3: 0x1_0000_0000 | per_cpu | (window % 64) << 12,
            // Some threads may not read the time stamp counter (TSD).
            cr4: 0x0017_06f0 | (window & 1) << 2,
            dr: match armed {
                true => {
                    let [a, b, c, d] = [0, 1, 2, 3].map(breakpoint);
                    [a, b, c, d, 0, 0, DR6_INITIAL, DR7_OFF | 2]
                }
                false => [0, 0, 0, 0, 0, 0, DR6_INITIAL, DR7_OFF],
            },
            gdt: Table {
                base: area | 0x1000,
                limit: 0x7f,
            },
            idt: Table {
                base: area,
                limit: 0xfff,
            },
            ldt: if (n + window) % 3 == 1 { 0x50 } else { 0 },
            task: 0x40,
            task_base: area | 0x3000,
            msrs,
            xcr0: None,
            task_cut: false,
        }
    }

    /// The descriptor of the task-state segment, half by half (SDM 3A: 7.2.3), if it is at `at`.
    pub fn descriptor(&self, at: u64) -> Option<u64> {
        const BUSY_TASK: u64 = 0x8b << 40 | 0x206f;
        let base = self.task_base;
        let low = (base & 0xff_ffff) << 16 | (base >> 24 & 0xff) << 56 | BUSY_TASK;
        match at.wrapping_sub(self.gdt.base + u64::from(self.task)) {
            0 => Some(low),
            8 => Some(base >> 32),
            _ => None,
        }
    }

    pub fn msr(&self, index: u32) -> u64 {
        self.msrs.get(&index).copied().unwrap_or(0)
    }

    /// Counters write no records into the guest's memory: those that would are off, and stand.
    pub fn has_no_samples(&self, own: &Self) -> bool {
        self.msr(PEBS_ENABLE) == 0 && self.msr(PERF_GLOBAL_CTRL) & own.msr(PEBS_ENABLE) == 0
    }

    /// What an exit loads (SDM 3C: 27.5), and what it leaves of the rest.
    pub fn load(&mut self, vmcs: &Vmcs) {
        (self.cr0, self.cr3) = (vmcs.get(field::HOST_CR0), vmcs.get(field::HOST_CR3));
        self.cr4 = vmcs.get(field::HOST_CR4);
        self.gdt.base = vmcs.get(field::HOST_GDTR_BASE);
        self.idt.base = vmcs.get(field::HOST_IDTR_BASE);
        self.task = vmcs.get(field::HOST_TR) as u16;
        self.task_base = vmcs.get(field::HOST_TR_BASE);
        for (index, field) in LOADED {
            self.msrs.insert(index, vmcs.get(field));
        }
        self.after_exit();
    }
    /// What an exit leaves, beside what the VMCS says (SDM 3C: 27.5.1, 27.5.2).
    fn after_exit(&mut self) {
        (self.gdt.limit, self.idt.limit) = (u16::MAX, u16::MAX);
        self.ldt = 0;
        self.dr[7] = DR7_OFF;
        self.msrs.insert(DEBUGCTL, 0);
        self.task_cut = true;
    }

    /// What is not as the host had it.
    pub fn differ(&self, own: &Self) -> Option<&'static str> {
        let breakpoints = own.dr[7] != DR7_OFF && self.dr[..4] != own.dr[..4];
        let other = |index: &u32| self.msr(*index) != own.msr(*index);
        let checks = [
            (self.cr4 & CR4_VMXE != 0, "CR4.VMXE is left set"),
            (
                self.cr0 != own.cr0 || self.cr3 != own.cr3 || self.cr4 != own.cr4,
                "a control register is not the host's",
            ),
            (self.gdt != own.gdt, "GDTR is not the host's"),
            (self.idt != own.idt, "IDTR is not the host's"),
            (self.ldt != own.ldt, "LDTR is not the host's"),
            (
                self.task_cut,
                "the host was not told of its task-state segment",
            ),
            (
                self.task != own.task || self.task_base != own.task_base,
                "TR is not the host's",
            ),
            (self.dr[7] != own.dr[7], "DR7 is not the host's"),
            (breakpoints, "a breakpoint of the host is gone"),
            (self.dr[6] != own.dr[6], "DR6 has something in it"),
            (
                self.xcr0.is_some_and(|xcr0| xcr0 != host_xcr0()),
                "XCR0 is not the host's",
            ),
            (other(&XSS), "XSS is not the host's"),
            (other(&TSC_AUX), "TSC_AUX is not the host's"),
            (
                UNSWITCHED.iter().any(other),
                "STAR to SFMASK or KERNEL_GS_BASE are not the host's",
            ),
            (
                own.msrs.keys().any(other),
                "a model-specific register is not the host's",
            ),
        ];
        let broken = checks.into_iter().find(|(broken, _)| *broken);
        broken.map(|(_, what)| what)
    }
}
