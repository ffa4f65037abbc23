// SPDX-License-Identifier: MIT OR Apache-2.0
//! A storm of interrupts: a backend whose guests are programs of ours, so that ten million interrupts take no more time
//! than the core and the host need for them.
//!
//! Every vCPU sends to every vCPU: to one by its physical and its logical id, to itself, to all others, to one of all by
//! lowest priority. A sender has some vectors of its own for each receiver, and sends one again once it was received. What
//! is received must have been sent and not received before; what is lost is never sent again, and the storm does not end.
//! Between sends the vCPUs stay in the guest, switch interrupts off, or halt when they have nothing to send; one that
//! halts is woken by an interrupt like any other.

use crate::vm::TestBackend;
use crate::{formats, heap, TestHost};
use palacios_core::addr::Hpa;
use palacios_core::backend::{
    Backend, BackendVcpu, Event, Exit, Features, HostProcessor, Intercepts, PortAccess, Unsupported,
};
use palacios_core::features::GuestFeatures;
use palacios_core::host::{CpuId, Host, NoMemory};
use palacios_core::memory::nested::Format;
use palacios_core::state::{
    rflags, Control, CpuState, DescriptorTable, Gprs, Reg, Seg, Segment, TableRegister,
};
use palacios_core::xsave::{XsaveArea, XsaveLayout};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicU8, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};

const APIC_BASE: u32 = 0x1b;
const EOI: u32 = 0x80b;
const SPURIOUS: u32 = 0x80f;
const ICR: u32 = 0x830;
const LINT0: u32 = 0x835;
const MASKED: u64 = 1 << 16;
const SELF_IPI: u32 = 0x83f;
const FIXED: u64 = 1 << 14;
const LOWEST_PRIORITY: u64 = 1 << 14 | 1 << 8;
const INIT: u64 = 1 << 14 | 5 << 8;
const STARTUP: u64 = 1 << 14 | 6 << 8 | 1;
const LOGICAL: u64 = 1 << 11;
const OTHERS: u64 = 3 << 18;
/// The first vector of the first sender.
const FIRST: u8 = 0x20;
/// What wakes one that halts.
const WAKE: u8 = 0xfe;

/// What the guests share: who is owed what.
pub struct Storm {
    vcpus: usize,
    /// How many vectors a sender has.
    kinds: usize,
    quota: u64,
    /// 1: sent and not received; by sender, kind and receiver.
    owed: Vec<AtomicU8>,
    /// How often each vCPU received.
    received: Vec<AtomicU64>,
    /// Has switched its local APIC on.
    ready: AtomicU32,
    /// Has sent all, and all has been received.
    done: AtomicU32,
    /// Halts, and wants to be woken when something that it sent was received.
    asleep: Vec<AtomicBool>,
}

impl Storm {
    /// One in which `vcpus` vCPUs, up to 16, have `interrupts` received in all, or a few more. Each sends with at most `kinds`
    /// vectors, from 3 on: with few of them it has to wait often, and sleeps.
    pub fn new(vcpus: usize, kinds: usize, interrupts: u64) -> Arc<Self> {
        let kinds = kinds.min(usize::from(WAKE - FIRST) / vcpus);
        Arc::new(Self {
            vcpus,
            kinds,
            quota: interrupts.div_ceil(vcpus as u64),
            owed: (0..vcpus * kinds * vcpus)
                .map(|_| AtomicU8::new(0))
                .collect(),
            received: (0..vcpus).map(|_| AtomicU64::new(0)).collect(),
            ready: AtomicU32::new(0),
            done: AtomicU32::new(0),
            asleep: (0..vcpus).map(|_| AtomicBool::new(false)).collect(),
        })
    }
    /// How many interrupts were received so far, those apart that woke somebody.
    pub fn received(&self) -> u64 {
        self.received.iter().map(|n| n.load(SeqCst)).sum()
    }
    /// The kind of which one of all receivers takes each.
    fn lowest_priority(&self) -> usize {
        self.kinds - 1
    }
    /// The kind that goes to all but the sender.
    fn broadcast(&self) -> usize {
        self.kinds - 2
    }
    fn vector(&self, sender: usize, kind: usize) -> u8 {
        FIRST + (sender * self.kinds + kind) as u8
    }
    fn owed(&self, sender: usize, kind: usize, receiver: usize) -> &AtomicU8 {
        // Of lowest priority anybody may receive: it is owed to nobody by name.
        let receiver = if kind == self.lowest_priority() {
            0
        } else {
            receiver
        };
        &self.owed[(sender * self.kinds + kind) * self.vcpus + receiver]
    }
    fn is_owed(&self, sender: usize, kind: usize, receiver: usize) -> bool {
        self.owed(sender, kind, receiver).load(SeqCst) != 0
    }
    fn send(&self, sender: usize, kind: usize, receiver: usize) {
        let before = self.owed(sender, kind, receiver).swap(1, SeqCst);
        assert_eq!(before, 0, "a sender waits for its vectors");
    }
    /// Notes that `vector` has come. Who sent it, if that one wants to be woken.
    fn receive(&self, receiver: usize, vector: u8) -> Option<usize> {
        let number = usize::from(vector.checked_sub(FIRST).expect("a vector that was sent"));
        let (sender, kind) = (number / self.kinds, number % self.kinds);
        assert!(sender < self.vcpus, "vector {vector:#x} was never sent");
        let before = self.owed(sender, kind, receiver).swap(0, SeqCst);
        assert_eq!(
            before, 1,
            "{vector:#x} came to {receiver} twice, or was never sent to it"
        );
        self.received[receiver].fetch_add(1, SeqCst);
        self.asleep[sender].swap(false, SeqCst).then_some(sender)
    }
    /// Whether all that `sender` sent was received.
    fn is_settled(&self, sender: usize) -> bool {
        let mut all = (0..self.kinds).flat_map(|kind| (0..self.vcpus).map(move |to| (kind, to)));
        !all.any(|(kind, to)| self.is_owed(sender, kind, to))
    }
}

/// The backend.
pub struct StormBackend {
    host: TestHost,
    storm: OnceLock<Arc<Storm>>,
    next: AtomicU32,
}

impl StormBackend {
    /// Which storm the next VM is in. Before it is made.
    pub fn set(&self, storm: &Arc<Storm>) {
        heap::exempt(|| assert!(self.storm.set(storm.clone()).is_ok(), "one storm each"));
    }
}

impl TestBackend for StormBackend {
    fn find(host: &TestHost) -> Self {
        Self::probe(host).expect("nothing is needed")
    }
}

impl HostProcessor for StormBackend {
    fn features(&self) -> Features {
        Features {
            backend: "storm",
            address_space_tags: 0,
            next_rip: true,
            decode_assists: false,
            physical_bits: 48,
            xcr0: 0,
            cr4: u64::MAX,
        }
    }

    fn cpuid(&self, _: u32, _: u32) -> [u32; 4] {
        [0; 4]
    }

    fn tsc(&self) -> u64 {
        self.host.now_ns()
    }
}

impl Backend<TestHost> for StormBackend {
    type Vcpu = StormVcpu;

    fn probe(host: &TestHost) -> Result<Self, Unsupported> {
        Ok(Self {
            host: host.clone(),
            storm: OnceLock::new(),
            next: AtomicU32::new(0),
        })
    }
    fn enable_cpu(&self, _: CpuId) -> Result<(), Unsupported> {
        Ok(())
    }
    fn disable_cpu(&self, _: CpuId) {}
    fn table_format(&self) -> Format {
        formats::npt(4)
    }
    fn vcpu(&self, _: &TestHost, _: &GuestFeatures) -> Result<StormVcpu, NoMemory> {
        let index = self.next.fetch_add(1, SeqCst) as usize;
        let storm = self.storm.get().expect("a storm");
        Ok(heap::exempt(|| StormVcpu::new(index, storm.clone())))
    }
}

/// A vCPU in a storm.
pub struct StormVcpu {
    index: usize,
    storm: Arc<Storm>,
    state: CpuState,
    injected: Option<Event>,
    /// The core waits for interrupts to be switched on.
    window: bool,
    /// What it is about to write: registers of its local APIC, and values.
    writes: VecDeque<(u32, u64)>,
    started: bool,
    sent: u64,
    told_done: bool,
    /// For so many steps more interrupts are off.
    off_for: u32,
    random: u64,
}

impl StormVcpu {
    fn new(index: usize, storm: Arc<Storm>) -> Self {
        Self {
            index,
            storm,
            state: CpuState::reset(),
            injected: None,
            window: false,
            writes: VecDeque::new(),
            started: false,
            sent: 0,
            told_done: false,
            off_for: 0,
            random: index as u64 + 1,
        }
    }

    fn random(&mut self, below: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 20) as usize % below
    }

    fn interrupts_on(&self) -> bool {
        self.state.rflags & rflags::IF != 0
    }
    fn switch_interrupts(&mut self, on: bool) {
        self.state.rflags = match on {
            true => self.state.rflags | rflags::IF,
            false => self.state.rflags & !rflags::IF,
        };
    }

    /// What a kernel does first.
    fn start(&mut self) {
        self.started = true;
        let bsp = u64::from(self.index == 0) << 8;
        self.writes.push_back((APIC_BASE, 0xfee0_0c00 | bsp));
        // Firmware left the PIC pair open for the timer.
        self.writes.push_back((LINT0, MASKED));
        self.writes.push_back((SPURIOUS, 0x1ff));
        if self.index == 0 {
            self.writes.push_back((ICR, OTHERS | INIT));
            self.writes.push_back((ICR, OTHERS | STARTUP));
        }
    }

    /// An interrupt's handler.
    fn handle(&mut self, vector: u8) {
        self.writes.push_back((EOI, 0));
        if vector == WAKE {
            return;
        }
        if let Some(sleeper) = self.storm.receive(self.index, vector) {
            let to = (sleeper as u64) << 32;
            self.writes.push_back((ICR, to | FIXED | u64::from(WAKE)));
        }
    }

    /// Sends one of what may be sent, tried from a random one on. `false`: all waits to be received.
    fn send(&mut self) -> bool {
        let (kinds, vcpus) = (self.storm.kinds, self.storm.vcpus);
        let first = self.random(kinds * vcpus);
        let choices = (0..kinds * vcpus).map(|n| (n + first) % (kinds * vcpus));
        let mut choices = choices.map(|n| (n / vcpus, n % vcpus));
        let Some((kind, to)) = choices.find(|&(kind, to)| self.may_send(kind, to)) else {
            return false;
        };
        let vector = u64::from(self.storm.vector(self.index, kind));
        if kind == self.storm.broadcast() {
            let others: Vec<_> = self.others().collect();
            others
                .iter()
                .for_each(|&to| self.storm.send(self.index, kind, to));
            self.sent += others.len() as u64;
            self.writes.push_back((ICR, OTHERS | FIXED | vector));
            return true;
        }
        self.storm.send(self.index, kind, to);
        self.sent += 1;
        let (physical, logical) = ((to as u64) << 32, 1 << (32 + to) | LOGICAL);
        let all = ((1u64 << vcpus) - 1) << 32 | LOGICAL;
        self.writes.push_back(match kind {
            _ if kind == self.storm.lowest_priority() => (ICR, all | LOWEST_PRIORITY | vector),
            _ if to == self.index && kind % 2 == 0 => (SELF_IPI, vector),
            _ if kind % 2 == 0 => (ICR, physical | FIXED | vector),
            _ => (ICR, logical | FIXED | vector),
        });
        true
    }

    fn others(&self) -> impl Iterator<Item = usize> + use<> {
        let me = self.index;
        (0..self.storm.vcpus).filter(move |&other| other != me)
    }

    fn may_send(&self, kind: usize, to: usize) -> bool {
        if kind == self.storm.broadcast() {
            // One of its turns among the receivers is enough.
            return to == 0
                && !self
                    .others()
                    .any(|to| self.storm.is_owed(self.index, kind, to));
        }
        !self.storm.is_owed(self.index, kind, to)
    }

    /// The next exit, if this guest has one to make by itself.
    fn step(&mut self) -> Option<Exit> {
        if !self.started {
            self.start();
        }
        if let Some((msr, value)) = self.writes.pop_front() {
            self.state.gprs[Reg::Rcx] = msr.into();
            self.state.gprs[Reg::Rax] = value & 0xffff_ffff;
            self.state.gprs[Reg::Rdx] = value >> 32;
            if msr == SPURIOUS {
                // Counted a step early: interrupts come only after the write.
                self.storm.ready.fetch_add(1, SeqCst);
                self.switch_interrupts(true);
            }
            return Some(Exit::WriteMsr);
        }
        if self.storm.ready.load(SeqCst) < self.storm.vcpus as u32 {
            return None;
        }
        if self.off_for > 0 {
            self.off_for -= 1;
            self.switch_interrupts(self.off_for == 0);
            if self.off_for == 0 && self.window {
                self.window = false;
                return Some(Exit::InterruptWindow);
            }
        } else if self.random(64) == 0 {
            self.off_for = 16;
            self.switch_interrupts(false);
        }
        if self.sent < self.storm.quota && self.send() {
            return self.step();
        }
        self.rest()
    }

    /// With nothing to send.
    fn rest(&mut self) -> Option<Exit> {
        self.off_for = 0;
        let was_off = !self.interrupts_on();
        self.switch_interrupts(true);
        if was_off && self.window {
            self.window = false;
            return Some(Exit::InterruptWindow);
        }
        if !self.told_done && self.sent >= self.storm.quota && self.storm.is_settled(self.index) {
            self.told_done = true;
            if self.storm.done.fetch_add(1, SeqCst) + 1 == self.storm.vcpus as u32 {
                self.state.gprs[Reg::Rax] = 0;
                return Some(Exit::Port(PortAccess {
                    port: 0xf4,
                    size: 1,
                    write: true,
                    string: false,
                }));
            }
        }
        if self.random(2) == 0 {
            return None;
        }
        // What is received from now on wakes it; what was received before it finds here.
        self.storm.asleep[self.index].store(true, SeqCst);
        let idle = match self.sent < self.storm.quota {
            true => !(0..self.storm.kinds)
                .any(|kind| (0..self.storm.vcpus).any(|to| self.may_send(kind, to))),
            false => self.told_done || !self.storm.is_settled(self.index),
        };
        if !idle {
            self.storm.asleep[self.index].store(false, SeqCst);
        }
        idle.then_some(Exit::Halt)
    }
}

impl BackendVcpu<TestHost, StormBackend> for StormVcpu {
    fn load(&mut self, _: &TestHost, _: &StormBackend, _: CpuId) {}
    fn unload(&mut self, _: &TestHost, _: &StormBackend) {}
    fn enter(&mut self, host: &TestHost) -> Exit {
        host.guest_enter();
        let exit = heap::exempt(|| loop {
            if let Some(Event::Interrupt(vector)) = self.injected.take() {
                self.handle(vector);
            }
            if host.interrupted() {
                break Exit::HostInterrupt;
            }
            if let Some(exit) = self.step() {
                break exit;
            }
            // In the guest until something comes.
            std::thread::yield_now();
        });
        host.guest_exit();
        exit
    }

    fn gprs(&self) -> &Gprs {
        &self.state.gprs
    }
    fn gprs_mut(&mut self) -> &mut Gprs {
        &mut self.state.gprs
    }
    fn rip(&self) -> u64 {
        self.state.rip
    }
    fn set_rip(&mut self, rip: u64) {
        self.state.rip = rip;
    }
    fn next_rip(&self) -> Option<u64> {
        Some(self.state.rip)
    }
    fn rflags(&self) -> u64 {
        self.state.rflags
    }
    fn set_rflags(&mut self, rflags: u64) {
        self.state.rflags = rflags;
    }
    fn control(&self) -> Control {
        self.state.control
    }
    fn set_control(&mut self, control: Control) {
        self.state.control = control;
    }
    fn segment(&self, seg: Seg) -> Segment {
        self.state.segments[seg as usize]
    }
    fn set_segment(&mut self, seg: Seg, segment: Segment) {
        self.state.segments[seg as usize] = segment;
    }
    fn set_table(&mut self, _: DescriptorTable, _: TableRegister) {}
    fn cpl(&self) -> u8 {
        0
    }
    fn power_on(&mut self) {}
    fn state(&self) -> CpuState {
        self.state
    }
    fn set_state(&mut self, state: &CpuState) {
        self.state = *state;
        self.injected = None;
    }
    fn msr(&self, _: u32) -> Option<u64> {
        None
    }
    fn set_msr(&mut self, _: u32, _: u64) -> bool {
        false
    }
    fn debug_register(&self, _: u8) -> u64 {
        0
    }
    fn set_debug_register(&mut self, _: u8, _: u64) {}
    fn xcr0(&self) -> u64 {
        1
    }
    fn set_xcr0(&mut self, _: u64) {}
    fn fpu(&mut self) -> XsaveArea<'_> {
        XsaveArea::new(&mut [], XsaveLayout::default())
    }

    fn inject(&mut self, event: Event) {
        let taken = matches!(event, Event::Interrupt(_)) && self.interruptible();
        assert!(taken, "{event:?} cannot be taken now");
        self.injected = Some(event);
    }
    fn take_interrupted(&mut self) -> Option<Event> {
        None
    }
    fn interruptible(&self) -> bool {
        self.interrupts_on() && self.injected.is_none()
    }
    fn nmi_allowed(&self) -> bool {
        true
    }
    fn nmi_blocked(&self) -> bool {
        false
    }
    fn set_nmi_blocked(&mut self, _: bool) {}
    fn pending_event(&self) -> Option<Event> {
        self.injected
    }
    fn interrupt_shadow(&self) -> bool {
        false
    }
    fn set_interrupt_shadow(&mut self, _: bool) {}
    fn request_interrupt_window(&mut self, priority: Option<u8>) {
        self.window = priority.is_some();
    }
    fn set_intercepts(&mut self, _: Intercepts) {}
    fn request_nmi_window(&mut self, _: bool) {}
    fn cr8(&self) -> u8 {
        0
    }
    fn set_cr8(&mut self, _: u8) {}
    fn set_table_root(&mut self, _: Hpa) {}
    fn flush_tlb(&mut self) {}
    fn set_tsc_offset(&mut self, _: u64) {}
}
