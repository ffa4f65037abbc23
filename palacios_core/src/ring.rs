// SPDX-License-Identifier: MIT OR Apache-2.0
//! A ring buffer of bytes, for the streams that a host gives to devices: see [`crate::devices::ByteStream`].

use core::ops::DerefMut;

/// A ring buffer. When it is full, new bytes take the place of the oldest.
///
/// Positions only grow; a byte's place is its position modulo the length.
pub struct Ring<B> {
    bytes: B,
    /// Where the next byte goes.
    head: u64,
    /// Where the oldest is.
    tail: u64,
}

impl<B: DerefMut<Target = [u8]>> Ring<B> {
    /// Empty, in this memory, whose length is a power of two.
    pub fn new(bytes: B) -> Self {
        Self {
            bytes,
            head: 0,
            tail: 0,
        }
    }

    /// How many bytes wait.
    pub fn waiting(&self) -> usize {
        self.head.wrapping_sub(self.tail) as usize
    }

    /// How many more it holds without a loss.
    pub fn room(&self) -> usize {
        self.bytes.len().saturating_sub(self.waiting())
    }

    fn place(&self, at: u64) -> usize {
        at as usize & self.bytes.len().wrapping_sub(1)
    }

    /// Appends; returns how many old bytes were pushed out.
    pub fn push(&mut self, data: &[u8]) -> u64 {
        for byte in data {
            let place = self.place(self.head);
            if let Some(slot) = self.bytes.get_mut(place) {
                *slot = *byte;
            }
            self.head = self.head.wrapping_add(1);
        }
        let lost = self.waiting().saturating_sub(self.bytes.len()) as u64;
        self.tail = self.tail.wrapping_add(lost);
        lost
    }

    /// Copies the oldest bytes; returns where they begin and how many they are.
    pub fn peek(&self, to: &mut [u8]) -> (u64, usize) {
        let len = to.len().min(self.waiting());
        let mut at = self.tail;
        for slot in to.iter_mut().take(len) {
            *slot = self.bytes.get(self.place(at)).copied().unwrap_or(0);
            at = at.wrapping_add(1);
        }
        (self.tail, len)
    }

    /// Takes `len` bytes out that [`Ring::peek`] saw at `from`; some may have been pushed out since.
    pub fn take(&mut self, from: u64, len: usize) {
        self.tail = self.tail.max(from.wrapping_add(len as u64));
    }

    /// Moves the oldest bytes to `to`; returns how many.
    pub fn read(&mut self, to: &mut [u8]) -> usize {
        let (from, len) = self.peek(to);
        self.take(from, len);
        len
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::VecDeque;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Step {
        Push(Vec<u8>),
        Read(usize),
        /// Looks at so many, has others pushed meanwhile, and takes what it saw.
        Slowly(usize, Vec<u8>),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let data = || prop::collection::vec(any::<u8>(), 0..20);
        let step = prop_oneof![
            data().prop_map(Step::Push),
            (0..20usize).prop_map(Step::Read),
            (0..20usize, data()).prop_map(|(len, data)| Step::Slowly(len, data)),
        ];
        prop::collection::vec(step, 0..40)
    }

    /// The queue that it is like, of eight bytes.
    #[derive(Default)]
    struct Model(VecDeque<u8>);

    impl Model {
        fn push(&mut self, data: &[u8]) -> u64 {
            self.0.extend(data);
            let lost = self.0.len().saturating_sub(8);
            self.0.drain(..lost);
            lost as u64
        }
        fn read(&mut self, len: usize) -> Vec<u8> {
            let len = len.min(self.0.len());
            self.0.drain(..len).collect()
        }
    }

    proptest! {
        #[test]
        fn it_is_a_queue_that_drops_its_oldest_bytes(steps in steps()) {
            let mut memory = [0; 8];
            let (mut ring, mut model) = (Ring::new(&mut memory[..]), Model::default());
            let mut seen = [0; 20];
            for step in steps {
                match step {
                    Step::Push(data) => prop_assert_eq!(ring.push(&data), model.push(&data)),
                    Step::Read(len) => {
                        let len = ring.read(&mut seen[..len]);
                        prop_assert_eq!(&seen[..len], model.read(len));
                    }
                    Step::Slowly(len, data) => {
                        let (from, len) = ring.peek(&mut seen[..len]);
                        prop_assert_eq!(&seen[..len], model.0.iter().take(len).copied().collect::<Vec<_>>());
                        let lost = ring.push(&data);
                        prop_assert_eq!(lost, model.push(&data));
                        ring.take(from, len);
                        model.read(len.saturating_sub(lost as usize));
                    }
                }
                prop_assert_eq!((ring.waiting(), ring.room()), (model.0.len(), 8 - model.0.len()));
            }
        }
    }
}
