// SPDX-License-Identifier: MIT OR Apache-2.0
//! A guest's moves to and from control and debug registers.

use super::execute::{Guest, Stop};
use super::instruction::{exit, gpr, Done};
use iced_x86::Instruction;
use palacios_core::backend::Exit;
use palacios_core::state::{CpuState, Exception};

impl Guest {
    /// A move to or from a control or debug register.
    pub(super) fn mov_special(&mut self, i: &Instruction, next: &mut CpuState) -> Done {
        let write = !i.op0_register().is_gpr();
        let register = i.op_register(u32::from(!write));
        let (other, ..) = gpr(i.op_register(u32::from(write)));
        let n = register.number() as u64;
        self.moved = n + if write { 16 } else { 0 } + if register.is_dr() { 32 } else { 0 };
        self.moved_with = other;
        let exits = match write {
            true => self.policy.cr_writes,
            false => self.policy.cr_reads,
        };
        if register.is_dr() || exits & 1 << n != 0 {
            return Err(exit(Exit::Emulate));
        }
        match write {
            true => self.write_control(n, self.state.gprs[other], next),
            false => {
                next.gprs[other] = self.read_control(n)?;
                Ok(())
            }
        }
    }

    fn read_control(&self, n: u64) -> Result<u64, Stop> {
        let control = &self.state.control;
        let seen = |which: usize, real: u64| match self.policy.masks {
            Some(m) => real & !m.guarded[which] | m.shadow[which] & m.guarded[which],
            None => real,
        };
        match n {
            0 => Ok(seen(0, control.cr0)),
            2 => Ok(control.cr2),
            3 => Ok(control.cr3),
            4 => Ok(seen(1, control.cr4)),
            8 => Ok(self.cr8.into()),
            _ => Err(Stop::Exception(Exception::INVALID_OPCODE)),
        }
    }

    fn write_control(&mut self, n: u64, value: u64, next: &mut CpuState) -> Done {
        let masks = self.policy.masks;
        let control = &mut next.control;
        let set = |which: usize, place: &mut u64| {
            let guarded = masks.map_or(0, |m| m.guarded[which]);
            let shadow = masks.map_or(0, |m| m.shadow[which]);
            if (value ^ shadow) & guarded != 0 {
                return Err(exit(Exit::Emulate));
            }
            *place = *place & guarded | value & !guarded;
            Ok(())
        };
        match n {
            0 => return set(0, &mut control.cr0),
            2 => control.cr2 = value,
            3 => control.cr3 = value,
            4 => return set(1, &mut control.cr4),
            8 => self.cr8 = value as u8 & 15,
            _ => return Err(Stop::Exception(Exception::INVALID_OPCODE)),
        }
        Ok(())
    }
}
