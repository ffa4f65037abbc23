// SPDX-License-Identifier: MIT OR Apache-2.0
//! Moves bytes between a guest's stream and the user, until there is a reason to end.
//!
//! One thread, one `poll`. Nothing here blocks elsewhere: the stream is in non-blocking mode, and what is shown goes out
//! in pieces that a pipe or terminal which polls as writable takes at once.

use crate::escape::{Escape, Wish};
use crate::newlines::Newlines;
use crate::signals::Signals;
use crate::terminal::say;
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::fd::{AsFd, BorrowedFd};
use rustix::io::Errno;
use std::time::{Duration, Instant};

/// A pipe that polls as writable takes this much (`PIPE_BUF`).
const PIECE_BYTES: usize = 4096;

/// Why the pump ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The VM stopped, and all its output was shown.
    Stopped,
    /// The user left by the escape.
    Quit,
    /// This signal came.
    Signal(u8),
    /// The deadline passed.
    Timeout,
    /// Nobody reads the output any more.
    OutputClosed,
}

/// What is moved between what. All descriptors but the stream's are in blocking mode.
pub struct Pump<'a> {
    /// The guest's stream, in non-blocking mode. Without one there is nothing to move.
    pub stream: Option<BorrowedFd<'a>>,
    /// What the user types; its end changes nothing.
    pub input: Option<BorrowedFd<'a>>,
    /// Where the guest's output goes.
    pub output: BorrowedFd<'a>,
    /// The way out, if keys are looked at.
    pub escape: Option<Escape>,
    /// What the way out does, in words: "leaves".
    pub leaving: &'static str,
    /// Ends the lines of the output, if it goes to a terminal in raw mode. Else the bytes stay as they are.
    pub newlines: Option<Newlines>,
    /// What else may end it.
    pub signals: &'a Signals,
    /// Polls as ready once the VM stopped; without it the end of the stream says so.
    pub stopped: Option<BorrowedFd<'a>>,
    /// When to give up.
    pub deadline: Option<Instant>,
    /// How long the guest may send nothing before that is reason to give up.
    pub silence: Option<Duration>,
    /// When something of the guest came last, or was shown.
    heard: Instant,
    /// Bytes for the guest.
    to_guest: Vec<u8>,
    /// Bytes for the user.
    to_user: Vec<u8>,
}

/// What is ready.
struct Ready {
    stopped: bool,
    input: bool,
    stream: PollFlags,
    output: bool,
}

impl<'a> Pump<'a> {
    /// A pump between a stream and an output, without input, deadline and way out.
    pub fn new(
        stream: Option<BorrowedFd<'a>>,
        output: BorrowedFd<'a>,
        signals: &'a Signals,
    ) -> Self {
        Self {
            stream,
            input: None,
            output,
            escape: None,
            leaving: "leaves",
            newlines: None,
            signals,
            stopped: None,
            deadline: None,
            silence: None,
            heard: Instant::now(),
            to_guest: Vec::new(),
            to_user: Vec::new(),
        }
    }

    /// Moves bytes until there is a reason to end.
    pub fn run(&mut self) -> Result<End, Errno> {
        let mut vm_stopped = false;
        self.heard = Instant::now();
        loop {
            if let Some(signal) = self.signals.last() {
                return Ok(End::Signal(signal));
            }
            if self.gives_up_at().is_some_and(|at| Instant::now() >= at) {
                return Ok(End::Timeout);
            }
            // Once the VM stopped, only what is already there is shown: do not sleep for more.
            let drained = vm_stopped && self.to_user.is_empty();
            let Some(ready) = self.wait(!vm_stopped, drained.then_some(Duration::ZERO))? else {
                continue;
            };
            vm_stopped |= ready.stopped;
            if ready.output && !self.write_output()? {
                return Ok(End::OutputClosed);
            }
            let readable = PollFlags::IN | PollFlags::HUP | PollFlags::ERR;
            let more = ready.stream.intersects(readable) && self.read_stream()?;
            if self.stream.is_none() && self.stopped.is_none() && self.to_user.is_empty() {
                return Ok(End::Stopped);
            }
            if drained && !more {
                return Ok(End::Stopped);
            }
            if ready.stream.contains(PollFlags::OUT) {
                self.write_stream()?;
            }
            if ready.input && self.read_input()? == Some(Wish::Quit) {
                return Ok(End::Quit);
            }
        }
    }

    /// When to give up if nothing comes before. While output waits for its reader, the guest is not to blame for silence.
    fn gives_up_at(&self) -> Option<Instant> {
        let silence = self.silence.filter(|_| self.to_user.is_empty());
        let silent_at = silence.and_then(|longest| self.heard.checked_add(longest));
        [self.deadline, silent_at].into_iter().flatten().min()
    }

    /// Waits until something can go on; `None` if a signal came instead.
    fn wait(&self, for_stop: bool, at_most: Option<Duration>) -> Result<Option<Ready>, Errno> {
        let none = PollFlags::empty();
        let wanted = |wish: bool, flags: PollFlags| if wish { flags } else { none };
        let stream_flags = wanted(self.to_user.is_empty(), PollFlags::IN)
            | wanted(!self.to_guest.is_empty(), PollFlags::OUT);
        let watched = [
            (Some(self.signals.as_fd()), PollFlags::IN),
            (self.stopped.filter(|_| for_stop), PollFlags::IN),
            (
                self.input.filter(|_| self.to_guest.is_empty()),
                PollFlags::IN,
            ),
            (
                self.stream.filter(|_| !stream_flags.is_empty()),
                stream_flags,
            ),
            (
                Some(self.output).filter(|_| !self.to_user.is_empty()),
                PollFlags::OUT,
            ),
        ];
        let mut fds: Vec<PollFd<'_>> = watched
            .iter()
            .filter_map(|(fd, flags)| fd.map(|fd| PollFd::from_borrowed_fd(fd, *flags)))
            .collect();
        let left = self
            .gives_up_at()
            .map(|at| at.saturating_duration_since(Instant::now()));
        let timeout = [left, at_most].into_iter().flatten().min();
        let timeout = timeout.and_then(|time| Timespec::try_from(time).ok());
        match poll(&mut fds, timeout.as_ref()) {
            Err(Errno::INTR) => return Ok(None),
            result => result?,
        };
        let mut answers = fds.iter().map(PollFd::revents);
        let mut answer = |(fd, _): &(Option<_>, _)| fd.and_then(|_| answers.next()).unwrap_or(none);
        let [_, stopped, input, stream, output] = watched.each_ref().map(&mut answer);
        Ok(Some(Ready {
            stopped: !stopped.is_empty(),
            input: !input.is_empty(),
            stream,
            output: !output.is_empty(),
        }))
    }

    /// Takes what the guest sent; false if there was nothing.
    fn read_stream(&mut self) -> Result<bool, Errno> {
        let Some(stream) = self.stream else {
            return Ok(false);
        };
        let mut piece = [0; PIECE_BYTES];
        match rustix::io::read(stream, &mut piece) {
            Ok(0) => self.stream = None,
            Ok(len) => {
                self.heard = Instant::now();
                match &mut self.newlines {
                    Some(newlines) => newlines.append(&piece[..len], &mut self.to_user),
                    None => self.to_user.extend_from_slice(&piece[..len]),
                }
            }
            Err(Errno::AGAIN | Errno::INTR) => return Ok(false),
            Err(errno) => return Err(errno),
        }
        Ok(self.stream.is_some())
    }

    /// Gives the guest what was typed.
    fn write_stream(&mut self) -> Result<(), Errno> {
        let Some(stream) = self.stream else {
            return Ok(());
        };
        match rustix::io::write(stream, &self.to_guest) {
            Ok(len) => drop(self.to_guest.drain(..len)),
            Err(Errno::AGAIN | Errno::INTR) => {}
            // A VM that stopped takes no more; its last output may still be there.
            Err(Errno::PIPE) => {
                self.to_guest.clear();
                self.input = None;
            }
            Err(errno) => return Err(errno),
        }
        Ok(())
    }

    /// Shows what the guest sent; false if nobody looks any more.
    fn write_output(&mut self) -> Result<bool, Errno> {
        let piece = &self.to_user[..self.to_user.len().min(PIECE_BYTES)];
        match rustix::io::write(self.output, piece) {
            Ok(len) => {
                self.heard = Instant::now();
                drop(self.to_user.drain(..len));
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(Errno::PIPE | Errno::IO) => return Ok(false),
            Err(errno) => return Err(errno),
        }
        Ok(true)
    }

    /// Takes what was typed.
    fn read_input(&mut self) -> Result<Option<Wish>, Errno> {
        let Some(input) = self.input else {
            return Ok(None);
        };
        let mut piece = [0; PIECE_BYTES];
        match rustix::io::read(input, &mut piece) {
            // A terminal that is gone answers EIO; SIGHUP tells what it means.
            Ok(0) | Err(Errno::IO) => self.input = None,
            Ok(len) => return Ok(self.take_typed(&piece[..len])),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
        Ok(None)
    }

    fn take_typed(&mut self, typed: &[u8]) -> Option<Wish> {
        let Some(escape) = &mut self.escape else {
            self.to_guest.extend_from_slice(typed);
            return None;
        };
        let wish = escape.filter(typed, &mut self.to_guest);
        if wish == Some(Wish::Help) {
            let (key, leaving) = (escape.name(), self.leaving);
            say(&format!(
                "\n[{key} q {leaving}; {key} {key} sends {key} to the guest]"
            ));
        }
        wish
    }
}

#[cfg(test)]
mod tests;
