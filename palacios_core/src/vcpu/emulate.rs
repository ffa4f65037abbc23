// SPDX-License-Identifier: MIT OR Apache-2.0
//! A vCPU as the emulator sees it.
#![forbid(unsafe_code)]

use super::code::CodeMemory;
use super::context::{AnyContext, RunContext};
use super::owned::Vcpu;
use crate::addr::{Gpa, Gva};
use crate::backend::{Backend, BackendVcpu, Event};
use crate::devices::IoAddress;
use crate::emulator::{self, Behaviour, CodeReader, Cpu, Fault, Interruption, Source};
use crate::features::Feature;
use crate::host::Host;
use crate::interfaces::GuestMemory;
use crate::interrupts::lapic::Effect;
use crate::memory::walk::{Access, Paging};
use crate::regions::Writes;
use crate::state::{
    cr4, is_64_bit_code, DescriptorTable, Exception, Gprs, Seg, Segment, SegmentAttributes,
    TableRegister,
};
use crate::stats::Counter;
use crate::xsave::XsaveArea;

/// A vCPU for the length of one instruction, with what leads to its code: outside of a window its context, which leads to all else as well.
pub(super) struct Emulated<'a, H: Host, B: Backend<H>, C> {
    pub(super) vcpu: &'a mut Vcpu<H, B>,
    context: C,
}

/// A vCPU outside of a window, for the length of one instruction.
pub(super) type EmulatedOutside<'a, 'b, H, B> = Emulated<'a, H, B, &'a RunContext<'b, H, B>>;

impl<H: Host, B: Backend<H>> Vcpu<H, B> {
    /// Executes the instruction at RIP.
    pub(super) fn emulate(&mut self, context: &RunContext<'_, H, B>) {
        context.shared.stats.add(Counter::Emulated, 1);
        match emulator::step(&mut self.emulated(context)) {
            Ok(step) if step.single_step => self.single_step(),
            Ok(_) => {}
            Err(fault) => self.emulator_fault(context, fault),
        }
    }

    /// Delivers an event that the processor could not: its stack, or a table on its way, is a device's memory.
    pub(super) fn deliver_by_hand(&mut self, context: &RunContext<'_, H, B>, event: Event) {
        context.shared.stats.add(Counter::Emulated, 1);
        let rip = self.arch.rip();
        let (vector, error_code, source, rip) = match event {
            Event::Interrupt(vector) => (vector, None, Source::Interrupt, rip),
            Event::Nmi => (2, None, Source::Interrupt, rip),
            Event::Exception(e) => (e.vector, e.error_code, Source::Exception, rip),
            Event::Software { vector, next_rip } => (vector, None, Source::Software, next_rip),
        };
        let what = Interruption {
            vector,
            error_code,
            source,
            rip,
        };
        // Until it is delivered it stays the one that was cut short: what arises meanwhile combines with it.
        match emulator::deliver(&mut self.emulated(context), &what) {
            Ok(()) => {
                self.interrupted = None;
                if event == Event::Nmi {
                    self.arch.set_nmi_blocked(true);
                }
            }
            Err(fault) => self.emulator_fault(context, fault),
        }
    }

    /// How long the instruction at RIP is, by the decoder. `None`: not to be had just now.
    pub(super) fn decode_length(&mut self, context: &impl AnyContext<H, B>) -> Option<u8> {
        let mut emulated = Emulated {
            vcpu: self,
            context: context.code(),
        };
        emulator::length_at(&mut emulated).ok()
    }

    fn emulated<'a, 'b>(
        &'a mut self,
        context: &'a RunContext<'b, H, B>,
    ) -> EmulatedOutside<'a, 'b, H, B> {
        Emulated {
            vcpu: self,
            context,
        }
    }

    pub(super) fn in_32_bit_code(&self) -> bool {
        let code = self.arch.segment(Seg::Cs).attributes;
        code.has(SegmentAttributes::DB) && !self.in_64_bit_code()
    }

    pub(super) fn in_64_bit_code(&self) -> bool {
        let code = self.arch.segment(Seg::Cs).attributes;
        is_64_bit_code(self.arch.control().efer, code)
    }

    /// Passes on what an access to the local APIC asks for.
    pub(super) fn apic_effect(&mut self, context: &impl AnyContext<H, B>, effect: Effect) {
        match effect {
            Effect::None => {}
            Effect::Send(message) => context.board().send(Some(self.index), message),
            Effect::Eoi(vector) => context
                .board()
                .with_chipset(|chipset, sink| chipset.eoi(vector, sink)),
            Effect::Timer => self.rearm = true,
            Effect::Routing => context.shared().set_filter(self.apic.filter()),
        }
    }

    pub(super) fn paging(&self) -> Paging {
        let control = self.arch.control();
        Paging {
            cr0: control.cr0,
            cr3: control.cr3,
            cr4: control.cr4,
            efer: control.efer,
            rflags: self.arch.rflags(),
            pkru: match control.cr4 & cr4::PKE {
                0 => 0,
                _ => self.arch.pkru(),
            },
            physical_bits: self.msrs.backend().physical_bits,
            gigabyte_pages: self.msrs.guest().has(Feature::Pdpe1gb),
        }
    }
}

impl<H: Host, B: Backend<H>, C: CodeMemory> CodeReader for Emulated<'_, H, B, C> {
    fn rip(&self) -> u64 {
        self.vcpu.arch.rip()
    }
    fn rflags(&self) -> u64 {
        self.vcpu.arch.rflags()
    }
    fn segment(&self, seg: Seg) -> Segment {
        self.vcpu.arch.segment(seg)
    }
    fn cpl(&self) -> u8 {
        self.vcpu.arch.cpl()
    }
    fn efer(&self) -> u64 {
        self.vcpu.arch.control().efer
    }

    fn cr(&self, number: u8) -> u64 {
        self.vcpu.control_register(number)
    }

    fn translate(&mut self, at: Gva, access: Access) -> Result<Gpa, Fault> {
        self.context.translate(&self.vcpu.paging(), at, access)
    }
    fn fetched(&self) -> &[u8] {
        self.vcpu.arch.fetched()
    }
    fn fetch(&mut self, at: Gpa, buf: &mut [u8]) -> Result<(), Fault> {
        self.context.fetch(at, buf)
    }
}

impl<H: Host, B: Backend<H>> Cpu for EmulatedOutside<'_, '_, H, B> {
    fn gprs(&self) -> &Gprs {
        self.vcpu.arch.gprs()
    }
    fn gprs_mut(&mut self) -> &mut Gprs {
        self.vcpu.arch.gprs_mut()
    }
    fn set_rip(&mut self, rip: u64) {
        self.vcpu.arch.set_rip(rip);
    }
    fn set_rflags(&mut self, rflags: u64) {
        self.vcpu.arch.set_rflags(rflags);
    }
    fn set_segment(&mut self, seg: Seg, segment: Segment) {
        self.vcpu.arch.set_segment(seg, segment);
    }
    fn table(&self, table: DescriptorTable) -> TableRegister {
        let state = self.vcpu.arch.state();
        match table {
            DescriptorTable::Global => state.gdtr,
            DescriptorTable::Interrupt => state.idtr,
        }
    }
    fn set_table(&mut self, table: DescriptorTable, value: TableRegister) {
        self.vcpu.arch.set_table(table, value);
    }
    fn has(&self, behaviour: Behaviour) -> bool {
        const INTEL: u32 = u32::from_le_bytes(*b"Genu");
        let cpuid = |leaf| self.context.backend.cpuid(leaf, 0);
        let [last, vendor, ..] = cpuid(0);
        let [_, _, extended, _] = cpuid(0x8000_0001);
        match behaviour {
            Behaviour::AltMovCr8 => extended & 1 << 4 != 0,
            Behaviour::Lzcnt => extended & 1 << 5 != 0,
            Behaviour::Tzcnt => {
                let [_, bmi, ..] = cpuid(7);
                last >= 7 && bmi & 1 << 3 != 0
            }
            Behaviour::WideFarPointers => vendor == INTEL,
            Behaviour::ShortNearBranches => vendor != INTEL,
        }
    }
    fn set_interrupt_shadow(&mut self) {
        self.vcpu.arch.set_interrupt_shadow(true);
    }
    fn set_nmi_blocked(&mut self, blocked: bool) {
        self.vcpu.arch.set_nmi_blocked(blocked);
    }
    fn xcr0(&self) -> u64 {
        self.vcpu.arch.xcr0()
    }
    fn fpu(&mut self) -> XsaveArea<'_> {
        self.vcpu.arch.fpu()
    }
    fn set_cr(&mut self, number: u8, value: u64) -> Result<(), Fault> {
        let mut tables = self.context.code();
        self.vcpu.set_control_register(&mut tables, number, value)
    }

    fn dr(&self, number: u8) -> u64 {
        self.vcpu.arch.debug_register(number)
    }
    fn set_dr(&mut self, number: u8, value: u64) -> Result<(), Fault> {
        if number >= 6 && value >> 32 != 0 {
            return Err(Exception::general_protection(0).into());
        }
        self.vcpu.arch.set_debug_register(number, value);
        Ok(())
    }
    fn invalidate_page(&mut self, _at: Gva) {
        self.vcpu.arch.flush_tlb();
    }

    fn read(&mut self, at: Gpa, buf: &mut [u8]) -> Result<(), Fault> {
        if self.context.board.memory().is_memory(at) {
            return self.fetch(at, buf);
        }
        for_pieces(at, buf.len(), |at, from, size| {
            let value = self.mmio_read(at, size);
            let piece = buf.get_mut(from..).unwrap_or_default();
            for (to, byte) in piece
                .iter_mut()
                .zip(value.to_le_bytes())
                .take(usize::from(size))
            {
                *to = byte;
            }
        });
        Ok(())
    }

    fn write(&mut self, at: Gpa, data: &[u8]) -> Result<(), Fault> {
        let memory = self.context.board.memory();
        match memory.writes_at(at) {
            Some(Writes::Allowed | Writes::ToPage(_)) => {
                return memory.write(at, data).map_err(|_| Fault::Memory(at));
            }
            Some(Writes::Dropped) => return Ok(()),
            Some(Writes::ToDevice) | None => {}
        }
        for_pieces(at, data.len(), |at, from, size| {
            let mut value = [0; 8];
            let piece = data.get(from..).unwrap_or_default();
            for (to, byte) in value.iter_mut().zip(piece).take(usize::from(size)) {
                *to = *byte;
            }
            self.mmio_write(at, size, u64::from_le_bytes(value));
        });
        Ok(())
    }

    fn compare_exchange(&mut self, at: Gpa, old: &[u8], new: &[u8]) -> Result<bool, Fault> {
        let memory = self.context.board.memory();
        if memory.writes_at(at) != Some(Writes::Allowed) {
            return self.write(at, new).map(|()| true);
        }
        let word = |bytes: &[u8]| {
            bytes
                .iter()
                .rev()
                .fold(0, |word, byte| word << 8 | u64::from(*byte))
        };
        match memory.compare_exchange(at, old.len() as u8, word(old), word(new)) {
            Ok(done) => Ok(done),
            // A lock across words, or of 16 bytes: the bus would be locked, and no two of these are done at once.
            Err(_) => memory
                .write(at, new)
                .map(|()| true)
                .map_err(|_| Fault::Memory(at)),
        }
    }

    fn port_in(&mut self, port: u16, size: u8) -> Result<u32, Fault> {
        Ok(self.io_read(IoAddress::port(port, size)) as u32)
    }
    fn port_out(&mut self, port: u16, size: u8, value: u32) -> Result<(), Fault> {
        self.io_write(IoAddress::port(port, size), value.into());
        Ok(())
    }
}

impl<H: Host, B: Backend<H>> EmulatedOutside<'_, '_, H, B> {
    fn io_read(&mut self, at: IoAddress) -> u64 {
        let (vm, vcpu) = (self.context.vm, &mut *self.vcpu);
        vm.io().read(vcpu.index, &mut vcpu.last_found, at)
    }

    fn io_write(&mut self, at: IoAddress, value: u64) {
        let (vm, vcpu) = (self.context.vm, &mut *self.vcpu);
        vm.io().write(vcpu.index, &mut vcpu.last_found, at, value);
    }

    fn mmio_read(&mut self, at: Gpa, size: u8) -> u64 {
        if self.vcpu.apic.mmio_page() != Some(at.page()) {
            return self.io_read(IoAddress::memory(at.0, size));
        }
        let now = self.context.now(&self.vcpu.tsc);
        self.vcpu.apic.mmio_read(at.page_offset(), size, now)
    }

    fn mmio_write(&mut self, at: Gpa, size: u8, value: u64) {
        if self.vcpu.apic.mmio_page() != Some(at.page()) {
            return self.io_write(IoAddress::memory(at.0, size), value);
        }
        let now = self.context.now(&self.vcpu.tsc);
        let effect = self
            .vcpu
            .apic
            .mmio_write(at.page_offset(), size, value, now);
        self.vcpu.apic_effect(self.context, effect);
    }
}

/// The largest aligned accesses of 1, 2, 4 or 8 bytes that make up `len` bytes at `at`: address, offset in the buffer, size.
fn for_pieces(at: Gpa, len: usize, mut f: impl FnMut(Gpa, usize, u8)) {
    let mut done = 0usize;
    while done < len {
        let at = at.wrapping_add(done as u64);
        let fits = |size: &u8| {
            at.0 % u64::from(*size) == 0 && len.wrapping_sub(done) >= usize::from(*size)
        };
        // A single access keeps its size even where it is not aligned: devices see what the guest did.
        let size = match (done, len) {
            (0, 1 | 2 | 4 | 8) => len as u8,
            _ => [8, 4, 2].into_iter().find(fits).unwrap_or(1),
        };
        f(at, done, size);
        done = done.wrapping_add(usize::from(size));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a device sees of an access: the address and the size of each piece.
    fn pieces(at: u64, len: usize) -> Vec<(u64, u8)> {
        let (mut seen, mut next) = (Vec::new(), 0);
        for_pieces(Gpa(at), len, |at, from, size| {
            assert_eq!(from, next, "in the order of their addresses, without a gap");
            next = from + usize::from(size);
            seen.push((at.0, size));
        });
        assert_eq!(next, len);
        seen
    }

    #[test]
    fn a_device_sees_at_most_eight_bytes_at_once() {
        for (at, size) in [(0x1000, 1), (0x1001, 2), (0x1003, 4), (0x1005, 8)] {
            assert_eq!(pieces(at, size.into()), [(at, size)], "whole");
        }
        assert_eq!(pieces(0x1000, 16), [(0x1000, 8), (0x1008, 8)]);
        assert_eq!(pieces(0x1004, 16), [(0x1004, 4), (0x1008, 8), (0x1010, 4)]);
        let of_32 = (0..4).map(|n| (0x1000 + 8 * n, 8)).collect::<Vec<_>>();
        assert_eq!(pieces(0x1000, 32), of_32);
        // What is left of an access behind the end of a page, and a table's limit and base.
        assert_eq!(pieces(0x1000, 3), [(0x1000, 2), (0x1002, 1)]);
        assert_eq!(pieces(0x1003, 5), [(0x1003, 1), (0x1004, 4)]);
        assert_eq!(
            pieces(0x1001, 6),
            [(0x1001, 1), (0x1002, 2), (0x1004, 2), (0x1006, 1)]
        );
    }
}
