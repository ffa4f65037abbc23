// SPDX-License-Identifier: MIT OR Apache-2.0
//! The features that a guest's processor has.

use super::table::{Feature, Word};

/// The words of CPUID that hold features.
pub(super) type Words = [u32; Word::ALL.len()];

/// Whether `feature` is there by these words.
#[inline(always)] // As `Feature::place`.
pub(super) fn is_in(words: &Words, feature: Feature) -> bool {
    let (word, bit) = feature.place();
    words[word as usize] >> bit & 1 != 0
}

/// The features that a guest has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestFeatures {
    pub(super) words: Words,
    pub(super) cr4: u64,
    pub(super) xcr0: u64,
    pub(super) efer: u64,
}

impl GuestFeatures {
    /// Whether it has one.
    #[inline(always)] // As `Feature::place`.
    pub fn has(&self, feature: Feature) -> bool {
        is_in(&self.words, feature)
    }
    /// A word of CPUID, without what varies.
    #[inline]
    pub fn word(&self, word: Word) -> u32 {
        self.words[word as usize]
    }
    /// The bits of CR4 that it may set.
    pub fn cr4(&self) -> u64 {
        self.cr4
    }
    /// The components that it may enable in XCR0; 0 without XSAVE.
    pub fn xcr0(&self) -> u64 {
        self.xcr0
    }
    /// The bits of EFER that there are.
    pub fn efer(&self) -> u64 {
        self.efer
    }
}
