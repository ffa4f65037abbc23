// SPDX-License-Identifier: MIT OR Apache-2.0
//! The walk that is looked at: it sees what the walker sees, level by level, and marks nothing.

use super::*;
use palacios_core::addr::NotRam;
use palacios_core::memory::walk::trace::*;

/// Beyond the tables no memory is; the last page of them was never touched.
impl SeenTables for Tables {
    fn see_entry(&mut self, at: Gpa, size: u8) -> Result<Option<u64>, NotRam> {
        match at.0 / 4096 {
            PAGES.. => Err(NotRam(at)),
            page if page == PAGES - 1 => Ok(None),
            _ => Ok(Some(self.get(at.0, size))),
        }
    }
}

fn traced(mode: &Mode, mut tables: Tables) -> Trace {
    let before = tables.clone();
    let traced = trace(&mode.paging, Gva(mode.gva), &mut tables);
    assert_eq!(tables, before, "{}: something was marked", mode.name);
    traced
}

#[test]
fn every_level_is_seen() {
    for mode in modes() {
        let tables = mode.tables();
        let seen = traced(&mode, tables.clone());
        let page = mode.walk(READ, &mut tables.clone()).unwrap();
        assert_eq!(seen.end, TraceEnd::Mapped(page), "{}", mode.name);
        assert_eq!(seen.entries().len(), mode.indices.len(), "{}", mode.name);
        let smallest = (1..=seen.entries()[0].level).rev();
        for (n, (entry, level)) in seen.entries().iter().zip(smallest).enumerate() {
            let at = mode.entry_at(n);
            let value = tables.get(at, mode.entry_bytes);
            assert_eq!((entry.level, entry.at, entry.value), (level, at, value));
            let leaf = n + 1 == mode.indices.len();
            let rights = EntryBits::WRITABLE | EntryBits::USER | EntryBits::EXECUTABLE;
            let mut bits = EntryBits::PRESENT | rights;
            bits.set(EntryBits::LEAF, leaf);
            assert_eq!(entry.bits, bits, "{}, level {level}", mode.name);
        }
    }
}

#[test]
fn modes_have_their_names() {
    let names: Vec<PagingMode> = modes().iter().map(|m| m.paging.paging_mode()).collect();
    use PagingMode::{FiveLevel, FourLevel, Legacy, Pae};
    let expected = [
        Legacy, Legacy, Pae, Pae, FourLevel, FourLevel, FourLevel, FiveLevel,
    ];
    assert_eq!(names, expected);
    let off = Paging {
        cr0: cr0::PE,
        ..paging(false, 0)
    };
    let seen = trace(&off, Gva(0xffff_ffff_0000_1234), &mut Tables::new());
    assert_eq!(
        (seen.mode, seen.entries().len()),
        (PagingMode::Off, 0),
        "{seen:?}"
    );
    assert!(matches!(seen.end, TraceEnd::Mapped(page) if page.gpa == Gpa(0x1234)));
}

#[test]
fn it_ends_where_an_entry_is_not_present() {
    for mode in modes() {
        for level in 0..mode.indices.len() {
            let seen = traced(&mode, mode.with(level, 0, P));
            assert_eq!(seen.end, TraceEnd::NotPresent, "{}", mode.name);
            assert_eq!(seen.entries().len(), level + 1);
            assert_eq!(seen.entries()[level].bits, EntryBits::empty());
        }
    }
}

#[test]
fn rights_are_those_of_each_entry() {
    let rights = [
        (EntryBits::WRITABLE, 0, W),
        (EntryBits::USER, 0, U),
        (EntryBits::EXECUTABLE, NX, 0),
        (EntryBits::ACCESSED, A, 0),
    ];
    for mode in modes().iter().filter(|mode| mode.entry_bytes == 8) {
        for (level, (bit, set, clear)) in (0..mode.indices.len())
            .filter(|level| !(mode.is_pae() && *level == 0))
            .flat_map(|level| rights.map(|right| (level, right)))
        {
            let seen = traced(mode, mode.with(level, set, clear));
            let has = |n: usize| seen.entries()[n].bits.contains(bit);
            let accessed = bit == EntryBits::ACCESSED;
            for n in (0..mode.indices.len()).filter(|n| !(mode.is_pae() && *n == 0)) {
                assert_eq!(has(n), (n == level) == accessed, "{}, {bit:?}", mode.name);
            }
            let TraceEnd::Mapped(page) = seen.end else {
                panic!("{seen:?}");
            };
            assert_eq!(page.writable, bit != EntryBits::WRITABLE);
            assert_eq!(page.user, bit != EntryBits::USER);
            assert_eq!(page.executable, bit != EntryBits::EXECUTABLE);
        }
    }
}

/// A supervisor's read would be refused by SMAP, a user's by its key: both are no business of the tables.
#[test]
fn what_guards_the_page_does_not_end_it() {
    for mut mode in modes() {
        mode.paging.cr4 |= cr4::SMAP | cr4::PKE;
        mode.paging.pkru = u32::MAX;
        let seen = traced(&mode, mode.tables());
        assert!(matches!(seen.end, TraceEnd::Mapped(_)), "{}", mode.name);
    }
}

#[test]
fn reserved_bits_and_wild_addresses_end_it() {
    let four = &modes()[4];
    let seen = traced(four, four.with(1, 1 << 51, 0));
    assert_eq!((seen.end, seen.entries().len()), (TraceEnd::Reserved, 2));
    assert!(seen.entries()[1].bits.contains(EntryBits::RESERVED));
    let wild = trace(&four.paging, Gva(1 << 47), &mut four.tables());
    assert_eq!(
        (wild.end, wild.entries().len()),
        (TraceEnd::NonCanonical, 0)
    );
}

#[test]
fn a_table_in_a_hole_and_one_that_was_never_touched() {
    for mode in modes().iter().filter(|mode| mode.indices.len() > 1) {
        let address = if mode.entry_bytes == 4 {
            !0xfff
        } else {
            0xf_ffff_ffff_f000
        };
        let first = mode.indices[1] * u64::from(mode.entry_bytes);
        let hole = 0x8000_0000u64;
        let seen = traced(mode, mode.with(0, hole, address));
        assert_eq!(seen.end, TraceEnd::NoTable(Gpa(hole + first)));
        assert_eq!(seen.entries().len(), 1);

        let untouched = (PAGES - 1) * 4096;
        let seen = traced(mode, mode.with(0, untouched, address));
        assert_eq!(seen.end, TraceEnd::NotPresent);
        let last = seen.entries()[1];
        assert_eq!((last.value, last.bits), (0, EntryBits::UNTOUCHED));
    }
}
