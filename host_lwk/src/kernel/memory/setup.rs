// SPDX-License-Identifier: MIT OR Apache-2.0
//! The start of memory: the largest free pieces below and above 4 GiB become the two heaps, and all memory is mapped where it is.

use super::heap::{give, PAGE_BYTES};
use super::paging::map_large;
use super::stack::STACKS;
use crate::kernel::layout::{self, MAPPED_BYTES};
use core::ops::Range;

/// What the boot loader says of the machine's memory.
pub trait MemoryMap {
    /// Memory that a kernel may use; the loader may have put something there.
    fn usable(&self) -> impl Iterator<Item = Range<u64>>;
    /// What the loader put there.
    fn taken(&self) -> impl Iterator<Item = Range<u64>> + Clone;
}

/// Sets the heaps up, and maps all memory.
///
/// # Safety
/// Once, before anything is allocated. The map is right.
pub unsafe fn init(memory: &impl MemoryMap) {
    let taken = || memory.taken().chain([layout::kernel(), 0..1 << 20]);
    let largest = |within: Range<u64>| {
        let pieces = memory.usable().map(|piece| clamp(&piece, &within));
        pieces
            .flat_map(|piece| gaps(piece, taken()))
            .max_by_key(|piece| piece.end - piece.start)
    };
    if let Some(piece) = largest(0..MAPPED_BYTES) {
        // SAFETY: free memory by the loader's map, which nobody else has; the entry code mapped it.
        unsafe { give(piece) };
    }
    for piece in memory.usable().filter(|piece| piece.end > MAPPED_BYTES) {
        map_large(clamp(&piece, &(MAPPED_BYTES..u64::MAX)));
    }
    if let Some(piece) = largest(MAPPED_BYTES..STACKS) {
        // SAFETY: as above; mapped just now.
        unsafe { give(piece) };
    }
}

fn clamp(range: &Range<u64>, to: &Range<u64>) -> Range<u64> {
    let start = range.start.max(to.start);
    start..range.end.min(to.end).max(start)
}

/// What of `piece` is in none of `taken`, whole pages only.
fn gaps(
    piece: Range<u64>,
    taken: impl Iterator<Item = Range<u64>> + Clone,
) -> impl Iterator<Item = Range<u64>> {
    let starts = taken.clone().map(|range| range.end).chain([piece.start]);
    let starts: [Option<u64>; 64] = collect(starts.filter(|at| piece.contains(at)));
    starts.into_iter().flatten().filter_map(move |start| {
        if taken.clone().any(|range| range.contains(&start)) {
            return None;
        }
        let next = taken.clone().map(|range| range.start);
        let end = next.filter(|at| *at >= start).fold(piece.end, u64::min);
        let (start, end) = (start.next_multiple_of(PAGE_BYTES), end & !(PAGE_BYTES - 1));
        (start < end).then_some(start..end)
    })
}

/// The first of `items`, where nothing can be allocated yet.
fn collect<const N: usize>(items: impl Iterator<Item = u64>) -> [Option<u64>; N] {
    let mut all = [None; N];
    all.iter_mut()
        .zip(items)
        .for_each(|(slot, item)| *slot = Some(item));
    all
}

/// A page below 1 MiB that is nobody's, for other CPUs to begin at.
pub fn low_page(memory: &impl MemoryMap) -> Option<u64> {
    let pages = (1..0xa0).map(|n| n * PAGE_BYTES..(n + 1) * PAGE_BYTES);
    let meet = |a: &Range<u64>, b: &Range<u64>| a.start < b.end && b.start < a.end;
    pages
        .filter(|page| memory.taken().all(|taken| !meet(page, &taken)))
        .find(|page| memory.usable().any(|free| clamp(page, &free) == *page))
        .map(|page| page.start)
}
