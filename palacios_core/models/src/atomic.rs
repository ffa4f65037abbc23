// SPDX-License-Identifier: MIT OR Apache-2.0
//! Loom's atomics, whose orderings can be weakened.

use loom::sync::atomic as strong;
use std::cell::Cell;
pub use std::sync::atomic::Ordering;

/// How the orderings that are asked for are taken.
#[derive(Clone, Copy)]
pub enum Orderings {
    AsWritten,
    Relaxed,
}

thread_local! {
    // Loom runs the threads of a model on the one thread that called it.
    static ORDERINGS: Cell<Orderings> = const { Cell::new(Orderings::AsWritten) };
}

impl Orderings {
    /// For the models that this thread runs from now on.
    pub fn set(self) {
        ORDERINGS.set(self);
    }
}

fn order(asked: Ordering) -> Ordering {
    match ORDERINGS.get() {
        Orderings::AsWritten => asked,
        Orderings::Relaxed => Ordering::Relaxed,
    }
}

macro_rules! atomics {
    ($($name:ident: $int:ty),*) => {$(
        pub struct $name(strong::$name);

        #[allow(dead_code, reason = "not every width is used in every way")]
        impl $name {
            pub fn new(value: $int) -> Self {
                Self(strong::$name::new(value))
            }
            pub fn load(&self, asked: Ordering) -> $int {
                self.0.load(order(asked))
            }
            pub fn store(&self, value: $int, asked: Ordering) {
                self.0.store(value, order(asked));
            }
            pub fn swap(&self, value: $int, asked: Ordering) -> $int {
                self.0.swap(value, order(asked))
            }
            pub fn fetch_add(&self, value: $int, asked: Ordering) -> $int {
                self.0.fetch_add(value, order(asked))
            }
            pub fn fetch_sub(&self, value: $int, asked: Ordering) -> $int {
                self.0.fetch_sub(value, order(asked))
            }
            pub fn compare_exchange_weak(
                &self,
                old: $int,
                new: $int,
                done: Ordering,
                not: Ordering,
            ) -> Result<$int, $int> {
                // Loom knows no weak one.
                self.0.compare_exchange(old, new, order(done), order(not))
            }
            pub fn fetch_and(&self, value: $int, asked: Ordering) -> $int {
                self.0.fetch_and(value, order(asked))
            }
            pub fn fetch_or(&self, value: $int, asked: Ordering) -> $int {
                self.0.fetch_or(value, order(asked))
            }
            pub fn fetch_update(
                &self,
                set: Ordering,
                fetch: Ordering,
                f: impl FnMut($int) -> Option<$int>,
            ) -> Result<$int, $int> {
                self.0.fetch_update(order(set), order(fetch), f)
            }
        }
    )*};
}

atomics!(AtomicU8: u8, AtomicU32: u32, AtomicU64: u64, AtomicUsize: usize);

pub fn fence(asked: Ordering) {
    match order(asked) {
        Ordering::Relaxed => {}
        asked => strong::fence(asked),
    }
}
