// SPDX-License-Identifier: MIT OR Apache-2.0
//! The local APIC's saved state.

use super::*;
use crate::state_io::{StateError, StateReader, StateWriter};

const STATE_VERSION: u32 = 2;

impl LocalApic {
    /// Writes all state.
    pub fn save(&self, to: &mut StateWriter<'_>) -> Result<(), StateError> {
        to.u32(STATE_VERSION)?;
        to.u32(self.id)?;
        to.u64(self.base)?;
        to.bytes(&[self.tpr, self.ldr, self.errors, self.new_errors])?;
        to.u32(self.dfr)?;
        to.u32(self.spurious)?;
        to.u64(self.icr)?;
        for vectors in [&self.requests, &self.in_service, &self.level] {
            for word in vectors.0 {
                to.u64(word)?;
            }
        }
        for entry in self.lvt {
            to.u32(entry)?;
        }
        self.timer.save(to)
    }

    /// Takes back what [`LocalApic::save`] wrote for the APIC of the same id; on failure nothing has changed.
    pub fn restore(&mut self, from: &mut StateReader<'_>) -> Result<(), StateError> {
        from.version(STATE_VERSION)?;
        if from.u32()? != self.id {
            return Err(StateError::Value("lapic.id"));
        }
        let mut new = self.clone();
        new.base = from.u64()?;
        [new.tpr, new.ldr, new.errors, new.new_errors] = from.bytes()?;
        new.dfr = from.u32()?;
        new.spurious = from.u32()?;
        new.icr = from.u64()?;
        for vectors in [&mut new.requests, &mut new.in_service, &mut new.level] {
            for word in &mut vectors.0 {
                *word = from.u64()?;
            }
        }
        for entry in &mut new.lvt {
            *entry = from.u32()?;
        }
        new.validate()?;
        let mode = TimerMode::of_lvt(new.lvt[Lvt::Timer as usize]);
        new.timer = ApicTimer::restored(mode, from)?;
        *self = new;
        Ok(())
    }

    fn validate(&self) -> Result<(), StateError> {
        let flags = base::X2APIC | base::ENABLE | self.base & base::BSP;
        let is_bsp = self.base & base::BSP != 0;
        let mode_legal = self.base & (base::X2APIC | base::ENABLE) != base::X2APIC;
        if self.base & !(self.base_address_mask | flags) != 0
            || is_bsp != self.is_bsp
            || !mode_legal
        {
            return Err(StateError::Value("lapic.base"));
        }
        if self.dfr & 0x0fff_ffff != 0x0fff_ffff || self.spurious & !SPURIOUS_WRITABLE != 0 {
            return Err(StateError::Value("lapic.registers"));
        }
        if (self.requests.0[0] | self.in_service.0[0]) & 0xffff != 0 {
            return Err(StateError::Value("lapic.vectors"));
        }
        for (entry, writable) in self.lvt.iter().zip(LVT_WRITABLE) {
            let masked = entry & LVT_MASKED != 0;
            if entry & !writable != 0 || !masked && !self.is_software_enabled() {
                return Err(StateError::Value("lapic.lvt"));
            }
        }
        Ok(())
    }
}
