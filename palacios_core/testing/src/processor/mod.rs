// SPDX-License-Identifier: MIT OR Apache-2.0
//! The processors of the test host, or of another [`HostMachine`]: they execute guests, keep all that a processor may keep, and note what none allows.

mod breakpoints;
pub(crate) mod bus;
mod control;
pub(crate) mod execute;
mod fixups;
mod instruction;
mod machine;
pub(crate) mod svm;
pub(crate) mod tlb;
pub(crate) mod trap;
mod vmcb;
pub(crate) mod vmx;

use crate::host::{Record, Usage};
use execute::Guest;
use palacios_core::addr::{Gpa, Hpa};
use palacios_core::backend::Event;
use palacios_core::host::CpuId;
use palacios_core::memory::nested::Format;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tlb::Tlb;

pub use machine::HostMachine;
pub use trap::{cpuid, install_for};
pub use vmx::Config as VmxConfig;

/// What kind of processor it is.
#[derive(Clone, Debug)]
pub struct Config {
    /// The format of nested tables.
    pub format: Format,
    /// How many address-space tags each CPU has for guests; few, so that they are used again soon.
    pub tags: u32,
    /// It can flush the translations of one tag.
    pub flush_by_tag: bool,
    /// It says where an instruction that exited ends.
    pub next_rip: bool,
    /// Of how many exits by a host interrupt one cuts an injection short; 0 is none.
    pub cut_short_one_in: u64,
    /// It has VT-x, and no SVM.
    pub vmx: Option<VmxConfig>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            format: crate::formats::npt(4),
            tags: 3,
            flush_by_tag: true,
            next_rip: true,
            cut_short_one_in: 4,
            vmx: None,
        }
    }
}

/// Something that no processor's manual allows, or that loses what a guest is owed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Violation {
    /// A vCPU was loaded, entered or unloaded outside of a window.
    OutsideWindow(&'static str),
    /// A vCPU was loaded on a CPU where virtualization is off.
    NotEnabled(CpuId),
    /// A vCPU was loaded where one is loaded.
    LoadedTwice(CpuId),
    /// A window closed with a vCPU loaded.
    LeftLoaded(CpuId),
    /// A vCPU was entered or unloaded that is not loaded there.
    NotLoaded(&'static str),
    /// A vCPU was entered that has no nested tables.
    NoTables,
    /// A translation was used whose frame has gone to somebody else.
    StaleTranslation {
        /// Of this page.
        gpa: Gpa,
    },
    /// A translation was used that was made for another guest.
    ForeignTranslation {
        /// Of this page.
        gpa: Gpa,
    },
    /// A large page in tables of a format that has none.
    LargePage {
        /// The page.
        gpa: Gpa,
    },
    /// A vCPU was entered though nobody had taken the event that the last exit cut short.
    EventLost(Event),
    /// An event was injected which the guest would not take.
    NotTaken(Event),
    /// An SVM instruction's conditions were not met; says which.
    Svm(&'static str),
    /// A VMX instruction's conditions were not met, or the host is not as it was; says which.
    Vmx(&'static str),
    /// The guest's state is not that of the VMCB: a field was changed, and its group called clean. Or the VMCS's host state
    /// is not the host's.
    StaleField(&'static str),
    /// A vCPU was entered over and over though an interrupt of the host waits.
    HostStarved(CpuId),
}

/// All processors of a host.
#[derive(Debug)]
pub struct Processors {
    pub(crate) config: Config,
    cpus: Vec<Mutex<Core>>,
    violations: Mutex<Vec<Violation>>,
    lives: Mutex<Vec<Life>>,
    /// The VMCSs.
    regions: Mutex<vmx::Regions>,
    /// Who uses which region for VMXON.
    operations: Mutex<HashMap<u64, CpuId>>,
    /// The host goes down, and has switched VMX off.
    down: AtomicBool,
}

/// A guest that ran here, as its VMCB or VMCS tells it from others.
#[derive(Debug)]
struct Life {
    vmcb: u64,
    last: CpuId,
    record: Record,
}

/// One processor.
#[derive(Debug)]
pub(crate) struct Core {
    pub tlb: Tlb,
    /// Virtualization is on.
    pub enabled: bool,
    /// The vCPU that is loaded.
    pub loaded: Option<u64>,
    /// Tags handed out are good in this generation.
    pub generation: u64,
    pub next_tag: tlb::Tag,
    /// How often a vCPU was entered in this window though an interrupt waits.
    pub starved: u32,
    /// What SVM adds.
    pub svm: svm::Svm,
    /// What VT-x adds.
    pub vmx: vmx::Vmx,
}

impl Core {
    fn new(cpu: CpuId) -> Self {
        Self {
            tlb: Tlb::default(),
            enabled: false,
            loaded: None,
            generation: 0,
            next_tag: 0,
            starved: 0,
            svm: svm::Svm::default(),
            vmx: vmx::Vmx::new(cpu),
        }
    }
    /// No tag handed out before is good, and nothing is known under any.
    pub fn restart_tags(&mut self) {
        self.generation += 1;
        self.next_tag = 1;
        self.tlb.flush();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Processors {
    /// As many as a host has CPUs.
    pub fn new(config: Config, cpus: u32) -> Self {
        Self {
            config,
            cpus: (0..cpus).map(|n| Mutex::new(Core::new(CpuId(n)))).collect(),
            violations: Mutex::default(),
            lives: Mutex::default(),
            regions: Mutex::default(),
            operations: Mutex::default(),
            down: AtomicBool::new(false),
        }
    }
    pub(crate) fn cpu(&self, cpu: CpuId) -> MutexGuard<'_, Core> {
        lock(&self.cpus[cpu.0 as usize])
    }
    pub(crate) fn regions(&self) -> MutexGuard<'_, vmx::Regions> {
        lock(&self.regions)
    }
    /// Says who uses a region for VMXON first.
    pub(crate) fn enter_operation(&self, region: u64, cpu: CpuId) -> CpuId {
        *lock(&self.operations).entry(region).or_insert(cpu)
    }
    pub(crate) fn is_down(&self) -> bool {
        self.down.load(SeqCst)
    }
    /// All CPUs leave VMX operation, whatever they are at.
    pub(crate) fn go_down(&self) {
        self.down.store(true, SeqCst);
    }
    /// Notes a violation, once.
    pub(crate) fn note(&self, violation: Violation) {
        crate::heap::exempt(|| {
            let mut violations = lock(&self.violations);
            if !violations.contains(&violation) {
                violations.push(violation);
            }
        });
    }
    /// Says that a guest is now on `cpu`, and where it was before.
    pub(crate) fn moved(&self, vmcb: u64, cpu: CpuId) -> Option<CpuId> {
        let mut lives = lock(&self.lives);
        if let Some(life) = lives.iter_mut().find(|life| life.vmcb == vmcb) {
            return Some(std::mem::replace(&mut life.last, cpu));
        }
        let vcpu = lives.len() as u64;
        lives.push(Life {
            vmcb,
            last: cpu,
            record: Record {
                vcpu,
                ..Record::default()
            },
        });
        None
    }
    /// Adds what a guest did in one entry.
    pub(crate) fn note_life(&self, vmcb: u64, guest: &Guest, flushed: bool) {
        let mut lives = lock(&self.lives);
        let Some(life) = lives.iter_mut().find(|life| life.vmcb == vmcb) else {
            return;
        };
        let record = &mut life.record;
        record.executed += guest.executed;
        record.flushes += u64::from(flushed);
        for (mark, usage) in &guest.marks {
            let flushes = record.flushes;
            record.marks.push((
                *mark,
                Usage {
                    flushes,
                    ..usage.clone()
                },
            ));
        }
    }
    /// What all guests did.
    pub(crate) fn records(&self) -> Vec<Record> {
        lock(&self.lives)
            .iter()
            .map(|life| life.record.clone())
            .collect()
    }
    pub(crate) fn take_violations(&self) -> Vec<Violation> {
        std::mem::take(&mut lock(&self.violations))
    }
    /// What was noted.
    pub fn violations(&self) -> Vec<Violation> {
        lock(&self.violations).clone()
    }
    /// Looks at a CPU whose window closes.
    pub(crate) fn window_closes(&self, cpu: CpuId) {
        let mut core = self.cpu(cpu);
        core.starved = 0;
        let left = match self.config.vmx {
            Some(_) => crate::heap::exempt(|| core.vmx.window_closes()),
            None => core.svm.window_closes(cpu),
        };
        if let Some(violation) = left {
            self.note(violation);
        }
        if core.loaded.take().is_some() {
            drop(core);
            self.note(Violation::LeftLoaded(cpu));
        }
    }
}

/// Nested tables that are not set.
pub(crate) const NO_ROOT: Hpa = Hpa(u64::MAX);
