// SPDX-License-Identifier: MIT OR Apache-2.0
//! The pages of code in which a vCPU has exited: see [`crate::memory::code_page`].
#![forbid(unsafe_code)]

use crate::addr::{Gva, PAGE_SIZE};
use crate::memory::code_page::CodePage;

/// How many pages of code are remembered.
const PAGES: usize = 4;

/// Pages of code, each in the place that its number gives it.
#[derive(Default)]
pub(super) struct CodePages([Option<CodePage>; PAGES]);

impl CodePages {
    fn number(at: Gva) -> usize {
        (at.0 / PAGE_SIZE) as usize % PAGES
    }
    pub(super) fn get(&self, at: Gva) -> Option<&CodePage> {
        self.0.get(Self::number(at))?.as_ref()
    }
    pub(super) fn set(&mut self, at: Gva, page: CodePage) {
        if let Some(place) = self.0.get_mut(Self::number(at)) {
            *place = Some(page);
        }
    }
}
