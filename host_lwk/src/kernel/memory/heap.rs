// SPDX-License-Identifier: MIT OR Apache-2.0
//! The heaps, and runs of pages out of them.
//!
//! There are two: one below 4 GiB and one above, so that a caller can ask for memory below 4 GiB. Small objects, page tables and
//! the RAM of guests all come out of them.

use crate::kernel::layout::MAPPED_BYTES;
use crate::kernel::sync::SpinLock;
use core::alloc::{GlobalAlloc, Layout};
use core::ops::Range;
use core::ptr::{null_mut, NonNull};
use core::sync::atomic::{AtomicU64, Ordering};
use linked_list_allocator::Heap;
use palacios_core::alloc_ext::NoMemory;

/// A page.
pub const PAGE_BYTES: u64 = 4096;
/// A page of the largest size that is used.
pub const LARGE_PAGE_BYTES: u64 = 2 << 20;

/// The heap below 4 GiB, and the one above.
struct Heaps {
    low: Heap,
    high: Heap,
}

// SAFETY: a heap is memory that only it refers to.
unsafe impl Send for Heaps {}

impl Heaps {
    fn take(&mut self, layout: Layout, below_4g: bool) -> Option<NonNull<u8>> {
        let high = match below_4g {
            true => Err(()),
            false => self.high.allocate_first_fit(layout),
        };
        high.or_else(|()| self.low.allocate_first_fit(layout)).ok()
    }
}

/// How often something was allocated.
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// ANCHOR: global_allocator
/// The kernel's memory, and Rust's.
struct Memory(SpinLock<Heaps>);

#[global_allocator]
static MEMORY: Memory = Memory(SpinLock::new(Heaps {
    low: Heap::empty(),
    high: Heap::empty(),
}));

// SAFETY: the heaps keep what this trait asks.
unsafe impl GlobalAlloc for Memory {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        let at = self.0.lock().take(layout, false);
        at.map_or(null_mut(), NonNull::as_ptr)
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        let Some(at) = NonNull::new(at) else { return };
        let heaps = &mut *self.0.lock();
        let heap = match (at.as_ptr() as u64) < MAPPED_BYTES {
            true => &mut heaps.low,
            false => &mut heaps.high,
        };
        // SAFETY: by the trait's contract it came from `alloc`, which takes from the heap in which it lies.
        unsafe { heap.deallocate(at, layout) };
    }
}
// ANCHOR_END: global_allocator

/// Gives memory to the heap in whose half of the address space it begins.
///
/// # Safety
/// At most once for each heap. The memory is mapped where it is, and nobody else uses it.
pub(super) unsafe fn give(piece: Range<u64>) {
    let heaps = &mut *MEMORY.0.lock();
    let heap = match piece.start < MAPPED_BYTES {
        true => &mut heaps.low,
        false => &mut heaps.high,
    };
    // SAFETY: the same contract.
    unsafe { heap.init(piece.start as *mut u8, (piece.end - piece.start) as usize) };
}

/// How often something was allocated since the start.
pub fn allocations() -> u64 {
    ALLOCATIONS.load(Ordering::Relaxed)
}

/// How many bytes are free.
pub fn free_bytes() -> u64 {
    let heaps = MEMORY.0.lock();
    (heaps.low.free() + heaps.high.free()) as u64
}

fn run_layout(bytes: u64, align_bytes: u64) -> Result<Layout, NoMemory> {
    let (bytes, align) = (bytes as usize, align_bytes.max(PAGE_BYTES) as usize);
    Layout::from_size_align(bytes, align).map_err(|_| NoMemory)
}

/// Takes a run of `bytes`, aligned to `align_bytes`, a power of two; its contents are whatever they are.
pub fn take_run(bytes: u64, align_bytes: u64, below_4g: bool) -> Result<u64, NoMemory> {
    let layout = run_layout(bytes, align_bytes)?;
    ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
    let at = MEMORY.0.lock().take(layout, below_4g).ok_or(NoMemory)?;
    Ok(at.as_ptr() as u64)
}

/// Gives a run back.
///
/// # Safety
/// `at` came from [`take_run`] with these numbers, and nothing refers to it any more.
pub unsafe fn free_run(at: u64, bytes: u64, align_bytes: u64) {
    if let Ok(layout) = run_layout(bytes, align_bytes) {
        // SAFETY: by the contract above.
        unsafe { MEMORY.dealloc(at as *mut u8, layout) };
    }
}

/// Fills memory with zeroes.
///
/// # Safety
/// The caller owns `bytes` at `at`.
pub unsafe fn zero(at: u64, bytes: u64) {
    // SAFETY: by the contract above; all memory is mapped where it is.
    unsafe { core::ptr::write_bytes(at as *mut u8, 0, bytes as usize) };
}
