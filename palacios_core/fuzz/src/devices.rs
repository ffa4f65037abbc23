// SPDX-License-Identifier: MIT OR Apache-2.0
//! A hostile guest and hostile records at the timers, clocks, power ports and interrupt controllers. None may panic,
//! keep a deadline that has passed, or save what it would not restore.
#![forbid(unsafe_code)]

use crate::{size, value, Target};
use palacios_core::devices::acpi::{AcpiPm, TimerWidth};
use palacios_core::devices::crtc::Crtc;
use palacios_core::devices::debug::DebugPorts;
use palacios_core::devices::hpet::Hpet;
use palacios_core::devices::keyboard::KeyboardController;
use palacios_core::devices::pit::Pit;
use palacios_core::devices::reset::ResetPorts;
use palacios_core::devices::rtc::Rtc;
use palacios_core::devices::test_dma::TestDma;
use palacios_core::devices::testing::{assert_restores, assert_survives, saved};
use palacios_core::devices::testing::{TestMachine, TestStream};
use palacios_core::devices::{Device, Space};
use palacios_core::interrupts::apic_timer::Now;
use palacios_core::interrupts::ioapic::IoApic;
use palacios_core::interrupts::lapic::{LocalApic, Lvt, MSR_X2APIC};
use palacios_core::interrupts::pic::{self, Pic};
use palacios_core::interrupts::{Message, MessageSink};
use palacios_core::ram::RamLayout;
use palacios_core::state_io::StateReader;

type Step = [u8; 8];

/// The target.
pub const TARGET: Target = Target {
    name: "devices",
    run,
    header_bytes: 1,
    step_bytes: 8,
};

fn run(data: &[u8]) {
    let Some((which, rest)) = data.split_first() else {
        return;
    };
    let (steps, record): (Vec<Step>, _) = crate::steps(rest);
    let machine = TestMachine::new();
    machine.wall_at_zero_ns.set(1_700_000_000_000_000_000);
    let device = |tested: &mut dyn Device| device(&machine, tested, &steps, record);
    let (stream, ram) = (TestStream::default(), RamLayout::new(1 << 30));
    match which % 12 {
        0 => device(&mut Pit::new(&machine).unwrap()),
        1 => device(&mut Rtc::new(&machine, ram).unwrap()),
        2 => device(&mut AcpiPm::new(&machine, TimerWidth::Bits24).unwrap()),
        3 => device(&mut ResetPorts::new(&machine).unwrap()),
        4 => device(&mut DebugPorts::new(&machine, Box::new(stream)).unwrap()),
        5 => pic(&steps, record),
        6 => ioapic(&steps, record),
        7 => lapic(&steps, record),
        8 => device(&mut Crtc::new()),
        9 => device(&mut KeyboardController::new(&machine).unwrap()),
        10 => device(&mut TestDma::new(&machine).unwrap()),
        _ => device(&mut Hpet::new(&machine).unwrap()),
    }
}

fn device(machine: &TestMachine, device: &mut dyn Device, steps: &[Step], record: &[u8]) {
    for step in steps {
        match step[0] % 5 {
            0 => access(device, step, false),
            1 | 2 => access(device, step, true),
            3 => {
                machine.advance_ns(u64::from(value(step)) << (step[1] & 31));
                tick(machine, device);
                work(device, step);
            }
            _ => {
                let record = saved(|w| device.save(w));
                assert_restores(&record, device);
            }
        }
    }
    assert_survives(record, device);
    tick(machine, device);
}

/// Reads or writes in one of the device's regions.
fn access(device: &mut dyn Device, step: &Step, write: bool) {
    let regions = device.regions();
    let number = usize::from(step[3]) % regions.len();
    let region = regions[number];
    let (mut size, mut value) = (size(step), u64::from(value(step)));
    let mut offset = u64::from(step[1]);
    match region.space {
        Space::Ports => offset %= region.length,
        Space::Memory | Space::PciConfig => {
            size <<= step[2] >> 2 & 1;
            offset |= u64::from(step[3] & 1) << 8;
            offset %= region.length - u64::from(size);
            // The low byte of a comparator in a high place, too.
            value <<= step[2] & 0x30;
        }
    }
    match write {
        true => device.write(number, offset, size, value),
        false => _ = device.read(number, offset, size),
    }
}

/// Some steps of the device's work, if it has any, with some of its doorbells rung.
fn work(device: &mut dyn Device, step: &Step) {
    if let Some(work) = device.work() {
        let mut rung = u64::from(step[3]);
        while work.step(rung) == palacios_core::devices::Step::Again && rung > 0 {
            rung >>= 1;
        }
    }
}

fn tick(machine: &TestMachine, device: &mut dyn Device) {
    if let Some(timed) = device.timed() {
        timed.tick();
        let now = machine.now_ns.get();
        assert!(timed
            .deadline_ns()
            .is_none_or(|due| due > now || now > u64::MAX / 2));
    }
}

fn pic(steps: &[Step], record: &[u8]) {
    let mut pic = Pic::new();
    for step in steps {
        let region = usize::from(step[3]) % pic::REGIONS.len();
        let offset = u64::from(step[1]) % pic::REGIONS[region].length;
        match step[0] % 6 {
            0 => _ = pic.read(region, offset, size(step)),
            1 | 2 => pic.write(region, offset, size(step), value(step).into()),
            3 => pic.set_line(step[1], step[4] & 1 != 0),
            4 => _ = pic.acknowledge(),
            _ => {
                let before = saved(|w| pic.save(w));
                pic.restore(&mut StateReader::new(&before)).unwrap();
                assert_eq!(saved(|w| pic.save(w)), before);
            }
        }
    }
    let _ = pic.restore(&mut StateReader::new(record));
    let _ = (pic.output(), pic.acknowledge());
}

struct Nowhere;

impl MessageSink for Nowhere {
    fn send(&self, _: Option<u32>, _: Message) {}
    fn pic_output(&self) {}
}

fn ioapic(steps: &[Step], record: &[u8]) {
    let mut apic = IoApic::new();
    for step in steps {
        let offset = u64::from(step[1]);
        match step[0] % 6 {
            0 => _ = apic.read(offset, size(step)),
            1 => apic.write(offset, size(step), value(step).into(), &Nowhere),
            2 => {
                apic.write(0, 4, offset, &Nowhere);
                apic.write(0x10, 4, value(step).into(), &Nowhere);
            }
            3 => apic.set_line(step[1], step[4] & 1 != 0, &Nowhere),
            4 => apic.eoi(step[1], &Nowhere),
            _ => {
                let before = saved(|w| apic.save(w));
                apic.restore(&mut StateReader::new(&before)).unwrap();
                assert_eq!(saved(|w| apic.save(w)), before);
            }
        }
    }
    let _ = apic.restore(&mut StateReader::new(record));
    apic.eoi(record.first().copied().unwrap_or(0), &Nowhere);
}

fn lapic(steps: &[Step], record: &[u8]) {
    let mut apic = LocalApic::new(0, true, 48);
    apic.enter_virtual_wire_mode();
    let mut now = Now {
        ns: 0,
        tsc: 0,
        tsc_khz: 2_000_000,
    };
    for step in steps {
        let value = value(step);
        let msr = MSR_X2APIC + u32::from(step[1]);
        match step[0] % 12 {
            0 => _ = apic.mmio_read(u64::from(step[1]) << 4 | u64::from(step[2] >> 4), 4, now),
            1 | 2 => _ = apic.mmio_write(u64::from(step[1]) << 4, 4, value.into(), now),
            3 => _ = apic.read_msr(msr, now),
            4 => _ = apic.write_msr(msr, u64::from(value) << (step[2] & 32), now),
            5 => _ = apic.write_base_msr(0xfee0_0000 | u64::from(value & 0xfff)),
            6 => _ = apic.accept(step[1], step[2] & 1 != 0),
            7 => {
                if let Some(vector) = apic.next_interrupt() {
                    assert!(vector >= 16 && vector >> 4 > apic.cr8());
                    apic.start_service(vector);
                }
            }
            8 => {
                now.ns = now.ns.saturating_add(u64::from(value) << (step[1] & 15));
                now.tsc = now.ns.saturating_mul(2);
                apic.tick(now);
                assert!(apic.deadline_ns(now).is_none_or(|due| due > now.ns));
            }
            9 => _ = apic.write_tsc_deadline(u64::from(value) << (step[1] & 31), now),
            10 => _ = apic.local_interrupt(Lvt::ALL[usize::from(step[1]) % Lvt::ALL.len()]),
            _ => {
                let before = saved(|w| apic.save(w));
                apic.restore(&mut StateReader::new(&before)).unwrap();
                assert_eq!(saved(|w| apic.save(w)), before);
            }
        }
    }
    let _ = apic.restore(&mut StateReader::new(record));
    apic.tick(now);
    let _ = (apic.next_interrupt(), apic.eoi(), apic.filter());
}
