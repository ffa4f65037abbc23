// SPDX-License-Identifier: MIT OR Apache-2.0
//! Decides which features a guest has: by the host's processor, the backend, and what the image takes away.

use super::guest::{is_in, GuestFeatures, Words};
use super::set::FeatureSet;
use super::table::{Feature, Offer, Row, Word, REPEATED, TABLE};
use crate::backend::{Features, HostProcessor};
use crate::state::cr4;
use core::fmt;

/// Bits of CR4 that no feature guards: user mode may read performance counters, which there are none of.
pub(super) const UNGUARDED_CR4: u64 = cr4::PCE;

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
#[inline(always)] // What `read` does stays in its own function.
pub fn judge<T>(
    backend: &dyn HostProcessor,
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
