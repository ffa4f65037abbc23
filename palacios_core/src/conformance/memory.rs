// SPDX-License-Identifier: MIT OR Apache-2.0
//! Promises about pages.

use super::check::{broken, ensure, healthy, Failure, Outcome};
use super::method::Method::{AllocPages, FreePages, PhysToVirt};
use crate::addr::{Hpa, PAGE_SIZE};
use crate::host::{Host, PageRequest};

const WORDS_PER_PAGE: usize = PAGE_SIZE as usize / 8;

/// A run of pages, freed when dropped.
struct Run<'a, H: Host> {
    host: &'a H,
    at: Hpa,
    want: PageRequest,
}

impl<'a, H: Host> Run<'a, H> {
    fn new(host: &'a H, want: PageRequest) -> Result<Self, Failure> {
        let at = healthy(AllocPages, host.alloc_pages(want))?;
        Ok(Self { host, at, want })
    }
    fn bytes(&self) -> u64 {
        u64::from(self.want.pages) * PAGE_SIZE
    }
    fn words(&self) -> impl Iterator<Item = *mut u64> {
        let base = self.host.phys_to_virt(self.at).cast::<u64>().as_ptr();
        (0..self.want.pages as usize * WORDS_PER_PAGE).map(move |i| base.wrapping_add(i))
    }
    fn zeroed(&self) -> bool {
        // SAFETY: a word of a run that this owns.
        self.words().all(|at| unsafe { at.read_volatile() } == 0)
    }
    /// Writes a different word everywhere, told apart by `seed`.
    fn fill(&self, seed: u64) {
        for (i, at) in (1u64..).zip(self.words()) {
            // SAFETY: a word of a run that this owns.
            unsafe { at.write_volatile(seed << 32 | i) };
        }
    }
    fn holds(&self, seed: u64) -> bool {
        // SAFETY: a word of a run that this owns.
        (1u64..)
            .zip(self.words())
            .all(|(i, at)| unsafe { at.read_volatile() } == seed << 32 | i)
    }
}

impl<H: Host> Drop for Run<'_, H> {
    fn drop(&mut self) {
        // SAFETY: allocated with these in `new`; no reference to the pages outlives `self`.
        unsafe { self.host.free_pages(self.at, self.want) };
    }
}

/// Runs of every length and alignment that the core asks for.
const REQUESTS: [(u32, u32); 7] = [(1, 1), (2, 1), (2, 2), (3, 1), (3, 4), (4, 4), (1, 16)];

fn request((pages, align_pages): (u32, u32)) -> PageRequest {
    PageRequest {
        align_pages,
        ..PageRequest::run(pages)
    }
}

pub fn runs<H: Host>(host: &H) -> Outcome {
    for shape in REQUESTS {
        // So that the next free page is not aligned by chance.
        let _odd = Run::new(host, PageRequest::ONE)?;
        let run = Run::new(host, request(shape))?;
        let align_bytes = u64::from(shape.1) * PAGE_SIZE;
        ensure(
            run.at.0 % align_bytes == 0,
            AllocPages,
            "a run is aligned as asked",
        )?;
        ensure(run.zeroed(), AllocPages, "pages are zeroed")?;
        run.fill(1);
        ensure(
            run.holds(1),
            PhysToVirt,
            "a run is memory there, end to end",
        )?;
        let base = host.phys_to_virt(run.at).as_ptr();
        for offset in [1, PAGE_SIZE - 1, run.bytes() - PAGE_SIZE, run.bytes() - 1] {
            let at = host.phys_to_virt(Hpa(run.at.0 + offset)).as_ptr();
            ensure(
                at == base.wrapping_add(offset as usize),
                PhysToVirt,
                "a run's pages follow each other without a gap",
            )?;
        }
    }
    Ok(())
}

pub fn below_4g<H: Host>(host: &H) -> Outcome {
    for pages in [1, 4] {
        let want = PageRequest {
            below_4g: true,
            ..PageRequest::run(pages)
        };
        let run = Run::new(host, want)?;
        ensure(
            run.at.0 + run.bytes() <= 1 << 32,
            AllocPages,
            "with below_4g the whole run lies below 4 GiB",
        )?;
    }
    Ok(())
}

pub fn apart<H: Host>(host: &H) -> Outcome {
    let a = Run::new(host, PageRequest::run(4))?;
    let b = Run::new(host, PageRequest::ONE)?;
    let c = Run::new(host, request((2, 2)))?;
    a.fill(1);
    b.fill(2);
    c.fill(3);
    ensure(
        a.holds(1) && b.holds(2) && c.holds(3),
        AllocPages,
        "runs do not overlap",
    )
}

pub fn reused<H: Host>(host: &H) -> Outcome {
    for round in 0..64 {
        let run = Run::new(host, request(REQUESTS[round % REQUESTS.len()]))?;
        ensure(
            run.zeroed(),
            AllocPages,
            "pages that were used before are zeroed",
        )?;
        run.fill(round as u64);
    }
    Ok(())
}

/// 256 MiB in all, 1 MiB at a time.
pub fn freed<H: Host>(host: &H) -> Outcome {
    for _ in 0..256 {
        let run = host.alloc_pages(PageRequest::run(256));
        let at = run.map_err(|_| broken(FreePages, "freed pages can be allocated again"))?;
        // SAFETY: allocated just above, used by nobody.
        unsafe { host.free_pages(at, PageRequest::run(256)) };
    }
    Ok(())
}

pub fn too_many<H: Host>(host: &H) -> Outcome {
    let aligned = PageRequest {
        align_pages: 1 << 31,
        ..PageRequest::run(1 << 31)
    };
    for want in [PageRequest::run(u32::MAX), aligned] {
        if let Ok(at) = host.alloc_pages(want) {
            // SAFETY: allocated just above, used by nobody.
            unsafe { host.free_pages(at, want) };
            return Err(broken(
                AllocPages,
                "a run larger than any memory is an error",
            ));
        }
    }
    Ok(())
}
