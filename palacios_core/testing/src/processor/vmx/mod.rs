// SPDX-License-Identifier: MIT OR Apache-2.0
//! VT-x, as a processor has it that forgives nothing.
//!
//! A VMCS is its own from VMPTRLD to VMCLEAR; translations stay until INVEPT or INVVPID names them; an exit brings back of
//! the host's state what the VMCS says, and nothing else. What no manual allows is noted. What the VMCS does not ask for does
//! not exit.

pub(crate) mod caps;
mod check;
mod enter;
mod exit;
mod field;
mod host;
mod trap;
mod vmcs;

pub(crate) use trap::emulate;

use super::{HostMachine, Processors, Violation};
use host::{Registers, CR4_VMXE};
use palacios_core::addr::Hpa;
use palacios_core::host::CpuId;
use std::collections::HashMap;
pub use vmcs::Regions;
use vmcs::Vmcs;

/// What is special about a processor with VT-x.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// Bits that its capability registers lack, by the registers' numbers. Where it is all, there is no such register.
    pub lacks: Vec<(u32, u64)>,
    /// Of how many exits by something of the host one is by a machine check, which was the host's; 0 is none.
    pub machine_check_one_in: u64,
}

/// How an instruction ends (SDM 3C: 30.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Succeeds,
    /// Without a VMCS to say more.
    Invalid,
    /// With a VM-instruction error.
    Fails(u64),
}

/// What VT-x adds to a CPU.
#[derive(Debug)]
pub struct Vmx {
    cpu: CpuId,
    /// How many windows have closed here.
    window: u64,
    registers: Registers,
    /// The host's own, in this window.
    own: Registers,
    /// The region of VMXON, in VMX operation.
    region: Option<u64>,
    current: Option<u64>,
    active: HashMap<u64, Box<Vmcs>>,
    /// Translations were to be forgotten since the last entry.
    forgot: bool,
    /// An NMI, or a machine check, of the host that its handler is to see.
    owed: [bool; 2],
    /// Another thread of the core lets split locks through until the window closes.
    split_locks_pass: bool,
}

impl Vmx {
    pub fn new(cpu: CpuId) -> Self {
        Self {
            cpu,
            window: 0,
            registers: Registers::own(cpu, 0),
            own: Registers::own(cpu, 0),
            region: None,
            current: None,
            active: HashMap::new(),
            forgot: false,
            owed: [false; 2],
            split_locks_pass: false,
        }
    }

    /// The host learns that its task-state segment has the smallest limit.
    pub fn task_segment_cut(&mut self) {
        self.registers.task_cut = false;
    }

    /// The host has a page fault, and mends it.
    pub fn page_fault(&mut self, at: u64) {
        self.registers.cr2 = at;
    }

    /// What the host must find as it was, when a window closes.
    pub fn window_closes(&mut self) -> Option<Violation> {
        let left = match () {
            () if self.region.is_some() => Some("a window closes in VMX operation"),
            () if !self.active.is_empty() => Some("a VMCS is left active"),
            () if self.owed[0] => Some("an NMI of the host is lost"),
            () if self.owed[1] => Some("a machine check of the host is lost"),
            () => self.registers.differ(&self.own),
        };
        self.window += 1;
        self.own = Registers::own(self.cpu, self.window);
        self.registers = self.own.clone();
        (self.region, self.current, self.owed) = (None, None, [false; 2]);
        self.split_locks_pass = false;
        self.active.clear();
        left.map(Violation::Vmx)
    }

    /// The host goes down: VMX operation ends, whoever was in it. Nobody waits for its handlers any more.
    fn ends(&mut self) {
        (self.region, self.current, self.owed) = (None, None, [false; 2]);
        self.active.clear();
        self.registers.cr4 &= !CR4_VMXE;
    }

    fn note(&self, processors: &Processors, what: &'static str) {
        processors.note(Violation::Vmx(what));
    }

    fn vmxon(&mut self, host: &dyn HostMachine, at: u64) -> Outcome {
        if self.region.is_some() {
            return Outcome::Fails(15);
        }
        if host.window_cpu().is_none() {
            self.note(host.processors(), "VMXON with interrupts on");
        }
        if at % 4096 != 0 || revision(host, at) != caps::REVISION {
            return Outcome::Invalid;
        }
        let elsewhere = host.processors().enter_operation(at, self.cpu);
        if elsewhere != self.cpu {
            self.note(host.processors(), "two CPUs share a VMXON region");
        }
        poison(host, at);
        (self.region, self.current) = (Some(at), None);
        Outcome::Succeeds
    }

    fn vmxoff(&mut self, host: &dyn HostMachine) -> Outcome {
        if !self.active.is_empty() {
            self.note(host.processors(), "VMXOFF with a VMCS active");
        }
        (self.region, self.current) = (None, None);
        Outcome::Succeeds
    }

    /// A region that VMPTRLD and VMCLEAR take.
    fn is_region(&self, at: u64) -> bool {
        at % 4096 == 0 && self.region != Some(at)
    }

    fn vmptrld(&mut self, host: &dyn HostMachine, at: u64) -> Outcome {
        if !self.is_region(at) {
            return self.fails(9);
        }
        if revision(host, at) != caps::REVISION {
            return self.fails(11);
        }
        let taken = host.processors().regions().take(at, host.owner(Hpa(at)));
        match taken {
            _ if self.active.contains_key(&at) => {}
            Ok(vmcs) => {
                self.active.insert(at, vmcs);
            }
            Err(what) => {
                self.note(host.processors(), what);
                self.active
                    .insert(at, Box::new(Vmcs::new(host.owner(Hpa(at)))));
            }
        }
        poison(host, at);
        self.current = Some(at);
        Outcome::Succeeds
    }

    fn vmclear(&mut self, host: &dyn HostMachine, at: u64) -> Outcome {
        if !self.is_region(at) {
            return self.fails(2);
        }
        let mut vmcs = self.active.remove(&at);
        if let Some(vmcs) = &mut vmcs {
            vmcs.launched = false;
        }
        let given = host
            .processors()
            .regions()
            .give(at, vmcs, host.owner(Hpa(at)));
        if let Err(what) = given {
            self.note(host.processors(), what);
        }
        poison(host, at);
        if self.current == Some(at) {
            self.current = None;
        }
        Outcome::Succeeds
    }

    fn current(&mut self) -> Option<&mut Vmcs> {
        let current = self.current?;
        self.active.get_mut(&current).map(|vmcs| &mut **vmcs)
    }

    /// VMfail.
    fn fails(&mut self, error: u64) -> Outcome {
        match self.current() {
            None => Outcome::Invalid,
            Some(vmcs) => {
                vmcs.set(field::INSTRUCTION_ERROR, error);
                Outcome::Fails(error)
            }
        }
    }

    /// A field of the current VMCS.
    fn vmread(&mut self, host: &dyn HostMachine, encoding: u64) -> Result<u64, Outcome> {
        let Some(field) = self.field(host, encoding) else {
            return Err(self.fails(12));
        };
        let vmcs = self.current().ok_or(Outcome::Invalid)?;
        Ok(vmcs.get(field))
    }

    fn vmwrite(&mut self, host: &dyn HostMachine, encoding: u64, value: u64) -> Outcome {
        let Some(field) = self.field(host, encoding) else {
            return self.fails(12);
        };
        if field::is_read_only(field) {
            return self.fails(13);
        }
        match self.current() {
            None => Outcome::Invalid,
            Some(vmcs) => {
                vmcs.set(field, value);
                Outcome::Succeeds
            }
        }
    }

    /// A field that there is. Those that come with a control may be missing; to ask for another that does is a mistake, as
    /// is to ask for any without a VMCS.
    fn field(&self, host: &dyn HostMachine, encoding: u64) -> Option<u16> {
        let processors = host.processors();
        let has = |index, bit: u32| caps::controls(&processors.config, index).1 & bit != 0;
        let field = u16::try_from(encoding).ok().filter(|e| field::exists(*e));
        if field.is_none() {
            self.note(processors, "no processor has such a field");
        }
        if self.current.is_none() {
            self.note(processors, "a field without a VMCS");
        }
        match field? {
            field::SPIN_GAP | field::SPIN_WINDOW if !has(caps::SECONDARY, 1 << 10) => None,
            field::PREEMPTION_TIMER if !has(caps::PIN, 1 << 6) => None,
            field => Some(field),
        }
    }

    /// A handler of the host sees to the samples that it has on, by an NMI: it finds what it left, and leaves something else.
    fn handles_samples(&mut self, host: &dyn HostMachine) {
        use host::{PEBS_ENABLE, PERF_GLOBAL_CTRL};
        if self.own.msr(PEBS_ENABLE) == 0 {
            return;
        }
        for index in [PEBS_ENABLE, PERF_GLOBAL_CTRL] {
            let found = self.registers.msr(index);
            if found != self.own.msr(index) {
                self.note(host.processors(), "the host's samples are off in the host");
            }
            let left = found & !(host.random() & 1);
            self.own.msrs.insert(index, left);
            self.registers.msrs.insert(index, left);
        }
    }

    /// MSR_MEMORY_CTRL, which is the core's, of which another thread may have written it.
    fn memory_control(&self, config: &super::Config) -> u64 {
        let control = self.registers.msr(host::MEMORY_CTRL);
        match self.split_locks_pass || caps::is_missing(config, host::MEMORY_CTRL) {
            true => control & !host::SPLIT_LOCKS_FAULT,
            false => control,
        }
    }

    /// The host's handler of vector 2 or 18 runs.
    pub fn handles(&mut self, host: &dyn HostMachine, vector: u8) {
        self.handles_samples(host);
        let owed = &mut self.owed[usize::from(vector != 2)];
        if !std::mem::take(owed) && !host.processors().is_down() {
            self.note(
                host.processors(),
                "the host gets an NMI or a machine check that nobody sent",
            );
        }
    }
}

/// The revision identifier in a region.
fn revision(host: &dyn HostMachine, at: u64) -> u32 {
    // SAFETY: the first bytes of a page that was given.
    let word = unsafe { host.phys_to_virt(Hpa(at)).cast::<u32>().read_volatile() };
    word & 0x7fff_ffff
}

/// What software finds in a region, beside its revision, means nothing.
fn poison(host: &dyn HostMachine, at: u64) {
    let page = host.phys_to_virt(Hpa(at));
    // SAFETY: a page that was given to the processor.
    unsafe { page.add(4).write_bytes(0xcc, 4092) };
}
