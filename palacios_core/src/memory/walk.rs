// SPDX-License-Identifier: MIT OR Apache-2.0
//! The guest's page tables, walked as its processor would (SDM 3A: chapter 4; APM 2: chapter 5).
#![forbid(unsafe_code)]

use crate::addr::Gpa;

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
