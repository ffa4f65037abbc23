// SPDX-License-Identifier: GPL-2.0
//! A file that reads as the saved machine of its VM, which stands still as long as the file is open.

use crate::error;
use crate::vm_node::VmNode;
use kernel::{
    iov::IovIterDest,
    new_mutex,
    prelude::*,
    sync::{Arc, Mutex},
};
use palacios_core::state_io::StateError;
use palacios_core::vm::{HoldReason, LifeError, SaveError, Saver, State};

/// How much is copied between the core and a reader at a time.
const CHUNK_BYTES: usize = 64 << 10;

/// The most that one read gives, so that a reader who wants much can be interrupted.
const MOST_BYTES: usize = 1 << 20;

/// A VM that is being saved.
#[pin_data]
pub(crate) struct Saving {
    hold: Hold,
    /// Held while a reader copies to its memory, which may sleep.
    #[pin]
    progress: Mutex<Progress>,
}

/// How far it is.
struct Progress {
    saver: Saver,
    chunk: KVVec<u8>,
    /// What of the chunk waits for a reader.
    from: usize,
    len: usize,
}

/// Has a VM stand still.
struct Hold(Arc<VmNode>);

impl Hold {
    fn new(node: Arc<VmNode>) -> Result<Self> {
        let held = node.held()?;
        if !matches!(held.vm.state(), State::Running | State::Paused) {
            return Err(error::wrong_state());
        }
        match held.vm.hold(HoldReason::Saving) {
            Err(why @ LifeError::TooManyHolds) => return Err(error::of_life(why)),
            // One that a device keeps from resting stops, and is held nevertheless.
            Ok(()) | Err(_) => {}
        }
        Ok(Self(node))
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        // One that was freed meanwhile is held by nobody.
        if let Ok(held) = self.0.held() {
            let _ = held.vm.release(HoldReason::Saving);
        }
    }
}

impl Saving {
    /// Has the VM stand still.
    pub(crate) fn begin(node: Arc<VmNode>) -> Result<Pin<KBox<Self>>> {
        let mut chunk = KVVec::with_capacity(CHUNK_BYTES, GFP_KERNEL_ACCOUNT)?;
        chunk.resize(CHUNK_BYTES, 0, GFP_KERNEL_ACCOUNT)?;
        let progress = Progress {
            saver: Saver::new(),
            chunk,
            from: 0,
            len: 0,
        };
        let hold = Hold::new(node)?;
        KBox::pin_init(
            pin_init!(Self {
                hold,
                progress <- new_mutex!(progress, "v3vee_saving"),
            }),
            GFP_KERNEL_ACCOUNT,
        )
    }

    /// Gives a reader what comes next. Nothing: that was all.
    pub(crate) fn read(&self, to: &mut IovIterDest<'_>) -> Result<usize> {
        let mut progress = self.progress.lock();
        let mut done = 0;
        while !to.is_empty() && done < MOST_BYTES {
            match progress.give(&self.hold, to) {
                Ok(0) => break,
                Ok(len) => done = len.saturating_add(done),
                Err(_) if done > 0 => break,
                Err(why) => return Err(why),
            }
        }
        Ok(done)
    }
}

impl Progress {
    /// Copies some of what waits. Nothing: there is no more.
    fn give(&mut self, hold: &Hold, to: &mut IovIterDest<'_>) -> Result<usize> {
        if self.from == self.len {
            let held = hold.0.held()?;
            let read = held
                .payer
                .during(|| held.vm.read_saved(&mut self.saver, &mut self.chunk));
            (self.from, self.len) = (0, read.map_err(of_save)?);
        }
        let waiting = self.chunk.get(self.from..self.len).unwrap_or(&[]);
        let copied = to.copy_to_iter(waiting);
        if copied == 0 && !waiting.is_empty() {
            return Err(EFAULT);
        }
        self.from = copied.saturating_add(self.from);
        Ok(copied)
    }
}

fn of_save(why: SaveError) -> Error {
    match why {
        SaveError::WrongState(_) => error::wrong_state(),
        SaveError::Rearranged => error::beyond_us(),
        SaveError::State(StateError::NoMemory) => ENOMEM,
        SaveError::State(StateError::LostWithVm) => error::lost_with_vm(),
        SaveError::State(_) => EIO,
    }
}
