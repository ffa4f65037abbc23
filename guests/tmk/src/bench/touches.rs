// SPDX-License-Identifier: MIT OR Apache-2.0
//! The first touch of memory. Zeroing is part of it, and the same for every VMM.

use super::Figure;
use crate::paging::{self, PAGE, UNTOUCHED};
use crate::{benches, boot_info, rounds};

benches!(touch_2m, touch_4k);

const TOUCHES: u64 = 64;
const LARGE: u64 = 2 << 20;

/// One touch in each `step` bytes from `at` on.
fn touch(at: u64, step: u64) -> Figure {
    if at + TOUCHES * step > paging::ram_end() {
        return None;
    }
    rounds!(1, TOUCHES; "mov byte ptr [{at}], 1", "add {at}, {step}"; at = inout(reg) at => _, step = in(reg) step)
}

fn touch_2m() -> Figure {
    touch(UNTOUCHED.start, LARGE)
}

/// From `at=` on, or behind the last large page: what is no whole one can only have small ones.
fn touch_4k() -> Figure {
    let behind_large = paging::ram_end() & !(LARGE - 1);
    touch(boot_info::number("at").unwrap_or(behind_large), PAGE)
}
