// SPDX-License-Identifier: MIT OR Apache-2.0
//! The virtual CPU that is asked.
#![forbid(unsafe_code)]

use crate::features::{Feature, GuestFeatures, Word};
use crate::state::cr4;

/// What the answers depend on.
#[derive(Clone, Copy, Debug)]
pub struct Cpu<'a> {
    /// Its number, which is its APIC id.
    pub index: u32,
    /// How many there are.
    pub count: u32,
    /// CR4 now.
    pub cr4: u64,
    /// XCR0 now.
    pub xcr0: u64,
    /// The local APIC is enabled in its base register.
    pub apic_enabled: bool,
    /// All vCPUs' time stamp counters agree, and run at one rate in all states.
    pub tsc_stable: bool,
    /// The width of a guest-physical address in bits.
    pub physical_bits: u8,
    /// Cores and caches are told in the extended leaves: `Backend::EXTENDED_TOPOLOGY`.
    pub extended_topology: bool,
    /// What the guest has.
    pub features: &'a GuestFeatures,
}

impl Cpu<'_> {
    /// A word of features, with those that vary and are there now.
    pub(super) fn word(&self, word: Word) -> u32 {
        let now = |feature: Feature, on: bool| u32::from(on) << feature.place().1;
        let varying = match word {
            Word::Leaf1Ecx => now(Feature::Osxsave, self.cr4 & cr4::OSXSAVE != 0),
            Word::Leaf1Edx => {
                now(Feature::Apic, self.apic_enabled) | now(Feature::Ht, self.count > 1)
            }
            Word::Leaf7Ecx => now(Feature::Ospke, self.cr4 & cr4::PKE != 0),
            Word::Extended1Ecx => now(Feature::CmpLegacy, self.count > 1 && self.extended_topology),
            // It repeats leaf 1's on AMD's processors, and is reserved on others.
            Word::Extended1Edx => now(Feature::Apic, self.apic_enabled && self.extended_topology),
            _ => 0,
        };
        self.features.word(word) | varying
    }
}
