// SPDX-License-Identifier: MIT OR Apache-2.0
//! The way to a guest's code: its page tables, and the memory that they lead to. In a window only what has a frame is looked at, since
//! a frame's fill may sleep. Outside of it each page gets one.
#![forbid(unsafe_code)]

use crate::addr::{Gpa, Gva};
use crate::emulator::Fault;
use crate::host::Host;
use crate::interfaces::GuestMemory;
use crate::memory::walk::{self, Access, GuestTables, Paging, Translation, WalkError};
use crate::memory::{Memory, Resident};
use crate::regions::Writes;
use crate::state::Exception;

/// Where a vCPU's code lies.
pub(super) trait CodeMemory {
    /// Translates an address by the guest's tables; sets accessed and dirty bits.
    fn translate(&mut self, paging: &Paging, at: Gva, access: Access) -> Result<Gpa, Fault>;
    /// Reads an entry of 8 bytes of the guest's tables.
    fn read_table(&mut self, at: Gpa) -> Result<u64, Fault>;
    /// Reads instruction bytes, all in one page. A device is not disturbed: outside of RAM it fails.
    fn fetch(&mut self, at: Gpa, buf: &mut [u8]) -> Result<(), Fault>;
}

/// In a window. What has no frame is left for later.
impl<H: Host> CodeMemory for Resident<'_, H> {
    fn translate(&mut self, paging: &Paging, at: Gva, access: Access) -> Result<Gpa, Fault> {
        translated(at, walk::translate(paging, access, at, self), |_| {
            Fault::Retry
        })
    }
    fn read_table(&mut self, at: Gpa) -> Result<u64, Fault> {
        self.read_entry(at, 8).map_err(|_| Fault::Retry)
    }
    fn fetch(&mut self, at: Gpa, buf: &mut [u8]) -> Result<(), Fault> {
        self.read(at, buf).map_err(|_| Fault::Retry)
    }
}

/// Outside of a window: memory that gets frames where it has none. Sleeps then.
pub(super) struct Filled<'a, H: Host>(pub(super) &'a Memory<H>);

impl<H: Host> CodeMemory for Filled<'_, H> {
    fn translate(&mut self, paging: &Paging, at: Gva, access: Access) -> Result<Gpa, Fault> {
        // Nearly always all tables have frames, and then the walk is one look at memory. If one has none, it may have to come from far away.
        let mut resident = self.0.resident();
        match walk::translate(paging, access, at, &mut resident) {
            Err(WalkError::Tables(_)) => {}
            walked => return translated(at, walked, |_| Fault::Retry),
        }
        drop(resident);
        let walked = walk::translate(paging, access, at, self);
        translated(at, walked, |fault| fault)
    }
    fn read_table(&mut self, at: Gpa) -> Result<u64, Fault> {
        self.read_entry(at, 8)
    }
    fn fetch(&mut self, at: Gpa, buf: &mut [u8]) -> Result<(), Fault> {
        if self.0.resident().read(at, buf).is_ok() {
            return Ok(());
        }
        self.0.read(at, buf).map_err(|_| Fault::Memory(at))
    }
}

/// What a walk of the guest's tables for `at` came to.
fn translated<E>(
    at: Gva,
    walked: Result<Translation, WalkError<E>>,
    tables: impl FnOnce(E) -> Fault,
) -> Result<Gpa, Fault> {
    walked
        .map(|translation| translation.gpa)
        .map_err(|error| match error {
            WalkError::PageFault { error_code } => Exception::page_fault(error_code, at.0).into(),
            WalkError::NonCanonical => Exception::general_protection(0).into(),
            WalkError::Raced => Fault::Retry,
            WalkError::Tables(error) => tables(error),
        })
}

impl<H: Host> GuestTables for Filled<'_, H> {
    type Error = Fault;

    fn read_entry(&mut self, at: Gpa, size: u8) -> Result<u64, Fault> {
        let Self(memory) = self;
        if !memory.is_memory(at) {
            return Ok(u64::MAX);
        }
        memory.read_word(at, size).map_err(|_| Fault::Memory(at))
    }

    fn compare_exchange_entry(
        &mut self,
        at: Gpa,
        size: u8,
        old: u64,
        new: u64,
    ) -> Result<bool, Fault> {
        let Self(memory) = self;
        if memory.writes_at(at) != Some(Writes::Allowed) {
            // A ROM keeps what it has, and the processor walks on.
            return Ok(true);
        }
        memory
            .compare_exchange(at, size, old, new)
            .map_err(|_| Fault::Memory(at))
    }
}
