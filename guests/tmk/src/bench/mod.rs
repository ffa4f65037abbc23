// SPDX-License-Identifier: MIT OR Apache-2.0
//! What exits cost: `bench=all` or `bench=NAME,NAME` measures them, and ends.
//!
//! Each bench is a loop of one round, which is run so often in a batch; the quickest of some batches counts. For each a line says
//! `bench NAME ROUNDS TICKS`; what the loop of `empty` takes is to be subtracted. Where the clock counts instructions, ticks are those of guest and
//! host together, and the same in each run.
//!
//! Two instructions that do nothing stand in the loops for a tracer outside (`scripts/bench/tracer.c`): one begins each round, the other ends a bench.

mod exits;
mod touches;

use crate::{io, println};

/// How many rounds a batch has, and the ticks of the quickest; `None`: the machine has nothing to measure.
pub type Figure = Option<(u64, u64)>;

/// A bench.
pub struct Bench {
    name: &'static str,
    run: fn() -> Figure,
}

/// Rounds of a batch, and batches, unless a bench says otherwise.
pub const ROUNDS: u64 = 100;
pub const BATCHES: u64 = 12;

/// A round begins, or a bench ends: NOPs with an address that nobody uses. The tracer knows them by their bytes.
#[macro_export]
macro_rules! round_mark {
    () => {
        ".byte 0x0f, 0x1f, 0x80; .ascii \"v3vr\""
    };
}
fn end_mark() {
    // SAFETY: it does nothing.
    unsafe { core::arch::asm!(".byte 0x0f, 0x1f, 0x80; .ascii \"v3ve\"", options(nostack)) };
}

/// Rounds of these instructions: how many a batch has, and the ticks of the quickest.
#[macro_export]
macro_rules! rounds {
    ($batches:expr, $rounds:expr; $($code:literal),* $(; $($operand:tt)*)?) => {{
        let mut quickest = u64::MAX;
        for _ in 0..$batches {
            let begin = $crate::io::rdtsc();
            // SAFETY: instructions that come back, or that the bench has seen to; the operands say what they change.
            unsafe {
                core::arch::asm!(
                    "2:",
                    $crate::round_mark!(),
                    $($code,)*
                    "dec r15",
                    "jnz 2b",
                    inout("r15") $rounds => _,
                    $($($operand)*)?
                )
            };
            quickest = quickest.min($crate::io::rdtsc() - begin);
        }
        Some(($rounds, quickest))
    }};
    ($($code:literal),* $(; $($operand:tt)*)?) => {
        $crate::rounds!($crate::bench::BATCHES, $crate::bench::ROUNDS; $($code),* $(; $($operand)*)?)
    };
}

/// A list of benches by function name.
#[macro_export]
macro_rules! benches {
    ($($name:ident),* $(,)?) => {
        pub const BENCHES: &[$crate::bench::Bench] = &[$($crate::bench::Bench { name: stringify!($name), run: $name },)*];
    };
}

/// Measures what is wanted and ends: with 0, or with 98 if nothing has such a name.
pub fn run(wanted: &str) -> ! {
    let all = || exits::BENCHES.iter().chain(touches::BENCHES);
    if let Some(unknown) = wanted
        .split(',')
        .find(|name| *name != "all" && all().all(|bench| bench.name != *name))
    {
        println!("no bench is named {unknown}");
        io::exit(98);
    }
    exits::prepare();
    for bench in all() {
        if wanted != "all" && wanted.split(',').all(|name| name != bench.name) {
            continue;
        }
        match (bench.run)() {
            Some((rounds, ticks)) => println!("bench {} {rounds} {ticks}", bench.name),
            None => println!("bench {} is not for this machine", bench.name),
        }
        end_mark();
    }
    io::exit(0)
}
