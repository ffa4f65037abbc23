// SPDX-License-Identifier: MIT OR Apache-2.0
//! Model-specific registers that neither entry nor exit switches: the guest has its own from `load` to `unload`.
//!
//! What the host runs in a window needs none of them.

use super::cpu;

/// One of them.
#[derive(Debug)]
pub(super) struct Switched {
    index: u32,
    /// The guest may write it without an exit.
    guests_own: bool,
    guest: u64,
    /// What it is to hold again; of a live one.
    host: u64,
    /// The guest's value is in the register.
    live: bool,
}

impl Switched {
    /// One that the guest writes through exits alone.
    pub(super) const fn guarded(index: u32) -> Self {
        Self {
            index,
            guests_own: false,
            guest: 0,
            host: 0,
            live: false,
        }
    }
    /// One that the guest writes itself.
    pub(super) const fn open(index: u32) -> Self {
        Self {
            guests_own: true,
            ..Self::guarded(index)
        }
    }
    /// Its number.
    pub(super) fn index(&self) -> u32 {
        self.index
    }

    /// Puts the guest's value in. One that cannot be read stays the host's.
    ///
    /// # Safety
    /// In a window; nothing that runs until [`Switched::unload`] minds the guest's value.
    pub(super) unsafe fn load(&mut self) {
        let Ok(host) = cpu::read_msr(self.index) else {
            return;
        };
        self.host = host;
        // SAFETY: by the contract above.
        self.live = host == self.guest || unsafe { cpu::write_msr(self.index, self.guest) }.is_ok();
    }
    /// Puts the host's value back.
    ///
    /// # Safety
    /// In the window of the last [`Switched::load`].
    pub(super) unsafe fn unload(&mut self) {
        if !core::mem::take(&mut self.live) {
            return;
        }
        if self.guests_own {
            self.guest = cpu::read_msr(self.index).unwrap_or(self.guest);
        }
        if self.host != self.guest {
            // SAFETY: what it held before.
            let _ = unsafe { cpu::write_msr(self.index, self.host) };
        }
    }

    /// The guest's value.
    pub(super) fn get(&self) -> u64 {
        match self.live && self.guests_own {
            true => cpu::read_msr(self.index).unwrap_or(self.guest),
            false => self.guest,
        }
    }
    /// Sets it; `false` if the register takes no such value.
    pub(super) fn set(&mut self, value: u64) -> bool {
        // SAFETY: live means in a window; the host gets its own back in `unload`.
        if self.live && unsafe { cpu::write_msr(self.index, value) }.is_err() {
            return false;
        }
        self.guest = value;
        true
    }
}
