// SPDX-License-Identifier: MIT OR Apache-2.0
//! The guest's page tables, walked as its processor would (SDM 3A: chapter 4; APM 2: chapter 5).
#![forbid(unsafe_code)]

pub mod trace;

use crate::addr::{Gpa, Gva};
use crate::state::{cr0, cr4, efer, rflags};

/// What a memory access is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessKind {
    /// A data read.
    Read,
    /// A data write, or the read of a read-modify-write.
    Write,
    /// An instruction fetch.
    Execute,
}

/// On whose behalf memory is accessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Privilege {
    /// An instruction at CPL 3.
    User,
    /// An instruction at CPL 0–2.
    Supervisor,
    /// The processor itself, at any CPL: descriptor tables, the TSS. SMAP is not eased by RFLAGS.AC.
    Implicit,
}

/// A memory access, as the page tables judge it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// What for.
    pub kind: AccessKind,
    /// For whom.
    pub privilege: Privilege,
}

/// The guest's page tables, as the walker reaches them.
pub trait GuestTables {
    /// Why an entry could not be had from the host.
    type Error;
    /// Reads the entry of `size` (4 or 8) bytes at `at`, in one access. Where there is no RAM it reads as all ones.
    fn read_entry(&mut self, at: Gpa, size: u8) -> Result<u64, Self::Error>;
    /// Replaces the entry `old` by `new` in one atomic step; `false` if it no longer holds `old`.
    fn compare_exchange_entry(
        &mut self,
        at: Gpa,
        size: u8,
        old: u64,
        new: u64,
    ) -> Result<bool, Self::Error>;
}

/// The registers and features that say how the guest translates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Paging {
    /// CR0.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// EFER.
    pub efer: u64,
    /// RFLAGS; only AC counts.
    pub rflags: u64,
    /// PKRU; counts only under CR4.PKE.
    pub pkru: u32,
    /// Width of a guest-physical address in bits, 32–52 (CPUID 0x80000008).
    pub physical_bits: u8,
    /// Whether the CPU has 1 GiB pages (CPUID 0x80000001 EDX bit 26).
    pub gigabyte_pages: bool,
}

/// Why there is no translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalkError<E> {
    /// The guest takes a #PF with this error code.
    PageFault {
        /// As pushed (SDM 3A: 4.7).
        error_code: u32,
    },
    /// The address is not canonical. Whoever formed it owes a #GP or #SS.
    NonCanonical,
    /// Another CPU changed an entry meanwhile. Nothing is wrong; enter the guest, which tries again.
    Raced,
    /// The host could not give the memory of a table.
    Tables(E),
}

/// Where a linear address leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// The guest-physical address.
    pub gpa: Gpa,
    /// Base-2 logarithm of the page's size: 12, 21, 22 or 30; 32 without paging.
    pub page_shift: u8,
    /// All levels allow writes (which CPL 0–2 needs only under CR0.WP).
    pub writable: bool,
    /// All levels allow CPL 3.
    pub user: bool,
    /// No level forbids execution.
    pub executable: bool,
}

/// Page-fault error codes (SDM 3A: 4.7).
pub mod error_code {
    /// The page was present: a right was missing.
    pub const PRESENT: u32 = 1 << 0;
    /// The access was a write.
    pub const WRITE: u32 = 1 << 1;
    /// The access came from user mode.
    pub const USER: u32 = 1 << 2;
    /// A reserved bit of an entry was set.
    pub const RESERVED: u32 = 1 << 3;
    /// The access was a fetch of an instruction.
    pub const FETCH: u32 = 1 << 4;
    /// A protection key forbade it.
    pub const PROTECTION_KEY: u32 = 1 << 5;
}

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;

/// Bits `from..to` of an entry.
const fn bits(from: u8, to: u8) -> u64 {
    below(to) & !below(from)
}

/// The low `count` bits.
const fn below(count: u8) -> u64 {
    match 1u64.checked_shl(count as u32) {
        Some(bit) => bit.wrapping_sub(1),
        None => u64::MAX,
    }
}

/// The paging modes (SDM 3A: 4.1.1).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// 32-bit paging: two levels of 4-byte entries.
    Legacy,
    /// Three levels of 8-byte entries; the top one has four entries of their own form.
    Pae,
    /// Four or five levels of 8-byte entries.
    Long,
}

impl Paging {
    fn mode(&self) -> Mode {
        if self.efer & efer::LMA != 0 {
            Mode::Long
        } else if self.cr4 & cr4::PAE != 0 {
            Mode::Pae
        } else {
            Mode::Legacy
        }
    }

    fn entry_bytes(&self) -> u8 {
        if self.mode() == Mode::Legacy {
            4
        } else {
            8
        }
    }

    fn levels(&self) -> u8 {
        match self.mode() {
            Mode::Legacy => 2,
            Mode::Pae => 3,
            Mode::Long if self.cr4 & cr4::LA57 != 0 => 5,
            Mode::Long => 4,
        }
    }

    /// Whether all bits of `at` above the width of a linear address equal its top bit.
    pub fn is_canonical(&self, at: Gva) -> bool {
        let unused = if self.cr4 & cr4::LA57 != 0 { 7 } else { 16 };
        ((at.0 << unused) as i64 >> unused) as u64 == at.0
    }

    /// The table at the root.
    fn root(&self) -> u64 {
        match self.mode() {
            Mode::Legacy => self.cr3 & bits(12, 32),
            Mode::Pae => self.cr3 & bits(5, 32),
            Mode::Long => self.cr3 & bits(12, 52),
        }
    }

    /// Whether `entry`, of a table at `level`, maps a page itself; level 1 holds pages of 4 KiB.
    fn is_leaf(&self, level: u8, entry: u64) -> bool {
        let may_be_large = match self.mode() {
            Mode::Legacy => level == 2 && self.cr4 & cr4::PSE != 0,
            Mode::Pae => level == 2,
            Mode::Long => level == 2 || level == 3,
        };
        level == 1 || may_be_large && entry & LARGE != 0
    }

    /// The bits that must be zero in an entry at `level` (SDM 3A: 4.3–4.5; APM 2: 5.3).
    fn reserved(&self, level: u8, leaf: bool) -> u64 {
        let large = leaf && level > 1;
        let no_execute = if self.efer & efer::NXE != 0 {
            0
        } else {
            NO_EXECUTE
        };
        match (self.mode(), level) {
            // PSE-36: bits 13–20 are the address's bits 32–39.
            (Mode::Legacy, _) if large => {
                bits(self.physical_bits.clamp(32, 40).wrapping_sub(19), 22)
            }
            (Mode::Legacy, _) => 0,
            // Bit 5 is reserved too, but QEMU's interpreter of SVM sets it, as an accessed bit.
            (Mode::Pae, 3) => bits(1, 3) | bits(6, 9) | bits(self.physical_bits, 64),
            (Mode::Pae, _) => {
                let low = if large { bits(13, 21) } else { 0 };
                low | bits(self.physical_bits, 63) | no_execute
            }
            (Mode::Long, _) => {
                let low = match level {
                    4 | 5 => LARGE,
                    3 if large && !self.gigabyte_pages => LARGE,
                    3 if large => bits(13, 30),
                    2 if large => bits(13, 21),
                    _ => 0,
                };
                low | bits(self.physical_bits, 52) | no_execute
            }
        }
    }

    /// The base of the page that a leaf maps.
    fn frame(&self, entry: u64, page_shift: u8) -> u64 {
        match (self.mode(), page_shift) {
            (Mode::Legacy, 22) => entry & bits(22, 32) | (entry & bits(13, 21)) << 19,
            (Mode::Legacy, _) => entry & bits(12, 32),
            _ => entry & bits(page_shift, 52),
        }
    }

    fn error_code(&self, access: Access) -> u32 {
        let mut code = 0;
        if access.kind == AccessKind::Write {
            code |= error_code::WRITE;
        }
        if access.privilege == Privilege::User {
            code |= error_code::USER;
        }
        let tells_fetches =
            self.cr4 & cr4::SMEP != 0 || self.efer & efer::NXE != 0 && self.mode() != Mode::Legacy;
        if access.kind == AccessKind::Execute && tells_fetches {
            code |= error_code::FETCH;
        }
        code
    }

    /// Whether the rights of the page allow the access (SDM 3A: 4.6.1).
    fn allows(&self, page: &Translation, access: Access) -> bool {
        if access.privilege == Privilege::User {
            return page.user
                && match access.kind {
                    AccessKind::Read => true,
                    AccessKind::Write => page.writable,
                    AccessKind::Execute => page.executable,
                };
        }
        let smap_eased = access.privilege == Privilege::Supervisor && self.rflags & rflags::AC != 0;
        let smap_stops = page.user && self.cr4 & cr4::SMAP != 0 && !smap_eased;
        match access.kind {
            AccessKind::Read => !smap_stops,
            AccessKind::Write => !smap_stops && (page.writable || self.cr0 & cr0::WP == 0),
            AccessKind::Execute => page.executable && !(page.user && self.cr4 & cr4::SMEP != 0),
        }
    }

    /// Whether the protection key in a leaf forbids the access (SDM 3A: 4.6.2).
    fn key_forbids(&self, page: &Translation, leaf: u64, access: Access) -> bool {
        let keyed = self.mode() == Mode::Long && self.cr4 & cr4::PKE != 0 && page.user;
        if !keyed || access.kind == AccessKind::Execute {
            return false;
        }
        let rights = self.pkru >> (2 * (leaf >> 59 & 15));
        let write_checked = access.privilege == Privilege::User || self.cr0 & cr0::WP != 0;
        rights & 1 != 0 || rights & 2 != 0 && access.kind == AccessKind::Write && write_checked
    }
}

/// Translates the linear address `gva` for `access`, as the processor would: rights, reserved bits and protection keys
/// are checked, then accessed and dirty bits are set. A walk that fails has changed nothing.
///
/// Outside of long mode the upper half of `gva` is ignored. PAE's four top entries are read from memory, as
/// one vendor's processors do under nested paging (APM 2: 15.25.10).
pub fn translate<T: GuestTables>(
    paging: &Paging,
    access: Access,
    gva: Gva,
    tables: &mut T,
) -> Result<Translation, WalkError<T::Error>> {
    walk(paging, access, gva, tables, true)
}

/// Translates as [`translate`] does, but sets no bit: for somebody who only looks.
pub fn look_up<T: GuestTables>(
    paging: &Paging,
    access: Access,
    gva: Gva,
    tables: &mut T,
) -> Result<Translation, WalkError<T::Error>> {
    walk(paging, access, gva, tables, false)
}

/// Finds the page of `gva`, if it may be accessed so, and sets the bits on the way if it `marks`.
#[inline(always)] // Each of the two has its own: what fetches instructions is on the fast path.
fn walk<T: GuestTables>(
    paging: &Paging,
    access: Access,
    gva: Gva,
    tables: &mut T,
    marks: bool,
) -> Result<Translation, WalkError<T::Error>> {
    let gva = if paging.mode() == Mode::Long {
        gva.0
    } else {
        gva.0 & 0xffff_ffff
    };
    if paging.cr0 & cr0::PG == 0 {
        let gpa = Gpa(gva);
        return Ok(Translation {
            gpa,
            page_shift: 32,
            writable: true,
            user: true,
            executable: true,
        });
    }
    if paging.mode() == Mode::Long && !paging.is_canonical(Gva(gva)) {
        return Err(WalkError::NonCanonical);
    }
    let path = Path::find(paging, access, gva, tables)?;
    let page = path.page;
    let error_code = paging.error_code(access) | error_code::PRESENT;
    if paging.key_forbids(&page, path.leaf(), access) {
        let error_code = error_code | error_code::PROTECTION_KEY;
        return Err(WalkError::PageFault { error_code });
    }
    if !paging.allows(&page, access) {
        return Err(WalkError::PageFault { error_code });
    }
    if marks {
        path.mark(paging, access, tables)?;
    }
    Ok(page)
}

/// The entries on the way from the root to a page.
struct Path {
    entries: [(Gpa, u64); 5],
    len: usize,
    page: Translation,
}

impl Path {
    /// Follows the tables down to the page of `gva`.
    fn find<T: GuestTables>(
        paging: &Paging,
        access: Access,
        gva: u64,
        tables: &mut T,
    ) -> Result<Path, WalkError<T::Error>> {
        let index_bits: u8 = if paging.mode() == Mode::Legacy { 10 } else { 9 };
        let page = Translation {
            gpa: Gpa(0),
            page_shift: 12,
            writable: true,
            user: true,
            executable: true,
        };
        let mut path = Path {
            entries: [(Gpa(0), 0); 5],
            len: 0,
            page,
        };
        let mut table = paging.root();
        for (slot, level) in path.entries.iter_mut().zip((1..=paging.levels()).rev()) {
            let below = index_bits.wrapping_mul(level.wrapping_sub(1));
            let shift = below.wrapping_add(12);
            let index = gva.wrapping_shr(shift.into()) & bits(0, index_bits);
            let at = Gpa(table | index.wrapping_mul(paging.entry_bytes().into()));
            let entry = Self::entry(paging, access, level, at, tables)?;
            *slot = (at, entry);
            path.len = path.len.wrapping_add(1);
            // PAE's top entries carry no rights.
            if (paging.mode(), level) != (Mode::Pae, 3) {
                path.page.writable &= entry & WRITABLE != 0;
                path.page.user &= entry & USER != 0;
                path.page.executable &= entry & NO_EXECUTE == 0;
            }
            if paging.is_leaf(level, entry) {
                path.page.page_shift = shift;
                path.page.gpa = Gpa(paging.frame(entry, shift) | gva & bits(0, shift));
                break;
            }
            table = entry & bits(12, if paging.entry_bytes() == 4 { 32 } else { 52 });
        }
        Ok(path)
    }

    /// The entry at `at`, if it is present and has no reserved bit set.
    fn entry<T: GuestTables>(
        paging: &Paging,
        access: Access,
        level: u8,
        at: Gpa,
        tables: &mut T,
    ) -> Result<u64, WalkError<T::Error>> {
        let entry = tables
            .read_entry(at, paging.entry_bytes())
            .map_err(WalkError::Tables)?;
        let error_code = paging.error_code(access);
        if entry & PRESENT == 0 {
            return Err(WalkError::PageFault { error_code });
        }
        if entry & paging.reserved(level, paging.is_leaf(level, entry)) != 0 {
            let error_code = error_code | error_code::PRESENT | error_code::RESERVED;
            return Err(WalkError::PageFault { error_code });
        }
        Ok(entry)
    }

    fn entries(&self) -> &[(Gpa, u64)] {
        self.entries.get(..self.len).unwrap_or(&[])
    }

    fn leaf(&self) -> u64 {
        self.entries().last().map_or(0, |&(_, entry)| entry)
    }

    /// Sets accessed bits all the way and, for a write, the page's dirty bit (SDM 3A: 4.8).
    #[inline(always)] // As `walk`.
    fn mark<T: GuestTables>(
        &self,
        paging: &Paging,
        access: Access,
        tables: &mut T,
    ) -> Result<(), WalkError<T::Error>> {
        let size = paging.entry_bytes();
        let last = self.len.wrapping_sub(1);
        // PAE's top entries have no such bits.
        let first = usize::from(paging.mode() == Mode::Pae);
        for (i, &(at, entry)) in (0..self.len).zip(self.entries()).skip(first) {
            let marks = match access.kind {
                AccessKind::Write if i == last => ACCESSED | DIRTY,
                _ => ACCESSED,
            };
            if entry & marks == marks {
                continue;
            }
            // Tables that map themselves use an entry more than once on the way.
            let mut above = self.entries().iter().take(i).skip(first);
            let seen = above.any(|&(other, _)| other == at);
            let old = if seen { entry | ACCESSED } else { entry };
            if old & marks == marks {
                continue;
            }
            let same = tables.compare_exchange_entry(at, size, old, old | marks);
            if !same.map_err(WalkError::Tables)? {
                return Err(WalkError::Raced);
            }
        }
        Ok(())
    }
}
