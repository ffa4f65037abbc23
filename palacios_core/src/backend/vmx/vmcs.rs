// SPDX-License-Identifier: MIT OR Apache-2.0
//! A virtual-machine control structure (SDM 3C: 24), and the VMM's copy of its fields.
//!
//! A VMCS is the processor's: software reaches its fields by VMREAD and VMWRITE, while it is current on a CPU in VMX
//! operation. The copy lets registers be read and written at any time, and writes nothing that is there already. What the
//! guest may have changed is read when it is asked for, and all of it when the VMCS is put away.

use super::super::pages::Pages;
use super::field::{Field, Info, Width, COUNT, ENCODINGS, GUESTS};
use super::instructions as vmx;
use crate::alloc_ext::try_vec;
use crate::host::{Host, NoMemory};
use alloc::vec::Vec;

/// A set of fields, by their places.
#[derive(Clone, Copy, Debug, Default)]
struct Set([u64; 2]);

impl Set {
    /// All below `end`.
    const fn below(end: usize) -> Self {
        const fn word(end: usize) -> u64 {
            match end {
                64.. => u64::MAX,
                _ => (1 << end) - 1,
            }
        }
        Self([word(end), word(end.saturating_sub(64))])
    }
    fn has(&self, slot: usize) -> bool {
        self.0
            .get(slot / 64)
            .is_some_and(|word| word >> (slot % 64) & 1 != 0)
    }
    fn add(&mut self, slot: usize) {
        if let Some(word) = self.0.get_mut(slot / 64) {
            *word |= 1 << (slot % 64);
        }
    }
    fn remove_all(&mut self, other: Set) {
        for (word, other) in self.0.iter_mut().zip(other.0) {
            *word &= !other;
        }
    }
    /// The places, each once.
    fn iter(self) -> impl Iterator<Item = usize> {
        (0..COUNT).filter(move |slot| self.has(*slot))
    }
}

const ALL: Set = Set::below(COUNT);
const GUESTS_OWN: Set = Set::below(GUESTS);

/// A VMCS.
pub(super) struct Vmcs<H: Host> {
    region: Pages<H>,
    values: Vec<u64>,
    /// Whose value in the copy is that of the VMCS.
    known: Set,
    /// Whose value is yet to be written.
    changed: Set,
    /// It is current on the CPU of this window.
    current: bool,
    /// VMLAUNCH has entered it since it was cleared.
    launched: bool,
    /// VMCLEAR has made it (SDM 3C: 24.11.3).
    made: bool,
}

impl<H: Host> Vmcs<H> {
    /// One in which all fields are zero, for a processor with this revision identifier (SDM 3C: 24.2).
    pub(super) fn new(host: &H, revision: u32) -> Result<Self, NoMemory> {
        let mut region = Pages::new(host, 1)?;
        region.write(0, &revision.to_le_bytes());
        Ok(Self {
            region,
            values: try_vec(0, COUNT)?,
            known: ALL,
            changed: ALL,
            current: false,
            launched: false,
            made: false,
        })
    }

    /// A field.
    pub(super) fn get<T: Width>(&self, field: Field<T>) -> T {
        T::from_word(self.word(field.slot))
    }
    fn word(&self, slot: usize) -> u64 {
        match self.known.has(slot) || !self.current {
            true => self.values.get(slot).copied().unwrap_or(0),
            false => read_slot(slot),
        }
    }
    /// A field that the processor alone writes; 0 where the VMCS is not current.
    pub(super) fn info<T: Width>(&self, field: Info<T>) -> T {
        // SAFETY: it is current, in a window.
        let read = || unsafe { vmx::vmread(field.encoding) };
        T::from_word(if self.current { read() } else { 0 })
    }
    /// Sets a field.
    pub(super) fn set<T: Width>(&mut self, field: Field<T>, value: T) {
        let (slot, value) = (field.slot, value.word());
        let Some(kept) = self.values.get_mut(slot) else {
            return;
        };
        if self.known.has(slot) && *kept == value {
            return;
        }
        *kept = value;
        self.known.add(slot);
        match self.current {
            // SAFETY: it is current, in a window; an entry checks what is in it.
            true => unsafe { vmx::vmwrite(field.encoding, value) },
            false => self.changed.add(slot),
        }
    }
    /// The processor has no such field, or does not look at it: it is not written. Before the first [`Vmcs::load`].
    pub(super) fn leave_out<T: Width>(&mut self, field: Field<T>) {
        let mut one = Set::default();
        one.add(field.slot);
        self.changed.remove_all(one);
    }
    /// A field that will be asked for again before the guest runs.
    pub(super) fn learn<T: Width>(&mut self, field: Field<T>) -> T {
        let value = self.get(field);
        self.assume(field, value);
        value
    }
    /// Notes what the processor itself has set a field to.
    pub(super) fn assume<T: Width>(&mut self, field: Field<T>, value: T) {
        if let Some(kept) = self.values.get_mut(field.slot) {
            *kept = value.word();
            self.known.add(field.slot);
        }
    }

    /// Makes it current, and up to date.
    ///
    /// # Safety
    /// In a window, in VMX operation.
    pub(super) unsafe fn load(&mut self, address: u64) -> Result<(), vmx::Error> {
        // SAFETY: by the contract above; the region is the VMCS's own.
        unsafe {
            if !self.made {
                vmx::vmclear(address)?;
                self.made = true;
            }
            vmx::vmptrld(address)?;
        }
        (self.current, self.launched) = (true, false);
        for slot in core::mem::take(&mut self.changed).iter() {
            let (encoding, value) = (ENCODINGS.get(slot), self.values.get(slot));
            if let (Some(encoding), Some(value)) = (encoding, value) {
                // SAFETY: it is current.
                unsafe { vmx::vmwrite(*encoding, *value) };
            }
        }
        Ok(())
    }
    /// Puts it away: the copy knows all of it, and the processor writes back what it keeps.
    ///
    /// # Safety
    /// In the window of the last [`Vmcs::load`].
    pub(super) unsafe fn unload(&mut self, address: u64) {
        let mut unknown = ALL;
        unknown.remove_all(self.known);
        for slot in unknown.iter() {
            if let Some(value) = self.values.get_mut(slot) {
                *value = read_slot(slot);
            }
        }
        self.known = ALL;
        self.current = false;
        // SAFETY: by the contract above.
        let _ = unsafe { vmx::vmclear(address) };
    }
    /// The guest ran: what it may have changed is not known any more.
    pub(super) fn guest_ran(&mut self) {
        self.known.remove_all(GUESTS_OWN);
        self.launched = true;
    }
    /// An entry resumes it, and does not launch it (SDM 3C: 24.11.3).
    pub(super) fn is_launched(&self) -> bool {
        self.launched
    }
    /// Where the processor finds it.
    pub(super) fn at(&self) -> crate::addr::Hpa {
        self.region.at()
    }
    /// The same VMCS, as if it were current; for tests without a processor.
    #[cfg(test)]
    pub(super) fn values(&self) -> &[u64] {
        &self.values
    }
}

fn read_slot(slot: usize) -> u64 {
    match ENCODINGS.get(slot) {
        // SAFETY: called while a VMCS is current, in a window.
        Some(encoding) => unsafe { vmx::vmread(*encoding) },
        None => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::super::field::*;
    use super::*;
    use crate::backend::fake_host::FakeHost;

    #[test]
    fn sets_are_sets() {
        assert_eq!(ALL.iter().count(), COUNT);
        assert_eq!(GUESTS_OWN.iter().count(), GUESTS);
        assert!(GUESTS_OWN.iter().all(|slot| slot < GUESTS));
        let mut set = Set::default();
        set.add(3);
        set.add(COUNT - 1);
        assert_eq!(set.iter().collect::<Vec<_>>(), [3, COUNT - 1]);
        set.remove_all(GUESTS_OWN);
        assert_eq!(set.iter().collect::<Vec<_>>(), [COUNT - 1]);
    }

    #[test]
    fn what_was_set_is_read_back_without_a_processor() {
        let mut vmcs = Vmcs::new(&FakeHost::default(), 5).unwrap();
        vmcs.set(RIP, Natural(0xfff0));
        vmcs.set(rights(crate::state::Seg::Tr), 0x8b);
        assert_eq!(vmcs.get(RIP), Natural(0xfff0));
        assert_eq!(vmcs.get(TR_RIGHTS), 0x8b);
        assert_eq!(vmcs.values()[TR_RIGHTS.slot], 0x8b);
    }
}
