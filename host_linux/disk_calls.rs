// SPDX-License-Identifier: GPL-2.0
//! What ioctls say of disks: the options of one that is attached, the file behind it, and another size.

use crate::device_refusal::DeviceRefusal;
use crate::error;
use crate::file_store::{DiskFault, DiskUse, FileStore};
use crate::options::{id_of, options, slot_of};
use crate::payer::Payer;
use crate::user;
use crate::vm_node::VmNode;
use alloc::boxed::Box;
use kernel::{fs::LocalFile, prelude::*, sync::Arc};
use palacios_core::alloc_ext::try_box;
use palacios_core::block::snapshot::SnapshotStore;
use palacios_core::block::{BlockInfo, BlockRequest, BlockStore, Done, SECTOR_BYTES};
use palacios_core::devices::bus::NewSize;
use palacios_core::devices::virtio::blk::MAX_QUEUES;
use palacios_core::host::NoMemory;
use palacios_core::interfaces::Wake;
use palacios_core::vm::Disk;
use v3_abi as abi;

/// How a disk is to be.
#[derive(Clone, Copy, Default)]
pub(crate) struct DiskOptions {
    is_shared: bool,
    is_snapshot: bool,
    queues: Option<u16>,
}

impl DiskOptions {
    /// What the options of a disk ask for: how it is to be, and in which slot of the PCI bus, if that is chosen.
    pub(crate) fn read(attach: &abi::v3_attach) -> Result<(Self, Option<u8>), DeviceRefusal> {
        const KNOWN: u32 = abi::V3_DISK_SHARED | abi::V3_DISK_SNAPSHOT;
        let Some(given) = options(
            attach,
            abi::V3_DISK_VERSION,
            |given: &abi::v3_disk_options| (given.size, given.version),
        )?
        else {
            return Ok(Default::default());
        };
        if given.flags & !KNOWN != 0 || given.pad != 0 {
            return Err(DeviceRefusal::NotZero);
        }
        if given.queues > MAX_QUEUES.into() {
            return Err(DeviceRefusal::TooManyQueues(given.queues));
        }
        let how = Self {
            is_shared: given.flags & abi::V3_DISK_SHARED != 0,
            is_snapshot: given.flags & abi::V3_DISK_SNAPSHOT != 0,
            queues: (given.queues > 0).then_some(given.queues as u16),
        };
        Ok((how, slot_of(given.slot)))
    }

    /// The disk in an open file; `writes` if its guest may write to that.
    pub(crate) fn open(
        self,
        file: &LocalFile,
        writes: bool,
        payer: &Arc<Payer>,
    ) -> Result<Disk, DiskFault> {
        let how = DiskUse {
            writes: writes && !self.is_snapshot,
            is_shared: self.is_shared,
        };
        let store = FileStore::new(file, payer.clone(), how)?;
        let store = match self.is_snapshot {
            true => PaidSnapshot::new(store, payer.clone())?,
            false => store,
        };
        Ok(Disk {
            store,
            queues: self.queues,
        })
    }
}

/// A snapshot, for whose memory the VM's control group pays.
struct PaidSnapshot {
    snapshot: SnapshotStore,
    payer: Arc<Payer>,
}

impl PaidSnapshot {
    /// One that may become as large as what is below it.
    fn new(below: Box<dyn BlockStore>, payer: Arc<Payer>) -> Result<Box<dyn BlockStore>, NoMemory> {
        let most_bytes = below.info().sectors.saturating_mul(SECTOR_BYTES);
        let snapshot = SnapshotStore::new(below, most_bytes)?;
        Ok(try_box(Self { snapshot, payer })?)
    }
}

impl BlockStore for PaidSnapshot {
    fn info(&self) -> BlockInfo {
        self.snapshot.info()
    }
    fn begin(&mut self, wake: Box<dyn Wake>) -> Result<(), NoMemory> {
        self.snapshot.begin(wake)
    }
    fn submit(&mut self, request: BlockRequest) -> Result<(), BlockRequest> {
        self.payer.during(|| self.snapshot.submit(request))
    }
    fn next_done(&mut self) -> Option<Done> {
        self.snapshot.next_done()
    }
    fn drain(&mut self) {
        self.snapshot.drain();
    }
    fn outlives_vm(&self) -> bool {
        self.snapshot.outlives_vm()
    }
}

/// `V3_VM_RESIZE`: gives a disk another size.
pub(crate) fn resize(node: &VmNode, arg: usize) -> Result {
    let mut resize: abi::v3_resize = user::read(arg)?;
    const KNOWN: u32 = abi::V3_RESIZE_SHRINK | abi::V3_RESIZE_FOLLOW;
    let follows = resize.flags & abi::V3_RESIZE_FOLLOW != 0;
    if resize.flags & !KNOWN != 0 || follows && resize.bytes != 0 {
        return Err(EINVAL);
    }
    let id = abi::until_nul(&resize.id).and_then(id_of).ok_or(EINVAL)?;
    let new = NewSize {
        bytes: (!follows).then_some(resize.bytes),
        may_shrink: resize.flags & abi::V3_RESIZE_SHRINK != 0,
    };
    let held = node.held()?;
    match held.payer.during(|| held.vm.resize(&id, new)) {
        Ok(bytes) => {
            resize.bytes = bytes;
            user::write(arg, &resize)
        }
        Err(why) => {
            user::explain(resize.message, resize.message_len, &why)?;
            Err(error::of_resize(why))
        }
    }
}
