// SPDX-License-Identifier: MIT OR Apache-2.0
//! Interrupts between processors: of every kind, addressed in every way (SDM 3A: 10.6, 10.12.9, 10.12.10).

use crate::apic::{self, Mode, ALL, LOGICAL, LOWEST, MYSELF, NMI, OTHERS, TPR};
use crate::smp::{self, all, on, on_all, settle, until, with};
use crate::trap::{self, count_of, me};
use crate::{boot_info, check, check_eq, tests, Outcome};
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering::*};

tests!(
    ; several: ipi_physical, ipi_flat, ipi_cluster, ipi_x2apic_physical, ipi_x2apic_cluster, ipi_between_modes,
    ipi_groups_flat, ipi_groups_cluster, ipi_groups_x2apic, ipi_broadcasts, ipi_broadcasts_x2apic, ipi_lowest_priority,
    ipi_lowest_priority_x2apic, ipi_nmi, ipi_nmi_x2apic, ipi_nmi_broadcasts, ipi_self_register, ipi_waits_for_task_priority,
    ipi_storm_with_interrupts_off, nmi_storm, nmis_of_two_senders, ipi_to_apics_that_change_modes
);

/// A way to address processors.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Physical,
    Flat,
    Cluster,
    X2Physical,
    X2Cluster,
}

impl Way {
    /// Sets this CPU's local APIC up to be addressed so.
    fn set_up(self) {
        let x2 = matches!(self, Way::X2Physical | Way::X2Cluster);
        apic::set_mode(if x2 { Mode::X2Apic } else { Mode::XApic });
        apic::write(apic::SPURIOUS, 0x1ff);
        if !x2 {
            apic::write(
                apic::DFR,
                if self == Way::Cluster {
                    0x0fff_ffff
                } else {
                    u32::MAX
                },
            );
            apic::write(apic::LDR, self.address(me()) << 24);
        }
    }

    /// The address of one CPU. Those of several in one cluster are or-ed.
    fn address(self, cpu: usize) -> u32 {
        let id = smp::id(cpu);
        match self {
            Way::Physical | Way::X2Physical => id,
            Way::Flat => 1 << (cpu % 8),
            Way::Cluster => (cpu as u32 / 4) << 4 | 1 << (cpu % 4),
            Way::X2Cluster => (id >> 4) << 16 | 1 << (id & 15),
        }
    }

    fn command(self) -> u32 {
        match self {
            Way::Physical | Way::X2Physical => 0,
            _ => LOGICAL,
        }
    }

    /// Those that can be addressed one by one, and those that one address can name together.
    fn reach(self) -> (usize, usize) {
        match self {
            Way::Flat => (smp::count().min(8), smp::count().min(8)),
            Way::Cluster => (smp::count(), smp::count().min(4)),
            Way::X2Cluster => (smp::count(), smp::count().min(16)),
            _ => (smp::count(), 1),
        }
    }
}

/// All in the same mode, with nothing counted yet.
fn set_up(way: Way) -> Outcome {
    apic::on();
    on_all(&|| {
        way.set_up();
        Ok(())
    })?;
    trap::reset_counts();
    Ok(())
}

/// How often `vector` came to each of the first CPUs; and to none behind them.
fn expect(vector: u8, counts: impl Fn(usize) -> u32) -> Outcome {
    settle()?;
    for cpu in all() {
        let (came, expected) = (count_of(cpu, vector), counts(cpu));
        if came != expected {
            crate::println!("  vector {vector:#x}: CPU {cpu} took {came}, not {expected}");
            return Err("not the processors that were meant");
        }
    }
    Ok(())
}

/// Sends, with interrupts on, and waits until `vector` has come to `to` once more.
fn send_and_wait(to: usize, vector: u8, send: impl Fn()) -> Outcome {
    let before = count_of(to, vector);
    send();
    apic::interrupts(true);
    let came = until(|| count_of(to, vector) != before);
    apic::interrupts(false);
    came.map_err(|_| "it did not arrive")
}

const TIMES: u32 = 3;

/// From each to each, itself included: it arrives there, as often as it was sent, and nowhere else.
fn each_to_each(way: Way) -> Outcome {
    set_up(way)?;
    let (reach, _) = way.reach();
    for from in all() {
        on(from, &|| {
            for to in 0..reach {
                for _ in 0..TIMES {
                    send_and_wait(to, 0x84, || {
                        apic::send(way.address(to), way.command() | 0x84)
                    })?;
                }
            }
            Ok(())
        })?;
    }
    let senders = smp::count() as u32;
    expect(0x84, |cpu| if cpu < reach { TIMES * senders } else { 0 })
}

fn ipi_physical() -> Outcome {
    each_to_each(Way::Physical)
}
fn ipi_flat() -> Outcome {
    each_to_each(Way::Flat)
}
fn ipi_cluster() -> Outcome {
    each_to_each(Way::Cluster)
}
fn ipi_x2apic_physical() -> Outcome {
    each_to_each(Way::X2Physical)
}
fn ipi_x2apic_cluster() -> Outcome {
    each_to_each(Way::X2Cluster)
}

/// One in xAPIC mode and the others in x2APIC mode: numbers are the same.
fn ipi_between_modes() -> Outcome {
    apic::on();
    let last = smp::count() - 1;
    let change = || {
        Way::X2Physical.set_up();
        Ok(())
    };
    on(last, &change)?;
    send_and_wait(last, 0x85, || apic::send(smp::id(last), 0x85))?;
    on(last, &|| {
        send_and_wait(0, 0x86, || apic::send(smp::id(0), 0x86))
    })?;
    expect(0x85, |cpu| (cpu == last).into())?;
    expect(0x86, |cpu| (cpu == 0).into())
}

/// One message to several by their logical ids, and to all by all ones.
fn groups(way: Way, everybody: u32) -> Outcome {
    set_up(way)?;
    let (_, reach) = way.reach();
    let address = |cpus: &dyn Fn(usize) -> bool| {
        (0..reach)
            .filter(|cpu| cpus(*cpu))
            .fold(0, |to, cpu| to | way.address(cpu))
    };
    apic::send(address(&|_| true), LOGICAL | 0x85);
    expect(0x85, |cpu| (cpu < reach).into())?;
    apic::send(address(&|cpu| cpu % 2 == 1), LOGICAL | 0x86);
    expect(0x86, |cpu| (cpu < reach && cpu % 2 == 1).into())?;
    apic::send(everybody, LOGICAL | 0x87);
    expect(0x87, |_| 1)?;
    apic::send(0, LOGICAL | 0x88);
    expect(0x88, |_| 0)
}

fn ipi_groups_flat() -> Outcome {
    groups(Way::Flat, 0xff)
}
fn ipi_groups_cluster() -> Outcome {
    groups(Way::Cluster, 0xff)
}
fn ipi_groups_x2apic() -> Outcome {
    groups(Way::X2Cluster, u32::MAX)
}

/// By the shorthands and by the broadcast id, from each in turn.
fn broadcasts(way: Way, everybody: u32) -> Outcome {
    set_up(way)?;
    for from in all() {
        trap::reset_counts();
        on(from, &|| {
            apic::send(0, MYSELF | 0x85);
            apic::send(0, ALL | 0x86);
            apic::send(0, OTHERS | 0x87);
            apic::send(everybody, 0x88);
            apic::let_in();
            Ok(())
        })?;
        expect(0x85, |cpu| (cpu == from).into())?;
        expect(0x86, |_| 1)?;
        expect(0x87, |cpu| (cpu != from).into())?;
        expect(0x88, |_| 1)?;
    }
    Ok(())
}

fn ipi_broadcasts() -> Outcome {
    broadcasts(Way::Physical, 0xff)
}
fn ipi_broadcasts_x2apic() -> Outcome {
    broadcasts(Way::X2Physical, u32::MAX)
}

/// Each of several messages comes to one of those that it names, and to one only.
fn lowest_priority(way: Way) -> Outcome {
    set_up(way)?;
    let (_, reach) = way.reach();
    let to = (1..reach).fold(0, |to, cpu| to | way.address(cpu));
    let total = |vector| all().map(|cpu| count_of(cpu, vector)).sum::<u32>();
    for vector in 0x90..0xa0 {
        apic::send(to, LOGICAL | LOWEST | u32::from(vector));
        until(|| total(vector) != 0).map_err(|_| "it did not arrive")?;
    }
    settle()?;
    for vector in 0x90..0xa0 {
        check_eq!(total(vector), 1, "one of them takes it");
        check_eq!(count_of(0, vector), 0, "one that is not meant");
    }
    Ok(())
}

fn ipi_lowest_priority() -> Outcome {
    lowest_priority(Way::Flat)
}
fn ipi_lowest_priority_x2apic() -> Outcome {
    lowest_priority(Way::X2Cluster)
}

/// NMIs from each to each.
fn nmis(way: Way) -> Outcome {
    set_up(way)?;
    for from in all() {
        on(from, &|| {
            for to in all() {
                send_and_wait(to, 2, || apic::send(way.address(to), way.command() | NMI))?;
            }
            Ok(())
        })?;
    }
    let senders = smp::count() as u32;
    expect(2, |_| senders)
}

fn ipi_nmi() -> Outcome {
    nmis(Way::Physical)
}
fn ipi_nmi_x2apic() -> Outcome {
    nmis(Way::X2Cluster)
}

/// To all others; the shorthand that includes oneself is for vectors alone (SDM 3A: table 10-3).
fn ipi_nmi_broadcasts() -> Outcome {
    set_up(Way::Physical)?;
    apic::send(0, OTHERS | NMI);
    until(|| all().skip(1).all(|cpu| count_of(cpu, 2) == 1))?;
    expect(2, |cpu| (cpu != 0).into())
}

/// The register of x2APIC mode that sends to oneself.
fn ipi_self_register() -> Outcome {
    set_up(Way::X2Physical)?;
    on_all(&|| {
        for n in 1..=20 {
            apic::write(apic::SELF_IPI, 0x72);
            apic::let_in();
            check_eq!(trap::count(0x72), n);
        }
        Ok(())
    })
}

/// One that has raised its priority takes it when it lowers it.
fn ipi_waits_for_task_priority() -> Outcome {
    apic::on();
    let (ready, sent) = (AtomicBool::new(false), AtomicBool::new(false));
    let last = smp::count() - 1;
    let held = || {
        apic::write(TPR, 0x80);
        apic::interrupts(true);
        ready.store(true, Release);
        until(|| sent.load(Acquire))?;
        check_eq!((trap::count(0x8f), trap::count(0x92)), (0, 1));
        apic::write(TPR, 0x70);
        until(|| trap::count(0x8f) == 1)?;
        apic::write(TPR, 0);
        Ok(())
    };
    with(last, &held, || {
        until(|| ready.load(Acquire))?;
        apic::send(smp::id(last), 0x8f);
        send_and_wait(last, 0x92, || apic::send(smp::id(last), 0x92))?;
        sent.store(true, Release);
        Ok(())
    })
}

/// Thousands of messages to one that has its interrupts off: of each vector one waits, and it is taken once.
fn ipi_storm_with_interrupts_off() -> Outcome {
    apic::on();
    let (ready, over) = (AtomicBool::new(false), AtomicBool::new(false));
    let last = smp::count() - 1;
    let deaf = || {
        ready.store(true, Release);
        until(|| over.load(Acquire))
    };
    with(last, &deaf, || {
        until(|| ready.load(Acquire))?;
        for n in 0..4000 {
            apic::send(smp::id(last), 0x90 + n % 8);
        }
        let early = (0x90..0x98).any(|vector| count_of(last, vector) != 0);
        over.store(true, Release);
        check!(!early, "it has its interrupts off");
        Ok(())
    })?;
    (0x90..0x98).try_for_each(|vector| expect(vector, |cpu| (cpu == last).into()))
}

/// NMIs as fast as they can be sent, by all others: none but the last must be seen, and nothing breaks.
fn nmi_storm() -> Outcome {
    apic::on();
    let last = smp::count() - 1;
    let over = AtomicU32::new(0);
    on_all(&|| {
        if me() == last {
            return until(|| over.load(Acquire) == last as u32);
        }
        for _ in 0..300 {
            apic::send(smp::id(last), NMI);
        }
        over.fetch_add(1, AcqRel);
        Ok(())
    })?;
    let came = count_of(last, 2);
    check!((1..=300 * last as u32).contains(&came));
    send_and_wait(last, 2, || apic::send(smp::id(last), NMI))?;
    expect(2, |cpu| if cpu == last { came + 1 } else { 0 })
}

/// NMIs that two processors send to one at the same moment: it takes one, and then the other (SDM 3A: 6.7.1).
fn nmis_of_two_senders() -> Outcome {
    const ROUNDS: u32 = 100;
    if boot_info::judged_by_another_machine() {
        return Ok(()); // QEMU makes one of them if it has taken none yet.
    }
    set_up(Way::Physical)?;
    let (round, last) = (AtomicU32::new(0), smp::count() - 1);
    let send = || apic::send(smp::id(0), NMI);
    let other = || {
        (1..=ROUNDS).try_for_each(|n| {
            until(|| round.load(Acquire) == n)?;
            send();
            Ok(())
        })
    };
    with(last, &other, || {
        (1..=ROUNDS).try_for_each(|n| {
            round.store(n, Release);
            send();
            until(|| trap::count(2) == 2 * n).map_err(|_| "one of two is lost")
        })
    })
}

/// Modes change while messages are on their way: some are lost, no harm is done, and it works again afterwards.
fn ipi_to_apics_that_change_modes() -> Outcome {
    apic::on();
    let last = smp::count() - 1;
    let over = AtomicBool::new(false);
    let change = || {
        for mode in [Mode::X2Apic, Mode::Off, Mode::XApic]
            .into_iter()
            .cycle()
            .take(300)
        {
            apic::set_mode(mode);
            if mode != Mode::Off {
                apic::write(apic::SPURIOUS, 0x1ff);
            }
            apic::let_in();
        }
        over.store(true, Release);
        Ok(())
    };
    with(last, &change, || {
        while !over.load(Acquire) {
            apic::send(smp::id(last), 0x85);
            apic::send(smp::id(last), LOGICAL | LOWEST | 0x86);
            apic::send(smp::id(last), NMI);
            apic::send(0, OTHERS | 0x87);
        }
        Ok(())
    })?;
    each_to_each(Way::Physical)
}
