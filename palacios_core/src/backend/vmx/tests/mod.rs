// SPDX-License-Identifier: MIT OR Apache-2.0
//! The backend without its hardware. What needs a processor is tested on the simulated one of `palacios_testing`.

mod caps;
mod checks;
mod events;
mod exits;
mod state;

use super::super::fake_host::FakeHost;
use super::super::fpu::Layout;
use super::caps::{msr, Caps};
use super::vmcs::Vmcs;
use super::{Unsupported, Vcpu, Vmx};
use crate::features::{testing, GuestFeatures};

/// A capability register of a processor that has all that is used.
fn capability(index: u32) -> Option<u64> {
    Some(match index {
        msr::FEATURE_CONTROL => 0b101,
        msr::BASIC => 1 << 55 | 6 << 50 | 0x400 << 32 | 0x12,
        msr::PIN => 0x7f_0000_0016,
        msr::PRIMARY => 0xfff9_fffe_0401_e172,
        msr::EXIT => 0x01ff_ffff_0003_6dff,
        msr::ENTRY => 0x0003_ffff_0000_11ff,
        msr::MISC => 7,
        msr::CR0_FIXED_0 => 0x8000_0021,
        msr::CR0_FIXED_1 => 0xffff_ffff,
        msr::CR4_FIXED_0 => 0x2000,
        msr::CR4_FIXED_1 => 0x0037_67ff,
        msr::SECONDARY => 0x0000_5cfe_0000_0000,
        msr::EPT_VPID => 0x0f01_0673_4141,
        0x48d => 0x7f_0000_0016,
        0x48e => 0xfff9_fffe_0400_6172,
        0x48f => 0x01ff_ffff_0003_6dfb,
        0x490 => 0x0003_ffff_0000_11fb,
        _ => return None,
    })
}

fn cpuid(leaf: u32, _: u32) -> [u32; 4] {
    match leaf {
        0 => [7, 0x756e_6547, 0x6c65_746e, 0x4965_6e69],
        1 => [0, 0, 1 << 5, 0],
        0x8000_0000 => [0x8000_0008, 0, 0, 0],
        0x8000_0008 => [46, 0, 0, 0],
        _ => [0; 4],
    }
}

/// What is found where the registers are as `read` says.
fn caps_by(read: impl Fn(u32) -> Option<u64>) -> Result<Caps, Unsupported> {
    Caps::new(cpuid, read, 2_000_000_000, true)
}

fn caps() -> Caps {
    caps_by(capability).unwrap()
}

fn vmx() -> Vmx<FakeHost> {
    Vmx::new(&FakeHost::default(), caps(), Layout::probe()).unwrap()
}

/// What a guest has on this processor, if CPUID says that all is there but LA57.
fn of_host() -> GuestFeatures {
    testing::all_but(&[crate::features::Feature::La57])
}

fn vcpu() -> Vcpu<FakeHost> {
    Vcpu::new(&FakeHost::default(), &vmx(), &of_host()).unwrap()
}

fn vmcs() -> Vmcs<FakeHost> {
    Vmcs::new(&FakeHost::default(), 5).unwrap()
}
