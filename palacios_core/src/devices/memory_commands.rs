// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a test kernel may do to its own memory through the test device: what a chip set, a firmware or a host does otherwise.
//!
//! The kernel writes the address of a command to a port. A command is eight words of 64 bits in guest memory:
//!
//! | word | is |
//! | --- | --- |
//! | 0 | what to do: 1 show, 2 hide, 3 discard, 4 begin the log, 5 take what was logged, 6 end the log, 7 hide and show |
//! | 1, 2 | an address and a number of bytes |
//! | 3 | the number of the first page of RAM that is shown, or that the log is asked for, a multiple of 64 |
//! | 4 | where writes go: 0 to those pages, 1 nowhere, 2 to the device there, 3 to other pages |
//! | 5 | the first of those; or the address of the words that the log fills |
//! | 6 | how many such words, up to 32 |
//! | 7 | is written: 0, or why it was refused; for a discard how many frames went |
#![forbid(unsafe_code)]

use super::Request;
use crate::addr::{Gpa, NotRam};
use crate::alloc_ext::{NoMemory, TryPush};
use crate::interfaces::{GuestMemory, MemoryControl};
use crate::regions::{Change, Region, RegionError, Writes};
use alloc::vec::Vec;

/// Words of a command.
const WORDS: usize = 8;
/// Where in it the answer goes.
const ANSWER: u64 = 7 * 8;
/// So many words of the log at most.
const MOST_LOGGED: usize = 32;

/// A command as the guest wrote it.
struct Command {
    what: u64,
    at: Gpa,
    bytes: u64,
    page: u64,
    writes: u64,
    other: u64,
    count: u64,
}

/// Does what the command at `at` says. If it changes the regions, that is what to ask for, and [`changed`] goes on with it. One that is not in
/// guest memory does nothing.
pub(super) fn command(
    memory: &dyn GuestMemory,
    control: &dyn MemoryControl,
    at: Gpa,
) -> Option<Request> {
    let command = read(memory, at).ok()?;
    match command.changes() {
        Ok(changes) if changes.is_empty() => {
            write_answer(memory, at, command.run(memory, control));
            None
        }
        Ok(changes) => Some(Request::Memory { changes, tag: at.0 }),
        Err(NoMemory) => {
            changed(memory, at.0, Err(RegionError::NoMemory));
            None
        }
    }
}

/// Tells the guest how the change went that the command with that tag asked for.
pub(super) fn changed(memory: &dyn GuestMemory, tag: u64, changed: Result<(), RegionError>) {
    write_answer(memory, Gpa(tag), number(changed));
}

fn write_answer(memory: &dyn GuestMemory, at: Gpa, answer: u64) {
    if let Some(to) = at.checked_add(ANSWER) {
        // Where the command was read from it can be written, or the guest took that away meanwhile.
        let _ = memory.write(to, &answer.to_le_bytes());
    }
}

fn read(memory: &dyn GuestMemory, at: Gpa) -> Result<Command, NotRam> {
    let (mut words, mut from) = ([0; WORDS], at);
    for word in &mut words {
        let mut bytes = [0; 8];
        memory.read(from, &mut bytes)?;
        *word = u64::from_le_bytes(bytes);
        from = from.checked_add(8).ok_or(NotRam(at))?;
    }
    let [what, at, bytes, page, writes, other, count, _] = words;
    let at = Gpa(at);
    Ok(Command {
        what,
        at,
        bytes,
        page,
        writes,
        other,
        count,
    })
}

impl Command {
    /// How it changes the regions, if it does.
    fn changes(&self) -> Result<Vec<Change>, NoMemory> {
        let hide = Change::Remove {
            at: self.at,
            bytes: self.bytes,
        };
        let show = Change::Add(self.region());
        let wanted = match self.what {
            1 => [None, Some(show)],
            2 => [Some(hide), None],
            7 => [Some(hide), Some(show)],
            _ => [None, None],
        };
        let mut changes = Vec::new();
        for change in wanted.into_iter().flatten() {
            changes.try_push(change)?;
        }
        Ok(changes)
    }

    /// Does what needs no change of the regions.
    fn run(&self, memory: &dyn GuestMemory, control: &dyn MemoryControl) -> u64 {
        match self.what {
            3 => control.discard(self.at, self.bytes),
            4 => control.begin_log().map_or(REFUSED, |()| 0),
            5 => self.take_dirty(memory, control).map_or(REFUSED, |()| 0),
            6 => {
                control.end_log();
                0
            }
            _ => REFUSED,
        }
    }

    fn region(&self) -> Region {
        Region {
            writes: match self.writes {
                0 => Writes::Allowed,
                1 => Writes::Dropped,
                2 => Writes::ToDevice,
                _ => Writes::ToPage(self.other),
            },
            ..Region::ram(self.at, self.bytes, self.page)
        }
    }

    fn take_dirty(
        &self,
        memory: &dyn GuestMemory,
        control: &dyn MemoryControl,
    ) -> Result<(), NotRam> {
        let mut words = [0; MOST_LOGGED];
        let words = words.get_mut(..self.count as usize);
        let words = words.ok_or(NotRam(Gpa(self.other)))?;
        control.take_dirty(self.page, words);
        let mut to = Gpa(self.other);
        for word in words {
            memory.write(to, &word.to_le_bytes())?;
            to = to.checked_add(8).ok_or(NotRam(to))?;
        }
        Ok(())
    }
}

/// Refused for another reason than those of a region.
const REFUSED: u64 = 100;

/// A number for each reason.
fn number(changed: Result<(), RegionError>) -> u64 {
    match changed {
        Ok(()) => 0,
        Err(RegionError::Unaligned) => 1,
        Err(RegionError::Empty) => 2,
        Err(RegionError::OutOfReach) => 3,
        Err(RegionError::Overlaps(_)) => 4,
        Err(RegionError::NoSuchPages) => 5,
        Err(RegionError::NotThere) => 6,
        Err(RegionError::TooMany) => 7,
        Err(RegionError::Pinned) => 8,
        Err(RegionError::NoMemory) => 9,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::testing::TestMachine;

    fn with_ram() -> TestMachine {
        let machine = TestMachine::new();
        machine.ram.borrow_mut().resize(0x1000, 0);
        machine
    }

    /// Carries out a command; gives the answer.
    fn run(machine: &TestMachine, words: [u64; 7]) -> u64 {
        let memory: &dyn GuestMemory = machine;
        let at = Gpa(0x100);
        for (n, word) in (0..).zip(words.into_iter().chain([u64::MAX])) {
            let to = Gpa(at.0 + 8 * n);
            memory.write(to, &word.to_le_bytes()).unwrap();
        }
        if let Some(Request::Memory { changes, tag }) = command(memory, machine, at) {
            machine.changes.borrow_mut().extend(changes);
            changed(memory, tag, Ok(()));
        }
        let mut answer = [0; 8];
        memory.read(Gpa(at.0 + ANSWER), &mut answer).unwrap();
        u64::from_le_bytes(answer)
    }

    #[test]
    fn regions_are_shown_and_hidden() {
        let machine = with_ram();
        assert_eq!(run(&machine, [1, 0x8000_0000, 0x2000, 5, 3, 9, 0]), 0);
        assert_eq!(run(&machine, [2, 0x8000_0000, 0x1000, 0, 0, 0, 0]), 0);
        let shown = Region {
            writes: Writes::ToPage(9),
            ..Region::ram(Gpa(0x8000_0000), 0x2000, 5)
        };
        let hidden = Change::Remove {
            at: Gpa(0x8000_0000),
            bytes: 0x1000,
        };
        assert_eq!(*machine.changes.borrow(), [Change::Add(shown), hidden]);
    }

    #[test]
    fn the_log_is_taken_in_words() {
        let machine = with_ram();
        assert_eq!(run(&machine, [4, 0, 0, 0, 0, 0, 0]), 0);
        assert_eq!(run(&machine, [4, 0, 0, 0, 0, 0, 0]), REFUSED);
        assert_eq!(run(&machine, [5, 0, 0, 128, 0, 0x400, 18]), 0);
        let mut word = [0; 8];
        GuestMemory::read(&machine, Gpa(0x400 + 8 * 17), &mut word).unwrap();
        assert_eq!(u64::from_le_bytes(word), 128);
        assert_eq!(run(&machine, [5, 0, 0, 128, 0, 0x400, 33]), REFUSED);
        assert_eq!(run(&machine, [5, 0, 0, 0, 0, u64::MAX - 4, 1]), REFUSED);
        assert_eq!(run(&machine, [6, 0, 0, 0, 0, 0, 0]), 0);
        assert_eq!(run(&machine, [99, 0, 0, 0, 0, 0, 0]), REFUSED);
        // Not in memory: nothing happens.
        assert!(command(&machine, &machine, Gpa(u64::MAX - 3)).is_none());
    }
}
