// SPDX-License-Identifier: MIT OR Apache-2.0
//! Frames go back to their provider: because the host wants them, or the guest has no use for what is in them, or the VM ends.

use super::arrangement::Arrangement;
use super::frames::Slot;
use super::Memory;
use crate::addr::{Gpa, Hpa};
use crate::host::{GuestRam, Host, Lock, Release};
use core::ops::Range;

/// How many frames are taken at a time.
const BATCH: usize = 32;

/// Frames that nobody can use any more.
type Batch<'a> = [Option<(Slot<'a>, Hpa)>; BATCH];

impl<H: Host> Memory<H> {
    /// Takes all frames of RAM that are shown at `from..from + bytes` out of the guest and gives them to the provider, contents and
    /// all; the next touch asks for them again. A large frame goes whole; one that is pinned stays. `flush` is as for [`Memory::fault`].
    /// Sleeps. Returns how many frames went.
    pub fn revoke(&self, from: Gpa, bytes: u64, flush: &dyn Fn()) -> u64 {
        self.take(from, bytes, Release::Revoked, flush)
    }

    /// The same for RAM whose contents the guest has no use for: the provider keeps nothing, and the next touch finds zeroes. Only frames
    /// that lie in the range as a whole go.
    pub fn discard(&self, from: Gpa, bytes: u64, flush: &dyn Fn()) -> u64 {
        self.take(from, bytes, Release::Discarded, flush)
    }

    fn take(&self, from: Gpa, bytes: u64, why: Release, flush: &dyn Fn()) -> u64 {
        let changes = self.changes.lock();
        let range = from.0..from.0.saturating_add(bytes);
        let mut taken = 0u64;
        for region in changes.regions.iter() {
            let shown = region.range();
            let part = range.start.max(shown.start)..range.end.min(shown.end);
            if part.is_empty() {
                continue;
            }
            let last = region.page_at(Gpa(part.end.wrapping_sub(1)));
            let pages = region.page_at(Gpa(part.start))
                ..last.saturating_add(1).min(self.frames.ram_pages());
            taken = taken.saturating_add(self.take_pages(&changes, pages, why, flush));
        }
        taken
    }

    fn take_pages(
        &self,
        changes: &Arrangement,
        pages: Range<u64>,
        why: Release,
        flush: &dyn Fn(),
    ) -> u64 {
        let (mut at, mut taken) = (pages.start, 0u64);
        loop {
            let mut batch: Batch<'_> = [None; BATCH];
            let mut count = 0u64;
            for entry in &mut batch {
                *entry = self.seal_next(&mut at, &pages, why);
                count = count.saturating_add(u64::from(entry.is_some()));
            }
            if count == 0 {
                return taken;
            }
            self.forget_batch(changes, &batch, flush);
            self.release_batch(batch, why);
            taken = taken.saturating_add(count);
            // There may be many.
            self.host.yield_now();
        }
    }

    /// Seals the next frame at `at` or behind it.
    fn seal_next(&self, at: &mut u64, pages: &Range<u64>, why: Release) -> Option<(Slot<'_>, Hpa)> {
        while let Some(slot) = self.frames.first_frame(&(*at..pages.end)) {
            *at = slot.pages().end;
            let whole = slot.first >= pages.start && slot.pages().end <= pages.end;
            if why == Release::Discarded && !whole {
                continue;
            }
            let Ok(frame) = slot.word.seal() else {
                continue;
            };
            self.frames.left(slot.size);
            return Some((slot, Hpa(frame)));
        }
        None
    }

    fn forget_batch(&self, changes: &Arrangement, batch: &Batch<'_>, flush: &dyn Fn()) {
        self.wait_for_those_inside();
        for (slot, _) in batch.iter().flatten() {
            changes.each_place(&slot.pages(), |place| {
                self.nested.forget(place);
            });
        }
        self.flush(flush);
    }

    fn release_batch(&self, batch: Batch<'_>, why: Release) {
        for (slot, frame) in batch.into_iter().flatten() {
            if why == Release::Discarded {
                // Zeroes are other contents.
                let _inside = self.gate.enter();
                slot.pages().for_each(|page| self.note_write(page));
            }
            self.provider.release(slot.first, frame, slot.size, why);
            slot.word.clear();
        }
    }
}

impl<H: Host> Drop for Memory<H> {
    fn drop(&mut self) {
        let pages = 0..self.frames.ram_pages();
        let mut at = pages.start;
        while let Some((slot, frame)) = self.seal_next(&mut at, &pages, Release::Ended) {
            self.provider
                .release(slot.first, frame, slot.size, Release::Ended);
            slot.word.clear();
        }
    }
}
