// SPDX-License-Identifier: MIT OR Apache-2.0
//! The fields of a VMCS that are used here, each with its width (SDM 3D: appendix B).

use crate::state::Seg;
use core::marker::PhantomData;

/// A width that fields come in.
pub(super) trait Width: Copy {
    /// Bits 14:13 of an encoding (SDM 3C: table 24-21).
    const CODE: u16;
    /// From a register.
    fn from_word(word: u64) -> Self;
    /// Into a register.
    fn word(self) -> u64;
}

macro_rules! width {
    ($type:ty, $code:literal) => {
        impl Width for $type {
            const CODE: u16 = $code;
            fn from_word(word: u64) -> Self {
                word as Self
            }
            fn word(self) -> u64 {
                u64::from(self)
            }
        }
    };
}
width!(u16, 0);
width!(u64, 1);
width!(u32, 2);

/// A value as wide as the processor's registers: 64 bits, as the host is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Natural(pub u64);

impl Width for Natural {
    const CODE: u16 = 3;
    fn from_word(word: u64) -> Self {
        Self(word)
    }
    fn word(self) -> u64 {
        self.0
    }
}

/// A field that software writes, and its place among the cached ones.
#[derive(Clone, Copy, Debug)]
pub(super) struct Field<T> {
    pub slot: usize,
    pub encoding: u16,
    width: PhantomData<T>,
}

impl<T: Width> Field<T> {
    const fn new(slot: usize, encoding: u16) -> Self {
        assert!(encoding >> 13 & 3 == T::CODE, "a field of another width");
        assert!(encoding & 1 == 0, "the upper half of a field");
        Self {
            slot,
            encoding,
            width: PhantomData,
        }
    }
    /// The field of the same kind for another segment register, of which there are eight in a row (SDM 3D: table B-2).
    const fn of(self, seg: Seg) -> Self {
        let n = seg as usize;
        Self::new(self.slot + n, self.encoding + 2 * n as u16)
    }
}

/// A field of exit information, which the processor alone writes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Info<T> {
    pub encoding: u16,
    width: PhantomData<T>,
}

impl<T: Width> Info<T> {
    const fn new(encoding: u16) -> Self {
        assert!(encoding >> 13 & 3 == T::CODE, "a field of another width");
        assert!(encoding >> 10 & 3 == 1, "no field of exit information");
        Self {
            encoding,
            width: PhantomData,
        }
    }
}

macro_rules! fields {
    ($($name:ident: $width:ty = $encoding:literal;)*) => {
        /// The order of the cached fields.
        #[allow(non_camel_case_types, clippy::upper_case_acronyms, dead_code)]
        enum Slot { $($name,)* END }
        $(#[allow(dead_code)] // Most segments' are named for their places only.
        pub(super) const $name: Field<$width> = Field::new(Slot::$name as usize, $encoding);)*
        /// How many there are.
        pub(super) const COUNT: usize = Slot::END as usize;
        /// The encoding of each.
        pub(super) const ENCODINGS: [u16; COUNT] = [$($encoding),*];
    };
}

fields! {
    // What the guest is: saved by each exit. A segment register's fields stand in the order of `Seg`.
    ES_SELECTOR: u16 = 0x0800;
    CS_SELECTOR: u16 = 0x0802;
    SS_SELECTOR: u16 = 0x0804;
    DS_SELECTOR: u16 = 0x0806;
    FS_SELECTOR: u16 = 0x0808;
    GS_SELECTOR: u16 = 0x080a;
    LDTR_SELECTOR: u16 = 0x080c;
    TR_SELECTOR: u16 = 0x080e;
    ES_LIMIT: u32 = 0x4800;
    CS_LIMIT: u32 = 0x4802;
    SS_LIMIT: u32 = 0x4804;
    DS_LIMIT: u32 = 0x4806;
    FS_LIMIT: u32 = 0x4808;
    GS_LIMIT: u32 = 0x480a;
    LDTR_LIMIT: u32 = 0x480c;
    TR_LIMIT: u32 = 0x480e;
    ES_RIGHTS: u32 = 0x4814;
    CS_RIGHTS: u32 = 0x4816;
    SS_RIGHTS: u32 = 0x4818;
    DS_RIGHTS: u32 = 0x481a;
    FS_RIGHTS: u32 = 0x481c;
    GS_RIGHTS: u32 = 0x481e;
    LDTR_RIGHTS: u32 = 0x4820;
    TR_RIGHTS: u32 = 0x4822;
    ES_BASE: Natural = 0x6806;
    CS_BASE: Natural = 0x6808;
    SS_BASE: Natural = 0x680a;
    DS_BASE: Natural = 0x680c;
    FS_BASE: Natural = 0x680e;
    GS_BASE: Natural = 0x6810;
    LDTR_BASE: Natural = 0x6812;
    TR_BASE: Natural = 0x6814;
    GDTR_LIMIT: u32 = 0x4810;
    IDTR_LIMIT: u32 = 0x4812;
    GDTR_BASE: Natural = 0x6816;
    IDTR_BASE: Natural = 0x6818;
    CR0: Natural = 0x6800;
    CR3: Natural = 0x6802;
    CR4: Natural = 0x6804;
    DR7: Natural = 0x681a;
    RSP: Natural = 0x681c;
    RIP: Natural = 0x681e;
    RFLAGS: Natural = 0x6820;
    PENDING_DEBUG: Natural = 0x6822;
    SYSENTER_ESP: Natural = 0x6824;
    SYSENTER_EIP: Natural = 0x6826;
    SYSENTER_CS: u32 = 0x482a;
    INTERRUPTIBILITY: u32 = 0x4824;
    PAT: u64 = 0x2804;
    EFER: u64 = 0x2806;
    PDPTE_0: u64 = 0x280a;
    PDPTE_1: u64 = 0x280c;
    PDPTE_2: u64 = 0x280e;
    PDPTE_3: u64 = 0x2810;
    // The one control that an exit changes too (SDM 3C: 27.2, "IA-32e mode guest").
    ENTRY_CONTROLS: u32 = 0x4012;

    // What it never changes.
    ACTIVITY: u32 = 0x4826;
    DEBUGCTL: u64 = 0x2802;
    LINK: u64 = 0x2800;
    VPID: u16 = 0x0000;
    PIN_CONTROLS: u32 = 0x4000;
    PRIMARY_CONTROLS: u32 = 0x4002;
    SECONDARY_CONTROLS: u32 = 0x401e;
    EXCEPTIONS: u32 = 0x4004;
    PAGE_FAULT_MASK: u32 = 0x4006;
    PAGE_FAULT_MATCH: u32 = 0x4008;
    CR3_TARGETS: u32 = 0x400a;
    EXIT_CONTROLS: u32 = 0x400c;
    EXIT_MSR_STORES: u32 = 0x400e;
    EXIT_MSR_LOADS: u32 = 0x4010;
    ENTRY_MSR_LOADS: u32 = 0x4014;
    ENTRY_EVENT: u32 = 0x4016;
    ENTRY_ERROR_CODE: u32 = 0x4018;
    ENTRY_LENGTH: u32 = 0x401a;
    TPR_THRESHOLD: u32 = 0x401c;
    SPIN_GAP: u32 = 0x4020;
    SPIN_WINDOW: u32 = 0x4022;
    PREEMPTION_TIMER: u32 = 0x482e;
    MSR_MAP: u64 = 0x2004;
    EXIT_MSR_LOAD_LIST: u64 = 0x2008;
    ENTRY_MSR_LOAD_LIST: u64 = 0x200a;
    TSC_OFFSET: u64 = 0x2010;
    VIRTUAL_APIC: u64 = 0x2012;
    EPT_POINTER: u64 = 0x201a;
    XSS_EXITS: u64 = 0x202c;
    CR0_MASK: Natural = 0x6000;
    CR4_MASK: Natural = 0x6002;
    CR0_SHADOW: Natural = 0x6004;
    CR4_SHADOW: Natural = 0x6006;

    // What the host is when an exit comes back to it.
    HOST_ES: u16 = 0x0c00;
    HOST_CS: u16 = 0x0c02;
    HOST_SS: u16 = 0x0c04;
    HOST_DS: u16 = 0x0c06;
    HOST_FS: u16 = 0x0c08;
    HOST_GS: u16 = 0x0c0a;
    HOST_TR: u16 = 0x0c0c;
    HOST_PAT: u64 = 0x2c00;
    HOST_EFER: u64 = 0x2c02;
    HOST_SYSENTER_CS: u32 = 0x4c00;
    HOST_CR0: Natural = 0x6c00;
    HOST_CR3: Natural = 0x6c02;
    HOST_CR4: Natural = 0x6c04;
    HOST_FS_BASE: Natural = 0x6c06;
    HOST_GS_BASE: Natural = 0x6c08;
    HOST_TR_BASE: Natural = 0x6c0a;
    HOST_GDTR_BASE: Natural = 0x6c0c;
    HOST_IDTR_BASE: Natural = 0x6c0e;
    HOST_SYSENTER_ESP: Natural = 0x6c10;
    HOST_SYSENTER_EIP: Natural = 0x6c12;
}

/// The fields before this place are the guest's to change.
pub(super) const GUESTS: usize = ACTIVITY.slot;

/// The entry assembly writes these two itself: see [`super::enter`].
pub(super) const HOST_RSP: u16 = 0x6c14;
pub(super) const HOST_RIP: u16 = 0x6c16;

pub(super) const INSTRUCTION_ERROR: Info<u32> = Info::new(0x4400);
pub(super) const EXIT_REASON: Info<u32> = Info::new(0x4402);
pub(super) const EXIT_EVENT: Info<u32> = Info::new(0x4404);
pub(super) const EXIT_ERROR_CODE: Info<u32> = Info::new(0x4406);
/// IDT-vectoring information: the event whose delivery the exit cut short (SDM 3C: 24.9.3).
pub(super) const VECTORING_EVENT: Info<u32> = Info::new(0x4408);
/// IDT-vectoring error code.
pub(super) const VECTORING_ERROR_CODE: Info<u32> = Info::new(0x440a);
pub(super) const EXIT_LENGTH: Info<u32> = Info::new(0x440c);
pub(super) const QUALIFICATION: Info<Natural> = Info::new(0x6400);
pub(super) const GUEST_PHYSICAL: Info<u64> = Info::new(0x2400);

/// The selector of a segment register.
pub(super) const fn selector(seg: Seg) -> Field<u16> {
    ES_SELECTOR.of(seg)
}
/// Its limit.
pub(super) const fn limit(seg: Seg) -> Field<u32> {
    ES_LIMIT.of(seg)
}
/// Its access rights.
pub(super) const fn rights(seg: Seg) -> Field<u32> {
    ES_RIGHTS.of(seg)
}
/// Its base.
pub(super) const fn base(seg: Seg) -> Field<Natural> {
    ES_BASE.of(seg)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_field_has_a_place_of_its_own() {
        let mut seen = std::collections::HashSet::new();
        assert!(ENCODINGS.iter().all(|encoding| seen.insert(encoding)));
        const { assert!(COUNT <= 128) };
    }

    #[test]
    fn fields_of_segments_are_in_the_order_of_segments() {
        let of = |name: Field<u32>| ENCODINGS[name.slot];
        assert_eq!(of(limit(Seg::Es)), 0x4800);
        assert_eq!(of(limit(Seg::Tr)), TR_LIMIT.encoding);
        assert_eq!(of(rights(Seg::Ss)), SS_RIGHTS.encoding);
        assert_eq!(ENCODINGS[selector(Seg::Cs).slot], CS_SELECTOR.encoding);
        assert_eq!(ENCODINGS[base(Seg::Gs).slot], GS_BASE.encoding);
    }

    #[test]
    fn what_the_guest_changes_comes_first() {
        // Bits 11:10: 2 is guest state (SDM 3C: table 24-21).
        let kinds: Vec<_> = ENCODINGS.iter().map(|e| e >> 10 & 3).collect();
        assert!(kinds[..GUESTS - 1].iter().all(|kind| *kind == 2));
        assert_eq!(ENCODINGS[GUESTS - 1], ENTRY_CONTROLS.encoding);
        let kept = [
            ACTIVITY.slot,
            DEBUGCTL.slot,
            LINK.slot,
            PREEMPTION_TIMER.slot,
        ];
        let others = (GUESTS..COUNT).filter(|slot| kinds[*slot] == 2);
        assert!(others.clone().all(|slot| kept.contains(&slot)));
    }
}
