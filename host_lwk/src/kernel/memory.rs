// SPDX-License-Identifier: MIT OR Apache-2.0
//! Physical memory, all of it mapped where it is: the heap, runs of pages out of it, and the stacks of threads.
//!
//! There are two heaps, the largest free pieces below and above 4 GiB of the boot loader's memory map. Guest RAM comes out of
//! them in one piece each, and nothing is paged.

use super::boot::{kernel_begin, kernel_end, MAPPED_BYTES};
use super::loader::Boot;
use super::sync::SpinLock;
use alloc::vec::Vec;
use core::alloc::{GlobalAlloc, Layout};
use core::ops::Range;
use core::ptr::{null_mut, NonNull};
use core::sync::atomic::{AtomicU64, Ordering};
use linked_list_allocator::Heap;
use palacios_core::alloc_ext::NoMemory;
use x86_64::registers::control::Cr3;
use x86_64::structures::paging::{
    mapper::MapToError, FrameAllocator, Mapper, OffsetPageTable, Page, PageSize, PageTableFlags,
    PhysFrame, Size2MiB, Size4KiB,
};
use x86_64::{PhysAddr, VirtAddr};

/// A page.
pub const PAGE_BYTES: u64 = 4096;
/// A page of the largest size that is used.
pub const LARGE_PAGE_BYTES: u64 = 2 << 20;
/// The stack of a thread; below it is a page that is not there.
pub const STACK_BYTES: u64 = 64 << 10;
/// Where stacks are mapped, far above all memory: each with as much of nothing below it.
const STACKS: u64 = 0x4000_0000_0000;

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
/// The kernel's memory, also Rust's.
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

/// Sets the heaps up, and maps all memory.
///
/// # Safety
/// Once, before anything is allocated.
pub unsafe fn init(boot: &Boot) {
    let kernel = (&raw const kernel_begin as u64)..(&raw const kernel_end as u64);
    let taken = || boot.taken().chain([kernel.clone(), 0..1 << 20]);
    let largest = |within: Range<u64>| {
        let pieces = boot.free_memory().map(|piece| clamp(&piece, &within));
        pieces
            .flat_map(|piece| gaps(piece, taken()))
            .max_by_key(|piece| piece.end - piece.start)
    };
    let fill = |heap: &mut Heap, piece: Range<u64>| {
        // SAFETY: free memory by the loader's map, which nobody else has.
        unsafe { heap.init(piece.start as *mut u8, (piece.end - piece.start) as usize) };
    };
    if let Some(piece) = largest(0..MAPPED_BYTES) {
        fill(&mut MEMORY.0.lock().low, piece);
    }
    for piece in boot.free_memory().filter(|piece| piece.end > MAPPED_BYTES) {
        map_large(clamp(&piece, &(MAPPED_BYTES..u64::MAX)));
    }
    if let Some(piece) = largest(MAPPED_BYTES..STACKS) {
        fill(&mut MEMORY.0.lock().high, piece);
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
pub fn low_page(boot: &Boot) -> Option<u64> {
    let pages = (1..0xa0).map(|n| n * PAGE_BYTES..(n + 1) * PAGE_BYTES);
    let meet = |a: &Range<u64>, b: &Range<u64>| a.start < b.end && b.start < a.end;
    pages
        .filter(|page| boot.taken().all(|taken| !meet(page, &taken)))
        .find(|page| boot.free_memory().any(|free| clamp(page, &free) == *page))
        .map(|page| page.start)
}

/// Frames for page tables.
struct TableFrames;

// SAFETY: each frame is fresh memory.
unsafe impl FrameAllocator<Size4KiB> for TableFrames {
    fn allocate_frame(&mut self) -> Option<PhysFrame<Size4KiB>> {
        let at = take_run(PAGE_BYTES, PAGE_BYTES, false).ok()?;
        // SAFETY: just taken.
        unsafe { zero(at, PAGE_BYTES) };
        PhysFrame::from_start_address(PhysAddr::new(at)).ok()
    }
}

/// The page tables, which all CPUs share.
static TABLES: SpinLock<()> = SpinLock::new(());

fn with_tables<R>(f: impl FnOnce(&mut OffsetPageTable<'_>) -> R) -> R {
    let _one = TABLES.lock();
    let root = Cr3::read().0.start_address().as_u64() as *mut _;
    // SAFETY: the tables in use, mapped where they are; locked, so this is the only reference.
    let mut tables = unsafe { OffsetPageTable::new(&mut *root, VirtAddr::zero()) };
    f(&mut tables)
}

const WRITABLE: PageTableFlags = PageTableFlags::PRESENT.union(PageTableFlags::WRITABLE);

fn map<S: PageSize + core::fmt::Debug>(virt: u64, phys: u64) -> Result<(), NoMemory>
where
    for<'a> OffsetPageTable<'a>: Mapper<S>,
{
    let page = Page::<S>::containing_address(VirtAddr::new(virt));
    let frame = PhysFrame::<S>::containing_address(PhysAddr::new(phys));
    // SAFETY: the memory is mapped where nothing was before.
    let mapped = with_tables(|tables| unsafe {
        tables
            .map_to(page, frame, WRITABLE, &mut TableFrames)
            .map(|flush| flush.flush())
    });
    match mapped {
        Ok(()) | Err(MapToError::PageAlreadyMapped(_)) => Ok(()),
        Err(_) => Err(NoMemory),
    }
}

/// Maps a piece of memory where it is.
fn map_large(piece: Range<u64>) {
    let first = piece.start & !(LARGE_PAGE_BYTES - 1);
    for at in (first..piece.end).step_by(LARGE_PAGE_BYTES as usize) {
        if map::<Size2MiB>(at, at).is_err() {
            panic!("no memory for the page tables of all memory");
        }
    }
}

/// The stacks that nobody uses, and how many there are in all.
static STACK_POOL: SpinLock<(Vec<u64>, u64)> = SpinLock::new((Vec::new(), 0));

/// A thread's stack. Its memory is used again for other stacks only: it stays mapped.
pub struct Stack {
    top: u64,
}

impl Stack {
    /// One that is free, or a new one.
    pub fn new() -> Result<Self, NoMemory> {
        let mut pool = STACK_POOL.lock();
        if let Some(top) = pool.0.pop() {
            return Ok(Self { top });
        }
        // So that giving it back never allocates.
        let all = pool.1 as usize + 1;
        pool.0.try_reserve(all).map_err(|_| NoMemory)?;
        let bottom = STACKS + pool.1 * 2 * STACK_BYTES + STACK_BYTES;
        let memory = take_run(STACK_BYTES, PAGE_BYTES, false)?;
        for offset in (0..STACK_BYTES).step_by(PAGE_BYTES as usize) {
            map::<Size4KiB>(bottom + offset, memory + offset)?;
        }
        pool.1 += 1;
        Ok(Self {
            top: bottom + STACK_BYTES,
        })
    }

    /// Where it begins.
    pub fn top(&self) -> u64 {
        self.top
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // Room was reserved when it was made.
        STACK_POOL.lock().0.push(self.top);
    }
}

/// Whether `at` is in the gap below a stack.
pub fn is_below_a_stack(at: u64) -> bool {
    let offset = at.wrapping_sub(STACKS);
    offset < 1 << 40 && offset % (2 * STACK_BYTES) < STACK_BYTES
}
