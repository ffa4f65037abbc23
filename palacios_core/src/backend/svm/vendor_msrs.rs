// SPDX-License-Identifier: MIT OR Apache-2.0
//! Registers that AMD's processors with SVM have, though no bit of CPUID tells of them (see [`super::super::vendor_msrs`]).
//!
//! Sources: APM 2 is the Programmer's Manual; BKDG the BIOS and Kernel Developer's Guides of families 0Fh (32559), 10h (31116) and
//! 15h (42301); PPR the Processor Programming References of family 17h (54945) and later. In them the registers are listed
//! without a CPUID bit.
#![forbid(unsafe_code)]

use super::super::vendor_msrs::Content::{Constant, Cpuid, Kept, Name, WriteOnly};
use super::super::vendor_msrs::{misc_enable, Slot, VendorMsrs};
use super::caps::VM_CR_SVMDIS;
use super::permission::msr;
use crate::features::Word;

/// HWCR: SMM is locked (bit 0); the time stamp counter runs at the rate of P0 (bit 24). Linux reports a firmware bug if bit 24 is clear.
const HWCR: u64 = 1 << 0 | 1 << 24;
/// LFENCE is dispatch-serializing.
const DE_CFG_LFENCE: u64 = 1 << 1;

/// The table, by ascending number. An access to a register that is in no row is a #GP; the tests below name some for which it must be.
pub(super) static TABLE: &[VendorMsrs] = &[
    VendorMsrs::range(
        0x0,
        0x1,
        Constant(0),
        "BKDG, PPR: MSR0000_000[1:0], other names of MC0_ADDR and MC0_STATUS; test kernels read them",
    ),
    VendorMsrs::one(
        0x2a,
        Constant(0),
        "BKDG: MSR0000_002A, the cluster id (EBL_CR_POWERON); kernels written for P6 read it",
    ),
    VendorMsrs::one(
        0x1a0,
        Kept {
            slot: Slot::MiscEnable,
            initial: misc_enable::INITIAL,
            writable: misc_enable::WRITABLE,
        },
        "not in AMD's guides; hypervisors answer it on AMD too, and test kernels write and read it there without asking",
    ),
    VendorMsrs::one(
        msr::DEBUGCTL,
        Constant(0),
        "APM 2: 13.1.1.6, DebugCtl of all families; Linux writes it to step by branches",
    ),
    VendorMsrs::range(
        0x1db,
        0x1de,
        Constant(0),
        "APM 2: 13.1.1.7, the last branch and the last exception; Xen reads them (ler)",
    ),
    VendorMsrs::range(
        0xc001_0000,
        0xc001_0007,
        Constant(0),
        "APM 2: 13.2.1, four counters of all families since K7, which no bit of CPUID guards; Xen, Linux and L4 kernels clear them",
    ),
    VendorMsrs::one(
        msr::SYSCFG,
        Constant(0),
        "APM 2: 7.9.4; Linux (memory encryption, MTRR clean-up) and Xen read it",
    ),
    VendorMsrs::one(
        msr::HWCR,
        Constant(HWCR),
        "APM 2: 3.2.10, BKDG, PPR: MSRC001_0015; Linux reads it on each CPU",
    ),
    VendorMsrs::range(
        0xc001_0016,
        0xc001_001a,
        Constant(0),
        "APM 2: 7.9.2 and 7.9.5, I/O ranges and TOP_MEM; Linux' PCI code reads TOP_MEM",
    ),
    VendorMsrs::one(
        0xc001_001d,
        Constant(0),
        "APM 2: 7.9.5, TOP_MEM2, of which SYSCFG says that it is off; Linux' PCI and MTRR code",
    ),
    VendorMsrs::one(
        msr::NB_CFG,
        Constant(0),
        "BKDG, PPR: MSRC001_001F; Linux, NetBSD and OpenBSD (errata) read and write it",
    ),
    VendorMsrs::one(
        0xc001_0020,
        WriteOnly,
        "BKDG: MSRC001_0020, PATCH_LOADER; kernels write it to load microcode",
    ),
    VendorMsrs::one(
        0xc001_0022,
        Constant(0),
        "BKDG, PPR: MSRC001_0022, redirection of machine checks",
    ),
    VendorMsrs::range(
        0xc001_0030,
        0xc001_0035,
        Name,
        "BKDG, PPR: MSRC001_00[35:30], the processor's name, which firmware writes for CPUID",
    ),
    VendorMsrs::range(
        0xc001_0044,
        0xc001_004a,
        Constant(0),
        "BKDG: MSRC001_00[4A:44], masks of machine checks; Linux and FreeBSD change that of bank 4",
    ),
    VendorMsrs::range(
        0xc001_0050,
        0xc001_0056,
        Constant(0),
        "BKDG, PPR: MSRC001_00[56:50], traps of ports and interrupts in C1; Linux reads C001_0055",
    ),
    VendorMsrs::one(
        msr::MMIO_CONFIG,
        Constant(0),
        "BKDG, PPR: MSRC001_0058, off; Linux, Xen and FreeBSD look for PCI's configuration space there",
    ),
    VendorMsrs::range(
        0xc001_0061,
        0xc001_006b,
        Constant(0),
        "BKDG, PPR: MSRC001_00[6B:61], P-states, none of which is valid; OpenBSD and Haiku read C001_0064 where HWCR says that the \
         counter runs at the rate of P0",
    ),
    VendorMsrs::one(
        0xc001_0074,
        Constant(0),
        "BKDG, PPR: MSRC001_0074, the watchdog of the processor, off",
    ),
    VendorMsrs::range(
        0xc001_0111,
        0xc001_0113,
        Constant(0),
        "APM 2: 10.2.5 and 10.3.2, where SMM lies; Linux reads C001_0112 (TSEG)",
    ),
    VendorMsrs::one(
        msr::VM_CR,
        Constant(VM_CR_SVMDIS),
        "APM 2: 15.30.1, SVM is off and stays so; Linux and Xen read it",
    ),
    VendorMsrs::one(
        0xc001_0115,
        Kept {
            slot: Slot::Ignne,
            initial: 0,
            writable: 1,
        },
        "APM 2: 15.30.2, IGNNE; test kernels write and read it",
    ),
    VendorMsrs::one(
        0xc001_0116,
        WriteOnly,
        "APM 2: 15.30.3, SMM_CTL, which cannot be read",
    ),
    VendorMsrs::one(
        0xc001_1002,
        Cpuid(None, Word::Leaf7Ebx),
        "BKDG, PPR: MSRC001_1002, what leaf 7 says",
    ),
    VendorMsrs::one(
        0xc001_1003,
        Constant(0),
        "BKDG, PPR: MSRC001_1003, what leaf 6 says of frequencies: that there is nothing to read",
    ),
    VendorMsrs::one(
        0xc001_1004,
        Cpuid(Some(Word::Leaf1Ecx), Word::Leaf1Edx),
        "BKDG, PPR: MSRC001_1004, what leaf 1 says; Linux changes it on families 15h and 16h (RDRAND)",
    ),
    VendorMsrs::one(
        0xc001_1005,
        Cpuid(Some(Word::Extended1Ecx), Word::Extended1Edx),
        "BKDG, PPR: MSRC001_1005, what leaf 8000_0001 says; Linux reads it for topology extensions",
    ),
    VendorMsrs::range(
        0xc001_1020,
        0xc001_1023,
        Constant(0),
        "BKDG, PPR: MSRC001_102[3:0], load-store, instruction cache, data cache and bus unit; Linux, Windows, NetBSD and OpenBSD \
         (errata) change them",
    ),
    VendorMsrs::one(
        0xc001_1028,
        Constant(0),
        "PPR: MSRC001_1028, the floating-point unit; FreeBSD changes it on family 17h",
    ),
    VendorMsrs::one(
        msr::DE_CFG,
        Constant(DE_CFG_LFENCE),
        "BKDG, PPR: MSRC001_1029; Linux, Xen and the BSDs set the bit that is set there",
    ),
    VendorMsrs::range(
        0xc001_102a,
        0xc001_102d,
        Constant(0),
        "BKDG, PPR: MSRC001_10[2D:2A], bus unit, execution unit and load-store again; Linux and Xen change C001_102A, Windows C001_102C",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_order() {
        super::super::super::vendor_msrs::check(TABLE);
    }

    #[test]
    fn the_counters_of_k7_are_there_and_their_neighbours_are_not() {
        for index in 0xc001_0000..=0xc001_0007 {
            assert_eq!(VendorMsrs::find(TABLE, index).unwrap().content, Constant(0));
        }
        // What CPUID guards: VM_HSAVE_PA without SVM, OSVW, the six counters of family 15h, node id, IBS.
        for guarded in [
            0xc001_0008u32,
            0xc001_006c,
            0xc001_0117,
            0xc001_0131,
            0xc001_0140,
            0xc001_0200,
            0xc001_100c,
            0xc001_1030,
            0x17,
            0x3a,
            0x1234_5678,
            u32::MAX,
        ] {
            assert!(VendorMsrs::find(TABLE, guarded).is_none(), "{guarded:#x}");
        }
    }
}
