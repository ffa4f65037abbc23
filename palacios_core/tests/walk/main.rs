// SPDX-License-Identifier: MIT OR Apache-2.0
//! The page-table walker: each mode and each bit by table, and all of them by chance against a second walker that is
//! written down mode by mode, as the manual draws them.

mod second;
mod trace;

use palacios_core::addr::{Gpa, Gva};
use palacios_core::memory::walk::error_code::*;
use palacios_core::memory::walk::*;
use palacios_core::state::{cr0, cr4, efer, rflags};
use std::convert::Infallible;

const P: u64 = 1;
const W: u64 = 2;
const U: u64 = 4;
const A: u64 = 0x20;
const D: u64 = 0x40;
const PS: u64 = 0x80;
const NX: u64 = 1 << 63;

/// Table memory: a few pages at 0. All ones beyond.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Tables {
    bytes: Vec<u8>,
    /// Another CPU is always faster.
    lost: bool,
}

const PAGES: u64 = 6;

impl Tables {
    fn new() -> Self {
        Tables {
            bytes: vec![0; (PAGES * 4096) as usize],
            lost: false,
        }
    }
    fn get(&self, at: u64, size: u8) -> u64 {
        let mut entry = [0; 8];
        match self.bytes.get(at as usize..at as usize + usize::from(size)) {
            Some(bytes) => entry[..usize::from(size)].copy_from_slice(bytes),
            None => return u64::MAX >> (64 - 8 * size),
        }
        u64::from_le_bytes(entry)
    }
    fn set(&mut self, at: u64, size: u8, entry: u64) {
        let range = at as usize..at as usize + usize::from(size);
        self.bytes[range].copy_from_slice(&entry.to_le_bytes()[..usize::from(size)]);
    }
}

impl GuestTables for Tables {
    type Error = Infallible;
    fn read_entry(&mut self, at: Gpa, size: u8) -> Result<u64, Infallible> {
        Ok(self.get(at.0, size))
    }
    fn compare_exchange_entry(
        &mut self,
        at: Gpa,
        size: u8,
        old: u64,
        new: u64,
    ) -> Result<bool, Infallible> {
        if self.lost {
            return Ok(false);
        }
        assert_eq!(self.get(at.0, size), old);
        if (at.0 as usize) < self.bytes.len() {
            self.set(at.0, size, new);
        }
        Ok(true)
    }
}

const READ: Access = Access {
    kind: AccessKind::Read,
    privilege: Privilege::Supervisor,
};
const WRITE_: Access = Access {
    kind: AccessKind::Write,
    privilege: Privilege::Supervisor,
};
const EXECUTE: Access = Access {
    kind: AccessKind::Execute,
    privilege: Privilege::Supervisor,
};

fn user(access: Access) -> Access {
    Access {
        privilege: Privilege::User,
        ..access
    }
}

fn implicit(access: Access) -> Access {
    Access {
        privilege: Privilege::Implicit,
        ..access
    }
}

fn fault<T>(error_code: u32) -> Result<T, WalkError<Infallible>> {
    Err(WalkError::PageFault { error_code })
}

fn paging(long: bool, cr4: u64) -> Paging {
    Paging {
        cr0: cr0::PE | cr0::PG | cr0::WP,
        cr3: 0,
        cr4,
        efer: if long {
            efer::LMA | efer::LME | efer::NXE
        } else {
            efer::NXE
        },
        rflags: 0,
        pkru: 0,
        physical_bits: 40,
        gigabyte_pages: true,
    }
}

/// One mode: its registers, an address, the way to the page, the page's size and what is mapped.
struct Mode {
    name: &'static str,
    paging: Paging,
    gva: u64,
    entry_bytes: u8,
    /// Index in each table, from the root on.
    indices: &'static [u64],
    page_shift: u8,
    /// The leaf's address part and what it maps.
    leaf: u64,
    gpa: u64,
}

fn modes() -> Vec<Mode> {
    let long = |cr4| paging(true, cr4 | cr4::PAE);
    let gva4 = 0xffff_8123_4567_89ab;
    let gva5 = 0xff12_8123_4567_89ab;
    vec![
        Mode {
            name: "32-bit, 4 KiB",
            paging: paging(false, 0),
            gva: 0xffff_0000_c0de_f123,
            entry_bytes: 4,
            indices: &[0x303, 0x1ef],
            page_shift: 12,
            leaf: 0x1234_5000,
            gpa: 0x1234_5123,
        },
        Mode {
            name: "32-bit, 4 MiB, address above 4 GiB",
            paging: paging(false, cr4::PSE),
            gva: 0xc0de_f123,
            entry_bytes: 4,
            indices: &[0x303],
            page_shift: 22,
            leaf: 0x1240_0000 | 0xab << 13 | PS,
            gpa: 0xab_125e_f123,
        },
        Mode {
            name: "PAE, 4 KiB",
            paging: paging(false, cr4::PAE),
            gva: 0xc0de_f123,
            entry_bytes: 8,
            indices: &[3, 0x006, 0x1ef],
            page_shift: 12,
            leaf: 0xab_1234_5000,
            gpa: 0xab_1234_5123,
        },
        Mode {
            name: "PAE, 2 MiB",
            paging: paging(false, cr4::PAE),
            gva: 0xc0de_f123,
            entry_bytes: 8,
            indices: &[3, 0x006],
            page_shift: 21,
            leaf: 0xab_1220_0000 | PS,
            gpa: 0xab_123e_f123,
        },
        Mode {
            name: "4 levels, 4 KiB",
            paging: long(0),
            gva: gva4,
            entry_bytes: 8,
            indices: &[0x102, 0x08d, 0x02b, 0x078],
            page_shift: 12,
            leaf: 0xab_1234_5000,
            gpa: 0xab_1234_59ab,
        },
        Mode {
            name: "4 levels, 2 MiB",
            paging: long(0),
            gva: gva4,
            entry_bytes: 8,
            indices: &[0x102, 0x08d, 0x02b],
            page_shift: 21,
            leaf: 0xab_1220_0000 | PS,
            gpa: 0xab_1227_89ab,
        },
        Mode {
            name: "4 levels, 1 GiB",
            paging: long(0),
            gva: gva4,
            entry_bytes: 8,
            indices: &[0x102, 0x08d],
            page_shift: 30,
            leaf: 0xab_0000_0000 | PS,
            gpa: 0xab_0567_89ab,
        },
        Mode {
            name: "5 levels, 4 KiB",
            paging: long(cr4::LA57),
            gva: gva5,
            entry_bytes: 8,
            indices: &[0x112, 0x102, 0x08d, 0x02b, 0x078],
            page_shift: 12,
            leaf: 0xab_1234_5000,
            gpa: 0xab_1234_59ab,
        },
    ]
}

impl Mode {
    fn is_pae(&self) -> bool {
        self.name.starts_with("PAE")
    }

    /// Where the entry of each level lies: tables are pages 0, 1, 2, …
    fn entry_at(&self, level: usize) -> u64 {
        level as u64 * 4096 + self.indices[level] * u64::from(self.entry_bytes)
    }

    /// Tables that allow everything.
    fn tables(&self) -> Tables {
        let mut tables = Tables::new();
        for level in 0..self.indices.len() {
            let next = (level as u64 + 1) * 4096;
            let entry = match level {
                _ if level + 1 == self.indices.len() => self.leaf | P | W | U,
                0 if self.is_pae() => next | P,
                _ => next | P | W | U,
            };
            tables.set(self.entry_at(level), self.entry_bytes, entry);
        }
        tables
    }

    /// Changes the entry at `level`.
    fn with(&self, level: usize, set: u64, clear: u64) -> Tables {
        let mut tables = self.tables();
        let at = self.entry_at(level);
        let entry = tables.get(at, self.entry_bytes);
        tables.set(at, self.entry_bytes, entry & !clear | set);
        tables
    }

    fn walk(
        &self,
        access: Access,
        tables: &mut Tables,
    ) -> Result<Translation, WalkError<Infallible>> {
        translate(&self.paging, access, Gva(self.gva), tables)
    }
}

#[test]
fn every_mode_translates() {
    for mode in modes() {
        let page = mode.walk(WRITE_, &mut mode.tables()).unwrap();
        let expected = Translation {
            gpa: Gpa(mode.gpa),
            page_shift: mode.page_shift,
            writable: true,
            user: true,
            executable: true,
        };
        assert_eq!(page, expected, "{}", mode.name);
    }
}

#[test]
fn each_level_can_refuse() {
    for mode in modes() {
        for level in 0..mode.indices.len() {
            let what = format!("{}, level {level}", mode.name);
            let rights = !(mode.is_pae() && level == 0);
            let mut absent = mode.with(level, 0, P);
            assert_eq!(
                mode.walk(user(WRITE_), &mut absent),
                fault(WRITE | USER),
                "{what}"
            );
            assert_eq!(mode.walk(READ, &mut absent), fault(0), "{what}");
            if !rights {
                continue;
            }
            let mut read_only = mode.with(level, 0, W);
            assert_eq!(
                mode.walk(WRITE_, &mut read_only),
                fault(PRESENT | WRITE),
                "{what}"
            );
            assert!(!mode.walk(READ, &mut read_only).unwrap().writable);
            let mut kernel = mode.with(level, 0, U);
            assert_eq!(
                mode.walk(user(READ), &mut kernel),
                fault(PRESENT | USER),
                "{what}"
            );
            assert!(!mode.walk(READ, &mut kernel).unwrap().user);
            if mode.entry_bytes == 8 {
                let mut data = mode.with(level, NX, 0);
                assert_eq!(
                    mode.walk(EXECUTE, &mut data),
                    fault(PRESENT | FETCH),
                    "{what}"
                );
                assert!(!mode.walk(READ, &mut data).unwrap().executable);
            }
        }
    }
}

#[test]
fn reserved_bits_fault() {
    for mode in modes() {
        let last = mode.indices.len() - 1;
        let check = |level: usize, bit: u64, paging: Paging| {
            let mut tables = mode.with(level, bit, 0);
            let result = translate(&paging, READ, Gva(mode.gva), &mut tables);
            assert_eq!(
                result,
                fault(PRESENT | RESERVED),
                "{}, level {level}, {bit:#x}",
                mode.name
            );
        };
        if mode.entry_bytes == 8 {
            for level in 0..=last {
                check(level, 1 << 40, mode.paging);
                check(level, 1 << 51, mode.paging);
                let no_nx = Paging {
                    efer: mode.paging.efer & !efer::NXE,
                    ..mode.paging
                };
                check(level, NX, no_nx);
            }
        }
        match (mode.page_shift, mode.is_pae()) {
            (22, _) => check(last, 1 << 21, mode.paging),
            (21 | 30, _) => {
                check(last, 1 << 13, mode.paging);
                check(last, 1 << (mode.page_shift - 1), mode.paging);
            }
            _ => {}
        }
        if mode.is_pae() {
            // All but bit 5, which QEMU sets.
            for bit in [1, 2, 6, 7, 8, 52, 62, 63] {
                check(0, 1 << bit, mode.paging);
            }
            check(1, 1 << 52, mode.paging);
        } else if mode.paging.efer & efer::LMA != 0 {
            check(0, PS, mode.paging);
            // In long mode bits 52–62 are software's.
            assert!(mode
                .walk(READ, &mut mode.with(last, 0x7ff << 52, 0))
                .is_ok());
        }
        if mode.page_shift == 30 {
            check(
                last,
                0,
                Paging {
                    gigabyte_pages: false,
                    ..mode.paging
                },
            );
        }
        // All ones, as read where there is no RAM.
        if mode.entry_bytes == 8 && last > 0 {
            let mut lost = mode.with(0, 0xff_0000_0000, 0);
            assert_eq!(
                mode.walk(READ, &mut lost),
                fault(PRESENT | RESERVED),
                "{}",
                mode.name
            );
        }
    }
}

#[test]
fn a_pse_36_address_ends_at_the_cpus_width() {
    let mode = &modes()[1];
    let narrow = Paging {
        physical_bits: 36,
        ..mode.paging
    };
    assert_eq!(
        translate(&narrow, READ, Gva(mode.gva), &mut mode.tables()),
        fault(PRESENT | RESERVED)
    );
    let mut tables = mode.with(0, 0, 0xf0 << 13);
    assert_eq!(
        translate(&narrow, READ, Gva(mode.gva), &mut tables)
            .unwrap()
            .gpa,
        Gpa(0xb_125e_f123)
    );
    // Without PSE the same entry leads to a table.
    let plain = Paging {
        cr4: 0,
        ..mode.paging
    };
    let mut tables = mode.with(0, 0x1000, 0x1240_0000 | 0xff << 13);
    tables.set(0x1000 + 0x1ef * 4, 4, 0x5000 | P);
    assert_eq!(
        translate(&plain, READ, Gva(mode.gva), &mut tables)
            .unwrap()
            .gpa,
        Gpa(0x5123)
    );
}

#[test]
fn accessed_and_dirty_are_set_by_walks_that_succeed() {
    for mode in modes() {
        let last = mode.indices.len() - 1;
        for (access, leaf_marks) in [(READ, A), (EXECUTE, A), (WRITE_, A | D)] {
            let (before, mut tables) = (mode.tables(), mode.tables());
            mode.walk(access, &mut tables).unwrap();
            let mut expected = before.clone();
            for level in 0..=last {
                let marks = match level {
                    0 if mode.is_pae() => 0,
                    _ if level == last => leaf_marks,
                    _ => A,
                };
                let at = mode.entry_at(level);
                expected.set(
                    at,
                    mode.entry_bytes,
                    before.get(at, mode.entry_bytes) | marks,
                );
            }
            assert!(tables == expected, "{} {access:?}", mode.name);
            // Once set, no write is needed.
            tables.lost = true;
            mode.walk(access, &mut tables).unwrap();
            let mut raced = mode.tables();
            raced.lost = true;
            assert_eq!(mode.walk(access, &mut raced), Err(WalkError::Raced));
        }
        let (before, mut refused) = (mode.with(last, 0, W), mode.with(last, 0, W));
        mode.walk(user(WRITE_), &mut refused).unwrap_err();
        assert!(refused == before, "{}", mode.name);
    }
}

#[test]
fn registers_change_the_rules() {
    for mode in modes() {
        let last = mode.indices.len() - 1;
        let walk = |paging: Paging, access, tables: &mut Tables| {
            translate(&paging, access, Gva(mode.gva), tables)
        };
        let is_ok =
            |result: Result<Translation, _>| assert!(result.is_ok(), "{} {result:?}", mode.name);
        let base = mode.paging;
        // Without CR0.WP, CPL 0 writes anywhere.
        let no_wp = Paging {
            cr0: base.cr0 & !cr0::WP,
            ..base
        };
        is_ok(walk(no_wp, WRITE_, &mut mode.with(last, 0, W)));
        assert_eq!(
            walk(no_wp, user(WRITE_), &mut mode.with(last, 0, W)),
            fault(PRESENT | WRITE | USER)
        );
        // SMEP: CPL 0 executes no page of CPL 3.
        let smep = Paging {
            cr4: base.cr4 | cr4::SMEP,
            ..base
        };
        assert_eq!(
            walk(smep, EXECUTE, &mut mode.tables()),
            fault(PRESENT | FETCH)
        );
        is_ok(walk(smep, user(EXECUTE), &mut mode.tables()));
        is_ok(walk(smep, EXECUTE, &mut mode.with(last, 0, U)));
        is_ok(walk(smep, READ, &mut mode.tables()));
        // SMAP: nor does it read or write one, unless RFLAGS.AC says so and the access is its own.
        let smap = Paging {
            cr4: base.cr4 | cr4::SMAP,
            ..base
        };
        let eased = Paging {
            rflags: rflags::AC,
            ..smap
        };
        assert_eq!(walk(smap, READ, &mut mode.tables()), fault(PRESENT));
        assert_eq!(
            walk(smap, WRITE_, &mut mode.tables()),
            fault(PRESENT | WRITE)
        );
        is_ok(walk(smap, EXECUTE, &mut mode.tables()));
        is_ok(walk(smap, READ, &mut mode.with(last, 0, U)));
        is_ok(walk(smap, user(READ), &mut mode.tables()));
        is_ok(walk(eased, WRITE_, &mut mode.tables()));
        assert_eq!(
            walk(eased, implicit(READ), &mut mode.tables()),
            fault(PRESENT)
        );
        // A fetch is told as such only where it can be refused.
        let plain = Paging {
            efer: base.efer & !efer::NXE,
            ..base
        };
        assert_eq!(walk(plain, EXECUTE, &mut mode.with(last, 0, P)), fault(0));
        let told = if mode.entry_bytes == 8 { FETCH } else { 0 };
        assert_eq!(walk(base, EXECUTE, &mut mode.with(last, 0, P)), fault(told));
    }
}

#[test]
fn protection_keys_guard_user_pages() {
    let mode = &modes()[4];
    let leaf = mode.indices.len() - 1;
    let keyed = |pkru, cr0| Paging {
        cr4: mode.paging.cr4 | cr4::PKE,
        pkru,
        cr0,
        ..mode.paging
    };
    let walk = |paging: Paging, access, clear| {
        translate(
            &paging,
            access,
            Gva(mode.gva),
            &mut mode.with(leaf, 5 << 59, clear),
        )
        .map(|_| ())
    };
    let (no_access, no_write) = (1 << 10, 2 << 10);
    let wp = mode.paging.cr0;
    let denied = PRESENT | PROTECTION_KEY;
    assert_eq!(
        walk(keyed(no_access, wp), user(READ), 0),
        fault(denied | USER)
    );
    assert_eq!(walk(keyed(no_access, wp), READ, 0), fault(denied));
    assert_eq!(walk(keyed(no_access, wp), user(EXECUTE), 0), Ok(()));
    assert_eq!(walk(keyed(no_access, wp), READ, U), Ok(()));
    assert_eq!(walk(keyed(no_write, wp), user(READ), 0), Ok(()));
    assert_eq!(
        walk(keyed(no_write, wp), user(WRITE_), 0),
        fault(denied | USER | WRITE)
    );
    assert_eq!(walk(keyed(no_write, wp), WRITE_, 0), fault(denied | WRITE));
    assert_eq!(walk(keyed(no_write, wp & !cr0::WP), WRITE_, 0), Ok(()));
    assert_eq!(
        walk(keyed(no_write, wp & !cr0::WP), user(WRITE_), 0),
        fault(denied | USER | WRITE)
    );
    assert_eq!(walk(keyed(!(3 << 10), wp), user(WRITE_), 0), Ok(()));
    assert_eq!(
        walk(
            Paging {
                pkru: u32::MAX,
                ..mode.paging
            },
            user(WRITE_),
            0
        ),
        Ok(())
    );
}

#[test]
fn addresses_must_be_canonical() {
    let mut tables = Tables::new();
    for (cr4, at, canonical) in [
        (0, 0x7fff_ffff_ffff, true),
        (0, 0x8000_0000_0000, false),
        (0, 0xffff_7fff_ffff_ffff, false),
        (0, 0xffff_8000_0000_0000, true),
        (cr4::LA57, 0x8000_0000_0000, true),
        (cr4::LA57, 0x00ff_ffff_ffff_ffff, true),
        (cr4::LA57, 0x0100_0000_0000_0000, false),
        (cr4::LA57, 0xff00_0000_0000_0000, true),
    ] {
        let result = translate(&paging(true, cr4 | cr4::PAE), READ, Gva(at), &mut tables);
        let expected = if canonical {
            fault(0)
        } else {
            Err(WalkError::NonCanonical)
        };
        assert_eq!(result, expected, "{at:#x}");
    }
}

#[test]
fn without_paging_addresses_are_physical() {
    let off = Paging {
        cr0: cr0::PE,
        ..paging(false, 0)
    };
    let page = translate(
        &off,
        user(WRITE_),
        Gva(0xffff_ffff_1234_5678),
        &mut Tables::new(),
    )
    .unwrap();
    assert_eq!(page.gpa, Gpa(0x1234_5678));
}
