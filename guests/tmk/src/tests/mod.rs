// SPDX-License-Identifier: MIT OR Apache-2.0
//! All tests, by what they look at.

mod cpu;
mod emulated;
mod hostile;
mod interrupts;
mod load;
mod modes;
mod time;

use crate::Test;

pub static ALL: &[&[Test]] = &[
    cpu::TESTS,
    emulated::TESTS,
    interrupts::TESTS,
    time::TESTS,
    modes::TESTS,
    load::TESTS,
    hostile::TESTS,
];

/// A list of tests by function name; those after `only by name` are left out of `test=all`.
#[macro_export]
macro_rules! tests {
    ($($name:ident),* $(,)? $(; only by name: $($special:ident),* $(,)?)?) => {
        pub static TESTS: &[$crate::Test] = &[
            $($crate::Test { name: stringify!($name), run: $name, routine: true },)*
            $($($crate::Test { name: stringify!($special), run: $special, routine: false },)*)?
        ];
    };
}
