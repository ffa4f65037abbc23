// SPDX-License-Identifier: MIT OR Apache-2.0
//! The registers of the pair, for somebody who only looks: a guest's read may be a poll, which is an acknowledge.

use super::{Chip, Init, Pic};

/// What one 8259A holds. Bit `n` of each byte is input `n`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PicRegisters {
    /// Levels of the input lines.
    pub lines: u8,
    /// Interrupt requests (IRR).
    pub requests: u8,
    /// Interrupts in service (ISR).
    pub in_service: u8,
    /// The interrupt mask (IMR).
    pub mask: u8,
    /// Inputs that are level-triggered (ELCR).
    pub level_triggered: u8,
    /// The vector of input 0.
    pub vector_base: u8,
    /// The input of lowest priority.
    pub lowest: u8,
    /// It was initialised. One that was not asserts nothing.
    pub initialised: bool,
    /// Its interrupts end when they are acknowledged.
    pub auto_eoi: bool,
}

impl Chip {
    fn registers(&self) -> PicRegisters {
        PicRegisters {
            lines: self.lines,
            requests: self.requests,
            in_service: self.in_service,
            mask: self.mask,
            level_triggered: self.level_triggered,
            vector_base: self.vector_base,
            lowest: self.lowest,
            initialised: self.init == Init::Done,
            auto_eoi: self.auto_eoi,
        }
    }
}

impl Pic {
    /// The primary's registers, and the secondary's.
    pub fn registers(&self) -> [PicRegisters; 2] {
        [self.primary.registers(), self.secondary.registers()]
    }
}
