// SPDX-License-Identifier: MIT OR Apache-2.0
//! Counters: each exit reason, injection and kick, and where a vCPU's time went.
//!
//! A vCPU's own thread is the only writer of most of its counters, so counting costs a load and a store.
//!
//! To add one: a line in `counters!`, and [`Stats::add`] where it happens (for an exit, an arm in [`Counter::of_exit`]). Hosts and
//! tools show all that are in the list; `Documentation/use.md` says what each means.
#![forbid(unsafe_code)]

use crate::backend::Exit;
use core::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident = $label:literal,)*) => {
        /// What is counted for each vCPU.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(usize)]
        pub enum Counter {
            $($(#[$doc])* $name,)*
        }

        impl Counter {
            /// All of them.
            pub const ALL: &'static [Counter] = &[$(Counter::$name),*];
            /// The name that tools show.
            pub const fn label(self) -> &'static str {
                match self {
                    $(Counter::$name => $label,)*
                }
            }
        }
    };
}

counters! {
    /// Entries into the guest.
    Entries = "entries",
    /// Exits that were settled without leaving the window.
    Settled = "exits_settled",
    /// Not entered: something was pending.
    Pending = "exit_pending",
    /// Host interrupts and NMIs.
    HostInterrupt = "exit_host_interrupt",
    /// Interrupt and NMI windows.
    Window = "exit_window",
    /// `CPUID`.
    Cpuid = "exit_cpuid",
    /// `RDMSR`.
    ReadMsr = "exit_rdmsr",
    /// `WRMSR`.
    WriteMsr = "exit_wrmsr",
    /// `HLT`.
    Halt = "exit_hlt",
    /// `PAUSE`.
    Pause = "exit_pause",
    /// Hypercalls.
    Hypercall = "exit_hypercall",
    /// `IN` and `INS`.
    PortIn = "exit_port_in",
    /// `OUT` and `OUTS`.
    PortOut = "exit_port_out",
    /// Nested faults that found RAM without a frame.
    RamFault = "exit_ram_fault",
    /// Nested faults that were MMIO.
    Mmio = "exit_mmio",
    /// Other instructions for the emulator.
    Emulate = "exit_emulate",
    /// Exceptions.
    Exception = "exit_exception",
    /// Triple faults.
    TripleFault = "exit_triple_fault",
    /// All other exits.
    Other = "exit_other",
    /// Instructions that the emulator ran.
    Emulated = "emulated_instructions",
    /// External interrupts injected.
    InjectedInterrupt = "injected_interrupts",
    /// NMIs injected.
    InjectedNmi = "injected_nmis",
    /// Exceptions injected.
    InjectedException = "injected_exceptions",
    /// Windows on another host CPU than the one before.
    CpuChanges = "cpu_changes",
    /// Times that it spun and let another vCPU of its VM run.
    DirectedYields = "directed_yields",
    /// Kicks sent to it.
    Kicks = "kicks",
    /// TLB flushes asked for it.
    TlbFlushes = "tlb_flushes",
    /// Nanoseconds parked: in `HLT`, paused, or waiting to be started.
    IdleNs = "idle_ns",
    /// Nanoseconds in the guest, with exits that were settled without leaving the window.
    GuestNs = "guest_ns",
    /// Nanoseconds of the VMM's work for it.
    HandlingNs = "handling_ns",
    /// Nanoseconds ready to run, while other threads of the host had the CPU.
    WaitingNs = "waiting_ns",
}

impl Counter {
    /// The counter of such exits. A nested fault is taken for [`Counter::Mmio`] until it is known what lies at the address, and
    /// counted then.
    #[inline(always)]
    pub fn of_exit(exit: &Exit) -> Self {
        match exit {
            Exit::Pending => Counter::Pending,
            Exit::HostInterrupt | Exit::HostInit => Counter::HostInterrupt,
            Exit::InterruptWindow | Exit::NmiWindow => Counter::Window,
            Exit::Cpuid => Counter::Cpuid,
            Exit::ReadMsr => Counter::ReadMsr,
            Exit::WriteMsr => Counter::WriteMsr,
            Exit::Halt => Counter::Halt,
            Exit::Pause => Counter::Pause,
            Exit::Hypercall => Counter::Hypercall,
            Exit::Port(access) if access.write => Counter::PortOut,
            Exit::Port(_) => Counter::PortIn,
            Exit::Emulate => Counter::Emulate,
            Exit::Exception(_) | Exit::Icebp => Counter::Exception,
            Exit::TripleFault => Counter::TripleFault,
            Exit::NestedFault(_) => Counter::Mmio,
            _ => Counter::Other,
        }
    }
}

/// One vCPU's counters.
pub struct Stats([AtomicU64; Counter::ALL.len()]);

impl Stats {
    /// All zero.
    pub const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; Counter::ALL.len()])
    }
    /// A counter's value.
    pub fn get(&self, which: Counter) -> u64 {
        self.slot(which).load(Ordering::Relaxed)
    }
    /// All of them.
    pub fn snapshot(&self) -> Snapshot {
        let mut all = Snapshot::ZERO;
        for which in Counter::ALL {
            all.add(*which, self.get(*which));
        }
        all
    }
    /// Adds to a counter that only the calling thread writes.
    #[inline]
    pub fn add(&self, which: Counter, n: u64) {
        let slot = self.slot(which);
        slot.store(
            slot.load(Ordering::Relaxed).wrapping_add(n),
            Ordering::Relaxed,
        );
    }
    /// Adds one to a counter that any thread writes.
    pub fn add_shared(&self, which: Counter) {
        self.slot(which).fetch_add(1, Ordering::Relaxed);
    }
    fn slot(&self, which: Counter) -> &AtomicU64 {
        // The array has one element a counter.
        self.0.get(which as usize).unwrap_or(&self.0[0])
    }
}

/// One vCPU's counters, all at one instant.
#[derive(Clone, Copy, Debug)]
pub struct Snapshot([u64; Counter::ALL.len()]);

impl Snapshot {
    /// All zero.
    pub const ZERO: Self = Self([0; Counter::ALL.len()]);

    /// A counter's value.
    pub fn get(&self, which: Counter) -> u64 {
        self.0.get(which as usize).copied().unwrap_or(0)
    }
    pub(crate) fn add(&mut self, which: Counter, n: u64) {
        if let Some(value) = self.0.get_mut(which as usize) {
            *value = value.wrapping_add(n);
        }
    }
}

impl Default for Stats {
    fn default() -> Self {
        Self::new()
    }
}
