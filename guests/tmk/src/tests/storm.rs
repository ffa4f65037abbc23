// SPDX-License-Identifier: MIT OR Apache-2.0
//! Every processor sends to every processor, as fast as they answer: nothing is lost, nothing comes twice.
//!
//! A message is an interrupt whose vector names the sender, the answer one whose vector names the receiver. Both come in
//! turn in several classes. Of each pair one message is under way: it is counted where it is sent, where it arrives and
//! where its answer does, and the three counts must agree, always.

use crate::apic::{self, Mode};
use crate::smp::{self, all, on_all};
use crate::trap::{self, me};
use crate::{boot_info, check, check_eq, println, tests, Outcome};
use core::arch::asm;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering::*};

tests!(; several: storm_halting, storm_spinning, storm_x2apic; named: storm);

/// The lower half of a vector names a processor.
const NAMED: usize = 16;
/// The first vectors of messages and answers. The upper half's last two bits are the class that is in turn.
const MESSAGE: u8 = 0x40;
const ANSWER: u8 = 0x80;
const CLASSES: u32 = 4;

type Counts = [[AtomicU32; NAMED]; NAMED];
const fn zeros() -> Counts {
    [const { [const { AtomicU32::new(0) }; NAMED] }; NAMED]
}
/// By sender and receiver of the message.
static SENT: Counts = zeros();
static RECEIVED: Counts = zeros();
static ANSWERED: Counts = zeros();
/// An answer came to a message that had none to come, or a message that was not sent.
static WRONG: AtomicBool = AtomicBool::new(false);

fn vector(kind: u8, number: u32, name: usize) -> u32 {
    u32::from(kind) + ((number % CLASSES) << 4) + name as u32
}

/// Takes a message, and answers it; or an answer.
fn handle(vector: u8) {
    let (me, other) = (me(), usize::from(vector) % NAMED);
    if vector < ANSWER {
        let number = RECEIVED[other][me].fetch_add(1, AcqRel) + 1;
        if SENT[other][me].load(Acquire) != number {
            WRONG.store(true, Release);
        }
        apic::eoi();
        apic::send(smp::id(other), self::vector(ANSWER, number, me));
    } else {
        let number = ANSWERED[me][other].fetch_add(1, AcqRel) + 1;
        if RECEIVED[me][other].load(Acquire) != number {
            WRONG.store(true, Release);
        }
        apic::eoi();
    }
}

/// Sends to all in turn, as soon as the last message there is answered. Waits in HLT, or looking all the time.
fn send_all(rounds: u32, halt: bool) -> Outcome {
    let me = me();
    let targets = smp::count().min(NAMED);
    if me >= NAMED {
        return Ok(());
    }
    for number in 1..=rounds {
        for (to, sent) in SENT[me].iter().enumerate().take(targets) {
            sent.store(number, Release);
            apic::send(smp::id(to), vector(MESSAGE, number, me));
        }
        for answered in ANSWERED[me].iter().take(targets) {
            wait(halt, || {
                answered.load(Acquire) == number || WRONG.load(Acquire)
            })?;
        }
    }
    Ok(())
}

fn wait(halt: bool, is_so: impl Fn() -> bool) -> Outcome {
    if !halt {
        apic::interrupts(true);
        let came = smp::until(is_so);
        apic::interrupts(false);
        return came.map_err(|_| "an interrupt is lost");
    }
    while !is_so() {
        // SAFETY: what is waited for comes by an interrupt; STI's shadow lets none in before HLT.
        unsafe { asm!("sti", "hlt", "cli") };
    }
    Ok(())
}

fn rage(rounds: u32, mode: Mode, halt: bool) -> Outcome {
    apic::on();
    on_all(&|| {
        apic::set_mode(mode);
        Ok(())
    })?;
    for counts in [&SENT, &RECEIVED, &ANSWERED] {
        counts
            .iter()
            .flatten()
            .for_each(|count| count.store(0, Release));
    }
    WRONG.store(false, Release);
    trap::on_interrupt(handle);
    let raged = on_all(&|| send_all(rounds, halt));
    smp::settle()?;
    raged?;
    check!(!WRONG.load(Acquire), "one came twice");
    let among = smp::count().min(NAMED);
    for (from, to) in all()
        .take(among)
        .flat_map(|from| all().take(among).map(move |to| (from, to)))
    {
        let counts = [&SENT, &RECEIVED, &ANSWERED].map(|counts| counts[from][to].load(Acquire));
        check_eq!(counts, [rounds; 3]);
    }
    Ok(())
}

fn storm_halting() -> Outcome {
    rage(20, Mode::XApic, true)
}
fn storm_spinning() -> Outcome {
    rage(20, Mode::XApic, false)
}
fn storm_x2apic() -> Outcome {
    rage(20, Mode::X2Apic, true)
}

/// The long one: `interrupts=` in all, in x2APIC mode if `x2apic=1`, waiting without HLT if `spin=1`.
fn storm() -> Outcome {
    smp::start()?;
    let pairs = smp::count().min(NAMED).pow(2) as u64;
    let wanted = boot_info::number("interrupts").unwrap_or(100_000);
    let rounds = wanted.div_ceil(2 * pairs);
    let mode = match boot_info::number("x2apic") {
        Some(1) => Mode::X2Apic,
        _ => Mode::XApic,
    };
    rage(rounds as u32, mode, boot_info::number("spin") != Some(1))?;
    println!(
        "{} interrupts among {} processors",
        rounds * 2 * pairs,
        smp::count()
    );
    Ok(())
}
