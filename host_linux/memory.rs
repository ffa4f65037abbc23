// SPDX-License-Identifier: GPL-2.0
//! Host memory: runs of pages for the VMM, and the frames behind guest RAM.

use crate::counters::{LARGE_PAGES, PAGES};
use crate::ffi;
use crate::payer::Payer;
use crate::user;
use core::ptr::{self, NonNull};
use kernel::{
    bindings, new_mutex,
    prelude::*,
    sync::{Arc, Mutex},
    types::Opaque,
    uaccess::{UserPtr, UserSlice},
};
use palacios_core::addr::{Hpa, LARGE_PAGE_SIZE, PAGE_SIZE};
use palacios_core::host::{GuestRam, NoMemory, PageRequest, PageSize, RamError, Release};

/// The order of a large page, and how many small ones it has.
const LARGE_ORDER: u32 = (LARGE_PAGE_SIZE / PAGE_SIZE).trailing_zeros();
const SMALL_PER_LARGE: u64 = LARGE_PAGE_SIZE / PAGE_SIZE;

/// Where all of RAM is mapped.
fn direct_map() -> u64 {
    // SAFETY: Set at boot and constant from then on.
    unsafe { bindings::page_offset_base as u64 }
}

/// The address in the direct map of a page that the kernel gave.
pub(crate) fn virt(at: Hpa) -> *mut u8 {
    direct_map().wrapping_add(at.0) as *mut u8
}

/// The physical address of pages in the direct map; `None` for no pages.
fn phys(at: *mut c_void) -> Option<Hpa> {
    (!at.is_null()).then(|| Hpa((at as u64).wrapping_sub(direct_map())))
}

fn order(want: PageRequest) -> Option<u32> {
    let pages = want
        .pages
        .max(want.align_pages)
        .checked_next_power_of_two()?;
    let order = pages.trailing_zeros();
    (order <= bindings::MAX_PAGE_ORDER).then_some(order)
}

/// See [`palacios_core::host::Host::alloc_pages`].
pub(crate) fn alloc_pages(want: PageRequest) -> Result<Hpa, NoMemory> {
    let order = order(want).ok_or(NoMemory)?;
    let node = want.node.map_or(-1, |n| i32::try_from(n).unwrap_or(-1));
    // SAFETY: The order is one that the page allocator knows.
    let at = phys(unsafe { ffi::v3vee_pages_alloc(order, want.below_4g, node) }).ok_or(NoMemory)?;
    PAGES.add(1 << order);
    Ok(at)
}

/// See [`palacios_core::host::Host::free_pages`].
///
/// # Safety
/// `at` and `want` are those of one [`alloc_pages`], and nothing refers to the pages any more.
pub(crate) unsafe fn free_pages(at: Hpa, want: PageRequest) {
    let Some(order) = order(want) else { return };
    // SAFETY: By the contract above.
    unsafe { bindings::free_pages(virt(at) as usize, order) };
    PAGES.sub(1 << order);
}

/// Copies much of the caller's memory, if the host has so much to spare.
pub(crate) fn copy_from_caller(at: u64, len: usize) -> Result<VVec<u8>> {
    if !can_spare(len) {
        return Err(ENOMEM);
    }
    let mut bytes = VVec::new();
    let from = UserPtr::from_addr(user::pointer(at)?);
    UserSlice::new(from, len).read_all(&mut bytes, GFP_KERNEL_ACCOUNT | __GFP_NOWARN)?;
    Ok(bytes)
}

/// The host has so many bytes, and enough left to live on.
fn can_spare(bytes: usize) -> bool {
    // SAFETY: Reads counters.
    unsafe { ffi::v3vee_can_spare(bytes.div_ceil(PAGE_SIZE as usize)) }
}

/// A frame of guest RAM, as it stands in the table of [`Ram`].
#[derive(Clone, Copy)]
struct Frame {
    at: Hpa,
    size: PageSize,
    /// The guest has it not: it keeps the contents of a revoked page.
    kept: bool,
}

impl Frame {
    const LARGE: u64 = 1 << 1;
    const KEPT: u64 = 1 << 2;

    /// As an entry of an XArray: a *value entry*, whose lowest bit is set (`xa_mk_value`).
    fn entry(self) -> *mut c_void {
        let large = if self.size == PageSize::Large {
            Self::LARGE
        } else {
            0
        };
        let kept = if self.kept { Self::KEPT } else { 0 };
        (self.at.0 | large | kept | 1) as *mut c_void
    }

    fn of(entry: *mut c_void) -> Option<Self> {
        let bits = entry as u64;
        (bits & 1 != 0).then(|| Self {
            at: Hpa(bits).page(),
            size: if bits & Self::LARGE != 0 {
                PageSize::Large
            } else {
                PageSize::Small
            },
            kept: bits & Self::KEPT != 0,
        })
    }

    /// Takes memory for a frame. It is zeroed, unless it is about to be written whole.
    fn alloc(size: PageSize, zero: bool) -> Option<Self> {
        let order = if size == PageSize::Large {
            LARGE_ORDER
        } else {
            0
        };
        // SAFETY: The order is one that the page allocator knows.
        let at = phys(unsafe { ffi::v3vee_ram_alloc(order, zero) })?;
        count(size).add(1);
        Some(Self {
            at,
            size,
            kept: false,
        })
    }

    /// Gives its memory back.
    ///
    /// # Safety
    /// It came from [`Frame::alloc`], and nothing refers to it any more.
    unsafe fn free(self) {
        let order = if self.size == PageSize::Large {
            LARGE_ORDER
        } else {
            0
        };
        // SAFETY: By the contract above.
        unsafe { bindings::free_pages(virt(self.at) as usize, order) };
        count(self.size).sub(1);
    }
}

fn count(size: PageSize) -> &'static crate::counters::Counter {
    match size {
        PageSize::Small => &PAGES,
        PageSize::Large | PageSize::Huge => &LARGE_PAGES,
    }
}

/// The RAM of one guest: takes a frame when the core asks for it, charged to who created the VM. A revoked page is given
/// back in another frame, if there is one.
#[pin_data(PinnedDrop)]
pub(crate) struct Table {
    /// The frames by the number of their page. A large one stands at its first number. An entry is made when a frame is given,
    /// so a revocation, which may not fail, finds its slot.
    #[pin]
    frames: Opaque<bindings::xarray>,
    /// Held while a kept large frame becomes small ones.
    #[pin]
    splits: Mutex<()>,
    payer: Arc<Payer>,
}

// SAFETY: The XArray has its own lock.
unsafe impl Send for Table {}
// SAFETY: As above.
unsafe impl Sync for Table {}

impl Table {
    fn new(payer: Arc<Payer>) -> impl PinInit<Self> {
        pin_init!(Self {
            // SAFETY: The slot is memory for an XArray.
            frames <- Opaque::ffi_init(|slot| unsafe { bindings::xa_init_flags(slot, 0) }),
            splits <- new_mutex!((), "v3vee_ram_splits"),
            payer,
        })
    }

    fn get(&self, page: u64) -> Option<Frame> {
        // SAFETY: The XArray was initialised.
        Frame::of(unsafe { bindings::xa_load(self.frames.get(), page as usize) })
    }

    /// The first frame at `from` or after it, up to `last`, and where it stands.
    fn first(&self, from: u64, last: u64) -> Option<(u64, Frame)> {
        let mut page = from as usize;
        // SAFETY: The XArray was initialised; `page` is a local.
        let entry = unsafe {
            bindings::xa_find(
                self.frames.get(),
                &mut page,
                last as usize,
                bindings::XA_PRESENT,
            )
        };
        Frame::of(entry).map(|frame| (page as u64, frame))
    }

    /// Replacing an entry takes no memory and does not fail.
    fn put(&self, page: u64, frame: Frame) -> Result<(), RamError> {
        let flags = bindings::GFP_KERNEL_ACCOUNT | bindings::__GFP_NOWARN;
        // SAFETY: The XArray was initialised; the entry is a value entry.
        let old =
            unsafe { bindings::xa_store(self.frames.get(), page as usize, frame.entry(), flags) };
        // SAFETY: Takes any entry.
        match unsafe { bindings::xa_err(old) } {
            0 => Ok(()),
            _ => Err(RamError::NoMemory),
        }
    }

    fn remove(&self, page: u64) {
        // SAFETY: The XArray was initialised.
        unsafe { bindings::xa_erase(self.frames.get(), page as usize) };
    }

    /// A frame for a page that was never touched.
    fn fresh(&self, page: u64, size: PageSize) -> Result<Hpa, RamError> {
        let frame = Frame::alloc(size, true).ok_or(match size {
            PageSize::Large | PageSize::Huge => RamError::TooLarge,
            PageSize::Small => RamError::NoMemory,
        })?;
        if let Err(error) = self.put(page, frame) {
            // SAFETY: Nobody else has seen it.
            unsafe { frame.free() };
            return Err(error);
        }
        Ok(frame.at)
    }

    /// Gives a revoked page back: in another frame, or in its own if there is no other.
    fn renew(&self, page: u64, old: Frame) -> Result<Hpa, RamError> {
        let new = Frame::alloc(old.size, false).unwrap_or(old);
        if new.at != old.at {
            let bytes = old.size.bytes() as usize;
            // SAFETY: Two frames of that size which no guest has.
            unsafe { ptr::copy_nonoverlapping(virt(old.at), virt(new.at), bytes) };
        }
        self.put(page, Frame { kept: false, ..new })?;
        if new.at != old.at {
            // SAFETY: It was in the table as a kept one, so the guest does not have it; it is replaced there.
            unsafe { old.free() };
        }
        Ok(new.at)
    }

    /// Makes 512 small frames of a kept large one.
    fn split(&self, first: u64, large: Frame) -> Result<(), RamError> {
        let small = |n: u64| Frame {
            at: large.at.wrapping_add(n * PAGE_SIZE),
            size: PageSize::Small,
            kept: true,
        };
        for n in 1..SMALL_PER_LARGE {
            if let Err(error) = self.put(first | n, small(n)) {
                (1..n).for_each(|n| self.remove(first | n));
                return Err(error);
            }
        }
        // SAFETY: A run of that order which only this table knows.
        unsafe { ffi::v3vee_pages_split(virt(large.at).cast(), LARGE_ORDER) };
        // Last: whoever finds a small one there takes the others for small too.
        self.put(first, small(0))?;
        LARGE_PAGES.sub(1);
        PAGES.add(SMALL_PER_LARGE);
        Ok(())
    }

    /// The kept large frame at page `first`, if there is one.
    fn kept_large(&self, first: u64) -> Option<Frame> {
        let frame = self.get(first);
        frame.filter(|frame| frame.kept && frame.size == PageSize::Large)
    }

    fn large(&self, page: u64) -> Result<Hpa, RamError> {
        match self.first(page, page | (SMALL_PER_LARGE - 1)) {
            None => self.fresh(page, PageSize::Large),
            Some((_, old)) if old.kept && old.size == PageSize::Large => self.renew(page, old),
            Some(_) => Err(RamError::TooLarge),
        }
    }

    fn small(&self, page: u64) -> Result<Hpa, RamError> {
        let first = page & !(SMALL_PER_LARGE - 1);
        if self.kept_large(first).is_some() {
            // Of two who want pages of it, one splits it.
            let _splits = self.splits.lock();
            if let Some(large) = self.kept_large(first) {
                self.split(first, large)?;
            }
        }
        match self.get(page) {
            None => self.fresh(page, PageSize::Small),
            Some(old) if old.kept => self.renew(page, old),
            Some(lent) => Ok(lent.at),
        }
    }
}

#[pinned_drop]
impl PinnedDrop for Table {
    fn drop(self: Pin<&mut Self>) {
        let mut from = 0;
        while let Some((page, frame)) = self.first(from, u64::MAX) {
            self.remove(page);
            // SAFETY: The guest is gone, and its nested tables with it.
            unsafe { frame.free() };
            from = page;
        }
        // SAFETY: The XArray was initialised and is used no more.
        unsafe { bindings::xa_destroy(self.frames.get()) };
    }
}

/// See [`Table`].
pub(crate) struct Ram(Pin<KBox<Table>>);

impl Ram {
    /// No frame yet. It is `payer` who will pay for them.
    pub(crate) fn new(payer: Arc<Payer>) -> Result<Self> {
        Ok(Self(KBox::pin_init(Table::new(payer), GFP_KERNEL_ACCOUNT)?))
    }
}

impl GuestRam for Ram {
    fn page(&self, page: u64, size: PageSize) -> Result<Hpa, RamError> {
        self.0.payer.during(|| match size {
            // The page allocator has no runs of 1 GiB.
            PageSize::Huge => Err(RamError::TooLarge),
            PageSize::Large => self.0.large(page),
            PageSize::Small => self.0.small(page),
        })
    }

    fn holds(&self, page: u64) -> bool {
        let first = page & !(SMALL_PER_LARGE - 1);
        self.0.get(page).is_some() || self.0.kept_large(first).is_some()
    }

    fn release(&self, page: u64, at: Hpa, size: PageSize, why: Release) {
        let frame = Frame {
            at,
            size,
            kept: true,
        };
        match why {
            Release::Revoked => {
                if self.0.put(page, frame).is_err() {
                    pr_err!("guest frame {page:#x} was not in the table of its VM\n");
                }
            }
            Release::Ended | Release::Discarded => {
                self.0.remove(page);
                // SAFETY: `page` gave it, and nothing translates to it any more.
                unsafe { frame.free() };
            }
        }
    }
}

/// See [`palacios_core::host::Host::phys_to_virt`].
pub(crate) fn phys_to_virt(at: Hpa) -> NonNull<u8> {
    // SAFETY: The direct map does not begin at zero, and no page that the kernel gave lies beyond it.
    unsafe { NonNull::new_unchecked(virt(at)) }
}
