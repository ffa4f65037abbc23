// SPDX-License-Identifier: MIT OR Apache-2.0
//! The table, and what is made of it.

use super::table::REPEATED;
use super::testing::{all_but, all_ones, on, BACKEND};
use super::verdict::UNGUARDED_CR4;
use super::*;
use crate::backend::Features;
use crate::state::{cr4, efer};
use std::collections::HashSet;

fn all() -> impl Iterator<Item = &'static Row> {
    TABLE.iter()
}

fn offered() -> impl Iterator<Item = &'static Row> {
    all().filter(|row| row.feature.can_be_taken_away())
}

/// A processor that has what `has` says, and all leaves.
fn host(has: impl Fn(Feature) -> bool) -> impl Fn(u32, u32) -> [u32; 4] {
    move |leaf, subleaf| {
        let mut words = [0; 4];
        if let 0 | 0x8000_0000 = leaf {
            words[0] = leaf | 0xffff;
        }
        if (leaf, subleaf) == (7, 0) {
            words[0] = 1;
        }
        for row in all().filter(|row| has(row.feature)) {
            let (of, sub, register) = row.word.place();
            if (of, sub) == (leaf, subleaf) {
                words[register] |= 1 << row.bit;
            }
        }
        words
    }
}

/// Whether `feature` needs `other`, by however many others.
fn needs(feature: Feature, other: Feature) -> bool {
    let direct = feature.row().unwrap().needs;
    direct.iter().any(|n| *n == other || needs(*n, other))
}

#[test]
fn each_feature_has_a_row_a_name_and_a_place_of_its_own() {
    let mut names = HashSet::new();
    let mut places = HashSet::new();
    for (number, row) in all().enumerate() {
        assert_eq!(row.feature as usize, number);
        assert_eq!(row.feature.place(), (row.word, row.bit));
        assert!(row.bit < 32, "{}", row.name);
        assert!(names.insert(row.name), "{}: twice", row.name);
        assert!(places.insert((row.word as u32, row.bit)), "{}", row.name);
        assert_eq!(Feature::by_name(row.name), Some(row.feature));
        assert!(row.name.len() < 40 && !row.name.contains([' ', ',', '-']));
        if let Offer::Never(why) | Offer::Varies(why) = row.offer {
            assert!(why.len() < 96, "{}: it fits into the interface", row.name);
            let bits = (row.cr4, row.xcr0, row.efer);
            assert_eq!(bits, (0, 0, 0), "{}: nothing comes of it", row.name);
        }
        assert!(!needs(row.feature, row.feature), "{}: a circle", row.name);
    }
    assert_eq!(Feature::by_name("3dnow!"), None);
    for (number, word) in Word::ALL.into_iter().enumerate() {
        assert_eq!(word as usize, number);
    }
}

#[test]
fn a_host_with_everything_gives_what_is_offered_and_no_more() {
    let guest = all_but(&[]);
    for row in all() {
        let has = guest.has(row.feature);
        assert_eq!(has, row.feature.can_be_taken_away(), "{}", row.name);
    }
    assert_eq!(guest.xcr0(), 0x2e7);
    let all_efer = efer::SCE | efer::LME | efer::LMA | efer::NXE | efer::FFXSR;
    assert_eq!(guest.efer(), all_efer);
    // Of what is not in the table nothing is known: VMXE, SMXE, CET, PKS, UINTR, FRED, and bits of the future.
    for hidden in [13, 14, 15, 19, 23, 24, 25, 32, 63] {
        assert_eq!(guest.cr4() >> hidden & 1, 0, "{hidden}");
    }
}

#[test]
fn a_host_without_a_feature_has_no_guest_with_it() {
    for missing in offered().filter(|row| row.offer == Offer::Host) {
        let cpuid = host(|feature| feature != missing.feature);
        let guest = on(&cpuid, BACKEND, &[]);
        for row in offered() {
            let gone = row.feature == missing.feature || needs(row.feature, missing.feature);
            assert_eq!(
                guest.has(row.feature),
                !gone,
                "{} without {}",
                row.name,
                missing.name
            );
        }
    }
    let nothing = on(&|_, _| [0; 4], BACKEND, &[]);
    let always = |row: &&Row| row.offer == Offer::Always && row.needs.is_empty();
    for row in all() {
        assert_eq!(nothing.has(row.feature), always(&row), "{}", row.name);
    }
}

#[test]
fn what_is_taken_away_takes_its_bits_along() {
    let whole = all_but(&[]);
    for taken in offered() {
        let guest = all_but(&[taken.feature]);
        let left = |of: fn(&Row) -> u64| {
            let kept = offered().filter(|row| guest.has(row.feature));
            kept.fold(0, |bits, row| bits | of(row))
        };
        assert!(!guest.has(taken.feature), "{}", taken.name);
        assert_eq!(guest.cr4(), UNGUARDED_CR4 | left(|row| row.cr4));
        assert_eq!(guest.xcr0(), left(|row| row.xcr0));
        assert_eq!(guest.efer(), left(|row| row.efer));
        assert_eq!(guest.cr4() & !whole.cr4(), 0);
        assert_eq!(guest.cr4() & taken.cr4, 0, "{}: CR4", taken.name);
    }
    let without_xsave = all_but(&[Feature::Xsave]);
    assert_eq!(without_xsave.xcr0(), 0);
    for gone in ["avx", "avx2", "avx512f", "fma", "pku", "xsaves", "vaes"] {
        assert!(
            !without_xsave.has(Feature::by_name(gone).unwrap()),
            "{gone}"
        );
    }
    assert!(without_xsave.has(Feature::Sse42) && without_xsave.has(Feature::Gfni));
}

#[test]
fn what_backend_or_host_cannot_switch_is_not_offered() {
    let backend = Features {
        xcr0: 7,
        cr4: !(cr4::SMAP | cr4::LA57),
        ..BACKEND
    };
    let guest = on(&all_ones, backend, &[]);
    for gone in ["avx512f", "avx512bw", "pku", "smap", "la57"] {
        assert!(!guest.has(Feature::by_name(gone).unwrap()), "{gone}");
    }
    assert!(guest.has(Feature::Avx2) && guest.has(Feature::Smep));
    let lacks = |feature| (feature == Feature::Rdtscp).then_some("no RDTSCP");
    let judge = Judge::new(&all_ones, BACKEND, &lacks, FeatureSet::default());
    assert!(!judge.features().has(Feature::Rdtscp));
    let verdict = judge.report().find(|v| v.row.feature == Feature::Rdtscp);
    assert_eq!(verdict.unwrap().to_string(), "no RDTSCP");
}

#[test]
fn the_report_says_what_the_guest_has_and_why_not() {
    let mut taken_away = FeatureSet::default();
    taken_away.insert(Feature::Avx);
    let cpuid = host(|feature| !matches!(feature, Feature::La57 | Feature::Hypervisor));
    let judge = Judge::new(&cpuid, BACKEND, &|_| None, taken_away);
    let guest = judge.features();
    let text = |feature| {
        let verdict = judge.report().find(|v| v.row.feature == feature).unwrap();
        (verdict.host, verdict.guest(), verdict.to_string())
    };
    for verdict in judge.report() {
        let has = verdict.guest().unwrap_or(false);
        assert_eq!(has, guest.has(verdict.row.feature));
        assert_eq!(has, verdict.to_string().is_empty(), "{}", verdict.row.name);
    }
    let (no, yes) = (Some(false), Some(true));
    let absent = "the host's processor does not have it";
    assert_eq!(text(Feature::La57), (false, no, absent.into()));
    let taken = "the guest's description takes it away";
    assert_eq!(text(Feature::Avx), (true, no, taken.into()));
    assert_eq!(text(Feature::Avx2), (true, no, "it needs avx".into()));
    assert_eq!(text(Feature::Hypervisor), (false, yes, String::new()));
    let varies = "as the guest sets CR4.OSXSAVE";
    assert_eq!(text(Feature::Osxsave), (true, None, varies.into()));
}

#[test]
fn leaves_beyond_the_last_one_hold_nothing() {
    // What Intel's processors do: the last leaf again.
    let repeats = |leaf: u32, _| match leaf {
        0 => [4, 0, 0, 0],
        0x8000_0000 => [0x8000_0004, 0, 0, 0],
        _ => [u32::MAX; 4],
    };
    let guest = on(&repeats, BACKEND, &[]);
    assert!(guest.has(Feature::Sse42) && guest.has(Feature::Nx));
    assert!(!guest.has(Feature::Smep) && !guest.has(Feature::Xsaveopt));
    assert!(!guest.has(Feature::Clzero));
    let one_subleaf = |leaf, subleaf| match (leaf, subleaf) {
        (7, _) => [0, u32::MAX, u32::MAX, u32::MAX],
        _ => all_ones(leaf, subleaf),
    };
    assert!(!on(&one_subleaf, BACKEND, &[]).has(Feature::AvxVnni));
}

#[test]
fn amd_repeats_what_leaf_1_says_of_the_guest() {
    let guest = all_but(&[Feature::Mtrr, Feature::Mmx]);
    let [first, again] = [Word::Leaf1Edx, Word::Extended1Edx].map(|word| guest.word(word));
    assert_eq!(again & REPEATED, first & REPEATED);
    assert_eq!(again & (1 << 12 | 1 << 23), 0);
    let intel = on(&host(|_| true), BACKEND, &[]);
    assert_eq!(intel.word(Word::Extended1Edx) & REPEATED, 0);
}
