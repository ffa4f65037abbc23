// SPDX-License-Identifier: MIT OR Apache-2.0
//! A virtual CPU, as whoever steps it owns it: its parts, and the states that it begins in.
#![forbid(unsafe_code)]

use super::code_pages::CodePages;
use super::context::RunContext;
use super::last_exits::LastExits;
use super::msr_values::Msrs;
use super::pvclock::PvClock;
use super::shared::VcpuShared;
use super::tick_cost::TickCost;
use super::tsc::Tsc;
use crate::backend::{Backend, BackendVcpu, Event, HostProcessor};
use crate::devices::bus::Found;
use crate::features::GuestFeatures;
use crate::host::{CpuId, Host};
use crate::interrupts::lapic::LocalApic;
use crate::state::{cr0, CpuState, Exception};
use crate::vm::run_word::Resets;
use crate::vm::stop_reason::StopReason;
use bitflags::bitflags;

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

bitflags! {
    /// What waits until the guest takes interrupts. It is one byte, so that an entry finds with one look that nothing waits.
    #[derive(Clone, Copy, Debug)]
    pub(super) struct WaitsFor: u8 {
        /// The PIC pair may have an interrupt for this vCPU.
        const PIC = 1 << 0;
        /// A tick is measured, and ends then.
        const TICK_END = 1 << 1;
    }
}

/// The state to go back to after the last instruction of a guest was executed again: see [`super::cause`].
pub(super) struct Replay {
    pub(super) rip: u64,
    pub(super) rflags: u64,
    /// What the triple fault cut short.
    pub(super) event: Option<Event>,
    /// The exits before it.
    pub(super) exits: LastExits,
}

/// A virtual CPU, as whoever steps it owns it.
pub struct Vcpu<H: Host, B: Backend<H>> {
    pub(super) arch: B::Vcpu,
    /// Where on the buses its last access went.
    pub(super) last_found: Option<Found>,
    pub(super) index: u32,
    pub(super) count: u32,
    pub(super) apic: LocalApic,
    pub(super) msrs: Msrs,
    pub(super) activity: Activity,
    /// An exception to deliver at the next entry.
    pub(super) fault: Option<Exception>,
    /// An event whose delivery an exit cut short, to deliver again at the next entry.
    pub(super) interrupted: Option<Event>,
    /// An interrupt or NMI that was cut short by an exception: to deliver again once the guest takes it.
    pub(super) held: Option<Event>,
    /// NMIs to deliver, at most two.
    pub(super) waiting_nmis: u8,
    /// Counted among the vCPUs that only another vCPU can wake: see [`super::run`].
    pub(super) stuck: bool,
    /// What waits for the guest to take interrupts, besides the local APIC's.
    pub(super) waits_for: WaitsFor,
    pub(super) tick_cost: TickCost,
    /// The memory generation that the last flush covers.
    pub(super) generation: u64,
    pub(super) last_exits: LastExits,
    /// What a triple fault began with.
    pub(super) cause_of_death: Option<Event>,
    pub(super) replay: Option<Replay>,
    pub(super) tsc: Tsc,
    pub(super) pvclock: PvClock,
    /// The vCPU that got the CPU when this one last spun.
    pub(super) yielded_to: u32,
    pub(super) armed_ns: Option<u64>,
    /// The host's clock minus the VM's when `armed_ns` was armed.
    pub(super) behind_ns: u64,
    /// The length of the instruction that exited, where the hardware gives none.
    pub(super) length: Option<u8>,
    /// Where such instructions were found.
    pub(super) code_pages: CodePages,
    /// Timers changed: leave the window and arm them.
    pub(super) rearm: bool,
    /// Why the VM must stop. The VM is told after the window.
    pub(super) stopping: Option<StopReason>,
    /// Its thread has nothing to do: see [`super::run`].
    pub(super) resting: bool,
    /// The resets of its machine that it knows of.
    pub(super) resets: Resets,
    /// It is counted among those that wait for the next one.
    pub(super) gathered: bool,
    /// The host CPU of its last window.
    pub(super) cpu: Option<CpuId>,
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
            last_found: None,
            index,
            count,
            apic: new_apic(index, backend),
            msrs: Msrs::new(backend, features),
            activity: Activity::WaitForStartup,
            fault: None,
            interrupted: None,
            held: None,
            waiting_nmis: 0,
            stuck: false,
            waits_for: WaitsFor::empty(),
            tick_cost: TickCost::default(),
            generation: 0,
            last_exits: LastExits::new(),
            cause_of_death: None,
            replay: None,
            tsc: Tsc::default(),
            pvclock: PvClock::default(),
            yielded_to: index,
            armed_ns: None,
            behind_ns: 0,
            length: None,
            code_pages: CodePages::default(),
            rearm: false,
            stopping: None,
            resting: true,
            resets: Resets::NONE,
            gathered: false,
            cpu: None,
        }
    }

    /// Takes the state after power-on: the first vCPU stands at the kernel's entry, the others wait to be started. What others
    /// have posted to it stays: [`reset_shared`] was called before any vCPU ran.
    pub(crate) fn reset(&mut self, context: &RunContext<'_, H, B>) {
        self.unstick(context);
        self.msrs.power_on::<H, B>();
        self.apic = new_apic(self.index, context.backend);
        self.pvclock = PvClock::new(context.shared.waited_ns());
        self.tsc.reset();
        let first = self.index == 0;
        let state = if first {
            context.vm.boot_state()
        } else {
            STOPPED
        };
        self.arch.power_on();
        self.init(&state);
        self.activity = if first {
            Activity::Active
        } else {
            Activity::WaitForStartup
        };
        self.waits_for = WaitsFor::empty();
        self.armed_ns = None;
        self.arch.flush_tlb();
    }

    /// Takes `state`, and drops all events that were under way.
    pub(super) fn init(&mut self, state: &CpuState) {
        self.arch.set_state(state);
        self.arch.set_interrupt_shadow(false);
        self.arch.request_interrupt_window(None);
        self.arch.request_nmi_window(false);
        (self.fault, self.interrupted, self.held) = (None, None, None);
        (self.waiting_nmis, self.length) = (0, None);
        self.forget_tick();
    }
}

/// Resets what others see of a vCPU. To be called for all vCPUs before any of them runs: otherwise a vCPU whose thread starts late
/// would lose what the first one has sent it.
pub(crate) fn reset_shared<H: Host>(shared: &VcpuShared<H>, processor: &dyn HostProcessor) {
    shared.pending.clear();
    shared.set_filter(new_apic(shared.index(), processor).filter());
}

/// A local APIC as firmware leaves it.
pub(super) fn new_apic(index: u32, processor: &dyn HostProcessor) -> LocalApic {
    let mut apic = LocalApic::new(index, index == 0, processor.features().physical_bits);
    if index == 0 {
        apic.enter_virtual_wire_mode();
    }
    apic
}

/// How firmware leaves a CPU that it does not boot from: its caches are on, which a kernel need not see to.
pub(super) const STOPPED: CpuState = {
    let mut state = CpuState::reset();
    state.control.cr0 &= !(cr0::CD | cr0::NW);
    state
};
