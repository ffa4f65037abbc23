// SPDX-License-Identifier: MIT OR Apache-2.0
//! The instruction that exited, where the hardware does not say what it is, or how long: most often it is one of a few, in a page of code that is
//! remembered.
#![forbid(unsafe_code)]

use super::context::AnyContext;
use super::owned::Vcpu;
use crate::addr::Gva;
use crate::backend::{Backend, BackendVcpu};
use crate::emulator;
use crate::host::Host;
use crate::memory::code_page::{Code, CodeView};
use crate::state::Seg;

impl<H: Host, B: Backend<H>> Vcpu<H, B> {
    /// Finds how long the instruction at RIP is. `false`: not to be had just now.
    #[inline]
    pub(super) fn find_length(&mut self, context: &impl AnyContext<H, B>) -> bool {
        self.length.is_some() || self.read_length(context)
    }

    fn read_length(&mut self, context: &impl AnyContext<H, B>) -> bool {
        self.length = self
            .plain_length(context)
            .or_else(|| self.decode_length(context));
        self.length.is_some()
    }

    /// The length of one of those that exit most.
    fn plain_length(&mut self, context: &impl AnyContext<H, B>) -> Option<u8> {
        self.read_code(context, |code| emulator::plain_length(|n| code.byte(n)))
    }

    /// Reads the instruction at RIP, as far as it lies in one page. `None`: it is not to be had without waiting, or `read` wants none.
    pub(super) fn read_code<R>(
        &mut self,
        context: &impl AnyContext<H, B>,
        read: impl FnOnce(&Code<'_>) -> Option<R>,
    ) -> Option<R> {
        let at = self.code_address();
        let view = CodeView::new(at, &self.arch.control(), self.arch.cpl());
        let board = context.board();
        let mut resident = board.resident();
        let code = self.code_pages.get(at);
        if let Some(code) = code.and_then(|page| resident.remembered(page, &view, at)) {
            return read(&code);
        }
        let page = resident.find_code(&self.paging(), &view, at)?;
        let found = resident
            .remembered(&page, &view, at)
            .and_then(|code| read(&code));
        self.code_pages.set(at, page);
        found
    }

    /// Where the instruction at RIP lies. In 64-bit code CS has no base.
    fn code_address(&self) -> Gva {
        let rip = self.arch.rip();
        Gva(match self.in_64_bit_code() {
            true => rip,
            false => self.arch.segment(Seg::Cs).base.wrapping_add(rip) & 0xffff_ffff,
        })
    }
}
