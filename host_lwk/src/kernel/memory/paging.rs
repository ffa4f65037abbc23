// SPDX-License-Identifier: MIT OR Apache-2.0
//! The page tables, which all CPUs share. The entry code made the first; here more is mapped.

use super::heap::{take_run, zero, LARGE_PAGE_BYTES, PAGE_BYTES};
use crate::kernel::sync::SpinLock;
use core::ops::Range;
use palacios_core::alloc_ext::NoMemory;
use x86_64::registers::control::Cr3;
use x86_64::structures::paging::{
    mapper::MapToError, FrameAllocator, Mapper, OffsetPageTable, Page, PageSize, PageTableFlags,
    PhysFrame, Size2MiB, Size4KiB,
};
use x86_64::{PhysAddr, VirtAddr};

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

/// Held while the page tables change.
static TABLES: SpinLock<()> = SpinLock::new(());

fn with_tables<R>(f: impl FnOnce(&mut OffsetPageTable<'_>) -> R) -> R {
    let _one = TABLES.lock();
    let root = Cr3::read().0.start_address().as_u64() as *mut _;
    // SAFETY: the tables in use, mapped where they are; locked, so this is the only reference.
    let mut tables = unsafe { OffsetPageTable::new(&mut *root, VirtAddr::zero()) };
    f(&mut tables)
}

/// What every mapping allows.
const WRITABLE: PageTableFlags = PageTableFlags::PRESENT.union(PageTableFlags::WRITABLE);

/// Maps a page; leaves it as it is if it is mapped already.
pub(super) fn map<S: PageSize + core::fmt::Debug>(virt: u64, phys: u64) -> Result<(), NoMemory>
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
pub(super) fn map_large(piece: Range<u64>) {
    let first = piece.start & !(LARGE_PAGE_BYTES - 1);
    for at in (first..piece.end).step_by(LARGE_PAGE_BYTES as usize) {
        if map::<Size2MiB>(at, at).is_err() {
            panic!("no memory for the page tables of all memory");
        }
    }
}
