// SPDX-License-Identifier: MIT OR Apache-2.0
//! What this processor's SVM can do (APM 2: 15.4; APM 3: appendix E).

use super::super::cpu::CR4_LA57;
use super::super::Unsupported;
use crate::addr::Hpa;
use crate::features::Feature;
use crate::memory::nested::{BitChange, Format};
use crate::state::cr4;

/// VM_CR: SVM is switched off (APM 2: 15.30.1).
pub(super) const VM_CR_SVMDIS: u64 = 1 << 4;
/// SYSCFG: memory encryption is on (APM 2: 7.10.1).
const SYSCFG_SMEE: u64 = 1 << 23;
/// The bits of a page-table entry, or of CR3, that hold an address (APM 2: 5.3.3).
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Caps {
    /// How many address-space tags there are, the host's 0 among them; at least 2.
    pub asids: u32,
    pub next_rip: bool,
    pub decode_assists: bool,
    pub flush_by_asid: bool,
    pub pause_filter: bool,
    pub pause_threshold: bool,
    pub tsc_ratio: bool,
    /// The guest has a SPEC_CTRL of its own (APM 2: 15.37.1).
    pub spec_ctrl: bool,
    pub ibpb: bool,
    /// VERW clears buffers (APM 3: CPUID `Fn8000_0021_EAX[VERW_CLEAR]`).
    pub clear_buffers: bool,
    pub tsc_aux: bool,
    /// The host has pages of 1 GiB, and so nested tables do.
    pub huge_pages: bool,
    /// CR4.MCE as the host has it, and so any guest.
    pub mce: u64,
    /// 4 or 5, as the host's own.
    pub levels: u8,
    /// The bit of a physical address that says "encrypted", if the host's memory is; else 0.
    pub c_bit: u64,
    pub physical_bits: u8,
}

/// Registers of the host that decide how it pages, and what else is in them.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Paging {
    pub cr3: u64,
    pub cr4: u64,
    /// SYSCFG, if it can be read.
    pub syscfg: Option<u64>,
}

impl Caps {
    /// Reads CPUID through `cpuid`.
    pub(super) fn new(
        cpuid: impl Fn(u32, u32) -> [u32; 4],
        paging: Paging,
    ) -> Result<Self, Unsupported> {
        let last = cpuid(0x8000_0000, 0)[0];
        let leaf = |n: u32| if n <= last { cpuid(n, 0) } else { [0; 4] };
        let has = |word: u32, bit: u32| word & 1 << bit != 0;
        if !has(leaf(0x8000_0001)[2], 2) {
            return Err(Unsupported::NoCpu);
        }
        if family(leaf(1)[0]) == 0x10 {
            return Err(Unsupported::Missing(
                "a TLB that no guest can break (family 10h, erratum 383)",
            ));
        }
        let [_, asids, _, svm] = leaf(0x8000_000a);
        if !has(svm, 0) {
            return Err(Unsupported::Missing("nested paging (NPT)"));
        }
        if asids < 2 {
            return Err(Unsupported::Missing("address-space tags (ASIDs)"));
        }
        let seven = if cpuid(0, 0)[0] >= 7 {
            cpuid(7, 0)
        } else {
            [0; 4]
        };
        let encryption = leaf(0x8000_001f);
        let c_bit = c_bit(encryption, paging);
        Ok(Self {
            asids,
            next_rip: has(svm, 3),
            decode_assists: has(svm, 7),
            flush_by_asid: has(svm, 6),
            pause_filter: has(svm, 10),
            pause_threshold: has(svm, 12),
            tsc_ratio: has(svm, 4),
            spec_ctrl: has(svm, 20),
            ibpb: has(leaf(0x8000_0008)[1], 12),
            clear_buffers: has(leaf(0x8000_0021)[0], 5),
            tsc_aux: has(leaf(0x8000_0001)[3], 27) || has(seven[2], 22),
            huge_pages: has(leaf(0x8000_0001)[3], 26),
            mce: paging.cr4 & cr4::MCE,
            levels: if paging.cr4 & CR4_LA57 != 0 { 5 } else { 4 },
            c_bit,
            physical_bits: physical_bits(leaf(0x8000_0008)[0], encryption, c_bit),
        })
    }

    /// Why a guest cannot have a feature of the processor's. One that needs a register of which there is one for host and guest is
    /// not offered.
    pub(super) fn lacks(&self, feature: Feature) -> Option<&'static str> {
        match feature {
            Feature::AmdIbrs | Feature::AmdStibp | Feature::AmdSsbd | Feature::AmdPsfd
                if !self.spec_ctrl =>
            {
                Some("the processor keeps one SPEC_CTRL for host and guest")
            }
            _ => None,
        }
    }

    /// The width of a guest-physical address: nested tables of four levels reach 48 bits of it.
    pub(super) fn guest_physical_bits(&self) -> u8 {
        self.physical_bits
            .min(if self.levels == 5 { 57 } else { 48 })
    }

    /// The physical address `at` as the processor wants it.
    pub(super) fn address(&self, at: Hpa) -> u64 {
        at.0 | self.c_bit
    }

    /// How nested tables look: as the host's own (APM 2: 15.25.3). All their pages are user pages (APM 2: 15.25.5).
    pub(super) fn table_format(&self) -> Format {
        const PRESENT_WRITE_USER: u64 = 0b111;
        const PWT: u64 = 1 << 3;
        const PCD: u64 = 1 << 4;
        Format {
            levels: self.levels,
            table: PRESENT_WRITE_USER | self.c_bit,
            leaf: PRESENT_WRITE_USER | self.c_bit,
            read_only: BitChange::clear(1 << 1),
            no_execute: BitChange::set(1 << 63),
            // By the host's PAT (APM 2: 15.25.8), as kernels set it: entry 1 is write-combining, entry 3 uncached.
            write_combining: BitChange::set(PWT),
            uncached: BitChange::set(PWT | PCD),
            large: 1 << 7,
            large_executable: true,
            huge: self.huge_pages,
            present: 1,
            address: ADDRESS & !self.c_bit,
        }
    }
}

/// The processor's family (APM 3: CPUID Fn0000_0001_EAX). In family 10h a guest that splits a large page may have two translations
/// of one address in the TLB, which is a machine check that stops the host (Revision Guide 41322: erratum 383).
fn family(eax: u32) -> u32 {
    match eax >> 8 & 15 {
        15 => 15 + (eax >> 20 & 255),
        base => base,
    }
}

/// SYSCFG says whether memory encryption is on, not whether the host uses it; its own CR3 does (APM 2: 7.10).
fn c_bit([eax, ebx, ..]: [u32; 4], paging: Paging) -> u64 {
    let bit = 1 << (ebx & 63);
    let on = eax & 1 != 0
        && paging
            .syscfg
            .is_some_and(|syscfg| syscfg & SYSCFG_SMEE != 0);
    if on {
        paging.cr3 & bit & ADDRESS
    } else {
        0
    }
}

fn physical_bits(eax: u32, [_, encryption_ebx, ..]: [u32; 4], c_bit: u64) -> u8 {
    let lost = if c_bit != 0 {
        encryption_ebx >> 6 & 63
    } else {
        0
    };
    (eax & 255).saturating_sub(lost).clamp(32, 52) as u8
}
