// SPDX-License-Identifier: MIT OR Apache-2.0
//! A host for the backends' own tests: it gives pages, counts them, and runs nothing.

use crate::addr::Hpa;
use crate::host::*;
use std::alloc::{alloc_zeroed, dealloc, Layout as Memory};
use std::fmt;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

/// A host that gives pages and nothing else, and counts them.
#[derive(Clone, Default)]
pub(super) struct FakeHost {
    /// How many are out.
    pub(super) pages: Arc<AtomicUsize>,
    /// They begin where large pages do.
    pub(super) on_boundaries: bool,
}

pub(super) const CPUS: u32 = 2;

pub(super) enum Nothing {}

impl Thread for Nothing {
    fn start(&self, _: impl FnOnce() + Send + 'static) -> Result<(), NoMemory> {
        match *self {}
    }
    fn park(&self) {}
    fn unpark(&self) {}
    fn kick(&self) {}
    fn arm(&self, _: Option<u64>) {}
    fn move_to(&self, _: Option<CpuId>) -> Result<(), NoSuchCpu> {
        match *self {}
    }
    fn pin(&self) -> Option<CpuId> {
        match *self {}
    }
    fn join(&self) {}
}

impl GuestRam for Nothing {
    fn page(&self, _: u64, _: PageSize) -> Result<Hpa, RamError> {
        match *self {}
    }
    fn holds(&self, _: u64) -> bool {
        match *self {}
    }
    fn release(&self, _: u64, _: Hpa, _: PageSize, _: Release) {}
}

pub(super) struct Locked<T>(Mutex<T>);

impl<T: Send> Lock<T> for Locked<T> {
    type Guard<'a>
        = MutexGuard<'a, T>
    where
        T: 'a;
    fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap()
    }
    fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        self.0.try_lock().ok()
    }
}

impl FakeHost {
    fn memory(&self, want: PageRequest) -> Memory {
        let align_pages = match self.on_boundaries {
            true => 512,
            false => want.align_pages as usize,
        };
        Memory::from_size_align(want.pages as usize * 4096, align_pages * 4096).unwrap()
    }
}

impl Host for FakeHost {
    type Thread = Nothing;
    type Ram = Nothing;
    type Shared<T: Send + Sync + 'static> = Arc<T>;
    type Mutex<T: Send> = Locked<T>;
    type SpinLock<T: Send> = Locked<T>;

    fn alloc_pages(&self, want: PageRequest) -> Result<Hpa, NoMemory> {
        self.pages.fetch_add(want.pages as usize, Ordering::Relaxed);
        // SAFETY: no request is for zero pages.
        Ok(Hpa(unsafe { alloc_zeroed(self.memory(want)) } as u64))
    }
    unsafe fn free_pages(&self, at: Hpa, want: PageRequest) {
        self.pages.fetch_sub(want.pages as usize, Ordering::Relaxed);
        // SAFETY: allocated just so.
        unsafe { dealloc(at.0 as *mut u8, self.memory(want)) };
    }
    fn phys_to_virt(&self, at: Hpa) -> NonNull<u8> {
        NonNull::new(at.0 as *mut u8).unwrap()
    }
    fn cpu_limit(&self) -> u32 {
        CPUS
    }
    fn current_cpu(&self) -> CpuId {
        CpuId(0)
    }
    fn on_each_cpu(&self, f: &(dyn Fn(CpuId) + Sync)) {
        (0..CPUS).for_each(|cpu| f(CpuId(cpu)));
    }
    fn window<R>(&self, f: impl FnOnce(CpuId) -> R) -> R {
        f(CpuId(0))
    }
    fn window_must_end(&self) -> bool {
        false
    }
    fn now_ns(&self) -> u64 {
        0
    }
    fn wall_ns(&self) -> u64 {
        0
    }
    fn tsc_stable(&self) -> bool {
        true
    }
    fn thread(&self, _: fmt::Arguments<'_>, _: Option<CpuId>) -> Result<Nothing, NoMemory> {
        Err(NoMemory)
    }
    fn yield_now(&self) {}
    fn share<T: Send + Sync + 'static>(&self, value: T) -> Result<Arc<T>, NoMemory> {
        Ok(Arc::new(value))
    }
    fn mutex<T: Send>(&self, _: LockClass, value: T) -> Result<Locked<T>, NoMemory> {
        Ok(Locked(Mutex::new(value)))
    }
    fn spin_lock<T: Send>(&self, _: LockClass, value: T) -> Result<Locked<T>, NoMemory> {
        Ok(Locked(Mutex::new(value)))
    }
    fn log(&self, _: Level, _: Scope<'_>, _: fmt::Arguments<'_>) {}
}
