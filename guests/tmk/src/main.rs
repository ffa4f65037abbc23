// SPDX-License-Identifier: MIT OR Apache-2.0
//! Tiny test kernels: each test is one function, and one name on the command line.
//!
//! `test=all` (or no name) runs all that come back; `test=NAME,NAME` runs those. Each prints one line; at the end the VM
//! exits with 0, or with the number of tests that failed.
#![no_std]
#![no_main]

mod boot;
mod io;
mod mem;
mod multiboot;
mod tests;
mod trap;

use core::panic::PanicInfo;

/// What a test says: nothing, or what was wrong.
pub type Outcome = Result<(), &'static str>;

/// A test.
pub struct Test {
    pub name: &'static str,
    pub run: fn() -> Outcome,
    /// Part of `test=all`: it comes back, and needs nothing from outside.
    pub routine: bool,
}

/// Fails the test unless `condition` holds.
#[macro_export]
macro_rules! check {
    ($condition:expr, $($why:literal)?) => {
        if !$condition {
            return Err(concat!(file!(), ":", line!(), ": ", stringify!($condition), $(" ", $why)?));
        }
    };
    ($condition:expr) => {
        $crate::check!($condition,)
    };
}

#[no_mangle]
extern "C" fn kernel_main(magic: u32, info: u32) -> ! {
    trap::init();
    let Some(boot) = multiboot::Info::new(magic, info) else {
        println!("not started by a Multiboot loader");
        io::exit(99);
    };
    multiboot::remember(boot);
    let wanted = multiboot::argument("test").unwrap_or("all");
    let (mut ran, mut failed) = (0, 0);
    for test in tests::ALL.iter().flat_map(|tests| tests.iter()) {
        let named = wanted.split(',').any(|name| name == test.name);
        if named || (wanted == "all" && test.routine) {
            ran += 1;
            match (test.run)() {
                Ok(()) => println!("ok {}", test.name),
                Err(why) => {
                    failed += 1;
                    println!("FAILED {}: {why}", test.name);
                }
            }
        }
    }
    if ran == 0 {
        println!("no test is named {wanted}");
        io::exit(98);
    }
    println!("{} passed, {failed} failed", ran - failed);
    io::exit(failed)
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    println!("{info}");
    io::exit(97)
}
