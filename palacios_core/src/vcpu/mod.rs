// SPDX-License-Identifier: MIT OR Apache-2.0
//! A virtual CPU: its loop, and the one dispatch of exits.
//!
//! A [`Vcpu`] belongs to its thread alone. What others see of it, and leave for it, is its [`VcpuShared`].

mod cause;
mod cpuid;
mod deliver;
mod emulate;
mod instructions;
pub mod last_exits;
mod msr;
mod presence;
mod pvclock;
pub mod report;
mod shared;
mod tick_cost;
mod times;
mod tsc;

use crate::backend::{Backend, BackendVcpu, Event, Exit, NestedFault, PortAccess};
use crate::emulator::Fault;
use crate::features::GuestFeatures;
use crate::host::{CpuId, Host, Thread};
use crate::interrupts::lapic::LocalApic;
use crate::memory::FillError;
use crate::state::{cr0, rflags, CpuState, Exception, Reg};
use crate::stats::Counter;
use crate::vm::life::{Go, StopReason};
use crate::vm::Vm;
pub use shared::VcpuShared;
use times::Doing;

/// What a vCPU does when nobody stops it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    /// Executes instructions.
    Active,
    /// Waits in `HLT` for an interrupt.
    Halted,
    /// Waits to be started by another vCPU.
    WaitForStartup,
}

/// A virtual CPU, as its thread owns it.
pub struct Vcpu<H: Host, B: Backend<H>> {
    arch: B::Vcpu,
    index: u32,
    count: u32,
    apic: LocalApic,
    msrs: msr::Msrs,
    activity: Activity,
    /// An exception to deliver at the next entry.
    fault: Option<Exception>,
    /// An event whose delivery an exit cut short, to deliver again at the next entry.
    interrupted: Option<Event>,
    /// An interrupt or NMI that was cut short by an exception: to deliver again once the guest takes it.
    held: Option<Event>,
    /// NMIs to deliver, at most two.
    waiting_nmis: u8,
    /// Counted among those that only another vCPU can wake.
    stuck: bool,
    /// What waits for the guest to take interrupts, besides the local APIC's.
    waits_for: deliver::WaitsFor,
    tick_cost: tick_cost::TickCost,
    /// The memory generation that the last flush covers.
    generation: u64,
    last_exits: last_exits::LastExits,
    /// What a triple fault began with.
    cause_of_death: Option<Event>,
    replay: Option<cause::Replay>,
    tsc: tsc::Tsc,
    pvclock: pvclock::PvClock,
    /// The vCPU that got the CPU when this one last spun.
    yielded_to: u32,
    /// Ticks of the host's counter in the guest, since the window opened.
    guest_ticks: u64,
    armed_ns: Option<u64>,
    /// What the host's clock was ahead of the VM's before that was armed.
    behind_ns: u64,
    /// The length of the instruction that exited, where the hardware gives none.
    length: Option<u8>,
    /// Timers changed: leave the window and arm them.
    rearm: bool,
    /// Why the VM must stop; told once out of the window.
    stopping: Option<StopReason>,
    /// In a window, where nothing may sleep.
    in_window: bool,
    /// The host CPU of its last window.
    cpu: Option<CpuId>,
}

/// Where a vCPU runs: what its methods need besides itself.
pub(crate) struct Here<'a, H: Host, B: Backend<H>> {
    vm: &'a Vm<H, B>,
    shared: &'a VcpuShared<H>,
}

impl<H: Host, B: Backend<H>> Vcpu<H, B> {
    /// vCPU `index` of `count`, of a guest with these features.
    pub(crate) fn new(
        arch: B::Vcpu,
        backend: &B,
        features: &GuestFeatures,
        (index, count): (u32, u32),
    ) -> Self {
        Self {
            arch,
            index,
            count,
            apic: new_apic(index, backend),
            msrs: msr::Msrs::new(backend, features),
            activity: Activity::WaitForStartup,
            fault: None,
            interrupted: None,
            held: None,
            waiting_nmis: 0,
            stuck: false,
            waits_for: deliver::WaitsFor::empty(),
            tick_cost: tick_cost::TickCost::default(),
            generation: 0,
            last_exits: last_exits::LastExits::new(),
            cause_of_death: None,
            replay: None,
            tsc: tsc::Tsc::default(),
            pvclock: pvclock::PvClock::default(),
            yielded_to: index,
            guest_ticks: 0,
            armed_ns: None,
            behind_ns: 0,
            length: None,
            rearm: false,
            stopping: None,
            in_window: false,
            cpu: None,
        }
    }

    /// The state after power-on: the first vCPU at the kernel's entry, the others waiting to be started. What others may
    /// have left for it by now stays: [`reset_shared`] came before.
    pub(crate) fn reset(&mut self, vm: &Vm<H, B>) {
        self.msrs.power_on::<H, B>();
        self.apic = new_apic(self.index, vm.backend());
        let waited_ns = vm.shared(self.index).map_or(0, |shared| shared.waited_ns());
        self.pvclock = pvclock::PvClock::new(waited_ns);
        self.tsc.reset();
        let first = self.index == 0;
        let state = if first { vm.boot_state() } else { STOPPED };
        self.arch.power_on();
        self.init(&state);
        self.activity = if first {
            Activity::Active
        } else {
            Activity::WaitForStartup
        };
        self.waits_for = deliver::WaitsFor::empty();
        self.armed_ns = None;
        self.arch.flush_tlb();
    }

    /// Takes `state`, with nothing left of what was under way.
    fn init(&mut self, state: &CpuState) {
        self.arch.set_state(state);
        self.arch.set_interrupt_shadow(false);
        self.arch.request_interrupt_window(None);
        self.arch.request_nmi_window(false);
        (self.fault, self.interrupted, self.held) = (None, None, None);
        (self.waiting_nmis, self.length) = (0, None);
        self.forget_tick();
    }

    /// Runs until the VM stops.
    pub(crate) fn run(&mut self, vm: &Vm<H, B>, shared: &VcpuShared<H>) {
        let here = Here { vm, shared };
        shared.turn_to(vm.host(), Doing::Handling, 0);
        loop {
            self.take_events(&here);
            if let Some(reason) = self.stopping.take() {
                vm.vcpu_failed(reason);
            }
            match vm.wait_to_run(self.index) {
                Go::On => {}
                Go::Again => {
                    self.armed_ns = None;
                    continue;
                }
                Go::Reset => {
                    self.unstick(vm);
                    self.reset(vm);
                    continue;
                }
                Go::End => break,
            }
            if vm.honour_power_request() {
                continue;
            }
            self.tick(&here);
            if !self.runnable(&here) {
                self.idle(&here);
                continue;
            }
            if !self.publish_clock(&here) {
                continue;
            }
            if let Some(exit) = self.enter(&here) {
                self.dispatch(&here, exit);
            }
        }
        self.unstick(vm);
        shared.thread().arm(None);
        shared.turn_to(vm.host(), Doing::Nothing, 0);
    }

    /// One window: enters the guest, again and again as long as its exits are settled quickly. `None`: nothing is left to
    /// do outside.
    fn enter(&mut self, here: &Here<'_, H, B>) -> Option<Exit> {
        let (host, shared) = (here.vm.host(), here.shared);
        shared.turn_to(host, Doing::Guest, 0);
        self.guest_ticks = 0;
        let exit = host.window(|cpu| self.in_window(here, cpu));
        let guest_ns = here.vm.clock().ns_of_tsc(self.guest_ticks);
        shared.turn_to(host, Doing::Handling, guest_ns);
        exit
    }

    fn in_window(&mut self, here: &Here<'_, H, B>, cpu: CpuId) -> Option<Exit> {
        let (host, backend) = (here.vm.host(), here.vm.backend());
        if self.cpu.replace(cpu).is_some_and(|last| last != cpu) {
            here.shared.stats.add(Counter::CpuChanges, 1);
        }
        self.arch.load(host, backend, cpu);
        self.in_window = true;
        self.load_tsc(here);
        let exit = match self.timer_came(here) {
            true => None,
            false => self.entries(here),
        };
        self.unload_tsc(here);
        self.in_window = false;
        self.arch.unload(host, backend);
        exit
    }

    /// Enters until an exit needs more than a window.
    fn entries(&mut self, here: &Here<'_, H, B>) -> Option<Exit> {
        let (host, backend) = (here.vm.host(), here.vm.backend());
        loop {
            if !self.before_entry(here) {
                here.shared.stats.add(Counter::Pending, 1);
                return None;
            }
            here.shared.stats.add(Counter::Entries, 1);
            let begin = backend.tsc();
            let exit = self.arch.enter(host);
            let ticks = backend.tsc().wrapping_sub(begin);
            self.guest_ticks = self.guest_ticks.wrapping_add(ticks);
            self.after_exit(here, &exit);
            if !self.settle(here, exit) {
                return Some(exit);
            }
            here.shared.stats.add(Counter::Settled, 1);
            if self.must_leave() || host.window_must_end() {
                return None;
            }
        }
    }

    /// There is something to do before the next entry that needs more than a window.
    fn must_leave(&self) -> bool {
        self.rearm || self.pvclock.is_due() || self.stopping.is_some()
    }

    /// The armed time came. If that was before the window opened, its kick found nobody in the guest.
    fn timer_came(&self, here: &Here<'_, H, B>) -> bool {
        self.armed_ns.is_some_and(|at| at <= here.vm.now().ns)
    }

    fn after_exit(&mut self, here: &Here<'_, H, B>, exit: &Exit) {
        here.shared.left_guest();
        let kind = Counter::of_exit(exit);
        if kind != Counter::Mmio {
            here.shared.stats.add(kind, 1);
        }
        self.last_exits.note(self.arch.rip(), kind);
        if let Some(event) = self.arch.take_interrupted() {
            self.interrupted = Some(event);
        }
        if self.apic.cr8() != self.arch.cr8() {
            self.apic.set_cr8(self.arch.cr8());
        }
        self.length = None;
    }

    /// Handles an exit that needs no lock that sleeps, inside the window. `false`: it is left to [`Vcpu::dispatch`].
    fn settle(&mut self, here: &Here<'_, H, B>, exit: Exit) -> bool {
        match exit {
            Exit::InterruptWindow => self.interrupt_window(here),
            Exit::NmiWindow => true,
            Exit::Cpuid | Exit::ReadMsr | Exit::WriteMsr | Exit::Hypercall => {
                let known = self.arch.next_rip().is_some() || self.find_length(here);
                if known {
                    self.dispatch(here, exit);
                }
                known
            }
            _ => false,
        }
    }

    /// What the guest did, and what follows from it.
    fn dispatch(&mut self, here: &Here<'_, H, B>, exit: Exit) {
        match exit {
            Exit::Pending | Exit::HostInit => {}
            Exit::HostInterrupt => self.host_interrupt(here),
            Exit::InterruptWindow => self.tick_may_end(here),
            Exit::NmiWindow => {}
            Exit::Cpuid => self.cpuid(here),
            Exit::ReadMsr => self.read_msr(here),
            Exit::WriteMsr => self.write_msr(here),
            Exit::Halt => self.halt(here),
            Exit::Pause => self.pause(here),
            Exit::Hypercall => self.hypercall(here),
            Exit::Port(access) if access.string => self.emulate(here),
            Exit::Port(access) => self.port(here, access),
            Exit::NestedFault(fault) => self.nested_fault(here, fault),
            Exit::Emulate => self.emulate(here),
            Exit::CacheControl => self.advance(here),
            Exit::SetXcr => self.set_xcr(here),
            Exit::Icebp => self.icebp(here),
            Exit::Monitor | Exit::Undefined => self.fault(Exception::INVALID_OPCODE),
            Exit::ReadPmc => self.fault(Exception::general_protection(0)),
            Exit::Exception(exception) => self.fault(exception),
            Exit::TaskSwitch => self.task_switch(),
            Exit::TripleFault => self.triple_fault(),
            Exit::BadState(_) if self.replay.is_some() => self.replayed(None),
            Exit::BadState(what) => self.stop(StopReason::BadState(what)),
            Exit::MachineCheck => self.stop(StopReason::MachineCheck),
            Exit::Gone => self.stop(StopReason::HostGone),
            Exit::Busy => self.stop(StopReason::HostTaken),
            Exit::Unknown { code, info } => {
                let rip = self.arch.rip();
                self.stop(StopReason::UnknownExit { rip, code, info });
            }
        }
    }

    fn stop(&mut self, reason: StopReason) {
        self.stopping.get_or_insert(reason);
    }

    /// By an instruction, or by an event that met a task gate: then there is none at RIP that could be emulated.
    fn task_switch(&mut self) {
        let rip = self.arch.rip();
        self.stop(StopReason::TaskSwitch { rip });
    }

    /// RAM without a frame gets one; all else is a device's, or nobody's.
    fn nested_fault(&mut self, here: &Here<'_, H, B>, fault: NestedFault) {
        let stats = &here.shared.stats;
        match here.vm.memory().fill(fault.gpa) {
            Ok(()) => {
                stats.add(Counter::RamFault, 1);
                self.last_exits.name_last(Counter::RamFault);
            }
            Err(FillError::NoMemory) => self.stop(StopReason::OutOfMemory),
            Err(FillError::NotRam) if fault.fetch => {
                let (rip, gpa) = (self.arch.rip(), fault.gpa.0);
                self.stop(StopReason::NoMemoryAt { rip, gpa });
            }
            Err(FillError::NotRam) => {
                stats.add(Counter::Mmio, 1);
                match self.interrupted {
                    Some(event) => self.deliver_by_hand(here, event),
                    None => self.emulate(here),
                }
            }
        }
    }

    fn port(&mut self, here: &Here<'_, H, B>, access: PortAccess) {
        let mask = match access.size {
            1 => 0xff,
            2 => 0xffff,
            _ => 0xffff_ffff,
        };
        let rax = self.arch.gprs()[Reg::Rax];
        if access.write {
            here.vm
                .port_write(self.index, access.port, access.size, (rax & mask) as u32);
        } else {
            let value = here.vm.port_read(self.index, access.port, access.size);
            let value = u64::from(value) & mask;
            // A 32-bit result clears the upper half; smaller ones leave the rest.
            let kept = if access.size == 4 { 0 } else { rax & !mask };
            self.arch.gprs_mut()[Reg::Rax] = kept | value;
        }
        self.advance(here);
    }

    /// The instruction that exited is done.
    fn advance(&mut self, here: &Here<'_, H, B>) {
        if self
            .move_past(here)
            .is_some_and(|flags| flags & rflags::TF != 0)
        {
            self.single_step();
        }
    }

    /// Moves RIP past the instruction that exited; the only place that does, but for the emulator's own. Gives the RFLAGS that it
    /// was executed with. `None`: its bytes changed or went, so that the guest runs it again.
    #[inline]
    fn move_past(&mut self, here: &Here<'_, H, B>) -> Option<u64> {
        let next = match self.arch.next_rip() {
            Some(next) => next,
            None if self.find_length(here) => {
                let length = u64::from(self.length.unwrap_or(0));
                self.wrap_rip(self.arch.rip().wrapping_add(length))
            }
            None => return None,
        };
        self.arch.set_rip(next);
        let flags = self.arch.rflags();
        if flags & rflags::RF != 0 {
            // It covered this instruction alone (APM 2: 13.1.1.5).
            self.arch.set_rflags(flags & !rflags::RF);
        }
        Some(flags)
    }

    /// A #DB that says nothing in DR6 (APM 3: INT1). Its delivery clears RFLAGS.TF before a single step could trap.
    fn icebp(&mut self, here: &Here<'_, H, B>) {
        if self.move_past(here).is_some() {
            self.fault(Exception::DEBUG);
        }
    }

    /// The guest traces instructions, and this one was done here (APM 2: 13.1.1.3).
    fn single_step(&mut self) {
        const BS: u64 = 1 << 14;
        let dr6 = self.arch.debug_register(6);
        self.arch.set_debug_register(6, dr6 | BS);
        self.fault(Exception::DEBUG);
    }

    fn wrap_rip(&self, rip: u64) -> u64 {
        if self.in_64_bit_mode() {
            rip
        } else {
            rip & 0xffff_ffff
        }
    }

    /// Does what is due, and has the host call when the next is.
    fn tick(&mut self, here: &Here<'_, H, B>) {
        let vm = here.vm;
        // Whether this thread waited through a pause or a pause and its end overtook it. Looked at first: what comes later
        // is seen by the next tick.
        let behind_ns = vm.clock().behind_ns();
        let paused = core::mem::replace(&mut self.behind_ns, behind_ns) != behind_ns;
        let now = self.now(here);
        let now_ns = now.ns;
        if self.apic.deadline_ns(now).is_some_and(|at| at <= now_ns) {
            self.apic.tick(now);
        }
        let mut next_ns = self.apic.deadline_ns(now);
        if self.index == 0 {
            if paused {
                vm.bus().tick_all(&vm.cx());
            } else if vm.bus().deadline_ns().is_some_and(|at| at <= now_ns) {
                vm.bus().tick(&vm.cx());
                self.devices_ticked(here);
            }
            next_ns = [next_ns, vm.bus().deadline_ns()]
                .into_iter()
                .flatten()
                .min();
        }
        let fired = self.armed_ns.is_some_and(|at| at <= now_ns);
        if self.armed_ns != next_ns || fired || paused {
            here.shared
                .thread()
                .arm(next_ns.map(|at| vm.clock().host_ns(at)));
            self.armed_ns = next_ns;
        }
        self.rearm = false;
    }

    /// Sleeps until something is pending.
    fn idle(&mut self, here: &Here<'_, H, B>) {
        if self.waits_for.contains(deliver::WaitsFor::TICK_END) {
            // Its timers change, and are to be armed anew.
            return self.tick_ends(here);
        }
        self.tell_priority(here);
        if !self.stuck && self.only_events_wake() {
            self.stuck = true;
            here.vm.vcpu_is_stuck();
        }
        let pending = &here.shared.pending;
        here.shared.park_unless(here.vm.host(), || {
            pending.has_events() || pending.has_vectors()
        });
    }

    /// Halted with interrupts off, or never started, and with no line that is an NMI.
    fn only_events_wake(&self) -> bool {
        match self.activity {
            Activity::Active => false,
            Activity::WaitForStartup => true,
            Activity::Halted => {
                self.arch.rflags() & rflags::IF == 0 && !self.apic.takes_pic_as_nmi()
            }
        }
    }

    fn unstick(&mut self, vm: &Vm<H, B>) {
        if core::mem::take(&mut self.stuck) {
            vm.vcpu_moves();
        }
    }

    /// Delivers an exception at the next entry, together with what was under way (SDM 3A: 6.15, table 6-5).
    fn fault(&mut self, exception: Exception) {
        if self.replay.is_some() {
            return self.replayed(Some(exception));
        }
        let first = match self.interrupted {
            Some(Event::Exception(first)) => Some(first),
            _ => self.fault,
        };
        if matches!(
            self.interrupted,
            Some(Event::Exception(_) | Event::Software { .. })
        ) {
            self.interrupted = None;
        }
        match first.map_or(Some(exception), |first| combine(first, exception)) {
            Some(exception) => self.fault = Some(exception),
            None => self.stop_by_triple_fault(first.map(Event::Exception)),
        }
    }

    /// What the emulator could not do by itself.
    fn emulator_fault(&mut self, here: &Here<'_, H, B>, fault: Fault) {
        let rip = self.arch.rip();
        match fault {
            Fault::Exception(exception) => self.fault(exception),
            Fault::Retry => {}
            // A program does not stop the machine that it runs on. Its system sees to it.
            Fault::Unsupported(_) if self.arch.cpl() == 3 => self.fault(Exception::INVALID_OPCODE),
            Fault::Unsupported(bytes) => self.stop(StopReason::Unemulated { rip, bytes }),
            Fault::TaskSwitch => self.task_switch(),
            Fault::Memory(gpa) => {
                let reason = if here.vm.memory().is_ram(gpa) {
                    StopReason::OutOfMemory
                } else {
                    StopReason::NoMemoryAt { rip, gpa: gpa.0 }
                };
                self.stop(reason);
            }
        }
    }
}

/// What others see of vCPU `index` after power-on. For all vCPUs before any of them runs: what the first one sends must not
/// get lost because another's thread is late.
pub(crate) fn reset_shared<H: Host, B: Backend<H>>(shared: &VcpuShared<H>, backend: &B) {
    shared.pending.clear();
    shared.set_filter(new_apic(shared.index(), backend).filter());
}

/// A local APIC as firmware leaves it.
fn new_apic<H: Host, B: Backend<H>>(index: u32, backend: &B) -> LocalApic {
    let mut apic = LocalApic::new(index, index == 0, backend.features().physical_bits);
    if index == 0 {
        apic.enter_virtual_wire_mode();
    }
    apic
}

/// How firmware leaves a CPU that it does not boot from: its caches are on, which a kernel need not see to.
const STOPPED: CpuState = {
    let mut state = CpuState::reset();
    state.control.cr0 &= !(cr0::CD | cr0::NW);
    state
};

const DOUBLE_FAULT: u8 = 8;
const PAGE_FAULT: u8 = 14;

/// The exception that follows when `second` arises while `first` is delivered; `None` is shutdown.
fn combine(first: Exception, second: Exception) -> Option<Exception> {
    let contributory = |vector: u8| matches!(vector, 0 | 10..=13);
    let worse = match first.vector {
        DOUBLE_FAULT if contributory(second.vector) || second.vector == PAGE_FAULT => return None,
        PAGE_FAULT => contributory(second.vector) || second.vector == PAGE_FAULT,
        vector => contributory(vector) && contributory(second.vector),
    };
    if worse {
        Some(Exception {
            vector: DOUBLE_FAULT,
            error_code: Some(0),
            cr2: None,
        })
    } else {
        Some(second)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exceptions_combine_as_the_manual_says() {
        let (gp, pf, ud) = (
            Exception::general_protection(0),
            Exception::page_fault(2, 0x1000),
            Exception::INVALID_OPCODE,
        );
        let df = Exception {
            vector: 8,
            error_code: Some(0),
            cr2: None,
        };
        assert_eq!(combine(gp, gp), Some(df));
        assert_eq!(combine(gp, pf), Some(pf));
        assert_eq!(combine(pf, gp), Some(df));
        assert_eq!(combine(pf, pf), Some(df));
        assert_eq!(combine(ud, gp), Some(gp));
        assert_eq!(combine(df, pf), None);
        assert_eq!(combine(df, ud), Some(ud));
    }
}
