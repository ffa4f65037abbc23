// SPDX-License-Identifier: MIT OR Apache-2.0
//! All tests, by what they look at.

pub mod cpu;
mod debug;
mod delivery;
mod device_stacks;
mod dma;
mod emulated;
mod exceptions;
mod features;
mod hostile;
mod hpet;
mod interrupts;
mod ioapic;
mod ipi;
mod load;
mod local_apic;
mod memory;
pub mod memory_control;
mod modes;
mod mp_table;
mod noise;
pub mod pc;
mod pci;
mod pvclock;
mod rtc;
mod shadows;
mod sleep;
mod smp;
mod storm;
mod strings;
pub mod time;
mod vectors;

use crate::Test;

pub static ALL: &[&[Test]] = &[
    cpu::TESTS,
    features::TESTS,
    exceptions::TESTS,
    debug::TESTS,
    delivery::TESTS,
    memory::TESTS,
    emulated::TESTS,
    vectors::TESTS,
    device_stacks::TESTS,
    strings::TESTS,
    interrupts::TESTS,
    ioapic::TESTS,
    local_apic::TESTS,
    shadows::TESTS,
    time::TESTS,
    pvclock::TESTS,
    rtc::TESTS,
    hpet::TESTS,
    pc::TESTS,
    memory_control::TESTS,
    dma::TESTS,
    pci::TESTS,
    modes::TESTS,
    mp_table::TESTS,
    smp::TESTS,
    ipi::TESTS,
    storm::TESTS,
    load::TESTS,
    sleep::TESTS,
    hostile::TESTS,
    noise::TESTS,
];

/// A list of tests by function name: those for every machine, those for this project's VMM, those for a machine with the device of test
/// kernels, those for what only our device does, those for more than one processor, those that must be named.
#[macro_export]
macro_rules! tests {
    ($($name:ident),* $(,)? $(; ours: $($ours:ident),* $(,)?)? $(; device: $($device:ident),* $(,)?)?
        $(; our_device: $($our_device:ident),* $(,)?)?
        $(; several: $($several:ident),* $(,)?)? $(; named: $($special:ident),* $(,)?)?) => {
        pub static TESTS: &[$crate::Test] = &[
            $($crate::Test { name: stringify!($name), run: $name, when: $crate::When::Always },)*
            $($($crate::Test { name: stringify!($ours), run: $ours, when: $crate::When::Ours },)*)?
            $($($crate::Test { name: stringify!($device), run: $device, when: $crate::When::Device },)*)?
            $($($crate::Test { name: stringify!($our_device), run: $our_device, when: $crate::When::OurDevice },)*)?
            $($($crate::Test { name: stringify!($several), run: $several, when: $crate::When::Several },)*)?
            $($($crate::Test { name: stringify!($special), run: $special, when: $crate::When::Named },)*)?
        ];
    };
}
