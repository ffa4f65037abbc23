// SPDX-License-Identifier: MIT OR Apache-2.0
//! Tiny test kernels: each test is one function, and one name on the command line.
//!
//! * `test=all` (or no name) runs all that come back; `test=NAME,NAME` runs those; `test=list` prints the names.
//! * `test=several` runs those that need more than one processor; with one they are left out.
//! * `machine=other` leaves out what only this project's VMM answers in its own way. All else must pass on any PC, which
//!   is what makes another machine the judge of these tests.
//!
//! `bench=NAME,NAME` measures instead ([`mod@bench`]).
//!
//! Each test prints one line: `ok NAME` or `not ok NAME: why`. At the end the VM exits with 0, or with the number of tests
//! that failed; 97 and above say that the kernel itself could not go on.
// `fault!` takes the instructions that its unsafe block runs: that is what it is for.
#![expect(clippy::macro_metavars_in_unsafe)]
#![no_std]
#![no_main]

mod acpi;
mod apic;
mod bench;
mod boot;
mod boot_info;
mod io;
mod mem;
mod paging;
mod smp;
mod tests;
mod trap;
mod user;

use core::panic::PanicInfo;

/// What a test says: nothing, or what was wrong.
pub type Outcome = Result<(), &'static str>;

/// When a test is run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// With `test=all`, on every machine: it comes back, and needs nothing from outside.
    Always,
    /// With `test=all`, on this project's VMM.
    Ours,
    /// With `test=all`, on every machine that has the device of test kernels.
    Device,
    /// With `test=all`, on this project's VMM with the device of test kernels: what only ours does.
    OurDevice,
    /// With `test=all` and with `test=several`, on every machine of more than one processor.
    Several,
    /// When it is named: it ends the VM, or needs a helper outside.
    Named,
}

/// A test.
pub struct Test {
    pub name: &'static str,
    pub run: fn() -> Outcome,
    pub when: When,
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

/// Fails the test unless both are equal, and prints them if not.
#[macro_export]
macro_rules! check_eq {
    ($left:expr, $right:expr $(, $why:literal)?) => {{
        let (left, right) = (&$left, &$right);
        if left != right {
            $crate::println!("  {left:#x?} is not {right:#x?}");
            return Err(concat!(file!(), ":", line!(), ": ", stringify!($left), $(" ", $why)?));
        }
    }};
}

#[no_mangle]
extern "C" fn kernel_main(magic: u32, info: u32) -> ! {
    trap::init();
    // Firmware may have left the PIC pair open, with vectors among the exceptions.
    io::outb(0x21, 0xff);
    io::outb(0xa1, 0xff);
    if !boot_info::remember(magic, info) {
        println!("not started by a loader that we know");
        io::exit(99);
    }
    if let Err(why) = smp::find() {
        println!("{why}");
    }
    if let Some(wanted) = boot_info::argument("bench") {
        bench::run(wanted);
    }
    let wanted = boot_info::argument("test").unwrap_or("all");
    if wanted == "list" {
        list();
        io::exit(0);
    }
    let (ran, failed) = run(wanted);
    if ran == 0 {
        println!("no test is named {wanted}");
        io::exit(98);
    }
    println!("{} passed, {failed} failed", ran - failed);
    io::exit(failed)
}

fn all() -> impl Iterator<Item = &'static Test> {
    tests::ALL.iter().flat_map(|tests| tests.iter())
}

fn list() {
    for test in all() {
        let when = match test.when {
            When::Always => "always",
            When::Ours => "ours",
            When::Device => "device",
            When::OurDevice => "our-device",
            When::Several => "several",
            When::Named => "named",
        };
        println!("test {when} {}", test.name);
    }
}

/// Runs what is wanted; gives how many ran and how many failed.
fn run(wanted: &str) -> (u32, u32) {
    let (mut ran, mut failed) = (0, 0);
    for test in all() {
        let routine = match test.when {
            When::Always => true,
            When::Ours => !boot_info::judged_by_another_machine(),
            When::Device => tests::pc::has_test_device(),
            When::OurDevice => tests::memory_control::is_there(),
            When::Several => smp::count() > 1,
            When::Named => false,
        };
        let kind = wanted == "all" || wanted == "several" && test.when == When::Several;
        let named = wanted.split(',').any(|name| name == test.name);
        let chosen = named || kind && routine;
        if !chosen {
            continue;
        }
        ran += 1;
        let started = match test.when {
            When::Several => smp::start(),
            _ => Ok(()),
        };
        match started.and_then(|()| (test.run)()) {
            Ok(()) => println!("ok {}", test.name),
            Err(why) => {
                failed += 1;
                println!("not ok {}: {why}", test.name);
            }
        }
        trap::restore();
    }
    (ran, failed)
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    println!("{info}");
    io::exit(97)
}
