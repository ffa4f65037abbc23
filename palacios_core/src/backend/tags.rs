// SPDX-License-Identifier: MIT OR Apache-2.0
//! Address-space tags of one CPU: ASIDs (APM 2: 15.16) and VPIDs (SDM 3C: 28.1).
//!
//! Each CPU hands out its own tags in turn. A vCPU keeps its tag for as long as it stays on the CPU; when the tags run out,
//! a new generation begins and all are handed out again. A tag that may have been used before is flushed when its new
//! owner first enters. What tags another hypervisor used before us is not known, so the first entry on a CPU flushes all.

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};

/// What an entry must flush.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Flush {
    #[default]
    Nothing,
    /// What is tagged with the vCPU's own tag.
    Tag,
    /// Everything.
    All,
}

/// A tag, good for as long as the CPU is in that generation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tag {
    /// Never 0, which is the host's; but for [`Tag::default`], which belongs to no CPU.
    pub number: u32,
    pub generation: u64,
}

/// The tags of one CPU. Only code on that CPU, which cannot be interrupted there, calls it; the atomics are there because
/// the compiler cannot know.
#[derive(Debug, Default)]
pub(super) struct Tags {
    /// 0 before the first [`Tags::restart`].
    generation: AtomicU64,
    next: AtomicU32,
    /// Tags have been handed out that were handed out before.
    reused: AtomicBool,
    /// All were flushed since the CPU began.
    flushed: AtomicBool,
}

impl Tags {
    /// The CPU begins, or begins again: nothing is known of its TLB, and no tag handed out before is good.
    pub(super) fn restart(&self) {
        self.next_generation();
        self.next.store(1, Relaxed);
        self.reused.store(false, Relaxed);
        self.flushed.store(false, Relaxed);
    }

    fn next_generation(&self) {
        let next = self.generation.load(Relaxed).wrapping_add(1);
        self.generation.store(next, Relaxed);
    }

    /// Whether `tag` is still its owner's.
    pub(super) fn is_current(&self, tag: Tag) -> bool {
        tag.number != 0 && tag.generation == self.generation.load(Relaxed)
    }

    /// A tag below `limit`, which is at least 2.
    pub(super) fn assign(&self, limit: u32) -> Tag {
        let mut number = self.next.load(Relaxed);
        if number >= limit {
            self.next_generation();
            self.reused.store(true, Relaxed);
            number = 1;
        }
        self.next.store(number.wrapping_add(1), Relaxed);
        Tag {
            number,
            generation: self.generation.load(Relaxed),
        }
    }

    /// What the first entry with a tag just assigned must flush. All, until an entry has.
    pub(super) fn owed(&self) -> Flush {
        match (self.flushed.load(Relaxed), self.reused.load(Relaxed)) {
            (false, _) => Flush::All,
            (true, true) => Flush::Tag,
            (true, false) => Flush::Nothing,
        }
    }

    /// An entry flushed all.
    pub(super) fn all_flushed(&self) {
        self.flushed.store(true, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    const LIMIT: u32 = 8;

    fn started() -> Tags {
        let tags = Tags::default();
        tags.restart();
        tags
    }

    #[test]
    fn the_default_tag_is_nobodys() {
        assert!(!Tags::default().is_current(Tag::default()));
        assert!(!started().is_current(Tag::default()));
    }

    #[test]
    fn tags_of_a_generation_are_distinct_and_none_is_the_hosts() {
        let tags = started();
        let mut seen = HashSet::new();
        for _ in 1..LIMIT {
            let tag = tags.assign(LIMIT);
            assert!(tag.number >= 1 && tag.number < LIMIT);
            assert!(seen.insert(tag.number) && tags.is_current(tag));
        }
    }

    #[test]
    fn a_new_generation_takes_all_tags_back() {
        let tags = started();
        let old: Vec<_> = (1..LIMIT).map(|_| tags.assign(LIMIT)).collect();
        let first = tags.assign(LIMIT);
        assert_eq!(first.number, 1);
        assert!(old.iter().all(|tag| !tags.is_current(*tag)));
    }

    #[test]
    fn all_is_owed_until_an_entry_flushed_all_then_only_reused_tags() {
        let tags = started();
        tags.assign(LIMIT);
        assert_eq!(tags.owed(), Flush::All);
        // The vCPU with that tag never entered: the debt goes to the next one.
        tags.assign(LIMIT);
        assert_eq!(tags.owed(), Flush::All);
        tags.all_flushed();
        for _ in 3..LIMIT {
            tags.assign(LIMIT);
            assert_eq!(tags.owed(), Flush::Nothing);
        }
        tags.assign(LIMIT);
        assert_eq!(tags.owed(), Flush::Tag);
        tags.restart();
        assert_eq!(tags.owed(), Flush::All);
    }

    #[test]
    fn two_tags_suffice() {
        let tags = started();
        let a = tags.assign(2);
        let b = tags.assign(2);
        assert_eq!((a.number, b.number), (1, 1));
        assert!(!tags.is_current(a) && tags.is_current(b));
    }
}
