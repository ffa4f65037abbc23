// SPDX-License-Identifier: MIT OR Apache-2.0
//! Model-specific registers that are there only with a feature (SDM 4: table 2-2; APM 2: appendix A).

use super::guest::GuestFeatures;
use super::table::Feature;

/// The features with any of which the register `index` is there; none if it does not depend on one.
const fn needed(index: u32) -> &'static [Feature] {
    use Feature::*;
    match index {
        // TSC, and what the guest put on top of it.
        0x10 => &[Tsc],
        0x3b => &[TscAdjust],
        // SPEC_CTRL and PRED_CMD.
        0x48 => &[AmdIbrs, AmdStibp, AmdSsbd, AmdPsfd],
        0x49 => &[AmdIbpb],
        // Memory types: the capabilities, variable ranges, fixed ranges, the default.
        0xfe | 0x200..=0x20f | 0x250 | 0x258..=0x259 | 0x268..=0x26f | 0x2ff => &[Mtrr],
        0x174..=0x176 => &[Sep],
        0x179..=0x17a => &[Mca],
        0x277 => &[Pat],
        0x6e0 => &[TscDeadline],
        0x800..=0x8ff => &[X2apic],
        // XSS.
        0xda0 => &[Xsaves],
        // The clock of Linux guests.
        0x4b56_4d00..=0x4b56_4dff => &[Hypervisor],
        // SYSCALL, then the bases of FS and GS, then TSC_AUX.
        0xc000_0081..=0xc000_0084 => &[Syscall],
        0xc000_0100..=0xc000_0102 => &[Lm],
        0xc000_0103 => &[Rdtscp, Rdpid],
        _ => &[],
    }
}

impl GuestFeatures {
    /// Whether CPUID lets the guest have the register `index`, if it is one at all.
    pub fn has_msr(&self, index: u32) -> bool {
        let needed = needed(index);
        needed.is_empty() || needed.iter().any(|feature| self.has(*feature))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing;
    use super::*;

    #[test]
    fn a_register_goes_with_the_last_feature_that_brings_it() {
        let has = |gone: &[Feature], index| testing::all_but(gone).has_msr(index);
        for index in (0..0x2000).chain(0xc000_0000..0xc000_0200) {
            let needed = needed(index);
            assert!(has(&[], index));
            assert_eq!(has(needed, index), needed.is_empty(), "{index:#x}");
            if let [one, _, ..] = needed {
                assert!(has(&[*one], index), "{index:#x}: another brings it");
            }
        }
    }
}
