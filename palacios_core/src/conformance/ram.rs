// SPDX-License-Identifier: MIT OR Apache-2.0
//! Promises of a provider of guest RAM: its frames are zeroed, aligned, apart, keep what a revoked page held, and forget what an
//! ended one did.

use super::check::{broken, ensure, Check, Failure, Outcome};
use super::method::Method::{Holds, Page, Release};
use crate::addr::Hpa;
use crate::host::{self, GuestRam, Host, PageSize, RamError};

const SMALL: PageSize = PageSize::Small;
const LARGE: PageSize = PageSize::Large;
/// Small pages in a large one.
const SMALL_PER_LARGE: u64 = LARGE.bytes() / SMALL.bytes();

/// A host, and what makes its providers of guest RAM.
pub struct Subject<'a, H, F> {
    /// The host.
    pub host: &'a H,
    /// Gives a fresh provider for a guest of at least 16 MiB, or `None` if there is no memory for one.
    pub ram: F,
}

/// All checks of a provider.
pub fn checks<'a, H: Host, F: Fn() -> Option<H::Ram>>() -> [Check<Subject<'a, H, F>>; 6] {
    [
        Check::new(
            "guest RAM: zeroed, apart, forgotten at the end",
            |subject| subject.with_ram(small_pages),
        ),
        Check::new("guest RAM: kept when revoked", |subject| {
            subject.with_ram(keeps_revoked)
        }),
        Check::new("guest RAM: zeroed behind a discard", |subject| {
            subject.with_ram(forgets_discarded)
        }),
        Check::new("guest RAM: large pages", |subject| {
            subject.with_ram(large_pages)
        }),
        Check::new(
            "guest RAM: a large page comes back as small ones",
            |subject| subject.with_ram(large_comes_back_small),
        ),
        Check::new("guest RAM: says what it holds", |subject| {
            subject.with_ram(says_what_it_holds)
        }),
    ]
}

impl<H: Host, F: Fn() -> Option<H::Ram>> Subject<'_, H, F> {
    fn with_ram(&self, check: impl FnOnce(&H, &H::Ram) -> Outcome) -> Outcome {
        let ram = (self.ram)().ok_or(NO_FRAMES)?;
        check(self.host, &ram)
    }
}

const NO_FRAMES: Failure = broken(Page, "a healthy host has RAM for a small guest");
const SMALL_TOO_LARGE: Failure = broken(Page, "4 KiB is not too large a page");

/// A frame of guest RAM; dropped, the guest is done with it.
struct Frame<'a, H: Host> {
    host: &'a H,
    ram: &'a H::Ram,
    page: u64,
    at: Hpa,
    size: PageSize,
}

impl<'a, H: Host> Frame<'a, H> {
    /// Asks for a page; `None` if there is none of this size.
    fn new(
        host: &'a H,
        ram: &'a H::Ram,
        page: u64,
        size: PageSize,
    ) -> Result<Option<Self>, Failure> {
        let at = match ram.page(page, size) {
            Ok(at) => at,
            Err(RamError::TooLarge) if size == LARGE => return Ok(None),
            Err(RamError::TooLarge) => return Err(SMALL_TOO_LARGE),
            Err(RamError::NoMemory) => return Err(NO_FRAMES),
        };
        let frame = Self {
            host,
            ram,
            page,
            at,
            size,
        };
        ensure(
            at.0 % size.bytes() == 0,
            Page,
            "a frame is aligned to its size",
        )?;
        Ok(Some(frame))
    }
    fn small(host: &'a H, ram: &'a H::Ram, page: u64) -> Result<Self, Failure> {
        Self::new(host, ram, page, SMALL)?.ok_or(SMALL_TOO_LARGE)
    }
    /// The host takes it back, the guest still wants its contents.
    fn revoke(self) {
        self.leave(host::Release::Revoked);
    }
    /// The host takes it back, and the guest does not want its contents.
    fn discard(self) {
        self.leave(host::Release::Discarded);
    }
    fn leave(self, why: host::Release) {
        self.ram.release(self.page, self.at, self.size, why);
        core::mem::forget(self);
    }
    fn words(&self) -> impl Iterator<Item = *mut u64> {
        let base = self.host.phys_to_virt(self.at).cast::<u64>().as_ptr();
        (0..self.size.bytes() as usize / 8).map(move |i| base.wrapping_add(i))
    }
    fn zeroed(&self) -> bool {
        // SAFETY: a word of a frame that the provider gave and has not got back.
        self.words().all(|at| unsafe { at.read_volatile() } == 0)
    }
    fn fill(&self, seed: u64) {
        for (i, at) in (seed..).zip(self.words()) {
            // SAFETY: as above.
            unsafe { at.write_volatile(i) };
        }
    }
    fn holds(&self, seed: u64) -> bool {
        // SAFETY: as above.
        (seed..)
            .zip(self.words())
            .all(|(i, at)| unsafe { at.read_volatile() } == i)
    }
}

impl<H: Host> Drop for Frame<'_, H> {
    fn drop(&mut self) {
        self.ram
            .release(self.page, self.at, self.size, host::Release::Ended);
    }
}

fn small_pages<H: Host>(host: &H, ram: &H::Ram) -> Outcome {
    let (a, b) = (Frame::small(host, ram, 0)?, Frame::small(host, ram, 1)?);
    ensure(
        a.zeroed() && b.zeroed(),
        Page,
        "guest RAM is zeroed at first touch",
    )?;
    a.fill(1);
    b.fill(1 << 20);
    ensure(
        a.holds(1) && b.holds(1 << 20),
        Page,
        "two pages have two frames, both memory at phys_to_virt",
    )?;
    drop(a);
    let again = Frame::small(host, ram, 0)?;
    ensure(
        again.zeroed(),
        Release,
        "what an ended guest held is not seen again",
    )?;
    ensure(
        b.holds(1 << 20),
        Release,
        "a release leaves other pages alone",
    )
}

fn keeps_revoked<H: Host>(host: &H, ram: &H::Ram) -> Outcome {
    for page in 0..8 {
        let frame = Frame::small(host, ram, page)?;
        frame.fill(page << 32);
        frame.revoke();
    }
    for page in (0..8).rev() {
        let frame = Frame::small(host, ram, page)?;
        ensure(
            frame.holds(page << 32),
            Release,
            "a revoked page keeps its contents",
        )?;
    }
    Ok(())
}

fn forgets_discarded<H: Host>(host: &H, ram: &H::Ram) -> Outcome {
    let kept = Frame::small(host, ram, 9)?;
    kept.fill(5);
    for size in [SMALL, LARGE] {
        let Some(frame) = Frame::new(host, ram, 4 * SMALL_PER_LARGE, size)? else {
            continue;
        };
        frame.fill(1);
        frame.discard();
        let again = Frame::new(host, ram, 4 * SMALL_PER_LARGE, size)?;
        ensure(
            again.is_none_or(|again| again.zeroed()),
            Release,
            "a page that was discarded is zeroed when it is wanted again",
        )?;
    }
    ensure(kept.holds(5), Release, "a discard leaves other pages alone")
}

fn large_pages<H: Host>(host: &H, ram: &H::Ram) -> Outcome {
    let page = SMALL_PER_LARGE;
    let Some(frame) = Frame::new(host, ram, page, LARGE)? else {
        return Ok(());
    };
    ensure(
        frame.zeroed(),
        Page,
        "a large page is zeroed at first touch",
    )?;
    frame.fill(7);
    ensure(frame.holds(7), Page, "a large page is memory, end to end")?;
    frame.revoke();
    let again = Frame::new(host, ram, page, LARGE)?;
    ensure(
        again.is_none_or(|again| again.holds(7)),
        Release,
        "a large page that was revoked keeps its contents",
    )
}

/// The host had a large page once, and has only small ones when its contents are wanted again.
fn large_comes_back_small<H: Host>(host: &H, ram: &H::Ram) -> Outcome {
    let first = 2 * SMALL_PER_LARGE;
    let Some(frame) = Frame::new(host, ram, first, LARGE)? else {
        return Ok(());
    };
    frame.fill(0);
    frame.revoke();
    for i in [0, 1, SMALL_PER_LARGE - 1] {
        let piece = Frame::small(host, ram, first + i)?;
        ensure(
            piece.holds(i * SMALL.bytes() / 8),
            Release,
            "a large page that was revoked keeps its contents for small ones",
        )?;
    }
    Ok(())
}

/// What is there of a page that the guest has not: something only if it was revoked.
fn says_what_it_holds<H: Host>(host: &H, ram: &H::Ram) -> Outcome {
    for size in [SMALL, LARGE] {
        let first = 3 * SMALL_PER_LARGE;
        let pages = [first, first + size.pages() - 1];
        let nothing = || pages.iter().all(|page| !ram.holds(*page));
        ensure(
            nothing(),
            Holds,
            "a page that was never touched holds nothing",
        )?;
        let Some(frame) = Frame::new(host, ram, first, size)? else {
            continue;
        };
        frame.revoke();
        ensure(
            pages.iter().all(|page| ram.holds(*page)),
            Holds,
            "a page that was revoked holds something",
        )?;
        for page in first..first + size.pages() {
            Frame::small(host, ram, page)?.discard();
        }
        ensure(nothing(), Holds, "a page that was discarded holds nothing")?;
    }
    Ok(())
}
