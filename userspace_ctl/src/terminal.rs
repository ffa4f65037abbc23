// SPDX-License-Identifier: MIT OR Apache-2.0
//! A terminal that passes each key on, for as long as the guest has it.

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::termios::{isatty, tcgetattr, tcsetattr, OptionalActions, Termios};
use std::io::{self, Write};
use std::sync::{Mutex, Once, PoisonError};

/// The terminal in raw mode and how it was before: one at a time, as a program has one terminal.
static SAVED: Mutex<Option<(OwnedFd, Termios)>> = Mutex::new(None);

/// Says something to people, on standard error. In raw mode a terminal needs more than a newline to begin a line.
pub fn say(text: &str) {
    let raw = SAVED
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .is_some();
    let end = if raw { "\r\n" } else { "\n" };
    let text = text.replace('\n', end) + end;
    // Nobody can be told that nobody listens.
    let _ = io::stderr().write_all(text.as_bytes());
}

/// Raw mode; dropping it, or a panic, restores the terminal.
pub struct RawMode(());

impl RawMode {
    /// Enters raw mode; `None` if `fd` is no terminal.
    pub fn enter(fd: BorrowedFd<'_>) -> io::Result<Option<Self>> {
        if !isatty(fd) {
            return Ok(None);
        }
        static HOOK: Once = Once::new();
        HOOK.call_once(restore_on_panic);
        let saved = tcgetattr(fd)?;
        let mut raw = saved.clone();
        raw.make_raw();
        *SAVED.lock().unwrap_or_else(PoisonError::into_inner) =
            Some((fd.try_clone_to_owned()?, saved));
        let mode = Self(()); // From here on a failure restores, too.
        tcsetattr(fd, OptionalActions::Now, &raw)?;
        Ok(Some(mode))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

fn restore() {
    let saved = SAVED.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some((fd, saved)) = saved {
        // A terminal that is gone needs no care.
        let _ = tcsetattr(fd.as_fd(), OptionalActions::Now, &saved);
    }
}

/// The program may be built to abort on panic, without dropping anything.
fn restore_on_panic() {
    let next = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        restore();
        next(info);
    }));
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{open, Mode, OFlags};
    use rustix::pty::{grantpt, openpt, ptsname, unlockpt, OpenptFlags};
    use rustix::termios::LocalModes;

    /// What the terminal does with keys.
    fn modes(fd: &impl AsFd) -> LocalModes {
        tcgetattr(fd).unwrap().local_modes
    }

    #[test]
    fn a_terminal_is_raw_only_as_long_as_it_shall_be() {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let flags = OFlags::RDWR | OFlags::NOCTTY;
        let terminal = open(name, flags, Mode::empty()).unwrap();
        let keys = LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG;
        let before = modes(&terminal);
        assert!(before.contains(keys));
        let raw = RawMode::enter(terminal.as_fd()).unwrap();
        assert!(!modes(&terminal).intersects(keys));
        drop(raw);
        assert_eq!(modes(&terminal), before);
        let raw = RawMode::enter(terminal.as_fd()).unwrap();
        restore(); // As on a panic.
        assert_eq!(modes(&terminal), before);
        drop(raw);
        assert_eq!(modes(&terminal), before);
    }

    #[test]
    fn what_is_no_terminal_is_left_alone() {
        let (read, _write) = rustix::pipe::pipe().unwrap();
        assert!(RawMode::enter(read.as_fd()).unwrap().is_none());
    }
}
