// SPDX-License-Identifier: MIT OR Apache-2.0
//! Guest RAM: one piece of memory for each guest, taken when its VM is made.

use crate::kernel::memory::{self, LARGE_PAGE_BYTES, PAGE_BYTES};
use crate::kernel::sync::SpinLock;
use alloc::vec::Vec;
use palacios_core::addr::Hpa;
use palacios_core::alloc_ext::try_vec;
use palacios_core::host::{GuestRam, NoMemory, PageSize, RamError, Release};

/// The RAM of one guest.
pub struct Ram {
    at: u64,
    bytes: u64,
    align_bytes: u64,
    /// A bit for each small page that the guest was given and has not released.
    used: SpinLock<Vec<u64>>,
}

impl Ram {
    /// All of it in one piece.
    pub fn new(bytes: u64) -> Result<Self, NoMemory> {
        let used = try_vec(0, bytes.div_ceil(PAGE_BYTES).div_ceil(64) as usize)?;
        let (at, align_bytes) = take_run(bytes)?;
        Ok(Self {
            at,
            bytes,
            align_bytes,
            used: SpinLock::new(used),
        })
    }

    /// The offset of a page in the piece, if it is there as a whole and aligned in physical memory too.
    fn offset(&self, page: u64, size: PageSize) -> Option<u64> {
        let offset = page.checked_mul(PAGE_BYTES)?;
        let end = offset.checked_add(size.bytes())?;
        let aligned = (self.at + offset) % size.bytes() == 0;
        (end <= self.bytes && aligned).then_some(offset)
    }

    /// Marks the small pages of a page; calls `f` for those that were not marked so.
    fn mark(&self, offset: u64, size: PageSize, used: bool, f: impl Fn(u64)) {
        let first = offset / PAGE_BYTES;
        for page in first..first + size.bytes() / PAGE_BYTES {
            let bit = 1 << (page % 64);
            let mut words = self.used.lock();
            let Some(word) = words.get_mut((page / 64) as usize) else {
                return;
            };
            let changes = (*word & bit != 0) != used;
            *word = if used { *word | bit } else { *word & !bit };
            drop(words);
            if changes {
                f(page * PAGE_BYTES);
            }
        }
    }
}

/// A piece of memory and its alignment: such that its pages of 1 GiB are some in physical memory too, if there is one.
fn take_run(bytes: u64) -> Result<(u64, u64), NoMemory> {
    let huge = PageSize::Huge.bytes();
    let aligned = (bytes >= huge).then(|| memory::take_run(bytes, huge, false).ok());
    match aligned.flatten() {
        Some(at) => Ok((at, huge)),
        None => Ok((
            memory::take_run(bytes, LARGE_PAGE_BYTES, false)?,
            LARGE_PAGE_BYTES,
        )),
    }
}

impl GuestRam for Ram {
    fn page(&self, page: u64, size: PageSize) -> Result<Hpa, RamError> {
        let offset = self.offset(page, size).ok_or(match size {
            PageSize::Large | PageSize::Huge => RamError::TooLarge,
            PageSize::Small => RamError::NoMemory,
        })?;
        // SAFETY: in our piece, and not the guest's yet.
        self.mark(offset, size, true, |offset| unsafe {
            memory::zero(self.at + offset, PAGE_BYTES)
        });
        Ok(Hpa(self.at + offset))
    }

    fn holds(&self, page: u64) -> bool {
        let words = self.used.lock();
        let word = words.get((page / 64) as usize);
        word.is_some_and(|word| word & 1 << (page % 64) != 0)
    }

    fn release(&self, page: u64, _frame: Hpa, size: PageSize, why: Release) {
        if let (Release::Ended | Release::Discarded, Some(offset)) = (why, self.offset(page, size))
        {
            self.mark(offset, size, false, |_| {});
        }
    }
}

impl Drop for Ram {
    fn drop(&mut self) {
        // SAFETY: taken with these; the guest is gone, and its nested tables with it.
        unsafe { memory::free_run(self.at, self.bytes, self.align_bytes) };
    }
}
