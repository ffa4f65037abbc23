// SPDX-License-Identifier: MIT OR Apache-2.0
//! The features that a guest's processor has.

use super::table::{Feature, Word, REPEATED, TABLE};
use crate::sections::Section;
use crate::state_io::{StateError, StateReader, StateWriter};

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

/// The path of the section that they are in when a machine is saved.
pub(crate) const SECTION: &str = "features";
/// Of what [`GuestFeatures::save`] writes.
const VERSION: u32 = 1;

impl GuestFeatures {
    /// Reads a section of a saved machine; `None` if it is of something else, or cannot be read.
    pub fn of(section: &Section<'_>) -> Option<Self> {
        let content = (section.path == SECTION).then_some(section.content)?;
        Self::read(&mut StateReader::new(content)).ok()
    }
    /// Writes them down.
    pub fn save(&self, to: &mut StateWriter<'_>) -> Result<(), StateError> {
        to.u32(VERSION)?;
        self.words.iter().try_for_each(|word| to.u32(*word))?;
        [self.cr4, self.xcr0, self.efer]
            .iter()
            .try_for_each(|word| to.u64(*word))
    }
    /// Reads what [`GuestFeatures::save`] wrote.
    pub fn read(from: &mut StateReader<'_>) -> Result<Self, StateError> {
        from.version(VERSION)?;
        let mut words = [0; Word::ALL.len()];
        for word in &mut words {
            *word = from.u32()?;
        }
        let features = Self {
            words,
            cr4: from.u64()?,
            xcr0: from.u64()?,
            efer: from.u64()?,
        };
        from.end("features.end")?;
        Ok(features)
    }
    /// The name of a feature in which another set differs, and whether that is the one without it. One that is missing there comes before one
    /// that is more.
    pub fn first_difference(&self, other: &Self) -> Option<(&'static str, bool)> {
        let lacks = |mine: &Self, others: &Self| {
            let mut rows = TABLE.iter().map(|row| row.feature);
            let missing = rows.find(|feature| mine.has(*feature) && !others.has(*feature));
            missing.map(|feature| feature.name())
        };
        let differ = self.without_repeated() != other.without_repeated();
        let rest = differ.then_some(("cpuid", false));
        let missing = lacks(self, other).map(|name| (name, true));
        let more = || lacks(other, self).map(|name| (name, false));
        missing.or_else(more).or(rest)
    }
    /// Without what AMD's processors say of leaf 1 once more, and Intel's do not.
    fn without_repeated(&self) -> Self {
        let mut all = *self;
        all.words[Word::Extended1Edx as usize] &= !REPEATED;
        all
    }
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
