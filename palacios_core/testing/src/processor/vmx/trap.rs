// SPDX-License-Identifier: MIT OR Apache-2.0
//! Privileged instructions on a processor with VT-x.

use super::super::trap::{Done, Machine};
use super::super::HostMachine;
use super::host::{self, CR4_VMXE};
use super::{caps, field, Outcome, Vmx};
use iced_x86::{Instruction, Mnemonic, OpKind, Register};
use palacios_core::host::CpuId;

/// Flags of an outcome (SDM 3C: 30.2).
const CF: u64 = 1 << 0;
const ZF: u64 = 1 << 6;
const ARITHMETIC: u64 = CF | 1 << 2 | 1 << 4 | ZF | 1 << 7 | 1 << 11;

/// Does an instruction.
pub fn emulate(
    host: &dyn HostMachine,
    cpu: CpuId,
    i: &Instruction,
    machine: &mut Machine<'_>,
) -> Done {
    if matches!(i.mnemonic(), Mnemonic::Vmlaunch | Mnemonic::Vmresume) {
        return super::enter::enter(host, cpu, i.mnemonic() == Mnemonic::Vmresume, machine);
    }
    let mut core = host.processors().cpu(cpu);
    if host.processors().is_down() && may_be_interrupted(i, machine) {
        core.vmx.ends();
    }
    if is_after_exit(i, machine) && host.random() % 4 == 0 {
        core.vmx.handles_samples(host);
    }
    match i.mnemonic() {
        Mnemonic::Invept | Mnemonic::Invvpid if core.vmx.region.is_none() => Done::Faults,
        Mnemonic::Invept | Mnemonic::Invvpid => {
            let scope = machine.get(i.op0_register());
            let context = machine.word(machine.address(i));
            match (i.mnemonic(), scope) {
                (Mnemonic::Invept, 1) => core.tlb.flush_ept(context),
                (Mnemonic::Invept, 2) => core.tlb.flush(),
                (_, 1) if context != 0 => core.tlb.flush_tag(context as u32),
                (_, 2) => core.tlb.flush_tags(),
                _ => core
                    .vmx
                    .note(host.processors(), "INVEPT or INVVPID of nothing"),
            }
            core.vmx.forgot = true;
            ends(machine, Outcome::Succeeds)
        }
        Mnemonic::Mov => moved(host, &mut core.vmx, i, machine),
        Mnemonic::Rdmsr | Mnemonic::Wrmsr | Mnemonic::Xsetbv => {
            register(host, &mut core.vmx, i.mnemonic(), machine)
        }
        Mnemonic::Int if matches!(i.immediate8(), 2 | 18) => {
            core.vmx.handles(host, i.immediate8());
            Done::Next
        }
        _ => match table(&mut core.vmx, i, machine) {
            Done::Unknown => operation(host, &mut core.vmx, i, machine),
            done => done,
        },
    }
}

/// An NMI of the host strikes here rather than between any two reads of a VMCS: in the guest, so that the exit is its, or
/// where the host's handler is asked to run.
fn may_be_interrupted(i: &Instruction, machine: &Machine<'_>) -> bool {
    match i.mnemonic() {
        Mnemonic::Vmread => is_after_exit(i, machine),
        Mnemonic::Vmwrite | Mnemonic::Mov => false,
        _ => true,
    }
}

/// The first instruction of its kind after an exit.
fn is_after_exit(i: &Instruction, machine: &Machine<'_>) -> bool {
    i.mnemonic() == Mnemonic::Vmread
        && machine.get(i.op1_register()) == u64::from(field::EXIT_REASON)
}

/// Sets the flags that an outcome has.
pub fn ends(machine: &mut Machine<'_>, outcome: Outcome) -> Done {
    let flags = match outcome {
        Outcome::Succeeds => 0,
        Outcome::Invalid => CF,
        Outcome::Fails(_) => ZF,
    };
    machine.set_flags(ARITHMETIC, flags);
    Done::Next
}

/// Instructions of VMX operation.
fn operation(
    host: &dyn HostMachine,
    vmx: &mut Vmx,
    i: &Instruction,
    machine: &mut Machine<'_>,
) -> Done {
    if i.mnemonic() == Mnemonic::Vmxon {
        let may = vmx.registers.cr4 & CR4_VMXE != 0 && !host.processors().is_down();
        let at = machine.word(machine.address(i));
        return match may {
            true => ends(machine, vmx.vmxon(host, at)),
            false => Done::Faults,
        };
    }
    if vmx.region.is_none() {
        return match i.mnemonic() {
            Mnemonic::Vmxoff
            | Mnemonic::Vmclear
            | Mnemonic::Vmptrld
            | Mnemonic::Vmread
            | Mnemonic::Vmwrite => Done::Faults,
            _ => Done::Unknown,
        };
    }
    let outcome = match i.mnemonic() {
        Mnemonic::Vmxoff => vmx.vmxoff(host),
        Mnemonic::Vmclear => vmx.vmclear(host, machine.word(machine.address(i))),
        Mnemonic::Vmptrld => vmx.vmptrld(host, machine.word(machine.address(i))),
        Mnemonic::Vmread => match vmx.vmread(host, machine.get(i.op1_register())) {
            Ok(value) => {
                machine.set(i.op0_register(), value);
                Outcome::Succeeds
            }
            Err(outcome) => outcome,
        },
        Mnemonic::Vmwrite => vmx.vmwrite(
            host,
            machine.get(i.op0_register()),
            machine.get(i.op1_register()),
        ),
        _ => return Done::Unknown,
    };
    ends(machine, outcome)
}

/// Registers of descriptor tables, and their selectors.
fn table(vmx: &mut Vmx, i: &Instruction, machine: &mut Machine<'_>) -> Done {
    let r = &mut vmx.registers;
    match i.mnemonic() {
        Mnemonic::Sgdt | Mnemonic::Sidt => {
            let table = if i.mnemonic() == Mnemonic::Sgdt {
                r.gdt
            } else {
                r.idt
            };
            machine.store_table(machine.address(i), table.limit, table.base);
        }
        Mnemonic::Lgdt | Mnemonic::Lidt => {
            let (limit, base) = machine.load_table(machine.address(i));
            let table = if i.mnemonic() == Mnemonic::Lgdt {
                &mut r.gdt
            } else {
                &mut r.idt
            };
            *table = host::Table { base, limit };
        }
        Mnemonic::Sldt => machine.set(i.op0_register(), r.ldt.into()),
        Mnemonic::Lldt => r.ldt = machine.get(i.op0_register()) as u16,
        Mnemonic::Str => machine.set(i.op0_register(), r.task.into()),
        _ => return Done::Unknown,
    }
    Done::Next
}

/// Moves to and from control and debug registers, and from the host's memory.
fn moved(
    host: &dyn HostMachine,
    vmx: &mut Vmx,
    i: &Instruction,
    machine: &mut Machine<'_>,
) -> Done {
    let r = &mut vmx.registers;
    if i.op1_kind() == OpKind::Memory {
        return match r.descriptor(machine.address(i)) {
            Some(half) => {
                machine.set(i.op0_register(), half);
                Done::Next
            }
            None => Done::Unknown,
        };
    }
    let (to, from) = (i.op0_register(), i.op1_register());
    let special = if to.is_gpr() { from } else { to };
    let place = match special {
        Register::CR0 => &mut r.cr0,
        Register::CR2 => &mut r.cr2,
        Register::CR3 => &mut r.cr3,
        Register::CR4 => &mut r.cr4,
        register if register.is_dr() => &mut r.dr[register.number()],
        _ => return Done::Unknown,
    };
    if to.is_gpr() {
        machine.set(to, *place);
        return Done::Next;
    }
    let value = machine.get(from);
    match special {
        // SDM 3C: 23.8.
        Register::CR4 if vmx.region.is_some() && value & CR4_VMXE == 0 => return Done::Faults,
        Register::CR0 | Register::CR3 => {
            vmx.note(host.processors(), "CR0 or CR3 of the host is written");
        }
        _ => *place = value,
    }
    Done::Next
}

/// Registers that are read and written by number.
fn register(
    host: &dyn HostMachine,
    vmx: &mut Vmx,
    what: Mnemonic,
    machine: &mut Machine<'_>,
) -> Done {
    const COMMANDS: [u32; 2] = [0x49, 0x10b];
    let index = machine.get(Register::RCX) as u32;
    let value = machine.edx_eax();
    let config = &host.processors().config;
    let memory_control = vmx.memory_control(config);
    let msrs = &mut vmx.registers.msrs;
    match what {
        Mnemonic::Rdmsr | Mnemonic::Wrmsr if caps::is_missing(config, index) => {
            return Done::Faults;
        }
        Mnemonic::Xsetbv => vmx.registers.xcr0 = Some(value),
        Mnemonic::Rdmsr => {
            let value = match index {
                host::MEMORY_CTRL => Some(memory_control),
                _ => msrs.get(&index).copied().or(caps::read(config, index)),
            };
            let Some(value) = value else {
                return Done::Faults;
            };
            machine.set(Register::RAX, value & 0xffff_ffff);
            machine.set(Register::RDX, value >> 32);
        }
        _ if COMMANDS.contains(&index) => {}
        _ if host::is_address(index) && (value as i64) << 16 >> 16 != value as i64 => {
            return Done::Faults;
        }
        _ => match msrs.get_mut(&index) {
            Some(place) => *place = value,
            None => return Done::Faults,
        },
    }
    Done::Next
}
