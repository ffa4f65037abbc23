// SPDX-License-Identifier: MIT OR Apache-2.0
//! A second walker, and a comparison of the two by chance.

use crate::{Tables, NX, P, PAGES, PS, U, W};
use palacios_core::addr::{Gpa, Gva};
use palacios_core::memory::walk::*;
use palacios_core::state::{cr0, cr4, efer, rflags};
use proptest::prelude::*;

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
        // Bit 5, which is reserved, is not looked at: QEMU sets it.
        let pdpte = self.visit(top, 8, |_| 0x1c6 | beyond | 0xfff << 52)?;
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
