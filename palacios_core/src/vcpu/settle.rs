// SPDX-License-Identifier: MIT OR Apache-2.0
//! The exits that are answered in the window, and how. An answer here reaches nothing that sleeps; where it would need that, or the instruction is not
//! one of the usual forms, nothing has happened, and [`Vcpu::dispatch`] answers outside.
#![forbid(unsafe_code)]

use super::context::{AnyContext, WindowContext};
use super::owned::Vcpu;
use crate::backend::{Backend, BackendVcpu, Exit, NestedFault, PortAccess};
use crate::devices::bus::Answerer;
use crate::devices::IoAddress;
use crate::emulator::{self, Moved, PlainMove};
use crate::host::Host;
use crate::stats::Counter;

impl<H: Host, B: Backend<H>> Vcpu<H, B> {
    /// Answers an exit. `false`: it is to be dispatched outside.
    pub(super) fn settle(&mut self, window: &WindowContext<'_, '_, H, B>, exit: Exit) -> bool {
        match exit {
            Exit::InterruptWindow => self.interrupt_window(window),
            Exit::NmiWindow => true,
            Exit::Cpuid => self.settle_by(window, Self::cpuid),
            Exit::ReadMsr => self.settle_by(window, Self::read_msr),
            Exit::WriteMsr => self.settle_by(window, Self::write_msr),
            Exit::Hypercall => self.settle_by(window, Self::hypercall),
            Exit::CacheControl => self.settle_by(window, Self::advance),
            Exit::Halt => self.settle_halt(window),
            Exit::Port(access) => self.settle_port(window, access),
            Exit::NestedFault(fault) => self.settle_device_memory(window, fault),
            Exit::Emulate => self.settle_control_move(window),
            _ => false,
        }
    }

    /// Carries out an instruction, if its length can be had.
    #[inline]
    fn settle_by<'a, 'b>(
        &mut self,
        window: &WindowContext<'a, 'b, H, B>,
        carry_out: impl FnOnce(&mut Self, &WindowContext<'a, 'b, H, B>),
    ) -> bool {
        let known = self.arch.next_rip().is_some() || self.find_length(window);
        if known {
            carry_out(self, window);
        }
        known
    }

    /// HLT that something waits for already: it is over at once.
    fn settle_halt(&mut self, window: &WindowContext<'_, '_, H, B>) -> bool {
        self.accept_vectors(window);
        self.wakes() && self.settle_by(window, Self::advance)
    }

    /// Carries out an `IN` or `OUT`, if who is at this port answers in the window.
    fn settle_port(&mut self, window: &WindowContext<'_, '_, H, B>, access: PortAccess) -> bool {
        if access.string {
            return false;
        }
        let at = access.address();
        let answerer = window.answerer(&mut self.last_found, at, access.write);
        answerer.is_some_and(|answerer| {
            self.settle_by(window, |vcpu, window| {
                match access.write {
                    true => vcpu.write(window, answerer, vcpu.port_output(access)),
                    false => {
                        let value = vcpu.read(window, answerer);
                        vcpu.take_port_input(access, value);
                    }
                }
                vcpu.advance(window);
            })
        })
    }

    #[inline]
    fn read(&mut self, window: &WindowContext<'_, '_, H, B>, answerer: Answerer<'_, H>) -> u64 {
        let answer = answerer.read();
        self.note_deadline(window, answer.new_deadline);
        answer.value
    }

    /// Whoever answers in the window asks for nothing because of it.
    #[inline]
    fn write(
        &mut self,
        window: &WindowContext<'_, '_, H, B>,
        answerer: Answerer<'_, H>,
        value: u64,
    ) {
        let written = answerer.write(value);
        self.note_deadline(window, written.new_deadline);
    }

    /// A device was called. Its deadline may be another one now: the first vCPU keeps it.
    #[inline]
    fn note_deadline(&mut self, window: &WindowContext<'_, '_, H, B>, is_new: bool) {
        match is_new {
            true if self.index == 0 => self.rearm = true,
            true => window.tell_of_deadline(self.index),
            false => {}
        }
    }

    /// A plain MOV of an aligned double word to or from the memory of the local APIC, or of a device that answers in the window. The processor has checked all but where
    /// it goes, and has said that.
    fn settle_device_memory(
        &mut self,
        window: &WindowContext<'_, '_, H, B>,
        fault: NestedFault,
    ) -> bool {
        let at = fault.gpa;
        let is_access = !fault.table_walk && !fault.fetch && self.interrupted.is_none();
        // Where a page begins, it may be the second half of an access that began in the page before.
        let is_whole = at.0 % 4 == 0 && at.page_offset() != 0;
        if !is_access || !is_whole || window.board().is_memory(at) {
            return false;
        }
        if self.apic.mmio_page() == Some(at.page()) {
            return self.plain_move(window, fault.write).is_some_and(|mov| {
                self.apic_move(window, at.page_offset(), &mov);
                self.moved(window, mov.length)
            });
        }
        let address = IoAddress::memory(at.0, 4);
        let answerer = window.answerer(&mut self.last_found, address, fault.write);
        answerer.is_some_and(|answerer| {
            self.plain_move(window, fault.write).is_some_and(|mov| {
                match self.stored(&mov) {
                    Some(value) => self.write(window, answerer, value.into()),
                    None => {
                        let value = self.read(window, answerer);
                        self.loaded(&mov, value as u32);
                    }
                }
                self.moved(window, mov.length)
            })
        })
    }

    /// The instruction at RIP, if it is a plain MOV that goes this way. In 16-bit code the same bytes mean something else.
    fn plain_move(
        &mut self,
        window: &WindowContext<'_, '_, H, B>,
        write: bool,
    ) -> Option<PlainMove> {
        let is_64_bit = self.in_64_bit_code();
        if !is_64_bit && !self.in_32_bit_code() {
            return None;
        }
        // What the processor has fetched is what it met at that address, whatever the code is by now.
        let mov = match self.arch.fetched() {
            [] => self.read_code(window, |code| {
                emulator::plain_move(is_64_bit, |n| code.byte(n))
            }),
            fetched => emulator::plain_move(is_64_bit, |n| fetched.get(usize::from(n)).copied()),
        }?;
        (matches!(mov.what, Moved::ToRegister(_)) != write).then_some(mov)
    }

    fn apic_move(&mut self, window: &WindowContext<'_, '_, H, B>, offset: u64, mov: &PlainMove) {
        let now = || window.now(&self.tsc);
        match self.stored(mov) {
            Some(value) => {
                let effect = self.apic.mmio_write(offset, 4, value.into(), now);
                self.apic_effect(window, effect);
            }
            None => {
                let value = self.apic.mmio_read(offset, 4, now);
                self.loaded(mov, value as u32);
            }
        }
    }

    /// What a MOV writes to memory; `None` for one that reads.
    fn stored(&self, mov: &PlainMove) -> Option<u32> {
        match mov.what {
            Moved::ToRegister(_) => None,
            Moved::FromRegister(register) => Some(self.arch.gprs()[register] as u32),
            Moved::Number(number) => Some(number),
        }
    }

    fn loaded(&mut self, mov: &PlainMove, value: u32) {
        if let Moved::ToRegister(register) = mov.what {
            self.arch.gprs_mut()[register] = value.into();
        }
    }

    /// The MOV is done.
    fn moved(&mut self, window: &WindowContext<'_, '_, H, B>, length: u8) -> bool {
        window.shared().stats.add(Counter::Mmio, 1);
        self.advance_by(length);
        true
    }

    /// A MOV to or from CR0, CR3 or CR4.
    fn settle_control_move(&mut self, window: &WindowContext<'_, '_, H, B>) -> bool {
        let is_64_bit = self.in_64_bit_code();
        let mov = self.read_code(window, |code| {
            emulator::plain_control_move(is_64_bit, |n| code.byte(n))
        });
        // Privilege is checked again: another CPU may have changed the instruction since.
        let Some(mov) = mov.filter(|_| self.arch.cpl() == 0) else {
            return false;
        };
        let mask = if is_64_bit { u64::MAX } else { 0xffff_ffff };
        if !mov.write {
            let value = self.control_register(mov.number);
            self.arch.gprs_mut()[mov.register] = value & mask;
            self.advance_by(mov.length);
            return true;
        }
        let value = self.arch.gprs()[mov.register] & mask;
        let set = self.set_control_register(&mut window.code(), mov.number, value);
        if set.is_ok() {
            self.advance_by(mov.length);
        }
        set.is_ok()
    }
}
