// SPDX-License-Identifier: MIT OR Apache-2.0
//! Numbers of the model-specific registers that both vendors have (SDM 4: table 2-2; APM 2: appendix A), and what PAT is at first.
#![allow(missing_docs)]

pub const SYSENTER_CS: u32 = 0x174;
pub const SYSENTER_ESP: u32 = 0x175;
pub const SYSENTER_EIP: u32 = 0x176;
pub const DEBUGCTL: u32 = 0x1d9;
pub const PAT: u32 = 0x277;
/// PAT after reset (SDM 3A: 11.12.4; APM 2: 7.8.2).
pub const INITIAL_PAT: u64 = 0x0007_0406_0007_0406;
pub const STAR: u32 = 0xc000_0081;
pub const LSTAR: u32 = 0xc000_0082;
pub const CSTAR: u32 = 0xc000_0083;
pub const SFMASK: u32 = 0xc000_0084;
pub const FS_BASE: u32 = 0xc000_0100;
pub const GS_BASE: u32 = 0xc000_0101;
pub const KERNEL_GS_BASE: u32 = 0xc000_0102;
