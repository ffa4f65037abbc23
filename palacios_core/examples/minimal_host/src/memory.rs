// SPDX-License-Identifier: MIT OR Apache-2.0
//! Physical memory.

use palacios_core::addr::{Hpa, PAGE_SIZE};
use palacios_core::host::PageRequest;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::Mutex;

// ANCHOR: memory
/// The first page frame: no page is at address 0, and all of the memory is below 4 GiB.
const FIRST_FRAME: usize = 0x1000;

/// A page, as words that guests and the VMM may change at any time.
#[repr(align(4096))]
struct Page([AtomicU64; 512]);

/// All physical memory.
pub struct Memory {
    pages: Box<[Page]>,
    free: Mutex<Vec<bool>>,
}

impl Memory {
    pub fn new(pages: usize) -> Self {
        let page = |_| Page([const { AtomicU64::new(0) }; 512]);
        Self {
            pages: (0..pages).map(page).collect(),
            free: Mutex::new(vec![true; pages]),
        }
    }

    /// Takes the first run of free pages that fits, and zeroes it.
    pub fn take(&self, want: PageRequest) -> Option<Hpa> {
        let (count, align) = (want.pages as usize, want.align_pages as usize);
        let mut free = self.free.lock().expect("no holder has panicked");
        let first = (0..free.len()).find(|first| {
            let run = free.get(*first..first + count);
            (FIRST_FRAME + first) % align == 0
                && run.is_some_and(|run| run.iter().all(|free| *free))
        })?;
        free[first..first + count].fill(false);
        for page in &self.pages[first..first + count] {
            page.0.iter().for_each(|word| word.store(0, Relaxed));
        }
        Some(Hpa((FIRST_FRAME + first) as u64 * PAGE_SIZE))
    }

    pub fn give_back(&self, at: Hpa, count: usize) {
        let first = self.index(at);
        let mut free = self.free.lock().expect("as above");
        free[first..first + count].fill(true);
    }

    /// Where a physical address is in this program.
    pub fn address(&self, at: Hpa) -> NonNull<u8> {
        let page = NonNull::from(&self.pages[self.index(at)..]).cast::<u8>();
        NonNull::new(page.as_ptr().wrapping_add(at.page_offset() as usize)).expect("not at 0")
    }

    fn index(&self, at: Hpa) -> usize {
        (at.0 / PAGE_SIZE) as usize - FIRST_FRAME
    }
}
// ANCHOR_END: memory
