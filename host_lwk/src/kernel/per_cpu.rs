// SPDX-License-Identifier: MIT OR Apache-2.0
//! What each CPU has of its own: a slot for each, declared and filled by the code whose state it is.

use super::cpu;
use super::sync::Once;
use alloc::vec::Vec;
use palacios_core::alloc_ext::{NoMemory, TryPush};

/// A `T` for each CPU.
pub struct PerCpu<T>(Once<Vec<T>>);

impl<T> PerCpu<T> {
    /// Not filled yet.
    pub const fn new() -> Self {
        Self(Once::new())
    }

    /// Makes the slots of CPUs 0 to `cpus` - 1, by their numbers.
    ///
    /// # Safety
    /// Once, while only the first CPU runs.
    pub unsafe fn fill(
        &self,
        cpus: u32,
        mut make: impl FnMut(u32) -> Result<T, NoMemory>,
    ) -> Result<(), NoMemory> {
        let mut slots = Vec::new();
        for number in 0..cpus {
            slots.try_push(make(number)?)?;
        }
        // SAFETY: the same contract.
        unsafe { self.0.set(slots) };
        Ok(())
    }

    /// The slot of a CPU, whether it runs yet or not.
    #[inline(always)]
    pub fn get(&self, number: u32) -> Option<&T> {
        self.0.get()?.get(number as usize)
    }

    /// The slot of the CPU that this runs on. With interrupts off, or in a thread that cannot move.
    #[inline(always)] // On the way into each guest: a few loads.
    pub fn current(&self) -> &T {
        match self.get(cpu::current()) {
            Some(slot) => slot,
            None => not_filled(),
        }
    }
}

#[cold]
fn not_filled() -> ! {
    panic!("a CPU asks for what it does not have yet");
}
