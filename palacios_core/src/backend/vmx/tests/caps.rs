// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a processor is asked for, and what it is told that it lacks.

use super::*;
use crate::backend::vmx::controls::{entry, exit, pin, primary, secondary};
use crate::backend::vmx::registers::is_canonical;
use crate::features::testing::all_but;
use crate::features::{Feature, TABLE};
use crate::state::{cr0, cr4};

/// What is found where a register lacks bits.
fn without(index: u32, bits: u64) -> Result<Caps, Unsupported> {
    caps_by(|i| capability(i).map(|value| if i == index { value & !bits } else { value }))
}

#[test]
fn what_is_missing_is_named() {
    use Unsupported::{Firmware, Missing, NoCpu};
    let none = Caps::new(|_, _| [0; 4], capability, 0, true);
    assert_eq!(none, Err(NoCpu));
    assert_eq!(without(msr::FEATURE_CONTROL, 1), Err(Firmware));
    assert_eq!(without(msr::FEATURE_CONTROL, 1 << 2), Err(Firmware));
    assert_eq!(
        caps_by(|i| capability(i).filter(|_| i != msr::FEATURE_CONTROL)),
        Err(Firmware)
    );
    let missing = |index, bits: u64, what: &str| match without(index, bits) {
        Err(Missing(name)) => assert!(name.contains(what), "{name} instead of {what}"),
        other => panic!("{other:?} instead of {what}"),
    };
    let may = |bit: u32| u64::from(bit) << 32;
    missing(0x48e, may(1 << 31), "EPT");
    missing(msr::SECONDARY, may(secondary::EPT.0), "EPT");
    missing(msr::SECONDARY, may(secondary::VPID.0), "VPID");
    missing(msr::SECONDARY, may(secondary::UNRESTRICTED.0), "real mode");
    missing(msr::SECONDARY, may(secondary::WBINVD.0), "WBINVD");
    missing(0x48d, may(pin::VIRTUAL_NMIS.0), "virtual NMIs");
    missing(0x48d, may(pin::EXTERNAL_INTERRUPTS.0), "interrupts");
    missing(0x48e, may(primary::TPR_SHADOW.0), "TPR shadow");
    missing(0x48e, may(primary::MSR_MAPS.0), "MSR bitmaps");
    missing(0x48f, may(exit::HOST_64.0), "64-bit host");
    missing(0x48f, may(exit::LOAD_EFER.0), "EFER");
    missing(0x490, may(entry::LOAD_PAT.0), "PAT");
    missing(msr::EPT_VPID, 1 << 6, "four levels");
    missing(msr::EPT_VPID, 1 << 14, "write-back");
    missing(msr::EPT_VPID, 1 << 16, "large pages");
    missing(msr::EPT_VPID, 1 << 25, "INVEPT");
    missing(msr::EPT_VPID, 1 << 26, "INVEPT");
    missing(msr::EPT_VPID, 1 << 41, "INVVPID");
    missing(msr::EPT_VPID, 1 << 42, "INVVPID");
}

#[test]
fn a_register_that_is_missing_is_an_answer() {
    for index in [msr::BASIC, 0x48d, 0x490, msr::MISC, msr::CR4_FIXED_1] {
        let found = caps_by(|i| capability(i).filter(|_| i != index));
        assert!(
            matches!(found, Err(Unsupported::Missing(_))),
            "{index:#x}: {found:?}"
        );
    }
    // Without secondary controls there is no register of theirs, and that is not what is wrong.
    let old = caps_by(|i| match i {
        0x48e => capability(i).map(|value| value & !(1 << 63)),
        msr::SECONDARY | msr::EPT_VPID => None,
        _ => capability(i),
    });
    assert_eq!(old, Err(Unsupported::Missing("nested paging (EPT)")));
}

#[test]
fn samples_need_a_debug_store_and_their_registers() {
    let found = |store: u32, lacks: u32| {
        let cpuid = |leaf, subleaf| match leaf {
            1 => [0, 0, 1 << 5, store << 21],
            _ => cpuid(leaf, subleaf),
        };
        let read = |index| match index {
            _ if index == lacks => None,
            msr::PEBS_ENABLE | msr::PERF_GLOBAL_CTRL => Some(0),
            _ => capability(index),
        };
        Caps::new(cpuid, read, 0, true).unwrap().samples
    };
    assert!(found(1, 0));
    assert!(!found(0, 0));
    assert!(!found(1, msr::PEBS_ENABLE));
    assert!(!found(1, msr::PERF_GLOBAL_CTRL));
}

#[test]
fn controls_are_what_is_needed_and_what_must_be() {
    const CR3_EXITS: u32 = 1 << 15 | 1 << 16;
    let caps = caps();
    assert_eq!(caps.revision, 0x12);
    assert_eq!(
        caps.pin,
        0x16 | 1 << 0 | 1 << 3 | 1 << 5 | pin::PREEMPTION_TIMER
    );
    assert_eq!(caps.primary & CR3_EXITS, 0);
    assert_eq!(caps.primary & 0x0400_6172, 0x0400_6172);
    assert_eq!(
        caps.primary & (primary::INTERRUPT_WINDOW | primary::NMI_WINDOW),
        0
    );
    assert_eq!(
        caps.secondary,
        1 << 1 | 1 << 3 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 10 | 1 << 12
    );
    assert_eq!(caps.entry & entry::LONG_MODE, 0);
    assert!(caps.tsc_aux);
    // Without the true ones, moves to and from CR3 exit.
    let old = without(msr::BASIC, 1 << 55).unwrap();
    assert_eq!(old.primary & CR3_EXITS, CR3_EXITS);
    assert_eq!(old.exit & 1 << 2, 1 << 2);
}

#[test]
fn what_is_wanted_may_be_missing() {
    let caps = without(msr::SECONDARY, (1 << 3 | 1 << 10 | 1 << 12) << 32).unwrap();
    assert!(!caps.tsc_aux);
    assert_eq!(caps.secondary, 1 << 1 | 1 << 5 | 1 << 6 | 1 << 7);
    let caps = without(0x48d, u64::from(pin::PREEMPTION_TIMER) << 32).unwrap();
    assert_eq!(caps.pin & pin::PREEMPTION_TIMER, 0);
}

#[test]
fn tables_are_of_as_many_levels_as_addresses_need() {
    let four = caps();
    assert_eq!((four.levels, four.guest_physical_bits()), (4, 46));
    assert_eq!(four.ept_pointer(0x5000), 0x501e);
    let deep = |i| capability(i).map(|v| if i == msr::EPT_VPID { v | 1 << 7 } else { v });
    let wide = |leaf, sub| match leaf {
        0x8000_0008 => [52, 0, 0, 0],
        _ => cpuid(leaf, sub),
    };
    let five = Caps::new(wide, deep, 0, true).unwrap();
    assert_eq!((five.levels, five.guest_physical_bits()), (5, 52));
    assert_eq!(five.ept_pointer(0x5000), 0x5026);
    assert_eq!(five.table_format().levels, 5);
    let cut = Caps::new(wide, capability, 0, true).unwrap();
    assert_eq!((cut.levels, cut.guest_physical_bits()), (4, 48));
    // Nobody asks a processor with five levels for them if four do.
    assert_eq!(caps_by(deep).unwrap().levels, 4);
}

#[test]
fn large_code_is_for_processors_that_bear_it() {
    let of = |seven: u32, arch: u64| {
        let cpuid = move |leaf, sub| match leaf {
            7 => [0, 0, 0, seven],
            _ => cpuid(leaf, sub),
        };
        let read = move |i| match i {
            msr::ARCH_CAPABILITIES => Some(arch),
            _ => capability(i),
        };
        let caps = Caps::new(cpuid, read, 0, true).unwrap();
        caps.table_format().large_executable
    };
    assert!(!of(0, 0) && !of(0, 1 << 6));
    assert!(!of(1 << 29, !(1 << 6)));
    assert!(of(1 << 29, 1 << 6));
}

#[test]
fn control_registers_are_the_guests_but_for_some_bits() {
    let caps = caps().of_guest(&of_host());
    // PE and PG may be clear in an unrestricted guest; NE not.
    assert_eq!(caps.cr0_fixed, cr0::NE);
    assert_eq!(caps.cr0_guarded & 0xffff_ffff, cr0::NE | cr0::CD | cr0::NW);
    assert_eq!(caps.cr4_fixed, 1 << 13 | cr4::MCE);
    for own in [cr4::PAE, cr4::PGE, cr4::OSXSAVE, cr4::SMEP, cr4::SMAP] {
        assert_eq!(caps.cr4_guarded & own, 0);
    }
    for guarded in [1 << 13, cr4::MCE, cr4::LA57, cr4::PKE, 1 << 23, cr4::UMIP] {
        assert_eq!(caps.cr4_guarded & guarded, guarded, "{guarded:#x}");
    }
    let quiet = Caps::new(cpuid, capability, 0, false).unwrap();
    assert_eq!(quiet.cr4_fixed, 1 << 13);
}

#[test]
fn a_guest_owns_the_bits_of_cr4_that_its_cpuid_shows() {
    let with_bits = TABLE.iter().filter(|row| row.cr4 & caps().guest_cr4 != 0);
    for row in with_bits {
        let guarded = |gone: &[Feature]| caps().of_guest(&all_but(gone)).cr4_guarded;
        let own = row.cr4 & !cr4::MCE;
        assert_eq!(guarded(&[]) & own, 0, "{}", row.name);
        assert_eq!(guarded(&[row.feature]) & row.cr4, row.cr4, "{}", row.name);
    }
}

#[test]
fn instructions_are_switched_on_for_guests_that_have_them() {
    let all = |i| capability(i).map(|v| if i == msr::SECONDARY { v | 1 << 52 } else { v });
    let caps = caps_by(all).unwrap();
    let on =
        |gone: &[Feature]| caps.of_guest(&all_but(gone)).secondary & (1 << 3 | 1 << 12 | 1 << 20);
    assert_eq!(on(&[]), 1 << 3 | 1 << 12 | 1 << 20);
    assert_eq!(on(&[Feature::Invpcid]), 1 << 3 | 1 << 20);
    assert_eq!(on(&[Feature::Xsaves]), 1 << 3 | 1 << 12);
    // RDTSCP and RDPID share one.
    assert_eq!(on(&[Feature::Rdtscp]), on(&[]));
    assert_eq!(on(&[Feature::Rdtscp, Feature::Rdpid]), 1 << 12 | 1 << 20);
    let lacks = |caps: Caps, feature| caps.lacks(feature).is_some();
    for feature in [
        Feature::Rdtscp,
        Feature::Rdpid,
        Feature::Invpcid,
        Feature::Xsaves,
    ] {
        assert!(!lacks(caps, feature), "{feature:?}");
        let bare = without(msr::SECONDARY, (1 << 3 | 1 << 12) << 32).unwrap();
        assert!(lacks(bare, feature), "{feature:?}");
    }
    assert!(lacks(caps, Feature::AmdIbrs) && !lacks(caps, Feature::Smep));
}

#[test]
fn addresses_are_canonical_for_the_guests_width() {
    let wide = caps().of_guest(&all_but(&[]));
    let narrow = caps().of_guest(&all_but(&[Feature::La57]));
    for (at, four, five) in [
        (0, true, true),
        (0x7fff_ffff_ffff, true, true),
        (0x8000_0000_0000, false, true),
        (0xff_ffff_ffff_ffff, false, true),
        (0x100_0000_0000_0000, false, false),
        (0xff00_0000_0000_0000, false, true),
        (0xffff_8000_0000_0000, true, true),
        (u64::MAX, true, true),
    ] {
        assert_eq!(is_canonical(at, &narrow), four, "{at:#x}");
        assert_eq!(is_canonical(at, &wide), five, "{at:#x}");
    }
}

#[test]
fn a_stay_is_a_thousandth_of_a_second() {
    assert_eq!(caps().stay, 2_000_000 >> 7);
    let unknown = Caps::new(cpuid, capability, 0, true).unwrap();
    assert_eq!(unknown.stay, 1_000_000 >> 7);
    let slow = |i| capability(i).map(|v| if i == msr::MISC { 31 } else { v });
    assert_eq!(caps_by(slow).unwrap().stay, 1);
    let fast = |i| capability(i).map(|v| if i == msr::MISC { 0 } else { v });
    assert_eq!(
        Caps::new(cpuid, fast, u64::MAX, true).unwrap().stay,
        u32::MAX
    );
}

#[test]
fn what_helps_against_speculation_is_used_where_it_does() {
    let of = |seven: u32, arch: Option<u64>| {
        let cpuid = move |leaf, sub| match leaf {
            7 => [0, 0, 0, seven],
            _ => cpuid(leaf, sub),
        };
        let read = move |i| {
            if i == msr::ARCH_CAPABILITIES {
                arch
            } else {
                capability(i)
            }
        };
        let caps = Caps::new(cpuid, read, 0, true).unwrap();
        (caps.clear_buffers, caps.flush_l1d, caps.ibpb)
    };
    const MD_CLEAR: u32 = 1 << 10;
    const IBPB: u32 = 1 << 26;
    const L1D_FLUSH: u32 = 1 << 28;
    const ARCH: u32 = 1 << 29;
    let all = MD_CLEAR | IBPB | L1D_FLUSH;
    assert_eq!(of(0, None), (false, false, false));
    assert_eq!(of(all, Some(u64::MAX)), (true, true, true));
    // RDCL_NO, SKIP_L1DFL_VMENTRY, MDS_NO.
    assert_eq!(of(all | ARCH, Some(1 << 0 | 1 << 5)), (false, false, true));
    assert_eq!(of(all | ARCH, Some(1 << 3)), (true, false, true));
    // MDS_NO, but FB_CLEAR or RFDS_CLEAR.
    assert!(of(all | ARCH, Some(1 << 5 | 1 << 17)).0);
    assert!(of(all | ARCH, Some(1 << 5 | 1 << 28)).0);
}
