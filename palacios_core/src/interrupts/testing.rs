// SPDX-License-Identifier: MIT OR Apache-2.0
//! The interrupt controllers of a machine of several processors, wired as a VM wires them, in the hands of a test.
#![forbid(unsafe_code)]

use super::apic_timer::Now;
use super::destination::{targets, DestinationFilter};
use super::ioapic::IoApic;
use super::lapic::{Effect, GeneralProtection, LocalApic, Lvt, BASE_GPA, MSR_X2APIC};
use super::pending::Pending;
use super::{Delivery, Message, MessageSink};
use std::cell::Cell;
use std::vec::Vec;

/// The interrupt command register, whose high half is the next in xAPIC mode.
const ICR: u32 = 0x30;
const EOI: u32 = 0x0b;
/// A processor's share.
pub struct Cpu {
    /// Its local APIC.
    pub apic: LocalApic,
    /// What others left for it.
    pub pending: Pending,
    filter: Cell<DestinationFilter>,
}

/// Local APICs and an I/O APIC.
pub struct Apics {
    /// The processors.
    pub cpus: Vec<Cpu>,
    ioapic: IoApic,
    now: Now,
}

/// Takes messages to the processors.
struct Bus<'a>(&'a [Cpu]);

impl MessageSink for Bus<'_> {
    fn send(&self, from: Option<u32>, message: Message) {
        let filters = self.0.iter().map(|cpu| cpu.filter.get());
        let to = targets(filters, from, &message);
        for (n, cpu) in self.0.iter().enumerate() {
            if to >> n & 1 != 0 {
                cpu.post(&message);
            }
        }
    }

    fn pic_output(&self) {}
}

impl Cpu {
    fn new(id: u32) -> Self {
        let apic = LocalApic::new(id, id == 0, 48);
        Self {
            filter: Cell::new(apic.filter()),
            pending: Pending::new(),
            apic,
        }
    }
    fn post(&self, message: &Message) {
        match message.delivery {
            Delivery::Fixed | Delivery::LowestPriority => {
                self.pending.post_vector(message.vector, message.level)
            }
            Delivery::Nmi => self.pending.post_nmi(),
            Delivery::Init(true) => self.pending.post_init(),
            Delivery::Startup => self.pending.post_startup(message.vector),
            Delivery::Init(false) | Delivery::Smi | Delivery::ExtInt => false,
        };
    }
    /// Takes in the vectors that wait.
    pub fn drain(&mut self) {
        let apic = &mut self.apic;
        self.pending.drain(|vector, level| {
            apic.accept(vector, level);
        });
    }
    /// Takes the next interrupt, as a processor with interrupts on.
    pub fn take(&mut self) -> Option<u8> {
        let vector = self.apic.next_interrupt()?;
        assert!(vector >= 16 && vector >> 4 > self.apic.ppr() >> 4);
        self.apic.start_service(vector);
        assert!(self.apic.ppr() >> 4 == vector >> 4, "it is served");
        Some(vector)
    }
}

impl Apics {
    /// Of `cpus` processors, as after power-on.
    pub fn new(cpus: u32) -> Self {
        Self {
            cpus: (0..cpus).map(Cpu::new).collect(),
            ioapic: IoApic::new(),
            now: Now {
                ns: 0,
                tsc: 0,
                tsc_khz: 2_000_000,
            },
        }
    }
    /// Writes a register of a processor's local APIC, in whichever mode that is.
    pub fn write(&mut self, cpu: usize, register: u32, value: u64) {
        let now = self.now;
        let apic = &mut self.cpus[cpu].apic;
        let effect = match apic.write_msr(MSR_X2APIC + register, value, now) {
            Ok(effect) => effect,
            Err(GeneralProtection) => {
                if register == ICR {
                    let _ = apic.mmio_write(u64::from(ICR + 1) << 4, 4, value >> 32, now);
                }
                apic.mmio_write(u64::from(register) << 4, 4, value, now)
            }
        };
        self.effect(cpu, effect);
    }
    /// Writes a processor's IA32_APIC_BASE.
    pub fn write_base(&mut self, cpu: usize, value: u64) -> Result<(), GeneralProtection> {
        let effect = self.cpus[cpu].apic.write_base_msr(value)?;
        self.effect(cpu, effect);
        Ok(())
    }
    fn effect(&mut self, cpu: usize, effect: Effect) {
        match effect {
            Effect::Send(message) => Bus(&self.cpus).send(Some(cpu as u32), message),
            Effect::Eoi(vector) => self.ioapic.eoi(vector, &Bus(&self.cpus)),
            Effect::None | Effect::Timer | Effect::Routing => {}
        }
        // A filter that is not told anew has not changed.
        let Cpu { apic, filter, .. } = &self.cpus[cpu];
        if effect == Effect::Routing {
            filter.set(apic.filter());
        }
        let told = DestinationFilter {
            priority: apic.filter().priority,
            ..filter.get()
        };
        assert_eq!(told, apic.filter());
    }
    /// The priorities of all become known, as they do when a processor enters its guest.
    pub fn tell_priorities(&self) {
        for cpu in &self.cpus {
            cpu.filter.set(cpu.apic.filter());
        }
    }

    /// Does what eight bytes say.
    pub fn step(&mut self, step: [u8; 8]) {
        let [what, which, a, b, v0, v1, v2, v3] = step;
        let at = usize::from(which) % self.cpus.len();
        let value = u32::from_le_bytes([v0, v1, v2, v3]);
        // With what the others do an ICR's high half, if it is written.
        let wide = u64::from(value) | u64::from(a) << 56 | u64::from(b) << 32;
        let now = self.now;
        let cpu = &mut self.cpus[at];
        match what % 16 {
            0 => {
                _ = cpu
                    .apic
                    .mmio_read(u64::from(a) << 4 | u64::from(b >> 4), 1 << (b & 3), now)
            }
            1 => {
                let effect = cpu.apic.mmio_write(u64::from(a) << 4, 4, value.into(), now);
                self.effect(at, effect);
            }
            2 => {
                let effect = cpu.apic.mmio_write(u64::from(a), 1 << (b & 3), wide, now);
                self.effect(at, effect);
            }
            3 => _ = cpu.apic.read_msr(MSR_X2APIC + u32::from(a), now),
            4 => {
                let msr = MSR_X2APIC + u32::from(a);
                let written = cpu.apic.write_msr(msr, u64::from(value) << (b & 32), now);
                self.effect(at, written.unwrap_or(Effect::None));
            }
            5 | 6 => self.write(at, ICR, wide),
            7 => _ = self.write_base(at, BASE_GPA & !0xfff | u64::from(value & 0xfff)),
            8 => _ = self.write_base(at, wide),
            9 => cpu.drain(),
            10 => {
                cpu.drain();
                cpu.take();
            }
            11 => self.write(at, EOI, 0),
            12 => {
                _ = cpu
                    .apic
                    .local_interrupt(Lvt::ALL[usize::from(a) % Lvt::ALL.len()])
            }
            13 => self.ioapic.set_line(a, b & 1 != 0, &Bus(&self.cpus)),
            14 => {
                self.ioapic.write(0, 4, a.into(), &Bus(&self.cpus));
                self.ioapic.write(0x10, 4, value.into(), &Bus(&self.cpus));
            }
            _ => self.wait(u64::from(value) << (a & 15)),
        }
    }

    /// Time passes.
    fn wait(&mut self, ns: u64) {
        self.now.ns = self.now.ns.saturating_add(ns);
        self.now.tsc = self.now.ns.saturating_mul(2);
        for cpu in &mut self.cpus {
            cpu.apic.tick(self.now);
            let due = cpu.apic.deadline_ns(self.now);
            assert!(due.is_none_or(|due| due > self.now.ns));
        }
    }

    /// Ends all that is under way: every request is taken and ended, those that the I/O APIC sends again included, once
    /// its lines are low. Nothing waits for ever, unless for a priority that software set.
    pub fn settle(&mut self) {
        for input in 0..24 {
            self.ioapic.set_line(input, false, &Bus(&self.cpus));
        }
        for at in 0..self.cpus.len() {
            self.cpus[at].pending.take_events();
            self.cpus[at].drain();
            // 256 in service and as many requested.
            for _ in 0..512 {
                self.write(at, EOI, 0);
                self.cpus[at].apic.set_cr8(0);
                self.cpus[at].take();
            }
            let cpu = &mut self.cpus[at];
            assert_eq!(cpu.apic.next_interrupt(), None);
        }
    }
}
