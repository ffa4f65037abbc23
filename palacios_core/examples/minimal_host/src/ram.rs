// SPDX-License-Identifier: MIT OR Apache-2.0
//! Guest RAM.

use crate::MinimalHost;
use palacios_core::addr::Hpa;
use palacios_core::host::{GuestRam, Host, PageRequest, PageSize, RamError, Release};
use std::collections::HashMap;
use std::sync::Mutex;

// ANCHOR: ram
/// Gives one guest its RAM, a small page at a time.
pub struct MinimalRam {
    host: MinimalHost,
    /// The frame of each page that the guest has touched.
    frames: Mutex<HashMap<u64, Hpa>>,
}

impl MinimalRam {
    /// A guest's RAM, of which nothing is touched yet.
    pub fn new(host: &MinimalHost) -> Self {
        Self {
            host: host.clone(),
            frames: Mutex::default(),
        }
    }
    fn free(&self, frame: Hpa) {
        // SAFETY: it was given by `alloc_pages`, and the guest does not have it any more.
        unsafe { self.host.free_pages(frame, PageRequest::ONE) };
    }
}

impl GuestRam for MinimalRam {
    fn page(&self, page: u64, size: PageSize) -> Result<Hpa, RamError> {
        if size != PageSize::Small {
            return Err(RamError::TooLarge);
        }
        let mut frames = self.frames.lock().expect("no holder has panicked");
        if let Some(revoked) = frames.get(&page) {
            return Ok(*revoked);
        }
        let frame = self.host.alloc_pages(PageRequest::ONE);
        let frame = frame.map_err(|_| RamError::NoMemory)?;
        frames.insert(page, frame);
        Ok(frame)
    }
    fn holds(&self, page: u64) -> bool {
        let frames = self.frames.lock().expect("as above");
        frames.contains_key(&page)
    }
    fn release(&self, page: u64, frame: Hpa, _: PageSize, why: Release) {
        match why {
            // A host that swaps writes the page out here, and reads it back in `page`.
            Release::Revoked => {}
            Release::Ended | Release::Discarded => {
                self.frames.lock().expect("as above").remove(&page);
                self.free(frame);
            }
        }
    }
}

impl Drop for MinimalRam {
    fn drop(&mut self) {
        // Pages that were revoked, and not touched again.
        let frames = self.frames.lock().expect("as above").clone();
        frames.into_values().for_each(|frame| self.free(frame));
    }
}
// ANCHOR_END: ram
