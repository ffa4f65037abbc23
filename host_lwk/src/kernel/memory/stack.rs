// SPDX-License-Identifier: MIT OR Apache-2.0
//! The stacks of threads and of CPUs, each with a gap below it in which nothing is mapped.

use super::heap::{take_run, PAGE_BYTES};
use super::paging::map;
use crate::kernel::sync::SpinLock;
use alloc::vec::Vec;
use palacios_core::alloc_ext::NoMemory;
use x86_64::structures::paging::Size4KiB;

/// The length of a stack.
const STACK_BYTES: u64 = 64 << 10;
/// Where stacks are mapped, far above all memory: each with a gap of the same length below it.
pub(super) const STACKS: u64 = 0x4000_0000_0000;

/// The stacks that nobody uses, and how many there are in all.
static STACK_POOL: SpinLock<(Vec<u64>, u64)> = SpinLock::new((Vec::new(), 0));

/// A thread's stack. Its memory is used again for other stacks only: it stays mapped.
pub struct Stack {
    top: u64,
}

impl Stack {
    /// One that is free, or a new one.
    pub fn new() -> Result<Self, NoMemory> {
        let mut pool = STACK_POOL.lock();
        if let Some(top) = pool.0.pop() {
            return Ok(Self { top });
        }
        // So that giving it back never allocates.
        let all = pool.1 as usize + 1;
        pool.0.try_reserve(all).map_err(|_| NoMemory)?;
        let bottom = STACKS + pool.1 * 2 * STACK_BYTES + STACK_BYTES;
        let memory = take_run(STACK_BYTES, PAGE_BYTES, false)?;
        for offset in (0..STACK_BYTES).step_by(PAGE_BYTES as usize) {
            map::<Size4KiB>(bottom + offset, memory + offset)?;
        }
        pool.1 += 1;
        Ok(Self {
            top: bottom + STACK_BYTES,
        })
    }

    /// Where it begins.
    pub fn top(&self) -> u64 {
        self.top
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // Room was reserved when it was made.
        STACK_POOL.lock().0.push(self.top);
    }
}

/// Whether `at` is in the gap below a stack.
pub fn is_below_a_stack(at: u64) -> bool {
    let offset = at.wrapping_sub(STACKS);
    offset < 1 << 40 && offset % (2 * STACK_BYTES) < STACK_BYTES
}
