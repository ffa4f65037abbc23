// SPDX-License-Identifier: MIT OR Apache-2.0
//! All tests, by what they look at.

mod cpu;
mod debug;
mod delivery;
mod emulated;
mod exceptions;
mod hostile;
mod interrupts;
mod load;
mod memory;
mod modes;
mod mp_table;
mod pvclock;
mod rtc;
mod sleep;
mod strings;
mod time;

use crate::Test;

pub static ALL: &[&[Test]] = &[
    cpu::TESTS,
    exceptions::TESTS,
    debug::TESTS,
    delivery::TESTS,
    memory::TESTS,
    emulated::TESTS,
    strings::TESTS,
    interrupts::TESTS,
    time::TESTS,
    pvclock::TESTS,
    rtc::TESTS,
    modes::TESTS,
    mp_table::TESTS,
    load::TESTS,
    sleep::TESTS,
    hostile::TESTS,
];

/// A list of tests by function name: those for every machine, those for this project's VMM, those that must be named.
#[macro_export]
macro_rules! tests {
    ($($name:ident),* $(,)? $(; here: $($here:ident),* $(,)?)? $(; named: $($special:ident),* $(,)?)?) => {
        pub static TESTS: &[$crate::Test] = &[
            $($crate::Test { name: stringify!($name), run: $name, when: $crate::When::Always },)*
            $($($crate::Test { name: stringify!($here), run: $here, when: $crate::When::Here },)*)?
            $($($crate::Test { name: stringify!($special), run: $special, when: $crate::When::Named },)*)?
        ];
    };
}
