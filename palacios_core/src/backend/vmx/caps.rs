// SPDX-License-Identifier: MIT OR Apache-2.0
//! What this processor's VT-x can do (SDM 3D: appendix A), and the controls that follow from it.

use super::super::Unsupported;
use super::controls::{entry, exit, pin, primary, secondary};
use crate::features::{Feature, GuestFeatures};
use crate::memory::nested::{BitChange, Format};
use crate::state::{cr0, cr4};

/// Numbers of model-specific registers.
pub(super) mod msr {
    pub use super::super::super::msr::*;
    pub const PLATFORM_ID: u32 = 0x17;
    pub const MEMORY_CTRL: u32 = 0x33;
    pub const FEATURE_CONTROL: u32 = 0x3a;
    pub const ARCH_CAPABILITIES: u32 = 0x10a;
    pub const FLUSH_CMD: u32 = 0x10b;
    pub const MISC_ENABLE: u32 = 0x1a0;
    pub const PERF_GLOBAL_CTRL: u32 = 0x38f;
    pub const PEBS_ENABLE: u32 = 0x3f1;
    pub const BASIC: u32 = 0x480;
    pub const PIN: u32 = 0x481;
    pub const PRIMARY: u32 = 0x482;
    pub const EXIT: u32 = 0x483;
    pub const ENTRY: u32 = 0x484;
    pub const MISC: u32 = 0x485;
    pub const CR0_FIXED_0: u32 = 0x486;
    pub const CR0_FIXED_1: u32 = 0x487;
    pub const CR4_FIXED_0: u32 = 0x488;
    pub const CR4_FIXED_1: u32 = 0x489;
    pub const SECONDARY: u32 = 0x48b;
    pub const EPT_VPID: u32 = 0x48c;
    /// The same as `PIN` to `ENTRY`, and true also of controls that must be 1 for old software (SDM 3D: A.2).
    pub const TRUE_OFFSET: u32 = 0x48d - 0x481;
}

/// IA32_FEATURE_CONTROL: no more to be changed; VMXON is allowed outside of SMX (SDM 3C: 23.7).
const LOCKED: u64 = 1 << 0;
const VMX_OUTSIDE_SMX: u64 = 1 << 2;

/// IA32_VMX_EPT_VPID_CAP (SDM 3D: A.10).
mod ept {
    use super::Unsupported;

    pub const WALK_4: u64 = 1 << 6;
    pub const WALK_5: u64 = 1 << 7;
    pub const WRITE_BACK: u64 = 1 << 14;
    pub const LARGE_PAGES: u64 = 1 << 16;
    pub const HUGE_PAGES: u64 = 1 << 17;
    pub const INVEPT: u64 = 1 << 20;
    pub const INVEPT_ONE: u64 = 1 << 25;
    pub const INVEPT_ALL: u64 = 1 << 26;
    pub const INVVPID: u64 = 1 << 32;
    pub const INVVPID_ONE: u64 = 1 << 41;
    pub const INVVPID_ALL: u64 = 1 << 42;

    /// What this VMM cannot do without is there.
    pub fn check(found: u64) -> Result<(), Unsupported> {
        let needed = [
            (
                WALK_4 | WRITE_BACK | LARGE_PAGES,
                "nested tables of four levels, write-back, with large pages",
            ),
            (INVEPT | INVEPT_ONE | INVEPT_ALL, "INVEPT"),
            (INVVPID | INVVPID_ONE | INVVPID_ALL, "INVVPID"),
        ];
        match needed.iter().find(|(bits, _)| found & bits != *bits) {
            Some((_, name)) => Err(Unsupported::Missing(name)),
            None => Ok(()),
        }
    }
}

/// An interrupt of the host ends the guest at once (SDM 3C: 25.2); the timer bounds a stay where an emulator lets it wait
/// for the guest's RFLAGS.IF. A thousandth of a second, or so many ticks where the rate is not known.
const STAYS_PER_SECOND: u64 = 1000;
const STAY_TICKS: u64 = 1_000_000;

/// What was found, in the words of the VMCS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Caps {
    pub revision: u32,
    pub pin: u32,
    pub primary: u32,
    pub secondary: u32,
    pub exit: u32,
    pub entry: u32,
    /// Bits of CR0 that are 1 in any guest; and those whose value the processor takes from us, so that a guest's write of them exits.
    pub cr0_fixed: u64,
    pub cr0_guarded: u64,
    /// The same of CR4.
    pub cr4_fixed: u64,
    pub cr4_guarded: u64,
    /// The bits of CR4 that a guest may set.
    pub guest_cr4: u64,
    /// The width of a linear address, for which registers that hold one are checked.
    pub linear_bits: u8,
    /// How long a stay in the guest may last, in units of the preemption timer.
    pub stay: u32,
    /// 4, or 5 where guest-physical addresses need it and the processor has it.
    pub levels: u8,
    /// A large leaf of nested tables may be executed: see [`bears_large_code`].
    pub large_executable: bool,
    /// There are leaves of 1 GiB.
    pub huge_pages: bool,
    pub physical_bits: u8,
    /// VERW clears buffers, and the processor needs it (SDM 4: IA32_ARCH_CAPABILITIES).
    pub clear_buffers: bool,
    /// The first-level data cache may be read by who should not: it is flushed before the guest is entered.
    pub flush_l1d: bool,
    pub ibpb: bool,
    pub tsc_aux: bool,
    /// The host may have event samples on (PEBS).
    pub samples: bool,
}

/// How many tags there are, the host's 0 among them (SDM 3C: 28.1).
pub(super) const VPIDS: u32 = 1 << 16;

impl Caps {
    /// Reads CPUID and MSRs through the given functions. `tsc_hz` is the rate of the time stamp counter, or 0; `mce` is set
    /// if the host has machine checks on.
    pub(super) fn new(
        cpuid: impl Fn(u32, u32) -> [u32; 4],
        read: impl Fn(u32) -> Option<u64>,
        tsc_hz: u64,
        mce: bool,
    ) -> Result<Self, Unsupported> {
        let has = |word: u32, bit: u32| word & 1 << bit != 0;
        if !has(cpuid(1, 0)[2], 5) {
            return Err(Unsupported::NoCpu);
        }
        let control = read(msr::FEATURE_CONTROL).unwrap_or(0);
        if control & (LOCKED | VMX_OUTSIDE_SMX) != LOCKED | VMX_OUTSIDE_SMX {
            return Err(Unsupported::Firmware);
        }
        let msr = |index| read(index).ok_or(Unsupported::Missing("its capability registers"));
        let basic = msr(msr::BASIC)?;
        let offset = if basic & 1 << 55 != 0 {
            msr::TRUE_OFFSET
        } else {
            0
        };
        let pins = Allowed(msr(msr::PIN + offset)?);
        let primaries = Allowed(msr(msr::PRIMARY + offset)?);
        let exits = Allowed(msr(msr::EXIT + offset)?);
        let entries = Allowed(msr(msr::ENTRY + offset)?);
        let first = primaries.choose(primary::NEEDED, 0)?;
        let secondaries = Allowed(msr(msr::SECONDARY)?);
        let second = secondaries.choose(secondary::NEEDED, secondary::WANTED)?;
        let ept = msr(msr::EPT_VPID)?;
        ept::check(ept)?;
        let physical_bits = physical_bits(&cpuid);
        let seven = if cpuid(0, 0)[0] >= 7 {
            cpuid(7, 0)
        } else {
            [0; 4]
        };
        let arch = if has(seven[3], 29) {
            read(msr::ARCH_CAPABILITIES).unwrap_or(0)
        } else {
            0
        };
        let (cr0_fixed, cr0_guarded) = fixed_cr0(msr(msr::CR0_FIXED_0)?, msr(msr::CR0_FIXED_1)?);
        // An error of the machine is the host's, so MCE is never the guest's own; but it may set it.
        let guest_cr4 = msr(msr::CR4_FIXED_1)? | cr4::MCE;
        let machine_checks = if mce { cr4::MCE } else { 0 };
        Ok(Self {
            revision: basic as u32 & 0x7fff_ffff,
            pin: pins.choose(pin::NEEDED, pin::WANTED)?,
            primary: first,
            secondary: second,
            exit: exits.choose(exit::NEEDED, 0)?,
            entry: entries.choose(entry::NEEDED, 0)?,
            cr0_fixed,
            cr0_guarded,
            cr4_fixed: msr(msr::CR4_FIXED_0)? | machine_checks,
            cr4_guarded: !guest_cr4 | cr4::MCE,
            guest_cr4,
            linear_bits: 48,
            stay: stay(tsc_hz, msr(msr::MISC)?),
            levels: if ept & ept::WALK_5 != 0 && physical_bits > 48 {
                5
            } else {
                4
            },
            large_executable: bears_large_code(arch),
            huge_pages: ept & ept::HUGE_PAGES != 0,
            physical_bits,
            clear_buffers: has(seven[3], 10) && verw_helps(arch),
            flush_l1d: has(seven[3], 28) && first_level_cache_leaks(arch),
            ibpb: has(seven[3], 26),
            tsc_aux: second & secondary::RDTSCP != 0,
            // With a debug store (SDM 3B: 17.4.9); emulators and hypervisors may have the bit alone.
            samples: has(cpuid(1, 0)[3], 21)
                && read(msr::PEBS_ENABLE).is_some()
                && read(msr::PERF_GLOBAL_CTRL).is_some(),
        })
    }

    /// Why a guest cannot have a feature of the processor's: an instruction that is not switched on is a #UD.
    pub(super) fn lacks(&self, feature: Feature) -> Option<&'static str> {
        let (control, why) = match feature {
            Feature::Rdtscp | Feature::Rdpid => (
                secondary::RDTSCP,
                "the processor's VT-x has no RDTSCP for guests",
            ),
            Feature::Invpcid => (
                secondary::INVPCID,
                "the processor's VT-x has no INVPCID for guests",
            ),
            Feature::Xsaves => (
                secondary::XSAVES,
                "the processor's VT-x has no XSAVES for guests",
            ),
            Feature::Topoext | Feature::AmdIbpb => (0, "it is AMD's"),
            Feature::AmdIbrs | Feature::AmdStibp | Feature::AmdSsbd | Feature::AmdPsfd => {
                (0, "a guest runs under the host's IA32_SPEC_CTRL")
            }
            _ => return None,
        };
        (self.secondary & control == 0).then_some(why)
    }

    /// The same for one guest: it has the bits of CR4 and the instructions that its CPUID says, and no others.
    pub(super) fn of_guest(mut self, features: &GuestFeatures) -> Self {
        let has = |feature| features.has(feature);
        self.cr4_guarded |= !features.cr4();
        for (control, there) in [
            // RDPID is there with RDTSCP.
            (
                secondary::RDTSCP,
                has(Feature::Rdtscp) || has(Feature::Rdpid),
            ),
            (secondary::INVPCID, has(Feature::Invpcid)),
            (secondary::XSAVES, has(Feature::Xsaves)),
        ] {
            if !there {
                self.secondary &= !control;
            }
        }
        if has(Feature::La57) {
            self.linear_bits = 57;
        }
        self
    }

    /// The width of a guest-physical address.
    pub(super) fn guest_physical_bits(&self) -> u8 {
        self.physical_bits
            .min(if self.levels == 5 { 57 } else { 48 })
    }

    /// How nested tables look (SDM 3C: 28.2.2): all may be read, written and executed, and is write-back memory. Bits 2:0
    /// say what is allowed; any of them makes an entry present.
    pub(super) fn table_format(&self) -> Format {
        const ALL_ALLOWED: u64 = 0b111;
        const MEMORY_TYPE: u64 = 7 << 3;
        const WRITE_BACK: u64 = 6 << 3;
        Format {
            levels: self.levels,
            table: ALL_ALLOWED,
            leaf: ALL_ALLOWED | WRITE_BACK,
            read_only: BitChange::clear(1 << 1),
            no_execute: BitChange::clear(1 << 2),
            write_combining: BitChange {
                clear: MEMORY_TYPE,
                set: 1 << 3,
            },
            uncached: BitChange::clear(MEMORY_TYPE),
            large: 1 << 7,
            large_executable: self.large_executable,
            huge: self.huge_pages,
            present: ALL_ALLOWED,
            address: 0x000f_ffff_ffff_f000,
        }
    }

    /// The EPT pointer for tables with this root (SDM 3C: 24.6.11): the tables are write-back memory too.
    /// Accessed and dirty flags stay off: nobody reads them, and with them the processor's walks of the guest's own tables count as
    /// writes (SDM 3C: 28.2.4), to ROMs and to pages that are logged.
    pub(super) fn ept_pointer(&self, root: u64) -> u64 {
        const WRITE_BACK: u64 = 6;
        let levels = u64::from(self.levels.saturating_sub(1)) << 3;
        root | WRITE_BACK | levels
    }
}

/// The width of a physical address.
fn physical_bits(cpuid: &impl Fn(u32, u32) -> [u32; 4]) -> u8 {
    let last = cpuid(0x8000_0000, 0)[0];
    let wide = if last >= 0x8000_0008 {
        cpuid(0x8000_0008, 0)[0] & 255
    } else {
        36
    };
    wide.clamp(32, 52) as u8
}

/// VERW clears buffers that leak otherwise. A processor may be above one weakness and have another that VERW helps with: MDS_NO,
/// FB_CLEAR, RFDS_CLEAR (SDM 4: table 2-2).
fn verw_helps(arch_capabilities: u64) -> bool {
    arch_capabilities & 1 << 5 == 0 || arch_capabilities & (1 << 17 | 1 << 28) != 0
}

/// The first-level data cache may leak, and nobody else flushes it: neither RDCL_NO nor SKIP_L1DFL_VMENTRY (SDM 4: table 2-2).
fn first_level_cache_leaks(arch_capabilities: u64) -> bool {
    arch_capabilities & (1 << 0 | 1 << 3) == 0
}

/// Older processors raise a machine check or hang, for the whole host, when a guest fetches code from a large page while it
/// changes that page's size in its own tables (CVE-2018-12207), but only where the nested leaf is large as well. Newer ones say
/// PSCHANGE_MC_NO (SDM 4: table 2-2). On the others a large leaf cannot be executed, and is split when the guest fetches from it. An
/// Atom has no such fault; one that does not say PSCHANGE_MC_NO only loses speed.
fn bears_large_code(arch_capabilities: u64) -> bool {
    const PSCHANGE_MC_NO: u64 = 1 << 6;
    arch_capabilities & PSCHANGE_MC_NO != 0
}

/// Bits of CR0 that are 1 in any guest, and those that exit when it changes them. PE and PG an unrestricted guest has for its
/// own (SDM 3C: 23.8). Of CD and NW an exit puts nothing back (SDM 3C: 27.5.1), so the guest never has them for real.
fn fixed_cr0(fixed_0: u64, fixed_1: u64) -> (u64, u64) {
    let fixed = fixed_0 & !(cr0::PE | cr0::PG);
    (fixed, fixed | !fixed_1 | cr0::CD | cr0::NW)
}

/// A stay in units of the preemption timer, which counts at a power of two of the time stamp counter's rate (SDM 3D: A.6).
fn stay(tsc_hz: u64, misc: u64) -> u32 {
    let ticks = match tsc_hz / STAYS_PER_SECOND {
        0 => STAY_TICKS,
        ticks => ticks,
    };
    u32::try_from(ticks >> (misc & 31))
        .unwrap_or(u32::MAX)
        .max(1)
}

/// A capability register: the low half has the controls that must be 1, the high half those that may be.
#[derive(Clone, Copy)]
struct Allowed(u64);

impl Allowed {
    fn may(self, bits: u32) -> bool {
        u64::from(bits) & !(self.0 >> 32) == 0
    }
    /// The controls `needed`, those of `wanted` that there are, and those that must be.
    fn choose(self, needed: &[(u32, &'static str)], wanted: u32) -> Result<u32, Unsupported> {
        let mut chosen = self.0 as u32 | wanted & (self.0 >> 32) as u32;
        for (bit, name) in needed {
            if !self.may(*bit) {
                return Err(Unsupported::Missing(name));
            }
            chosen |= bit;
        }
        Ok(chosen)
    }
}
