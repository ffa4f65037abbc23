// SPDX-License-Identifier: MIT OR Apache-2.0
//! The emulator from outside: against this machine's own processor, and against the manuals where that cannot be asked.

mod far;
mod instructions;
mod interrupts;
mod machine;
mod memory;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod native;
mod opcodes;
mod segments;
mod stack;
mod system;
mod vectors;
