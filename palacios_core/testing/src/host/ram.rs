// SPDX-License-Identifier: MIT OR Apache-2.0
//! A provider of guest RAM that keeps what was revoked, and checks that each frame comes back as it went.

use super::{here, Broken, Inner};
use crate::heap;
use palacios_core::addr::{Hpa, PAGE_SIZE};
use palacios_core::host::{GuestRam, PageRequest, PageSize, RamError, Release};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU8, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// When a provider gives large pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum LargePages {
    /// Whenever asked.
    Always,
    /// Never.
    Never,
    /// Every other time.
    Sometimes,
}

const POLICIES: [LargePages; 3] = [LargePages::Always, LargePages::Never, LargePages::Sometimes];

/// A handle to a provider of guest RAM.
#[derive(Clone)]
pub struct TestRam(Arc<Provider>);

struct Provider {
    host: Arc<Inner>,
    large: AtomicU8,
    state: Mutex<State>,
    /// A page that was withheld is not any more.
    given_free: Condvar,
}

#[derive(Default)]
struct State {
    /// The frames in the guest, by frame number.
    given: HashMap<u64, (Hpa, PageSize)>,
    /// The contents of small pages that were revoked.
    kept: HashMap<u64, Box<[u8]>>,
    asked_large: u64,
    /// A small page that is not given before it may be.
    withheld: Option<u64>,
}

fn pages(size: PageSize) -> u64 {
    size.bytes() / PAGE_SIZE
}

fn request(size: PageSize) -> PageRequest {
    let pages = pages(size) as u32;
    PageRequest {
        align_pages: pages,
        ..PageRequest::run(pages)
    }
}

impl TestRam {
    pub(super) fn new(host: Arc<Inner>, large: LargePages) -> Self {
        host.objects.rams.fetch_add(1, SeqCst);
        Self(Arc::new(Provider {
            host,
            large: AtomicU8::new(large as u8),
            state: Mutex::default(),
            given_free: Condvar::new(),
        }))
    }
    /// When it gives large pages from now on.
    pub fn set_large_pages(&self, large: LargePages) {
        self.0.large.store(large as u8, SeqCst);
    }
    /// How many frames are in the guest, large and small.
    pub fn given(&self) -> (u64, u64) {
        let state = self.state();
        let large = state.given.values().filter(|f| f.1 == PageSize::Large);
        let large = large.count();
        (large as u64, (state.given.len() - large) as u64)
    }
    /// How many small pages' contents are kept for the guest.
    pub fn kept(&self) -> usize {
        self.state().kept.len()
    }
    /// Whoever wants this small page waits until it may be given: as behind a slow disk.
    pub fn withhold(&self, page: u64) {
        self.state().withheld = Some(page);
    }
    /// What was withheld may be given.
    pub fn give_all(&self) {
        self.state().withheld = None;
        self.0.given_free.notify_all();
    }
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
    fn gives_large(&self, state: &mut State) -> bool {
        state.asked_large += 1;
        match POLICIES[usize::from(self.0.large.load(SeqCst))] {
            LargePages::Always => true,
            LargePages::Never => false,
            LargePages::Sometimes => state.asked_large % 2 == 0,
        }
    }
    /// The small pages of a frame: frame number and memory.
    fn pieces(
        &self,
        page: u64,
        frame: Hpa,
        size: PageSize,
    ) -> impl Iterator<Item = (u64, *mut u8)> + '_ {
        (0..pages(size)).map(move |i| {
            let at = Hpa(frame.0 + i * PAGE_SIZE);
            (page + i, self.0.host.arena.address(at).as_ptr())
        })
    }
}

impl GuestRam for TestRam {
    fn page(&self, page: u64, size: PageSize) -> Result<Hpa, RamError> {
        here::may_sleep("page");
        assert!(page % pages(size) == 0, "page {page:#x} of {size:?}");
        heap::exempt(|| {
            let waits = |state: &mut State| size == PageSize::Small && state.withheld == Some(page);
            let waited = self.0.given_free.wait_while(self.state(), waits);
            let mut state = waited.unwrap_or_else(PoisonError::into_inner);
            for (other, (_, other_size)) in &state.given {
                let apart = page + pages(size) <= *other || other + pages(*other_size) <= page;
                assert!(apart, "page {page:#x} is asked for again");
            }
            match size {
                PageSize::Small => Ok(()),
                PageSize::Large if self.gives_large(&mut state) => Ok(()),
                PageSize::Large | PageSize::Huge => Err(RamError::TooLarge),
            }
        })?;
        if !heap::allocate() {
            return Err(RamError::NoMemory);
        }
        heap::exempt(|| {
            let mut state = self.state();
            let frame = self.0.host.arena.alloc(request(size)).ok_or(match size {
                PageSize::Large | PageSize::Huge => RamError::TooLarge,
                PageSize::Small => RamError::NoMemory,
            })?;
            for (page, to) in self.pieces(page, frame, size) {
                if self.0.host.breaks(Broken::RamNotZeroed) {
                    // SAFETY: as below.
                    unsafe { to.add(100).write(1) };
                }
                if let Some(contents) = state.kept.remove(&page) {
                    // SAFETY: a page of the frame, which is the provider's until it is returned.
                    unsafe { to.copy_from(contents.as_ptr(), contents.len()) };
                }
            }
            state.given.insert(page, (frame, size));
            Ok(frame)
        })
    }

    fn holds(&self, page: u64) -> bool {
        here::may_sleep("holds");
        self.state().kept.contains_key(&page) && !self.0.host.breaks(Broken::RamHoldsNothing)
    }

    fn release(&self, page: u64, frame: Hpa, size: PageSize, why: Release) {
        here::may_sleep("release");
        heap::exempt(|| {
            let mut state = self.state();
            let given = state.given.remove(&page);
            assert!(
                given == Some((frame, size)),
                "release of {frame}, {size:?}, for page {page:#x}: {given:?}"
            );
            let keeps = match why {
                Release::Revoked => !self.0.host.breaks(Broken::RamForgets),
                Release::Ended | Release::Discarded => self.0.host.breaks(Broken::RamRemembers),
            };
            if keeps {
                for (page, from) in self.pieces(page, frame, size) {
                    let mut contents = vec![0; PAGE_SIZE as usize].into_boxed_slice();
                    // SAFETY: a page of a frame that the provider has back.
                    unsafe { from.copy_to(contents.as_mut_ptr(), contents.len()) };
                    state.kept.insert(page, contents);
                }
            }
            self.0.host.arena.free(frame, pages(size) as u32);
        });
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        self.host.objects.rams.fetch_sub(1, SeqCst);
        let state = self.state.get_mut();
        let given = state.unwrap_or_else(PoisonError::into_inner).given.len();
        if !std::thread::panicking() {
            assert!(given == 0, "{given} frames of guest RAM were not released");
        }
    }
}
