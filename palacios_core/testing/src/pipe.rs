// SPDX-License-Identifier: MIT OR Apache-2.0
//! A pipe whose one end a test gives to a VM, and whose other end it keeps.

use crate::heap;
use palacios_core::host::{Descriptor, DescriptorError, NoMemory, Wake};
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// A pipe. Clones are ends of the same.
#[derive(Clone, Default)]
pub struct Pipe(Arc<(Mutex<State>, Condvar)>);

#[derive(Default)]
struct State {
    bytes: VecDeque<u8>,
    /// More are not taken, if it is not 0.
    most: usize,
    closed: bool,
    wakers: Vec<Box<dyn Wake>>,
}

impl Pipe {
    /// One that takes `most` bytes until they are read; any number if 0.
    pub fn new(most: usize) -> Self {
        heap::exempt(|| {
            let pipe = Self::default();
            pipe.state().most = most;
            pipe
        })
    }
    fn state(&self) -> MutexGuard<'_, State> {
        self.0 .0.lock().unwrap_or_else(PoisonError::into_inner)
    }
    /// Has the VM's end look.
    fn tell(&self, state: &State) {
        state.wakers.iter().for_each(|waker| waker.wake());
        self.0 .1.notify_all();
    }
    /// Puts bytes into it, however many it holds already.
    pub fn put(&self, bytes: &[u8]) {
        let mut state = self.state();
        state.bytes.extend(bytes);
        self.tell(&state);
    }
    /// Takes what is in it.
    pub fn take(&self) -> Vec<u8> {
        let mut state = self.state();
        let bytes = state.bytes.drain(..).collect();
        self.tell(&state);
        bytes
    }
    /// Takes what is in it, once there is something.
    pub fn take_some(&self) -> Vec<u8> {
        let empty = |state: &mut State| state.bytes.is_empty();
        let waited = self.0 .1.wait_while(self.state(), empty);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
        self.take()
    }
    /// Takes bytes until there are `count`.
    pub fn take_exactly(&self, count: usize) -> Vec<u8> {
        let mut all = Vec::new();
        while all.len() < count {
            all.extend(self.take_some());
        }
        assert_eq!(all.len(), count);
        all
    }
    /// Closes the other end, or opens it again.
    pub fn close(&self, closed: bool) {
        let mut state = self.state();
        state.closed = closed;
        self.tell(&state);
    }
    /// How many wakers it has: ends that a VM holds and watches.
    pub fn watched(&self) -> usize {
        self.state().wakers.len()
    }
    /// The end for a VM.
    pub fn end(&self) -> Box<dyn Descriptor> {
        heap::exempt(|| Box::new(End(self.clone())) as Box<dyn Descriptor>)
    }
}

/// The VM's end.
struct End(Pipe);

impl Descriptor for End {
    fn read(&mut self, buf: &mut [u8]) -> Result<usize, DescriptorError> {
        let mut state = self.0.state();
        if state.bytes.is_empty() {
            return Err(match state.closed {
                true => DescriptorError::Closed,
                false => DescriptorError::WouldBlock,
            });
        }
        let count = buf.len().min(state.bytes.len());
        for (to, from) in buf.iter_mut().zip(state.bytes.drain(..count)) {
            *to = from;
        }
        Ok(count)
    }
    fn write(&mut self, data: &[u8]) -> Result<usize, DescriptorError> {
        let mut state = self.0.state();
        if state.closed {
            return Err(DescriptorError::Closed);
        }
        let room = match state.most {
            0 => data.len(),
            most => most.saturating_sub(state.bytes.len()).min(data.len()),
        };
        if room == 0 {
            return Err(DescriptorError::WouldBlock);
        }
        heap::exempt(|| state.bytes.extend(&data[..room]));
        self.0 .0 .1.notify_all();
        Ok(room)
    }
    fn watch(&mut self, waker: Box<dyn Wake>) -> Result<(), NoMemory> {
        heap::exempt(|| self.0.state().wakers.push(waker));
        Ok(())
    }
}

impl Drop for End {
    fn drop(&mut self) {
        let wakers = std::mem::take(&mut self.0.state().wakers);
        drop(wakers);
    }
}
