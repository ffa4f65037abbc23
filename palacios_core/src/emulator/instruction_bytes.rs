// SPDX-License-Identifier: MIT OR Apache-2.0
//! The bytes of one instruction.

/// Length of the longest instruction, in bytes.
pub const MAX_INSTRUCTION_BYTES: usize = 15;

/// The bytes of an instruction that was not executed, for the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InstructionBytes {
    /// The bytes; zero from `len` on.
    pub bytes: [u8; MAX_INSTRUCTION_BYTES],
    /// How many of them were fetched.
    pub len: u8,
}

impl InstructionBytes {
    /// At most 15 bytes.
    pub fn new(from: &[u8]) -> InstructionBytes {
        let mut report = InstructionBytes {
            bytes: [0; MAX_INSTRUCTION_BYTES],
            len: 0,
        };
        for (to, &byte) in report.bytes.iter_mut().zip(from) {
            *to = byte;
            report.len = report.len.saturating_add(1);
        }
        report
    }

    /// Those that are there.
    pub fn get(&self) -> &[u8] {
        self.bytes.get(..self.len.into()).unwrap_or(&self.bytes)
    }

    /// Room for the others.
    pub fn rest(&mut self) -> &mut [u8] {
        self.bytes.get_mut(self.len.into()..).unwrap_or_default()
    }
}
