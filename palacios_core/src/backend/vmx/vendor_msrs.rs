// SPDX-License-Identifier: MIT OR Apache-2.0
//! Registers that Intel's processors with VT-x have, though no bit of CPUID tells of them (see [`super::super::vendor_msrs`]).
//!
//! Source: SDM 4, the tables that go by family and model; the registers are listed there without a CPUID bit.
#![forbid(unsafe_code)]

use super::super::vendor_msrs::Content::{Constant, Kept, ReadOnly, WriteOnly};
use super::super::vendor_msrs::{misc_enable, Slot, VendorMsrs};
use super::caps::msr;

/// FEATURE_CONTROL: locked, so that VMX is off and stays so.
const LOCKED: u64 = 1 << 0;
/// BBL_CR_CTL3: there is a second-level cache, and it is on.
const L2_IS_ON: u64 = 1 << 0 | 1 << 8;

/// The table, by ascending number.
pub(super) static TABLE: &[VendorMsrs] = &[
    VendorMsrs::range(
        0x0,
        0x1,
        Constant(0),
        "SDM 4: table 2-2, IA32_P5_MC_ADDR and IA32_P5_MC_TYPE; kernels read them to clear them",
    ),
    VendorMsrs::one(
        msr::PLATFORM_ID,
        ReadOnly(0),
        "SDM 4: table 2-2, IA32_PLATFORM_ID; Linux, Xen and the BSDs read it for microcode",
    ),
    VendorMsrs::one(
        0x2a,
        Constant(0),
        "SDM 4: table 2-3 and others, EBL_CR_POWERON; kernels read the bus' rate there",
    ),
    VendorMsrs::one(
        msr::FEATURE_CONTROL,
        Constant(LOCKED),
        "SDM 4: table 2-2, IA32_FEATURE_CONTROL; hypervisors read it before they look for VMX",
    ),
    VendorMsrs::one(
        0x79,
        WriteOnly,
        "SDM 4: table 2-2, IA32_BIOS_UPDT_TRIG; kernels write it to load microcode",
    ),
    VendorMsrs::range(
        0xc1,
        0xc2,
        Constant(0),
        "SDM 4: table 2-2, two counters since P6; Linux, Xen and L4 kernels clear them",
    ),
    VendorMsrs::one(
        0xcd,
        ReadOnly(0),
        "SDM 4: table 2-3 and others, MSR_FSB_FREQ; Linux reads it on Atoms",
    ),
    VendorMsrs::one(
        0xce,
        ReadOnly(0),
        "SDM 4: tables since 2-15, MSR_PLATFORM_INFO; it says that CPUID does not fault; Linux and Xen read it",
    ),
    VendorMsrs::one(
        0xe2,
        Constant(0),
        "SDM 4: tables since 2-3, MSR_PKG_CST_CONFIG_CONTROL; Linux' idle drivers read it",
    ),
    VendorMsrs::one(
        0x119,
        Constant(0),
        "SDM 4: table 2-3 and others, BBL_CR_CTL; Linux writes it to hide the serial number",
    ),
    VendorMsrs::one(
        0x11e,
        Constant(L2_IS_ON),
        "SDM 4: table 2-3 and others, BBL_CR_CTL3; Windows reads and writes it",
    ),
    VendorMsrs::range(
        0x186,
        0x187,
        Constant(0),
        "SDM 4: table 2-2, what the two counters count; Linux, Xen and L4 kernels clear them",
    ),
    VendorMsrs::range(
        0x198,
        0x199,
        Constant(0),
        "SDM 4: table 2-2, IA32_PERF_STATUS and IA32_PERF_CTL; Linux reads the former on Atoms, drivers of frequencies both",
    ),
    VendorMsrs::one(
        msr::MISC_ENABLE,
        Kept {
            slot: Slot::MiscEnable,
            initial: misc_enable::INITIAL,
            writable: misc_enable::WRITABLE,
        },
        "SDM 4: table 2-2, IA32_MISC_ENABLE; all kernels read it, and change it to have all of CPUID",
    ),
    VendorMsrs::one(
        msr::DEBUGCTL,
        Constant(0),
        "SDM 4: table 2-2, IA32_DEBUGCTL; Linux writes it to step by branches",
    ),
    VendorMsrs::range(
        0x1db,
        0x1de,
        Constant(0),
        "SDM 4: tables of P6, the last branch and the last exception; Xen reads them (ler)",
    ),
    VendorMsrs::one(
        0x1fc,
        Constant(0),
        "SDM 4: tables since 2-15, MSR_POWER_CTL; Linux' idle drivers change it",
    ),
    VendorMsrs::one(
        0x606,
        ReadOnly(0),
        "SDM 4: tables since 2-20, MSR_RAPL_POWER_UNIT; drivers go by the model, from Sandy Bridge on",
    ),
    VendorMsrs::one(
        0x611,
        ReadOnly(0),
        "the same, MSR_PKG_ENERGY_STATUS",
    ),
    VendorMsrs::one(
        0x619,
        ReadOnly(0),
        "the same, MSR_DRAM_ENERGY_STATUS",
    ),
    VendorMsrs::one(
        0x639,
        ReadOnly(0),
        "the same, MSR_PP0_ENERGY_STATUS",
    ),
    VendorMsrs::one(
        0x641,
        ReadOnly(0),
        "the same, MSR_PP1_ENERGY_STATUS",
    ),
    VendorMsrs::range(
        0xc001_0000,
        0xc001_0007,
        Constant(0),
        "not Intel's: AMD's four counters since K7; hypervisors answer them on Intel too, and test kernels clear them on both without \
         asking for the vendor",
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
    fn what_cpuid_guards_is_not_there() {
        // TSC_ADJUST, SPEC_CTRL, PMU of version 2 and up, DS, VMX, PT, XSS, RDT, HWP.
        for guarded in [
            0x3bu32,
            0x48,
            0x49,
            0xe7,
            0x10a,
            0x122,
            0x345,
            0x38d,
            0x38f,
            0x3f1,
            0x480,
            0x570,
            0x770,
            0xc80,
            0xd90,
            0xda0,
            0xc001_0010,
        ] {
            assert!(VendorMsrs::find(TABLE, guarded).is_none(), "{guarded:#x}");
        }
    }
}
