// SPDX-License-Identifier: MIT OR Apache-2.0
//! The models of memory: frames that are used while the host wants them back, and a map that changes under who acts on it.

use crate::atomic::{AtomicU64, Ordering};
use crate::frame_word::{Content, FrameWord, Refused};
use crate::gate::Gate;
use crate::models;
use crate::models::ALL;
use loom::cell::UnsafeCell;
use loom::thread;
use std::sync::Arc;

const AT: u64 = 0x1000;

/// One page: its word, what is in its frame, and the gate for those who use it. Loom finds an access to the contents that is not ordered behind the one before.
struct Page {
    word: AtomicU64,
    contents: UnsafeCell<u64>,
    gate: Gate,
}

// SAFETY: the contents are for whoever is inside the gate, or pinned or sealed the word, which is what is proved.
unsafe impl Sync for Page {}
// SAFETY: as above.
unsafe impl Send for Page {}

impl Page {
    /// With a frame.
    fn new() -> Arc<Self> {
        let page = Arc::new(Self {
            word: AtomicU64::new(0),
            contents: UnsafeCell::new(0),
            gate: Gate::new(),
        });
        assert!(page.word().claim());
        page.word().give(AT);
        page
    }
    fn word(&self) -> FrameWord<'_> {
        FrameWord(&self.word)
    }
    fn has_frame(&self) -> bool {
        matches!(self.word().content(), Content::Frame(_))
    }
    fn read(&self) -> u64 {
        // SAFETY: the caller is inside, or pinned the frame.
        self.contents.with(|contents| unsafe { *contents })
    }
    fn write(&self, value: u64) {
        // SAFETY: the caller is the only one who uses the frame.
        self.contents
            .with_mut(|contents| unsafe { *contents = value });
    }

    /// As `Memory::reach`.
    fn use_it(&self) {
        let _inside = self.gate.enter();
        if self.has_frame() {
            self.read();
        }
    }
    /// As a page of code that is remembered: found once, and used again as long as the gate's turn is the same. `in_turn`: that is looked at.
    fn use_it_again(&self, in_turn: bool) {
        let known = {
            let inside = self.gate.enter();
            self.has_frame().then(|| inside.turn())
        };
        let inside = self.gate.enter();
        if known.is_some_and(|turn| !in_turn || turn == inside.turn()) {
            self.read();
        }
    }
    /// As `Memory::pin` and its end.
    fn pin_it(&self) {
        if self.word().pin().is_ok() {
            self.read();
            self.word().unpin();
        }
    }
    /// As `Memory::take`: the host has the frame, writes to it, and gives it again. `wait`: until nobody is inside.
    fn revoke(&self, wait: bool) {
        match self.word().seal() {
            Ok(_) => {
                if wait {
                    self.gate.wait_for_those_inside(thread::yield_now);
                }
                self.write(1);
                self.word().clear();
                assert!(self.word().claim());
                self.write(2);
                self.word().give(AT);
            }
            Err(refused) => assert_eq!(refused, Refused::Pinned),
        }
    }
}

/// `user` uses a page's frame while another thread takes it away and gives it back.
fn revocation(user: fn(&Page), wait: bool) {
    let page = Page::new();
    let of_host = page.clone();
    let host = thread::spawn(move || of_host.revoke(wait));
    user(&page);
    host.join().unwrap();
    assert!(page.has_frame(), "the frame is back");
}

/// Two who fill one page: one does, and the other sees what it filled in.
fn two_fill_a_page() {
    let page = Arc::new(Page {
        word: AtomicU64::new(0),
        contents: UnsafeCell::new(0),
        gate: Gate::new(),
    });
    let fill = |page: &Page| {
        if page.word().claim() {
            page.write(7);
            page.word().give(AT);
        } else if page.has_frame() {
            assert_eq!(page.read(), 7);
        }
    };
    let other = page.clone();
    let other = thread::spawn(move || fill(&other));
    fill(&page);
    other.join().unwrap();
}

/// A map whose one region goes, a table in which translations are made by it, and what the region showed.
struct Map {
    shown: AtomicU64,
    translation: AtomicU64,
    gate: Gate,
}

/// As `Memory::fault` against `Memory::change`: behind the change no translation is left, though one may have been made by the map as it was
/// before. `inside`: it is made inside the gate.
fn change_against_fault(inside: bool) {
    let map = Arc::new(Map {
        shown: AtomicU64::new(1),
        translation: AtomicU64::new(0),
        gate: Gate::new(),
    });
    let of_vcpu = map.clone();
    let vcpu = thread::spawn(move || {
        let _inside = inside.then(|| of_vcpu.gate.enter());
        if of_vcpu.shown.load(Ordering::Acquire) == 1 {
            of_vcpu.translation.swap(1, Ordering::AcqRel);
        }
    });
    map.shown.store(0, Ordering::Release);
    map.gate.wait_for_those_inside(thread::yield_now);
    map.translation.swap(0, Ordering::AcqRel);
    // What others see once the change is done.
    let left = map.translation.load(Ordering::Acquire);
    vcpu.join().unwrap();
    let later = map.translation.load(Ordering::Acquire);
    assert_eq!((left, later), (0, 0), "a translation outlived its region");
}

/// Two changes one after the other, and somebody who is inside for the first: the second does not wait for ever, nor too short.
fn two_changes_against_fault() {
    let map = Arc::new(Map {
        shown: AtomicU64::new(1),
        translation: AtomicU64::new(0),
        gate: Gate::new(),
    });
    let of_vcpu = map.clone();
    let vcpu = thread::spawn(move || {
        let _inside = of_vcpu.gate.enter();
        let shown = of_vcpu.shown.load(Ordering::Acquire);
        of_vcpu.translation.swap(shown, Ordering::AcqRel);
    });
    for shown in [2, 0] {
        map.shown.store(shown, Ordering::Release);
        map.gate.wait_for_those_inside(thread::yield_now);
        map.translation.swap(0, Ordering::AcqRel);
    }
    vcpu.join().unwrap();
    let left = map.translation.load(Ordering::Acquire);
    assert_eq!(left, 0, "a translation outlived its region");
}

/// A map of two words, which are to be seen together: there are two sides of it, as in `RegionMap`. It changes twice while somebody looks.
/// `wait`: each change waits for those inside.
fn map_against_reader(wait: bool) {
    struct TwoSides {
        shown: AtomicU64,
        sides: [[AtomicU64; 2]; 2],
        gate: Gate,
    }
    let map = Arc::new(TwoSides {
        shown: AtomicU64::new(0),
        sides: [(); 2].map(|()| [(); 2].map(|()| AtomicU64::new(0))),
        gate: Gate::new(),
    });
    let of_reader = map.clone();
    let reader = thread::spawn(move || {
        let _inside = of_reader.gate.enter();
        let side = &of_reader.sides[of_reader.shown.load(Ordering::Acquire) as usize % 2];
        let [a, b] = [0, 1].map(|n: usize| side[n].load(Ordering::Relaxed));
        assert_eq!(a, b, "half of a change");
    });
    for change in [1, 2] {
        let side = &map.sides[change as usize % 2];
        side.iter()
            .for_each(|word| word.store(change, Ordering::Relaxed));
        map.shown.store(change, Ordering::Release);
        if wait {
            map.gate.wait_for_those_inside(thread::yield_now);
        }
    }
    reader.join().unwrap();
}

models! {
    use_against_revocation: ALL, revocation(Page::use_it, true);
        fails: AsWritten, revocation(Page::use_it, false), "Causality violation";
    use_against_revocation_in_weak_order: ALL, revocation(Page::use_it, true);
        fails: Relaxed, revocation(Page::use_it, true), "Causality violation";
    memory_of_a_frame_against_revocation: ALL, revocation(|page| page.use_it_again(true), true);
        fails: AsWritten, revocation(|page| page.use_it_again(false), true), "Causality violation";
    memory_of_a_frame_in_weak_order: ALL, revocation(|page| page.use_it_again(true), true);
        fails: Relaxed, revocation(|page| page.use_it_again(true), true), "Causality violation";
    pin_against_revocation: ALL, revocation(Page::pin_it, true);
        fails: Relaxed, revocation(Page::pin_it, true), "Causality violation";
    two_fill_one_page: ALL, two_fill_a_page();
        fails: Relaxed, two_fill_a_page(), "Causality violation";
    change_against_fault: ALL, change_against_fault(true);
        fails: AsWritten, change_against_fault(false), "a translation outlived its region";
    change_against_fault_in_weak_order: ALL, change_against_fault(true);
        fails: Relaxed, change_against_fault(true), "a translation outlived its region";
    two_changes_against_fault: Some(4), two_changes_against_fault();
        fails: Relaxed, two_changes_against_fault(), "a translation outlived its region";
    map_against_reader: ALL, map_against_reader(true);
        fails: AsWritten, map_against_reader(false), "half of a change";
    map_against_reader_in_weak_order: ALL, map_against_reader(true);
        fails: Relaxed, map_against_reader(true), "half of a change";
}
