// SPDX-License-Identifier: MIT OR Apache-2.0
//! Delivery: what waits for a vCPU, and what of it the next entry brings.
#![forbid(unsafe_code)]

use super::context::{AnyContext, RunContext, WindowContext};
use super::owned::{Activity, Vcpu, WaitsFor, STOPPED};
use crate::backend::{Backend, BackendVcpu, Event};
use crate::host::Host;
use crate::interfaces::PowerRequest;
use crate::interrupts::lapic::Lvt;
use crate::interrupts::pending::Events;
use crate::interrupts::Delivery;
use crate::state::{cr0, rflags, CpuState, Exception, Seg};
use crate::stats::Counter;
use crate::vm::run_word::RunState;

/// Above every task priority: what comes from the PIC pair, or was taken from its controller before, knows none.
const NO_TASK_PRIORITY: u8 = 16;

impl<H: Host, B: Backend<H>> Vcpu<H, B> {
    /// Notes what others posted besides vectors.
    pub(super) fn take_events(&mut self, context: &RunContext<'_, H, B>) {
        if !context.shared.pending.has_events() {
            return;
        }
        self.unstick(context);
        let events = context.shared.pending.take_events();
        if events.contains(Events::INIT) {
            self.take_init(context);
        }
        if events.contains(Events::STARTUP) && self.activity == Activity::WaitForStartup {
            self.start_at((events & Events::STARTUP_PAGE).bits() >> 8);
        }
        for nmi in [Events::NMI, Events::SECOND_NMI] {
            if events.contains(nmi) {
                self.note_nmi();
            }
        }
        if events.contains(Events::PIC_OUTPUT) {
            self.waits_for |= WaitsFor::PIC;
            self.local_interrupt(Lvt::Lint0);
        }
    }

    /// A local interrupt of the APIC was raised. One with a vector now waits in the APIC. An ExtINT gets its vector from the
    /// PIC pair when it is delivered.
    fn local_interrupt(&mut self, source: Lvt) {
        if self.apic.local_interrupt(source) == Some(Delivery::Nmi) {
            self.note_nmi();
        }
    }

    /// An NMI came. A processor takes one at once and keeps another, and while it handles one it keeps one (SDM 3A: 6.7.1).
    fn note_nmi(&mut self) {
        let cut_short = [self.interrupted, self.held].contains(&Some(Event::Nmi));
        let kept = match cut_short || self.arch.nmi_blocked() {
            true => 1,
            false => 2,
        };
        self.waiting_nmis = self.waiting_nmis.saturating_add(1).min(kept);
    }

    /// INIT: all registers but a few as after power-on, then wait for a start-up message (SDM 3A: 9.1). The first vCPU
    /// would go to its firmware, which starts the machine anew.
    fn take_init(&mut self, context: &RunContext<'_, H, B>) {
        if self.index == 0 {
            return context.board.request_power(PowerRequest::Reset);
        }
        self.init(&self.state_after_init());
        self.apic.init();
        context.shared.set_filter(self.apic.filter());
        self.activity = Activity::WaitForStartup;
    }

    /// INIT changes neither XCR0 nor whether there are caches (SDM 3A: table 9-1).
    fn state_after_init(&self) -> CpuState {
        let mut state = CpuState {
            xcr0: self.arch.xcr0(),
            ..STOPPED
        };
        state.control.cr0 |= self.arch.control().cr0 & (cr0::CD | cr0::NW);
        state
    }

    /// A start-up message: real mode at the beginning of a page below 1 MiB (SDM 3A: 8.4.3). An NMI that came since INIT
    /// was held back, and comes now (SDM 3C: 24.4.2).
    fn start_at(&mut self, page: u32) {
        let mut state = self.state_after_init();
        state.rip = 0;
        if let Some(cs) = state.segments.get_mut(Seg::Cs as usize) {
            cs.selector = (page << 8) as u16;
            cs.base = u64::from(page) << 12;
        }
        let waiting_nmis = self.waiting_nmis;
        self.init(&state);
        self.waiting_nmis = waiting_nmis;
        self.activity = Activity::Active;
    }

    /// Whether there are instructions to execute, now that vectors and events were noted.
    ///
    /// A vCPU that halts learns here whether a vector wakes it. What comes later, [`Vcpu::before_entry`] takes, after it has said
    /// that the vCPU is in the guest. Both looks are needed; one that finds nothing is one read.
    pub(super) fn runnable(&mut self, context: &RunContext<'_, H, B>) -> bool {
        self.accept_vectors(context);
        if self.activity == Activity::Halted && self.wakes() {
            self.activity = Activity::Active;
        }
        self.activity == Activity::Active
    }

    pub(super) fn wakes(&self) -> bool {
        let interrupts = self.arch.rflags() & rflags::IF != 0;
        let vector = self.apic.next_interrupt().is_some() || self.takes_ext_int();
        let is_taken = |event| match event {
            Event::Nmi => self.arch.nmi_allowed(),
            _ => interrupts,
        };
        let held = self.held.is_some_and(is_taken);
        let cut_short = self.fault.is_some() || self.interrupted.is_some() || held;
        // An NMI that its predecessor's handler holds back does not end that handler's HLT.
        let nmi = self.waiting_nmis != 0 && self.arch.nmi_allowed();
        nmi || cut_short || (interrupts && vector)
    }

    pub(super) fn takes_ext_int(&self) -> bool {
        self.waits_for.contains(WaitsFor::PIC) && self.apic.takes_extint()
    }

    pub(super) fn accept_vectors(&mut self, context: &impl AnyContext<H, B>) {
        let apic = &mut self.apic;
        context.shared().pending.drain(|vector, level| {
            apic.accept(vector, level);
        });
    }

    /// The last steps before an entry, with interrupts off. `false`: something has come up, do not enter.
    pub(super) fn before_entry(&mut self, window: &WindowContext<'_, '_, H, B>) -> bool {
        let shared = window.shared();
        let generation = shared.entering_guest(|| window.board().generation());
        if shared.pending.has_events() || window.run_state() != RunState::Running {
            shared.left_guest();
            return false;
        }
        if generation != self.generation {
            self.generation = generation;
            self.arch.flush_tlb();
            shared.stats.add(Counter::TlbFlushes, 1);
        }
        self.accept_vectors(window);
        self.deliver(window);
        self.tell_priority(window);
        true
    }

    /// Tells others how busy this processor is, for messages of lowest priority.
    pub(super) fn tell_priority(&self, context: &impl AnyContext<H, B>) {
        if self.count > 1 {
            let filter = self.apic.filter();
            if filter != context.shared().filter() {
                context.shared().set_filter(filter);
            }
        }
    }

    /// Chooses what this entry delivers; what must wait gets a window.
    #[inline]
    fn deliver(&mut self, window: &WindowContext<'_, '_, H, B>) {
        if self.arch.cr8() != self.apic.cr8() {
            self.arch.set_cr8(self.apic.cr8());
        }
        if self.has_nothing_to_deliver() {
            self.arch.request_nmi_window(false);
            self.arch.request_interrupt_window(None);
            return;
        }
        self.deliver_what_waits(window);
    }

    /// No event of any kind waits for the guest to take it.
    #[inline]
    fn has_nothing_to_deliver(&self) -> bool {
        let cut_short = self.fault.is_some() || self.interrupted.is_some() || self.held.is_some();
        let waits = self.waiting_nmis != 0 || !self.waits_for.is_empty();
        !cut_short && !waits && !self.apic.has_requests()
    }

    fn deliver_what_waits(&mut self, window: &WindowContext<'_, '_, H, B>) {
        let stats = &window.shared().stats;
        let mut busy = true;
        if let Some(exception) = self.fault.take() {
            stats.add(Counter::InjectedException, 1);
            self.inject_exception(exception);
            self.held = self.interrupted.take().or(self.held);
        } else if let Some(event) = self.interrupted.take() {
            match event {
                Event::Exception(exception) => self.inject_exception(exception),
                _ => self.arch.inject(event),
            }
        } else if let Some(event) = self.held.filter(|event| self.takes(*event)) {
            self.held = None;
            self.arch.inject(event);
        } else if self.waiting_nmis != 0 && self.arch.nmi_allowed() {
            self.waiting_nmis = self.waiting_nmis.saturating_sub(1);
            stats.add(Counter::InjectedNmi, 1);
            self.arch.inject(Event::Nmi);
        } else {
            busy = self.held.is_some();
        }
        self.arch
            .request_nmi_window(self.waiting_nmis != 0 || self.held == Some(Event::Nmi));
        if !busy && self.arch.interruptible() {
            if let Some(vector) = self.next_vector(window) {
                stats.add(Counter::InjectedInterrupt, 1);
                self.arch.inject(Event::Interrupt(vector));
            }
        }
        self.arch.request_interrupt_window(self.waiting_priority());
    }

    /// Has the next entry deliver an exception. RFLAGS.RF in a fault's frame keeps breakpoints off the instruction when it is
    /// executed again. Not every processor sets it in the frame of an exception that is injected.
    fn inject_exception(&mut self, exception: Exception) {
        if exception.is_fault() {
            let flags = self.arch.rflags();
            self.arch.set_rflags(flags | rflags::RF);
        }
        self.arch.inject(Event::Exception(exception));
    }

    fn takes(&self, event: Event) -> bool {
        match event {
            Event::Nmi => self.arch.nmi_allowed(),
            _ => self.arch.interruptible(),
        }
    }

    /// Takes the interrupt that is served next out of its controller.
    fn next_vector(&mut self, window: &WindowContext<'_, '_, H, B>) -> Option<u8> {
        if self.takes_ext_int() {
            let (vector, more) = window
                .board()
                .with_chipset(|chipset, sink| (chipset.acknowledge(sink), chipset.output()));
            self.waits_for.set(WaitsFor::PIC, more);
            if vector.is_some() {
                return vector;
            }
        }
        let vector = self.apic.next_interrupt()?;
        self.apic.start_service(vector);
        Some(vector)
    }

    /// The priority of the interrupt that still waits, if only for the task priority.
    fn waiting_priority(&self) -> Option<u8> {
        let others = !self.waits_for.is_empty()
            && (self.waits_for.contains(WaitsFor::TICK_END) || self.takes_ext_int());
        if others || matches!(self.held, Some(Event::Interrupt(_))) {
            return Some(NO_TASK_PRIORITY);
        }
        self.apic.waiting_class()
    }
}
