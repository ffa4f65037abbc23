// SPDX-License-Identifier: MIT OR Apache-2.0
//! Makes inputs for a target: some anew, most by changing what is in the corpus.

use crate::Target;
use fastrand::Rng;

/// No input is longer.
const MAX_BYTES: usize = 4096;
/// A new input has fewer steps.
const MAX_STEPS: usize = 64;
/// An input of the corpus is changed in at most so many places.
const MAX_CHANGES: usize = 6;
/// Bytes at which something often changes.
const EDGES: [u8; 8] = [0, 1, 0x0f, 0x10, 0x7f, 0x80, 0xfe, 0xff];

/// Inputs without end. The same seed and corpus make the same inputs.
pub struct Inputs<'a> {
    target: Target,
    corpus: &'a [Vec<u8>],
    rng: Rng,
}

impl<'a> Inputs<'a> {
    /// Inputs for a target.
    pub fn new(target: Target, corpus: &'a [Vec<u8>], seed: u64) -> Self {
        Self {
            target,
            corpus,
            rng: Rng::with_seed(seed),
        }
    }

    fn byte(&mut self) -> u8 {
        match self.rng.u8(..4) {
            0 => self.rng.u8(..16),
            1 => EDGES[self.rng.usize(..EDGES.len())],
            _ => self.rng.u8(..),
        }
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.byte()).collect()
    }

    /// A header, steps of which some come again, and a rest that is no whole step.
    fn made(&mut self) -> Vec<u8> {
        let Target {
            header_bytes,
            step_bytes,
            ..
        } = self.target;
        let mut input = self.bytes(header_bytes);
        for steps in 0..self.rng.usize(..MAX_STEPS) {
            let step = if steps > 0 && self.rng.u8(..4) == 0 {
                let again = header_bytes + step_bytes * self.rng.usize(..steps);
                input[again..again + step_bytes].to_vec()
            } else {
                self.bytes(step_bytes)
            };
            input.extend(step);
        }
        let rest = self.rng.usize(..step_bytes);
        input.extend(self.bytes(rest));
        input
    }

    /// An input of the corpus, changed.
    fn changed(&mut self) -> Vec<u8> {
        let mut input = self.corpus[self.rng.usize(..self.corpus.len())].clone();
        for _ in 0..self.rng.usize(1..=MAX_CHANGES) {
            self.change(&mut input);
        }
        input.truncate(MAX_BYTES);
        input
    }

    fn change(&mut self, input: &mut Vec<u8>) {
        let at = self.rng.usize(..=input.len());
        let length = self.rng.usize(..=input.len() - at).min(MAX_BYTES / 8);
        match self.rng.u8(..7) {
            0 => {
                if let Some(byte) = input.get_mut(at) {
                    *byte ^= 1 << self.rng.u8(..8);
                }
            }
            1 => {
                let byte = self.byte();
                input.splice(at..(at + 1).min(input.len()), [byte]);
            }
            // A number, in either order of bytes.
            2 => {
                let size = 1 << self.rng.u8(1..4);
                let mut number = self.bytes(1);
                number.resize(size, [0, 0xff][self.rng.usize(..2)]);
                if self.rng.bool() {
                    number.reverse();
                }
                input.splice(at..(at + size).min(input.len()), number);
            }
            3 => {
                let step = self.bytes(self.target.step_bytes);
                input.splice(at..at, step);
            }
            4 => _ = input.drain(at..at + length),
            5 => {
                let again = input[at..at + length].to_vec();
                input.splice(at..at, again);
            }
            // The end of another one.
            _ => {
                let other = &self.corpus[self.rng.usize(..self.corpus.len())];
                let from = self.rng.usize(..=other.len());
                input.splice(at.., other[from..].iter().copied());
            }
        }
    }
}

impl Iterator for Inputs<'_> {
    type Item = Vec<u8>;

    fn next(&mut self) -> Option<Vec<u8>> {
        let anew = self.corpus.is_empty() || self.rng.u8(..4) == 0;
        Some(if anew { self.made() } else { self.changed() })
    }
}
