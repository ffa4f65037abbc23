// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whom an interrupt command reaches: the core against a second reading of the manual (SDM 3A: 10.6, 10.12), which knows
//! nothing but what was written to the registers.

use crate::interrupts::pending::Events;
use crate::interrupts::testing::Apics;
use proptest::prelude::*;

const EOI: u32 = 0x0b;
const LDR: u32 = 0x0d;
const DFR: u32 = 0x0e;
const SPURIOUS: u32 = 0x0f;
const IRR: u32 = 0x20;
const ESR: u32 = 0x28;
const ICR: u32 = 0x30;
const TPR: u32 = 0x08;

/// What was written to a local APIC.
#[derive(Clone, Copy, Debug)]
struct Setup {
    /// 0: disabled, 1: xAPIC, 2: x2APIC.
    mode: u8,
    enabled: bool,
    ldr: u8,
    cluster: bool,
    class: u8,
}

fn setup() -> impl Strategy<Value = Setup> {
    let mode = prop::sample::select(vec![0u8, 1, 1, 1, 2, 2, 2]);
    let parts = (
        mode,
        prop::bool::weighted(0.8),
        any::<u8>(),
        any::<bool>(),
        0u8..3,
    );
    parts.prop_map(|(mode, enabled, ldr, cluster, class)| Setup {
        mode,
        enabled,
        ldr,
        cluster,
        class,
    })
}

/// Commands that make sense, and all others.
fn command() -> impl Strategy<Value = u64> {
    let to = prop_oneof![
        4 => (0u64..8).prop_map(|id| id << 56 | id << 32),
        2 => any::<u8>().prop_map(|bits| u64::from(bits) << 56),
        2 => any::<u16>().prop_map(|bits| u64::from(bits) << 32),
        1 => Just(0xff << 56),
        1 => Just(0xffff_ffff << 32),
        1 => Just(0),
        1 => any::<u32>().prop_map(|to| u64::from(to) << 32),
    ];
    let mode = prop::sample::select(vec![0u64, 0, 1, 1, 2, 3, 4, 5, 6, 7]);
    let shorthand = prop::sample::select(vec![0u64, 0, 0, 0, 1, 2, 3]);
    let flags = (any::<bool>(), any::<bool>(), any::<bool>());
    (to, any::<u8>(), mode, shorthand, flags).prop_map(|(to, vector, mode, shorthand, flags)| {
        let (logical, assert, level) = flags;
        to | u64::from(vector)
            | mode << 8
            | u64::from(logical) << 11
            | u64::from(assert) << 14
            | u64::from(level) << 15
            | shorthand << 18
    })
}

fn build(setups: &[Setup]) -> Apics {
    const BASE: u64 = 0xfee0_0000;
    let mut apics = Apics::new(setups.len() as u32);
    for (n, setup) in setups.iter().enumerate() {
        apics.write(n, LDR, u64::from(setup.ldr) << 24);
        apics.write(
            n,
            DFR,
            if setup.cluster {
                0x0fff_ffff
            } else {
                0xffff_ffff
            },
        );
        apics.write(n, SPURIOUS, if setup.enabled { 0x1ff } else { 0xff });
        apics.write(n, TPR, u64::from(setup.class) << 4);
        match setup.mode {
            0 => apics.write_base(n, BASE).unwrap(),
            2 => apics.write_base(n, BASE | 0xc00).unwrap(),
            _ => {}
        }
    }
    apics.tell_priorities();
    apics
}

/// Whether a destination without shorthand names the receiver, in the words of the manual.
fn names(sender: Setup, command: u64, receiver: Setup, id: u32) -> bool {
    let (to, ones) = match sender.mode {
        2 => ((command >> 32) as u32, u32::MAX),
        _ => ((command >> 56) as u32, 0xff),
    };
    let logical = command >> 11 & 1 != 0;
    match (logical, receiver.mode) {
        (false, _) => to == ones || to == id,
        (true, 2) => to == u32::MAX || (to >> 16 == id / 16 && to >> (id % 16) & 1 != 0),
        // An 8-bit logical id: all ones, of either length, are everybody.
        (true, _) if to == 0xff || to == u32::MAX => true,
        (true, _) if to > 0xff => false,
        (true, _) if !receiver.cluster => to as u8 & receiver.ldr != 0,
        (true, _) => {
            let (cluster, members) = (to as u8 / 16, to as u8 % 16);
            (cluster == receiver.ldr / 16 || cluster == 15) && members & (receiver.ldr % 16) != 0
        }
    }
}

/// What a command comes to.
#[derive(Debug, PartialEq)]
enum Outcome {
    Nothing,
    /// The sender notes an illegal vector.
    SendError,
    /// One of these.
    One(Vec<usize>),
    /// All of these.
    Each(Vec<usize>),
}

fn expected(setups: &[Setup], from: usize, command: u64) -> Outcome {
    let (mode, shorthand) = (command >> 8 & 7, command >> 18 & 3);
    let (asserted, level) = (command >> 14 & 1 != 0, command >> 15 & 1 != 0);
    if matches!(mode, 2 | 3 | 7) || (mode == 5 && level && !asserted) {
        return Outcome::Nothing;
    }
    if mode < 2 && command as u8 & 0xf0 == 0 {
        return Outcome::SendError;
    }
    // Self and all including self are for fixed interrupts alone (SDM 3A: table 10-3).
    if matches!(shorthand, 1 | 2) && mode != 0 {
        return Outcome::Nothing;
    }
    let is_target = |&n: &usize| {
        setups[n].mode != 0
            && match shorthand {
                0 => names(setups[from], command, setups[n], n as u32),
                1 => n == from,
                2 => true,
                _ => n != from,
            }
    };
    let targets: Vec<_> = (0..setups.len()).filter(is_target).collect();
    if mode != 1 {
        return Outcome::Each(targets);
    }
    let able = targets.into_iter().filter(|&n| setups[n].enabled);
    // A disabled local APIC's task priority was forgotten, but that one is no target.
    let able: Vec<_> = able.collect();
    let least = able.iter().map(|&n| setups[n].class).min();
    let least = able.into_iter().filter(|&n| Some(setups[n].class) == least);
    match least.collect::<Vec<_>>() {
        none if none.is_empty() => Outcome::Nothing,
        least => Outcome::One(least),
    }
}

/// Whom `command` reached.
fn reached(apics: &mut Apics, setups: &[Setup], command: u64) -> Vec<usize> {
    let vector = command as u8;
    let came = |n: &usize| {
        let cpu = &mut apics.cpus[*n];
        cpu.drain();
        let events = cpu.pending.take_events();
        match command >> 8 & 7 {
            0 | 1 => {
                let register = IRR + u32::from(vector / 32);
                let word = read(cpu, register, setups[*n].mode);
                word >> (vector % 32) & 1 != 0
            }
            4 => events == Events::NMI,
            5 => events == Events::INIT,
            _ => {
                let page = (events & Events::STARTUP_PAGE).bits() >> 8;
                assert!(events.is_empty() || page == u32::from(vector));
                events.contains(Events::STARTUP)
            }
        }
    };
    (0..setups.len()).filter(came).collect()
}

fn read(cpu: &mut crate::interrupts::testing::Cpu, register: u32, mode: u8) -> u32 {
    let now = crate::interrupts::apic_timer::Now {
        ns: 0,
        tsc: 0,
        tsc_khz: 1,
    };
    match mode {
        2 => cpu.apic.read_msr(0x800 + register, now).unwrap() as u32,
        _ => cpu.apic.mmio_read(u64::from(register) << 4, 4, now) as u32,
    }
}

/// Bits that x2APIC mode faults on are left out: that is another test's.
fn legal(command: u64) -> u64 {
    command & !0xfff3_3000
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn a_command_reaches_whom_the_manual_says(
        setups in prop::collection::vec(setup(), 1..7), from: prop::sample::Index, command in command(),
    ) {
        let from = from.index(setups.len());
        prop_assume!(setups[from].mode != 0);
        let command = legal(command);
        let mut apics = build(&setups);
        apics.write(from, ICR, command);
        let reached = reached(&mut apics, &setups, command);
        apics.write(from, ESR, 0);
        let errors = read(&mut apics.cpus[from], ESR, setups[from].mode);
        let mut expected = expected(&setups, from, command);
        if let (Outcome::Each(targets), true) = (&mut expected, command >> 8 & 7 == 0) {
            // They hear it, and take no vector.
            targets.retain(|&n| setups[n].enabled);
        }
        prop_assert_eq!(errors, if expected == Outcome::SendError { 1 << 5 } else { 0 });
        match expected {
            Outcome::Nothing | Outcome::SendError => prop_assert_eq!(reached, Vec::<usize>::new()),
            Outcome::Each(targets) => prop_assert_eq!(reached, targets),
            Outcome::One(able) => {
                prop_assert_eq!(reached.len(), 1);
                prop_assert!(able.contains(&reached[0]), "{:?} of {:?}", reached, able);
            }
        }
    }

}

proptest! {
    /// Whatever is written wherever, nothing breaks, and what is under way can be ended.
    #[test]
    fn registers_take_every_value(
        cpus in 1u32..6, steps in prop::collection::vec(any::<[u8; 8]>(), 0..300),
    ) {
        let mut apics = Apics::new(cpus);
        for step in steps {
            apics.step(step);
        }
        apics.settle();
    }
}

/// A priority is what is served and what waits, not only what software says.
#[test]
fn lowest_priority_passes_over_whoever_is_busy() {
    let idle = Setup {
        mode: 1,
        enabled: true,
        ldr: 0xff,
        cluster: false,
        class: 0,
    };
    let mut apics = build(&[idle; 3]);
    let lowest = 0xff << 56 | 0x4950;
    let mut taken_by = Vec::new();
    for _ in 0..3 {
        apics.write(0, ICR, lowest);
        for n in 0..3 {
            apics.cpus[n].drain();
            if apics.cpus[n].take() == Some(0x50) {
                taken_by.push(n);
            }
        }
        apics.tell_priorities();
    }
    taken_by.sort_unstable();
    assert_eq!(taken_by, [0, 1, 2], "each while the ones before are busy");
    apics.write(1, EOI, 0);
    apics.tell_priorities();
    apics.write(0, ICR, lowest);
    apics.cpus[1].drain();
    assert_eq!(
        apics.cpus[1].take(),
        Some(0x50),
        "the only one that is idle"
    );
}
