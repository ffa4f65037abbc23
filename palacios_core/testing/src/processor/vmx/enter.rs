// SPDX-License-Identifier: MIT OR Apache-2.0
//! VMLAUNCH and VMRESUME, until the exit (SDM 3C: 26, 27).

use super::super::bus::Bus;
use super::super::execute::{Guest, Masks, Policy};
use super::super::svm::tsc;
use super::super::tlb::{Linear, Owner, Space};
use super::super::trap::{Done, Machine};
use super::super::{Core, HostMachine, Violation};
use super::exit::{self, Reason};
use super::host::{
    self, Registers, FS_BASE, GS_BASE, PAT, SYSENTER_CS, SYSENTER_EIP, SYSENTER_ESP,
};
use super::trap::ends;
use super::vmcs::Vmcs;
use super::{caps, check, field, Outcome};
use palacios_core::addr::{Gpa, Hpa};
use palacios_core::backend::{Event, Exit, NestedFault};
use palacios_core::host::CpuId;
use palacios_core::state::{cr0, cr4, efer, Control, Exception, Reg, Seg};

/// Bits of the primary controls.
mod primary {
    pub const INTERRUPT_WINDOW: u32 = 1 << 2;
    pub const INVLPG: u32 = 1 << 9;
    pub const CR3_WRITES: u32 = 1 << 15;
    pub const CR3_READS: u32 = 1 << 16;
    pub const CR8_WRITES: u32 = 1 << 19;
    pub const CR8_READS: u32 = 1 << 20;
    pub const NMI_WINDOW: u32 = 1 << 22;
    pub const DEBUG_REGISTERS: u32 = 1 << 23;
}

/// An entry under way.
struct Entry<'a> {
    host: &'a dyn HostMachine,
    core: &'a mut Core,
    /// The address of the VMCS.
    at: u64,
}

/// Enters the guest of the current VMCS.
pub fn enter(host: &dyn HostMachine, cpu: CpuId, resume: bool, machine: &mut Machine<'_>) -> Done {
    let mut core = host.processors().cpu(cpu);
    if host.processors().is_down() {
        core.vmx.ends();
    }
    if core.vmx.region.is_none() {
        return Done::Faults;
    }
    let current = core.vmx.current;
    let vmcs = current.and_then(|at| Some((at, core.vmx.active.remove(&at)?)));
    let Some((at, mut vmcs)) = vmcs else {
        core.vmx.note(host.processors(), "an entry without a VMCS");
        return ends(machine, Outcome::Invalid);
    };
    let mut entry = Entry {
        host,
        core: &mut core,
        at,
    };
    let entered = entry.enter(&mut vmcs, resume, machine);
    if entered.is_ok() {
        core.vmx.registers.load(&vmcs);
        let list = [field::EXIT_MSR_LOADS, field::EXIT_MSR_LOAD_LIST];
        load_list(host, &mut core.vmx.registers, &vmcs, list);
        machine.go_on(vmcs.get(field::HOST_RIP), vmcs.get(field::HOST_RSP));
    }
    core.vmx.active.insert(at, vmcs);
    match entered {
        Ok(()) => Done::Elsewhere,
        Err(error) => {
            let outcome = core.vmx.fails(error);
            ends(machine, outcome)
        }
    }
}

impl Entry<'_> {
    fn note(&self, violation: Violation) {
        self.host.processors().note(violation);
    }

    /// Until the exit, or VMfail with an error (SDM 3C: table 30-1).
    fn enter(
        &mut self,
        vmcs: &mut Vmcs,
        resume: bool,
        machine: &mut Machine<'_>,
    ) -> Result<(), u64> {
        match (vmcs.launched, resume) {
            (true, false) => return Err(4),
            (false, true) => return Err(5),
            _ => {}
        }
        check::controls(self.host, vmcs).map_err(|_| 7u64)?;
        check::host_area(vmcs).map_err(|_| 8u64)?;
        self.check_contract(vmcs);
        if let Err(qualification) = check::guest_area(vmcs) {
            exit::entry_failed(vmcs, 33, qualification);
            return Ok(());
        }
        if self.host.interrupted() && self.is_machine_check() {
            exit::entry_failed(vmcs, 41, 0);
            return Ok(());
        }
        vmcs.launched = true;
        self.load_list(vmcs);
        let mut guest = self.guest(vmcs, machine);
        let exit = self.run(vmcs, &mut guest);
        self.leave(vmcs, &mut guest, exit);
        machine.set_gprs(&guest.state.gprs);
        Ok(())
    }

    /// What this VMM has to see to.
    fn check_contract(&self, vmcs: &Vmcs) {
        let vmx = &self.core.vmx;
        if self.host.window_cpu().is_none() {
            self.note(Violation::OutsideWindow("VMLAUNCH or VMRESUME"));
        }
        if vmx.owed != [false; 2] {
            self.note(Violation::Vmx(
                "a guest is entered before the host's handler",
            ));
        }
        if let Err(what) = check::contract(vmcs, &vmx.registers) {
            self.note(Violation::Vmx(what));
        }
        if let Err(what) = check::stale_host(vmcs, &vmx.registers) {
            self.note(Violation::StaleField(what));
        }
    }

    /// The MSRs that the entry loads, after which the host takes no samples in the guest.
    fn load_list(&mut self, vmcs: &Vmcs) {
        let vmx = &mut self.core.vmx;
        let quiet = vmx.registers.msr(host::PEBS_ENABLE) == 0;
        let list = [field::ENTRY_MSR_LOADS, field::ENTRY_MSR_LOAD_LIST];
        load_list(self.host, &mut vmx.registers, vmcs, list);
        let none = caps::is_missing(&self.host.processors().config, host::PEBS_ENABLE);
        if !(none || quiet && vmx.registers.has_no_samples(&vmx.own)) {
            self.note(Violation::Vmx(
                "samples of the host go to the guest's memory",
            ));
        }
    }

    fn is_machine_check(&mut self) -> bool {
        let config = self.host.processors().config.vmx.as_ref();
        let one_in = config.map_or(0, |vmx| vmx.machine_check_one_in);
        let strikes = one_in > 0 && self.host.random() % one_in == 0;
        self.core.vmx.owed[1] |= strikes;
        strikes
    }

    fn guest(&self, vmcs: &Vmcs, machine: &Machine<'_>) -> Guest {
        let controls = vmcs.get_32(field::PRIMARY);
        let on = |bit: u32| controls & bit != 0;
        let exits = |cr3: u32, cr8: u32| u16::from(on(cr3)) << 3 | u16::from(on(cr8)) << 8;
        let blocked = vmcs.get(field::INTERRUPTIBILITY);
        let mut guest = Guest {
            policy: Policy {
                cr_reads: exits(primary::CR3_READS, primary::CR8_READS),
                cr_writes: exits(primary::CR3_WRITES, primary::CR8_WRITES),
                exceptions: vmcs.get_32(field::EXCEPTIONS),
                iret: false,
                invlpg: on(primary::INVLPG),
                split_locks_fault: self.split_locks_fault(),
                masks: Some(Masks {
                    guarded: [field::CR0_MASK, field::CR4_MASK].map(|f| vmcs.get(f)),
                    shadow: [field::CR0_SHADOW, field::CR4_SHADOW].map(|f| vmcs.get(f)),
                }),
            },
            shadow: blocked & 3 != 0,
            shadow_of_stack: blocked & 2 != 0,
            nmi_blocked: blocked & 8 != 0,
            cr8: check::virtual_tpr(self.host, vmcs) >> 4,
            cr8_threshold: vmcs.get(field::TPR_THRESHOLD) as u8 & 15,
            injected: exit::decode(vmcs),
            interrupt_window: on(primary::INTERRUPT_WINDOW).then_some(16),
            nmi_window: on(primary::NMI_WINDOW),
            tsc: tsc().wrapping_add(vmcs.get(field::TSC_OFFSET)),
            ..Guest::default()
        };
        vmcs.load(&mut guest.state);
        guest.state.gprs = machine.gprs();
        guest.state.gprs[Reg::Rsp] = vmcs.get(field::RSP);
        guest.state.control.cr2 = self.core.vmx.registers.cr2;
        guest.state.dr6 = self.core.vmx.registers.dr[6];
        guest
    }

    fn split_locks_fault(&self) -> bool {
        let control = self.core.vmx.memory_control(&self.host.processors().config);
        control & host::SPLIT_LOCKS_FAULT != 0
    }

    fn run(&mut self, vmcs: &mut Vmcs, guest: &mut Guest) -> Exit {
        let cut = self.host.processors().config.cut_short_one_in;
        let cuts = cut > 0 && self.host.interrupted() && self.host.random() % cut == 0;
        if let (true, Some(event)) = (cuts, guest.injected) {
            return cut_short(guest, event);
        }
        let space = self.space(vmcs, guest);
        loop {
            let host = self.host;
            let mut bus = Bus {
                host,
                processors: host.processors(),
                tlb: &mut self.core.tlb,
                space,
            };
            let exit = guest.run(&mut bus, || host.interrupted());
            if !self.does_itself(vmcs, guest, exit) {
                if guest.interrupted == Some(Event::Nmi) {
                    // Blocked from the moment it was injected (SDM 3C: 27.3.4).
                    guest.nmi_blocked = true;
                }
                return exit;
            }
            guest.state.rip = guest.next_rip.expect("the end of an instruction");
            (guest.shadow, guest.moved) = (false, 0);
        }
    }

    /// Whose translations are used.
    fn space(&self, vmcs: &Vmcs, guest: &Guest) -> Space {
        let pointer = vmcs.get(field::EPT_POINTER);
        let format = self.host.processors().config.format;
        Space {
            root: Hpa(pointer & format.address),
            format,
            tag: vmcs.get_32(field::VPID),
            owner: Owner {
                ept: pointer,
                linear: Linear {
                    guest: self.at,
                    paging: paging(&guest.state.control),
                },
            },
        }
    }

    /// What would exit, the guest may do itself if the VMCS says so.
    fn does_itself(&mut self, vmcs: &mut Vmcs, guest: &mut Guest, exit: Exit) -> bool {
        let index = guest.state.gprs[Reg::Rcx] as u32;
        match exit {
            Exit::ReadMsr if self.passes(vmcs, index, 0) => {
                let value = self.read_msr(vmcs, guest, index);
                guest.state.gprs[Reg::Rax] = value & 0xffff_ffff;
                guest.state.gprs[Reg::Rdx] = value >> 32;
                true
            }
            Exit::WriteMsr if self.passes(vmcs, index, 0x800) => {
                let gprs = &guest.state.gprs;
                let value = gprs[Reg::Rdx] << 32 | gprs[Reg::Rax] & 0xffff_ffff;
                self.write_msr(vmcs, guest, index, value);
                true
            }
            Exit::Emulate if guest.moved >= 32 => {
                let lent = vmcs.get_32(field::PRIMARY) & primary::DEBUG_REGISTERS == 0;
                if lent {
                    self.move_debug(guest);
                }
                lent
            }
            _ => false,
        }
    }

    fn move_debug(&mut self, guest: &mut Guest) {
        let n = guest.moved as usize & 15;
        let place = match n {
            7 => &mut guest.state.dr7,
            n => &mut self.core.vmx.registers.dr[n],
        };
        match guest.moved & 16 != 0 {
            true => *place = guest.state.gprs[guest.moved_with],
            false => guest.state.gprs[guest.moved_with] = *place,
        }
    }

    /// The MSR bitmap lets an access through (SDM 3C: 24.6.9).
    fn passes(&self, vmcs: &Vmcs, index: u32, part: u64) -> bool {
        let base = match index {
            0..=0x1fff => part,
            0xc000_0000..=0xc000_1fff => part + 0x400,
            _ => return false,
        };
        let bit = u64::from(index & 0x1fff);
        let at = Hpa(vmcs.get(field::MSR_MAP) + base + bit / 8);
        // SAFETY: a byte of a map that lives as long as the backend.
        let byte = unsafe { self.host.phys_to_virt(at).read_volatile() };
        byte & 1 << (bit % 8) == 0
    }

    fn read_msr(&self, vmcs: &Vmcs, guest: &Guest, index: u32) -> u64 {
        match index {
            FS_BASE => guest.state.segments[Seg::Fs as usize].base,
            GS_BASE => guest.state.segments[Seg::Gs as usize].base,
            _ => match in_vmcs(index) {
                Some(field) => vmcs.get(field),
                None => self.unswitched(index),
            },
        }
    }
    fn write_msr(&mut self, vmcs: &mut Vmcs, guest: &mut Guest, index: u32, value: u64) {
        match index {
            FS_BASE => guest.state.segments[Seg::Fs as usize].base = value,
            GS_BASE => guest.state.segments[Seg::Gs as usize].base = value,
            _ => match in_vmcs(index) {
                Some(field) => vmcs.set(field, value),
                None => {
                    self.unswitched(index);
                    self.core.vmx.registers.msrs.insert(index, value);
                }
            },
        }
    }
    fn unswitched(&self, index: u32) -> u64 {
        if !host::UNSWITCHED.contains(&index) {
            self.note(Violation::Vmx(
                "the MSR bitmap lets through what the VMM wants to see",
            ));
        }
        self.core.vmx.registers.msr(index)
    }

    /// The exit.
    fn leave(&mut self, vmcs: &mut Vmcs, guest: &mut Guest, exit: Exit) {
        let processors = self.host.processors();
        let vmx = &mut self.core.vmx;
        vmx.registers.cr2 = guest.state.control.cr2;
        let reason = match exit {
            Exit::HostInterrupt if self.is_machine_check() => Reason::MachineCheck,
            Exit::HostInterrupt => {
                let timer = vmcs.get_32(field::PIN) & 1 << 6 != 0;
                let reason = Reason::of_host(self.host.random(), timer);
                self.core.vmx.owed[0] |= reason == Reason::Nmi;
                reason
            }
            exit => Reason::Guest(exit),
        };
        if exit == Exit::Exception(Exception::alignment()) {
            self.core.vmx.split_locks_pass = self.host.random() % 2 == 0;
        }
        exit::store(self.host, vmcs, guest);
        exit::describe(vmcs, guest, reason, self.core.vmx.registers.dr[6]);
        let flushed = std::mem::take(&mut self.core.vmx.forgot);
        processors.moved(self.at, self.core.vmx.cpu);
        processors.note_life(self.at, guest, flushed);
    }
}

/// Loads a list of MSRs (SDM 3C: 26.4, 27.6).
fn load_list(
    host: &dyn HostMachine,
    registers: &mut Registers,
    vmcs: &Vmcs,
    [count, at]: [u16; 2],
) {
    for n in 0..vmcs.get(count) {
        let at = Hpa(vmcs.get(at) + 16 * n);
        // SAFETY: 16 bytes of a page that was given to the processor.
        let [index, value] = unsafe { host.phys_to_virt(at).cast::<[u64; 2]>().read_volatile() };
        assert!(registers.msrs.contains_key(&(index as u32)) && index >> 32 == 0);
        registers.msrs.insert(index as u32, value);
    }
}

/// The delivery meets a page that its tables do not have, or no more: software will find that they have it.
fn cut_short(guest: &mut Guest, event: Event) -> Exit {
    let vector = u64::from(match event {
        Event::Interrupt(vector) | Event::Software { vector, .. } => vector,
        Event::Nmi => 2,
        Event::Exception(e) => e.vector,
    });
    let bytes = if guest.protected() { 8 } else { 4 };
    guest.interrupted = guest.injected.take();
    guest.nmi_blocked |= event == Event::Nmi;
    Exit::NestedFault(NestedFault {
        gpa: Gpa(guest.state.idtr.base + vector * bytes),
        write: false,
        fetch: false,
        table_walk: false,
    })
}

/// What a guest's own tables are, and how they are read. Software that changes it tells the processor to forget (SDM 3C:
/// 28.3.3.1).
fn paging(control: &Control) -> u64 {
    let bits = control.cr0 & (cr0::PG | cr0::WP)
        ^ control.cr4 << 32 & (cr4::PAE | cr4::PSE | cr4::PGE | cr4::SMEP | cr4::SMAP) << 32
        ^ control.efer << 48 & (efer::NXE | efer::LMA) << 48;
    control.cr3.rotate_left(7) ^ bits
}

/// Registers that are in the VMCS, beside bases.
fn in_vmcs(index: u32) -> Option<u16> {
    Some(match index {
        SYSENTER_CS => field::SYSENTER_CS,
        SYSENTER_ESP => field::SYSENTER_ESP,
        SYSENTER_EIP => field::SYSENTER_EIP,
        PAT => field::PAT,
        _ => return None,
    })
}
