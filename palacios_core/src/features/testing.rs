// SPDX-License-Identifier: MIT OR Apache-2.0
//! Guests' features for tests.

use super::{Feature, FeatureSet, GuestFeatures, Judge};
use crate::backend::Features;

/// A backend that can give a guest anything.
pub(crate) const BACKEND: Features = Features {
    backend: "test",
    address_space_tags: 0,
    next_rip: false,
    decode_assists: false,
    physical_bits: 48,
    xcr0: u64::MAX,
    cr4: u64::MAX,
};

/// What a processor with all features answers.
pub(crate) fn all_ones(leaf: u32, subleaf: u32) -> [u32; 4] {
    match (leaf, subleaf) {
        (0xd, 2) => [256, 576, 0, 0],
        (0 | 0x8000_0000, _) => [u32::MAX, 1, 2, 3],
        _ => [u32::MAX; 4],
    }
}

/// All that can be offered, without `gone` and what needs it.
pub(crate) fn all_but(gone: &[Feature]) -> GuestFeatures {
    on(&all_ones, BACKEND, gone)
}

/// The features of a guest on that processor and backend, without `gone`.
pub(crate) fn on(
    cpuid: &dyn Fn(u32, u32) -> [u32; 4],
    backend: Features,
    gone: &[Feature],
) -> GuestFeatures {
    let mut taken_away = FeatureSet::default();
    gone.iter().for_each(|feature| taken_away.insert(*feature));
    Judge::new(cpuid, backend, &|_| None, taken_away).features()
}
