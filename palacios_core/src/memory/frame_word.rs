// SPDX-License-Identifier: MIT OR Apache-2.0
//! The word of a frame: where the frame is, and whether it may go.
//!
//! ```text
//!            claim             give                        seal                    clear
//!   empty ──────────▶ busy ──────────▶ frame, pins ─────────────▶ frame and busy ────────▶ empty
//!                      │ give_table                    (no pins; then wait for those inside the gate)
//!                      └──────────▶ table, for ever
//! ```
//!
//! Who uses a frame for a moment does it inside the gate (`gate.rs`); a device that works on it *pins* it. Who wants the frame back
//! seals it, so that nobody finds it any more, and waits until those who were inside have left. A pinned frame cannot be sealed.
//!
//! ```text
//!   63      53   52  51            12  11        3    2      1       0
//!  ┌──────────┬─────┬─────────────────┬───────────┬───────┬──────┬─────────┐
//!  │   pins   │  0  │ address, 4 KiB  │     0     │ table │ busy │ present │
//!  └──────────┴─────┴─────────────────┴───────────┴───────┴──────┴─────────┘
//! ```
#![forbid(unsafe_code)]

use crate::atomic::{
    AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
};

const PRESENT: u64 = 1 << 0;
const BUSY: u64 = 1 << 1;
const TABLE: u64 = 1 << 2;
const STATE: u64 = PRESENT | BUSY | TABLE;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
const PIN: u64 = 1 << 53;
const PINS: u64 = 0x7ff << 53;

/// What a word says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// No frame.
    Empty,
    /// Somebody fills it, or takes its frame away.
    Busy,
    /// A frame at this physical address.
    Frame(u64),
    /// No frame of this size: a table of words for smaller ones is at this physical address.
    Table(u64),
}

/// Why a frame cannot be pinned or sealed now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// There is none.
    Empty,
    /// It comes or goes.
    Busy,
    /// It is pinned as often as can be counted.
    Crowded,
    /// A device works on it.
    Pinned,
}

/// The word of one frame.
#[derive(Clone, Copy)]
pub(crate) struct FrameWord<'a>(pub(crate) &'a AtomicU64);

impl FrameWord<'_> {
    /// What it says now.
    #[inline]
    pub(crate) fn content(self) -> Content {
        let word = self.0.load(Acquire);
        match word & STATE {
            PRESENT => Content::Frame(word & ADDRESS),
            TABLE => Content::Table(word & ADDRESS),
            0 => Content::Empty,
            _ => Content::Busy,
        }
    }

    /// Makes an empty word busy; `false`: it is not empty, or not any more.
    pub(crate) fn claim(self) -> bool {
        let empty = |word| match word {
            0 => Ok(BUSY),
            _ => Err(Refused::Busy),
        };
        self.change(empty).is_ok()
    }
    /// Puts a frame into a word that the caller claimed.
    pub(crate) fn give(self, at: u64) {
        self.0.store(at & ADDRESS | PRESENT, Release);
    }
    /// Puts a table into a word that the caller claimed.
    pub(crate) fn give_table(self, at: u64) {
        self.0.store(at & ADDRESS | TABLE, Release);
    }
    /// Empties a word that the caller claimed, or sealed when nobody used the frame any more.
    pub(crate) fn clear(self) {
        self.0.store(0, Release);
    }

    /// Keeps the frame for a device, until [`FrameWord::unpin`].
    pub(crate) fn pin(self) -> Result<u64, Refused> {
        let pinned = self.change(|word| match word & PINS {
            PINS => Err(Refused::Crowded),
            _ => usable(word).map(|word| word.wrapping_add(PIN)),
        })?;
        Ok(pinned & ADDRESS)
    }
    /// The end of a pin.
    pub(crate) fn unpin(self) {
        self.0.fetch_sub(PIN, AcqRel);
    }

    /// Lets nobody find the frame any more, and says where it is. Who found it before may use it until it leaves the gate.
    pub(crate) fn seal(self) -> Result<u64, Refused> {
        let sealed = self.change(|word| match usable(word)? & PINS {
            0 => Ok(word | BUSY),
            _ => Err(Refused::Pinned),
        })?;
        Ok(sealed & ADDRESS)
    }
    /// Lets a sealed frame be found again.
    pub(crate) fn unseal(self) {
        self.0.fetch_and(!BUSY, AcqRel);
    }

    /// Changes the word in one step to what `to` makes of it.
    fn change(self, to: impl Fn(u64) -> Result<u64, Refused>) -> Result<u64, Refused> {
        let mut word = self.0.load(Relaxed);
        loop {
            let new = to(word)?;
            match self.0.compare_exchange_weak(word, new, AcqRel, Relaxed) {
                Ok(_) => return Ok(new),
                Err(now) => word = now,
            }
        }
    }
}

/// A word with a frame that may be used.
fn usable(word: u64) -> Result<u64, Refused> {
    match word & STATE {
        PRESENT => Ok(word),
        0 | TABLE => Err(Refused::Empty),
        _ => Err(Refused::Busy),
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const AT: u64 = 0x000f_1234_5678_9000;

    fn with_frame(test: impl FnOnce(FrameWord<'_>)) {
        let word = AtomicU64::new(0);
        let word = FrameWord(&word);
        assert!(word.claim() && !word.claim());
        assert_eq!(word.content(), Content::Busy);
        word.give(AT);
        test(word);
    }

    #[test]
    fn a_frame_is_claimed_given_and_taken() {
        with_frame(|word| {
            assert_eq!(word.content(), Content::Frame(AT));
            assert_eq!(word.seal(), Ok(AT));
            assert_eq!(word.content(), Content::Busy);
            assert_eq!(
                (word.seal(), word.pin()),
                (Err(Refused::Busy), Err(Refused::Busy))
            );
            word.clear();
            assert_eq!(word.content(), Content::Empty);
            assert_eq!(
                (word.seal(), word.pin()),
                (Err(Refused::Empty), Err(Refused::Empty))
            );
        });
    }

    #[test]
    fn a_pinned_frame_stays() {
        with_frame(|word| {
            assert_eq!(word.pin(), Ok(AT));
            assert_eq!(word.seal(), Err(Refused::Pinned));
            word.unpin();
            assert_eq!(word.seal(), Ok(AT));
            assert_eq!(word.pin(), Err(Refused::Busy));
            word.unseal();
            assert_eq!(word.pin(), Ok(AT));
        });
    }

    #[test]
    fn pins_do_not_overflow() {
        with_frame(|word| {
            let pins = (0..).take_while(|_| word.pin().is_ok()).count();
            assert_eq!((pins, word.pin()), (2047, Err(Refused::Crowded)));
            (0..pins).for_each(|_| word.unpin());
            assert_eq!(word.content(), Content::Frame(AT));
            assert_eq!(word.seal(), Ok(AT));
        });
    }

    #[test]
    fn a_table_is_no_frame() {
        let word = AtomicU64::new(0);
        let word = FrameWord(&word);
        assert!(word.claim());
        word.give_table(AT);
        assert_eq!(word.content(), Content::Table(AT));
        assert!(!word.claim());
        assert_eq!(
            (word.pin(), word.seal()),
            (Err(Refused::Empty), Err(Refused::Empty))
        );
    }
}
