// SPDX-License-Identifier: MIT OR Apache-2.0
//! Memory, all of it mapped at its physical address, and none of it paged: heaps, page tables, stacks.

mod heap;
mod paging;
mod setup;
mod stack;

pub use heap::{allocations, free_bytes, free_run, take_run, zero, LARGE_PAGE_BYTES, PAGE_BYTES};
pub use setup::{init, low_page, MemoryMap};
pub use stack::{is_below_a_stack, Stack};
