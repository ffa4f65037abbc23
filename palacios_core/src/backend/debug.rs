// SPDX-License-Identifier: MIT OR Apache-2.0
//! Debug registers. DR0–DR3 are switched here, and only in windows in which the guest uses them: its first access exits, and
//! from then until the window closes it has the registers themselves.

use super::cpu;

/// The breakpoints that DR7 enables (APM 2: 13.1.1.4).
const DR7_ENABLED: u64 = 0xff;
/// DR6 with nothing in it.
pub(super) const DR6_INITIAL: u64 = 0xffff_0ff0;

/// Whether DR7 has a breakpoint enabled.
pub(super) fn armed(dr7: u64) -> bool {
    dr7 & DR7_ENABLED != 0
}

/// A guest's DR0–DR3, and the host's meanwhile.
#[derive(Debug, Default)]
pub(super) struct Breakpoints {
    guest: [u64; 4],
    /// The guest's are in the registers.
    live: bool,
    /// The host's DR7; an exit switches its breakpoints off (APM 2: 15.6).
    host_dr7: u64,
    host: [u64; 4],
}

impl Breakpoints {
    /// The guest has the registers.
    pub(super) fn live(&self) -> bool {
        self.live
    }
    /// DR`n`, of the low two bits of `n`.
    pub(super) fn get(&self, n: u8) -> u64 {
        let all = if self.live { read() } else { self.guest };
        all.get(usize::from(n & 3)).copied().unwrap_or(0)
    }
    /// Sets DR`n`.
    pub(super) fn set(&mut self, n: u8, value: u64) {
        if self.live {
            self.guest = read();
        }
        if let Some(register) = self.guest.get_mut(usize::from(n & 3)) {
            *register = value;
        }
        if self.live {
            write(self.guest);
        }
    }
    /// A window opens.
    pub(super) fn open(&mut self) {
        self.host_dr7 = cpu::read_dr7();
    }
    /// Gives the guest the registers, in a window.
    pub(super) fn lend(&mut self) {
        if !self.live {
            if armed(self.host_dr7) {
                self.host = read();
            }
            write(self.guest);
            self.live = true;
        }
    }
    /// The window closes: the host has its own again. `guest_dr6` is what the guest left in DR6.
    pub(super) fn close(&mut self, guest_dr6: u64) {
        if self.live {
            self.guest = read();
            self.live = false;
            if armed(self.host_dr7) {
                write(self.host);
            }
        }
        // SAFETY: what the host had, or what it expects to find when it has taken no debug exception.
        unsafe {
            if guest_dr6 != DR6_INITIAL {
                cpu::write_dr6(DR6_INITIAL);
            }
            if armed(self.host_dr7) {
                cpu::write_dr7(self.host_dr7);
            }
        }
    }
}

fn read() -> [u64; 4] {
    [
        cpu::read_dr0(),
        cpu::read_dr1(),
        cpu::read_dr2(),
        cpu::read_dr3(),
    ]
}

fn write([dr0, dr1, dr2, dr3]: [u64; 4]) {
    // SAFETY: in a window no breakpoint of the host is armed; its own values are put back by `close`.
    unsafe {
        cpu::write_dr0(dr0);
        cpu::write_dr1(dr1);
        cpu::write_dr2(dr2);
        cpu::write_dr3(dr3);
    }
}
