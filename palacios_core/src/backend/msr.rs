// SPDX-License-Identifier: MIT OR Apache-2.0
//! Numbers of the model-specific registers that both vendors have (SDM 4: table 2-2; APM 2: appendix A), and what PAT is at first.

/// The code segment of SYSENTER.
pub const SYSENTER_CS: u32 = 0x174;
/// The stack pointer of SYSENTER.
pub const SYSENTER_ESP: u32 = 0x175;
/// Where SYSENTER goes.
pub const SYSENTER_EIP: u32 = 0x176;
/// Recording of branches, and traps on branches and bus locks.
pub const DEBUGCTL: u32 = 0x1d9;
/// The page attribute table: memory types by bits of page table entries.
pub const PAT: u32 = 0x277;
/// PAT after reset (SDM 3A: 11.12.4; APM 2: 7.8.2).
pub const INITIAL_PAT: u64 = 0x0007_0406_0007_0406;
/// Segments of SYSCALL and SYSRET.
pub const STAR: u32 = 0xc000_0081;
/// Where SYSCALL goes from 64-bit code.
pub const LSTAR: u32 = 0xc000_0082;
/// Where SYSCALL goes from 32-bit code.
pub const CSTAR: u32 = 0xc000_0083;
/// Flags that SYSCALL clears.
pub const SFMASK: u32 = 0xc000_0084;
/// The base of FS.
pub const FS_BASE: u32 = 0xc000_0100;
/// The base of GS.
pub const GS_BASE: u32 = 0xc000_0101;
/// What SWAPGS exchanges with the base of GS.
pub const KERNEL_GS_BASE: u32 = 0xc000_0102;
