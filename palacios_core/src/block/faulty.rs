// SPDX-License-Identifier: MIT OR Apache-2.0
//! A store for tests that goes wrong in one way or another.
#![forbid(unsafe_code)]

use super::{BlockError, BlockInfo, BlockRequest, BlockStore, Done, Operation};
use crate::alloc_ext::NoMemory;
use crate::devices::testing::Shared;
use crate::interfaces::Wake;
use std::boxed::Box;
use std::vec::Vec;

/// What is wrong with a store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    #[default]
    None,
    /// There is no space left for writes.
    Full,
    /// Every so many requests one fails.
    FailsEvery(u32),
    /// It has only so many sectors, and says so.
    Shrunk(u64),
    /// It has vanished.
    Gone,
    /// It says that it has flushed, and has not.
    IgnoresFlush,
    /// It is done with nothing until it is drained.
    Slow,
    /// It takes no request.
    Busy,
}

/// The store.
pub struct FaultyStore {
    below: Box<dyn BlockStore>,
    /// What is wrong now.
    fault: Shared<Fault>,
    wake: Shared<Option<Box<dyn Wake>>>,
    count: u32,
    done: Vec<Done>,
    waiting: Vec<BlockRequest>,
}

/// The test's hold on a faulty store.
#[derive(Clone)]
pub struct FaultSwitch {
    fault: Shared<Fault>,
    wake: Shared<Option<Box<dyn Wake>>>,
}

impl FaultSwitch {
    /// From now on this is wrong.
    pub fn set(&self, fault: Fault) {
        self.fault.set(fault);
        if let Some(wake) = &*self.wake.borrow() {
            wake.wake();
        }
    }
}

impl FaultyStore {
    /// A store that does as the one below, as long as nothing is wrong.
    pub fn new(below: Box<dyn BlockStore>) -> (Self, FaultSwitch) {
        let (fault, wake) = (Shared::default(), Shared::default());
        let switch = FaultSwitch {
            fault: fault.clone(),
            wake: wake.clone(),
        };
        let store = Self {
            below,
            fault,
            wake,
            count: 0,
            done: Vec::new(),
            waiting: Vec::new(),
        };
        (store, switch)
    }

    /// How it ends without the store below, if it does.
    fn verdict(&mut self, operation: &Operation) -> Option<Result<(), BlockError>> {
        self.count = self.count.wrapping_add(1);
        let is_write = matches!(
            operation,
            Operation::Write { .. } | Operation::WriteZeroes { .. }
        );
        match self.fault.get() {
            Fault::Full if is_write => Some(Err(BlockError::NoSpace)),
            Fault::FailsEvery(n) if self.count % n == 0 => Some(Err(BlockError::Io)),
            Fault::Shrunk(_) => self.info().check(operation).err().map(Err),
            Fault::Gone => Some(Err(BlockError::Gone)),
            Fault::IgnoresFlush if matches!(operation, Operation::Flush) => Some(Ok(())),
            _ => None,
        }
    }

    fn pass_on(&mut self, request: BlockRequest) -> Result<(), BlockRequest> {
        match self.verdict(&request.operation) {
            Some(result) => {
                self.done.push(Done { request, result });
                Ok(())
            }
            None => self.below.submit(request),
        }
    }

    fn pass_on_waiting(&mut self) {
        for request in std::mem::take(&mut self.waiting) {
            if let Err(request) = self.pass_on(request) {
                self.waiting.push(request);
            }
        }
    }
}

impl BlockStore for FaultyStore {
    fn info(&self) -> BlockInfo {
        let mut info = self.below.info();
        if let Fault::Shrunk(sectors) = self.fault.get() {
            info.sectors = info.sectors.min(sectors);
        }
        info
    }
    fn begin(&mut self, wake: Box<dyn Wake>) -> Result<(), NoMemory> {
        self.wake.set(Some(wake));
        Ok(())
    }
    fn submit(&mut self, request: BlockRequest) -> Result<(), BlockRequest> {
        match self.fault.get() {
            Fault::Busy => Err(request),
            Fault::Slow => {
                self.waiting.push(request);
                Ok(())
            }
            _ => self.pass_on(request),
        }
    }
    fn next_done(&mut self) -> Option<Done> {
        if self.fault.get() != Fault::Slow {
            self.pass_on_waiting();
        }
        self.done.pop().or_else(|| self.below.next_done())
    }
    fn drain(&mut self) {
        while !self.waiting.is_empty() {
            self.pass_on_waiting();
            self.done.extend(self.below.next_done());
        }
        self.below.drain();
    }
}
