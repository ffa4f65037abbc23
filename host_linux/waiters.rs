// SPDX-License-Identifier: GPL-2.0
//! Those who wait for a VM: for a change of its state, for its end, for its streams.

use crate::queue::Queue;
use crate::stream::{DeviceEnd, Stream};
use alloc::boxed::Box;
use core::sync::atomic::AtomicBool;
use kernel::{
    new_mutex,
    prelude::*,
    static_lock_class,
    sync::{Arc, Mutex},
};
use palacios_core::alloc_ext::try_box;
use palacios_core::devices::ByteStream;
use palacios_core::host::NoMemory;
use palacios_core::vm::Observer;

/// What learns of a VM's changes.
#[pin_data]
pub(crate) struct Waiters {
    /// The VM's state changed, or the VM is gone.
    #[pin]
    pub(crate) changed: Queue,
    /// All that the VM held is back.
    pub(crate) gone: AtomicBool,
    /// Its streams. Only added to.
    #[pin]
    pub(crate) streams: Mutex<KVec<Arc<Stream>>>,
}

impl Waiters {
    pub(crate) fn new() -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                changed <- Queue::new(c"v3vee_vm_changed", static_lock_class!()),
                gone: AtomicBool::new(false),
                streams <- new_mutex!(KVec::new(), "v3vee_vm_streams"),
            }),
            GFP_KERNEL_ACCOUNT,
        )
    }

    /// Opens the stream of a name, for a device.
    pub(crate) fn open(&self, name: &str) -> Result<Box<dyn ByteStream>, NoMemory> {
        let stream = Stream::new(name).map_err(|_| NoMemory)?;
        let mut streams = self.streams.lock();
        streams
            .push(stream.clone(), GFP_KERNEL_ACCOUNT)
            .map_err(|_| NoMemory)?;
        Ok(try_box(DeviceEnd(stream))?)
    }

    /// Wakes all who wait for the VM, or for its streams.
    pub(crate) fn wake(&self) {
        self.changed.wake();
        for stream in self.streams.lock().iter() {
            stream.queue.wake();
        }
    }
}

/// The core's hold on a [`Waiters`].
pub(crate) struct Teller(pub(crate) Arc<Waiters>);

impl Observer for Teller {
    fn state_changed(&self) {
        self.0.wake();
    }
}
