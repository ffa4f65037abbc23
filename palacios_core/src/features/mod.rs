// SPDX-License-Identifier: MIT OR Apache-2.0
//! The features of a guest's processor: which it has, and why it lacks the others.
//!
//! One [`TABLE`] says for each feature where CPUID tells of it, whether guests are offered it, and what is there with it alone:
//! bits of CR4 and EFER, components of XCR0. What CPUID answers, what those registers take, which model-specific registers there
//! are and what `v3 info --cpuid` prints follows from it. A guest never has what its CPUID does not show, as far as the
//! processor lets the VMM see to that.
#![forbid(unsafe_code)]

mod registers;
mod table;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub use table::{Feature, Row, Word, TABLE};

use crate::backend::{Backend, Features};
use crate::host::Host;
use crate::state::cr4;
use core::fmt;

/// Bits of CR4 that no feature guards: user mode may read performance counters, which there are none of.
const UNGUARDED_CR4: u64 = cr4::PCE;
/// The bits of leaf 0x8000_0001, EDX, that repeat those of leaf 1 on AMD's processors, and are zero on others (APM 3: E.4.2).
const REPEATED: u32 = 0x0183_f3ff;

/// Whether guests are offered a feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offer {
    /// Where the host's processor has it, and the backend can give it to a guest.
    Host,
    /// On each host: it is made by the VMM.
    Always,
    /// CPUID tells of a register of the guest's; says of which.
    Varies(&'static str),
    /// On none; says why.
    Never(&'static str),
}

/// Why a guest does not have a feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absence {
    /// The host's processor does not have it.
    Host,
    /// No guest has it.
    Never(&'static str),
    /// The backend cannot give it to a guest on this host.
    Backend(&'static str),
    /// It needs this one, which the guest does not have.
    Needs(Feature),
    /// The image takes it away.
    TakenAway,
}

impl fmt::Display for Absence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => f.write_str("the host's processor does not have it"),
            Self::Never(why) | Self::Backend(why) => f.write_str(why),
            Self::Needs(feature) => write!(f, "it needs {}", feature.name()),
            Self::TakenAway => f.write_str("the guest's description takes it away"),
        }
    }
}

impl Feature {
    /// Its row of the table.
    pub fn row(self) -> Option<&'static Row> {
        TABLE.get(self as usize)
    }
    /// Its name.
    pub fn name(self) -> &'static str {
        self.row().map_or("", |row| row.name)
    }
    /// The feature of that name.
    pub fn by_name(name: &str) -> Option<Self> {
        let row = TABLE.iter().find(|row| row.name == name);
        row.map(|row| row.feature)
    }
    /// A guest that would have it can do without: it is neither a register of the guest's nor never there.
    pub fn can_be_taken_away(self) -> bool {
        let offer = self.row().map(|row| row.offer);
        matches!(offer, Some(Offer::Host | Offer::Always))
    }
}

/// A set of features.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FeatureSet([u64; 4]);

const _: () = assert!(TABLE.len() <= 256);

impl FeatureSet {
    /// Adds one.
    pub fn insert(&mut self, feature: Feature) {
        let number = feature as usize;
        if let Some(bits) = self.0.get_mut(number / 64) {
            *bits |= 1 << (number % 64);
        }
    }
    /// Whether it is in.
    pub fn contains(&self, feature: Feature) -> bool {
        let number = feature as usize;
        let bits = self.0.get(number / 64).copied().unwrap_or(0);
        bits >> (number % 64) & 1 != 0
    }
    /// All that are in, in the order of their numbers.
    pub fn iter(&self) -> impl Iterator<Item = Feature> + '_ {
        let all = TABLE.iter().map(|row| row.feature);
        all.filter(|feature| self.contains(*feature))
    }
}

/// The words of CPUID that hold features.
type Words = [u32; Word::ALL.len()];

/// Whether `feature` is there by these words.
#[inline(always)] // As `Feature::place`.
fn is_in(words: &Words, feature: Feature) -> bool {
    let (word, bit) = feature.place();
    words[word as usize] >> bit & 1 != 0
}

/// What the host's processor has. Leaves beyond its last hold nothing; some processors repeat another there.
fn words_of(cpuid: &dyn Fn(u32, u32) -> [u32; 4]) -> Words {
    Word::ALL.map(|word| {
        let (leaf, subleaf, register) = word.place();
        let last = cpuid(leaf & 1 << 31, 0)[0];
        let there = leaf <= last && (leaf != 7 || subleaf <= cpuid(7, 0)[0]);
        match cpuid(leaf, subleaf).get(register) {
            Some(word) if there => *word,
            _ => 0,
        }
    })
}

/// Decides which features a guest has.
pub struct Judge<'a> {
    host: Words,
    backend: Features,
    lacks: &'a dyn Fn(Feature) -> Option<&'static str>,
    taken_away: FeatureSet,
}

impl<'a> Judge<'a> {
    /// For a guest from which `taken_away` is taken. `cpuid` is the host's; `lacks` says what the backend cannot give, and why.
    pub fn new(
        cpuid: &dyn Fn(u32, u32) -> [u32; 4],
        backend: Features,
        lacks: &'a dyn Fn(Feature) -> Option<&'static str>,
        taken_away: FeatureSet,
    ) -> Self {
        Self {
            host: words_of(cpuid),
            backend,
            lacks,
            taken_away,
        }
    }

    /// Why the guest lacks a feature; `None` if it has it, or if a register of its own decides.
    fn absence(&self, row: &Row) -> Option<Absence> {
        match row.offer {
            Offer::Never(why) => return Some(Absence::Never(why)),
            Offer::Host if !is_in(&self.host, row.feature) => return Some(Absence::Host),
            _ => {}
        }
        if self.taken_away.contains(row.feature) {
            return Some(Absence::TakenAway);
        }
        if row.cr4 & !self.backend.cr4 != 0 {
            let why = "the processor keeps its bit of CR4 from guests";
            return Some(Absence::Backend(why));
        }
        if row.xcr0 & !self.backend.xcr0 != 0 {
            let why = "the host has not switched its registers on in XCR0";
            return Some(Absence::Backend(why));
        }
        if let Some(why) = (self.lacks)(row.feature) {
            return Some(Absence::Backend(why));
        }
        let lacks = |feature: &Feature| feature.row().and_then(|row| self.absence(row)).is_some();
        let needed = row.needs.iter().copied().find(lacks);
        needed.map(Absence::Needs)
    }

    /// What it comes to.
    pub fn features(&self) -> GuestFeatures {
        let mut all = GuestFeatures {
            words: [0; Word::ALL.len()],
            cr4: UNGUARDED_CR4,
            xcr0: 0,
            efer: 0,
        };
        for row in TABLE {
            let varies = matches!(row.offer, Offer::Varies(_));
            if varies || self.absence(row).is_some() {
                continue;
            }
            all.words[row.word as usize] |= 1u32.wrapping_shl(row.bit);
            all.cr4 |= row.cr4;
            all.xcr0 |= row.xcr0;
            all.efer |= row.efer;
        }
        let repeated = self.host[Word::Extended1Edx as usize] & REPEATED;
        all.words[Word::Extended1Edx as usize] |= repeated & all.words[Word::Leaf1Edx as usize];
        all
    }

    /// One line of the report for each feature, in the order of the table.
    pub fn report(&self) -> impl Iterator<Item = Verdict> + '_ {
        TABLE.iter().map(|row| Verdict {
            row,
            host: is_in(&self.host, row.feature),
            absence: self.absence(row),
        })
    }
}

/// Which features a guest has by default on this host and backend, less `taken_away`; gives what `read` makes of them.
pub fn judge<H: Host, B: Backend<H>, T>(
    backend: &B,
    taken_away: FeatureSet,
    read: impl FnOnce(&Judge<'_>) -> T,
) -> T {
    let cpuid = |leaf, subleaf| backend.cpuid(leaf, subleaf);
    let lacks = |feature| backend.lacks(feature);
    read(&Judge::new(&cpuid, backend.features(), &lacks, taken_away))
}

/// A feature, and what became of it.
#[derive(Clone, Copy, Debug)]
pub struct Verdict {
    /// Its row of the table.
    pub row: &'static Row,
    /// The host's processor has it.
    pub host: bool,
    /// Why the guest does not; `None` if it has it, or if that varies.
    pub absence: Option<Absence>,
}

impl Verdict {
    /// The guest has it; `None` if that follows a register of the guest's.
    pub fn guest(&self) -> Option<bool> {
        match self.row.offer {
            Offer::Varies(_) => None,
            _ => Some(self.absence.is_none()),
        }
    }
}

impl fmt::Display for Verdict {
    /// Why the guest does not have it, or what decides whether it does; empty if it has it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.row.offer, self.absence) {
            (Offer::Varies(how), _) => f.write_str(how),
            (_, Some(absence)) => absence.fmt(f),
            (_, None) => Ok(()),
        }
    }
}

/// The features that a guest has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestFeatures {
    words: Words,
    cr4: u64,
    xcr0: u64,
    efer: u64,
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
