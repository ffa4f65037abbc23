// SPDX-License-Identifier: MIT OR Apache-2.0
//! The page-table walker: each mode and each bit by table, and all of them by chance against a second walker that is
//! written down mode by mode, as the manual draws them.
#![allow(missing_docs)]

use palacios_core::addr::{Gpa, Gva};
use palacios_core::memory::walk::error_code::*;
use palacios_core::memory::walk::*;
use palacios_core::state::{cr0, cr4, efer, rflags};
use proptest::prelude::*;
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
            for bit in [1, 2, 5, 6, 7, 8, 52, 62, 63] {
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

/// The second walker: rights only, no A and D bits; one function a mode, entries spelled out.
struct Second<'a> {
    paging: &'a Paging,
    tables: &'a Tables,
    /// The error code so far.
    code: u32,
    /// The entries that carry rights.
    entries: Vec<u64>,
}

const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

impl Second<'_> {
    fn visit(&mut self, at: u64, size: u8, reserved: impl Fn(u64) -> u64) -> Result<u64, u32> {
        let entry = self.tables.get(at, size);
        self.entries.push(entry);
        match (entry & P != 0, entry & reserved(entry) != 0) {
            (false, _) => Err(self.code),
            (true, true) => Err(self.code | 9),
            (true, false) => Ok(entry),
        }
    }

    /// Address bits beyond the CPU's width.
    fn beyond(&self) -> u64 {
        ADDRESS & (!0 << self.paging.physical_bits)
    }

    fn common(&self) -> u64 {
        self.beyond()
            | if self.paging.efer & efer::NXE != 0 {
                0
            } else {
                NX
            }
    }

    fn legacy(&mut self, gva: u64) -> Result<u64, u32> {
        let pse = self.paging.cr4 & cr4::PSE != 0;
        let above = (self.beyond() & 0xff_0000_0000) >> 19;
        let large = |e: u64| pse && e & PS != 0;
        let pde_at = (self.paging.cr3 & 0xffff_f000) + (gva >> 22 & 1023) * 4;
        let pde = self.visit(pde_at, 4, |e| if large(e) { 1 << 21 | above } else { 0 })?;
        if large(pde) {
            return Ok((pde & 0xffc0_0000) + ((pde >> 13 & 0xff) << 32) + (gva & 0x3f_ffff));
        }
        let pte = self.visit((pde & 0xffff_f000) + (gva >> 12 & 1023) * 4, 4, |_| 0)?;
        Ok((pte & 0xffff_f000) + (gva & 0xfff))
    }

    fn pae(&mut self, gva: u64) -> Result<u64, u32> {
        let beyond = self.beyond();
        let top = (self.paging.cr3 & 0xffff_ffe0) + (gva >> 30 & 3) * 8;
        let pdpte = self.visit(top, 8, |_| 0x1e6 | beyond | 0xfff << 52)?;
        self.entries.clear();
        self.directory(pdpte & ADDRESS, gva, self.common() | 0x7ff << 52)
    }

    fn long(&mut self, gva: u64) -> Result<u64, u32> {
        let common = self.common();
        let mut table = self.paging.cr3 & ADDRESS;
        if self.paging.cr4 & cr4::LA57 != 0 {
            table = self.visit(table + (gva >> 48 & 511) * 8, 8, |_| common | PS)? & ADDRESS;
        }
        table = self.visit(table + (gva >> 39 & 511) * 8, 8, |_| common | PS)? & ADDRESS;
        let huge = if self.paging.gigabyte_pages {
            common | 0x3fff_e000
        } else {
            PS
        };
        let reserved = |e: u64| if e & PS != 0 { huge } else { common };
        let pdpte = self.visit(table + (gva >> 30 & 511) * 8, 8, reserved)?;
        if pdpte & PS != 0 {
            return Ok((pdpte & 0x000f_ffff_c000_0000) + (gva & 0x3fff_ffff));
        }
        self.directory(pdpte & ADDRESS, gva, common)
    }

    fn directory(&mut self, table: u64, gva: u64, common: u64) -> Result<u64, u32> {
        let reserved = |e: u64| {
            if e & PS != 0 {
                common | 0x1f_e000
            } else {
                common
            }
        };
        let pde = self.visit(table + (gva >> 21 & 511) * 8, 8, reserved)?;
        if pde & PS != 0 {
            return Ok((pde & 0x000f_ffff_ffe0_0000) + (gva & 0x1f_ffff));
        }
        let pte = self.visit((pde & ADDRESS) + (gva >> 12 & 511) * 8, 8, |_| common)?;
        Ok((pte & ADDRESS) + (gva & 0xfff))
    }
}

fn second(paging: &Paging, access: Access, gva: u64, tables: &Tables) -> Result<u64, u32> {
    let long = paging.efer & efer::LMA != 0;
    let pae = paging.cr4 & cr4::PAE != 0 || long;
    let nxe = paging.efer & efer::NXE != 0;
    let mut code = match access.kind {
        AccessKind::Read => 0,
        AccessKind::Write => 2,
        AccessKind::Execute if pae && nxe || paging.cr4 & cr4::SMEP != 0 => 16,
        AccessKind::Execute => 0,
    };
    if access.privilege == Privilege::User {
        code += 4;
    }
    let mut walk = Second {
        paging,
        tables,
        code,
        entries: Vec::new(),
    };
    let gpa = match (long, pae) {
        (true, _) => walk.long(gva),
        (false, true) => walk.pae(gva),
        (false, false) => walk.legacy(gva),
    }?;
    judge(paging, access, &walk.entries)
        .then_some(gpa)
        .ok_or(code | 1)
}

/// The manual's list of who may do what (SDM 3A: 4.6.1), keys left out.
fn judge(paging: &Paging, access: Access, entries: &[u64]) -> bool {
    let all = |bit: u64| entries.iter().all(|e| e & bit != 0);
    let user_page = all(U);
    let executable = !entries.iter().any(|e| e & NX != 0);
    let supervisor = access.privilege != Privilege::User;
    let ac = access.privilege == Privilege::Supervisor && paging.rflags & rflags::AC != 0;
    let smap = paging.cr4 & cr4::SMAP != 0;
    match (supervisor, user_page, access.kind) {
        (false, false, _) => false,
        (false, true, AccessKind::Read) => true,
        (false, true, AccessKind::Write) => all(W),
        (false, true, AccessKind::Execute) => executable,
        (true, true, AccessKind::Read) => !smap || ac,
        (true, true, AccessKind::Write) => (!smap || ac) && (all(W) || paging.cr0 & cr0::WP == 0),
        (true, true, AccessKind::Execute) => paging.cr4 & cr4::SMEP == 0 && executable,
        (true, false, AccessKind::Read) => true,
        (true, false, AccessKind::Write) => all(W) || paging.cr0 & cr0::WP == 0,
        (true, false, AccessKind::Execute) => executable,
    }
}

/// An entry that mostly leads on: to one of the tables, with the usual bits, and now and then an odd one.
fn entry() -> impl Strategy<Value = u64> {
    let usual = prop_oneof![9 => Just(P | W | U), 1 => 0..8u64];
    let rare = prop_oneof![
        20 => Just(0),
        3 => Just(PS),
        2 => (0..64u32).prop_map(|bit| 1u64 << bit),
        1 => Just(NX),
    ];
    (0..PAGES, usual, rare).prop_map(|(page, usual, rare)| page << 12 | usual | rare)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]
    #[test]
    fn agrees_with_a_second_walker(
        entries in proptest::collection::vec(entry(), 8),
        at in any::<u64>(),
        mode in 0..4u8,
        registers in any::<[bool; 9]>(),
        physical_bits in prop_oneof![Just(36u8), Just(40), Just(52)],
        kind in prop_oneof![Just(AccessKind::Read), Just(AccessKind::Write), Just(AccessKind::Execute)],
        privilege in prop_oneof![Just(Privilege::User), Just(Privilege::Supervisor), Just(Privilege::Implicit)],
    ) {
        let flag = |i: usize, bit: u64| if registers[i] { bit } else { 0 };
        let paging = Paging {
            cr0: cr0::PE | cr0::PG | flag(0, cr0::WP),
            cr3: 0,
            cr4: flag(1, cr4::PSE) | flag(2, cr4::SMEP) | flag(3, cr4::SMAP)
                | [0, cr4::PAE, cr4::PAE, cr4::PAE | cr4::LA57][mode as usize],
            efer: flag(4, efer::NXE) | if mode >= 2 { efer::LMA | efer::LME } else { 0 },
            rflags: flag(5, rflags::AC),
            pkru: 0,
            physical_bits,
            gigabyte_pages: registers[6],
        };
        // Every slot of every table holds one of a few entries, so that any address finds its way.
        let mut tables = Tables::new();
        let size = if mode == 0 { 4 } else { 8 };
        for (i, slot) in (0..PAGES * 4096).step_by(size).enumerate() {
            tables.set(slot, size as u8, entries[(i * 7 + i / 5) % entries.len()]);
        }
        let unused = if mode == 3 { 7 } else { 16 };
        let gva = if mode >= 2 { ((at << unused) as i64 >> unused) as u64 } else { at & 0xffff_ffff };
        let access = Access { kind, privilege };
        let expected = second(&paging, access, gva, &tables);
        let found = translate(&paging, access, Gva(gva), &mut tables);
        match (found, expected) {
            (Ok(page), Ok(gpa)) => prop_assert_eq!(page.gpa, Gpa(gpa)),
            (Err(WalkError::PageFault { error_code }), Err(code)) => prop_assert_eq!(error_code, code),
            (found, expected) => prop_assert!(false, "{:x?}, not {:x?}", found, expected),
        }
    }
}
