// SPDX-License-Identifier: GPL-2.0
//! The table of VMs: their numbers and names, from creation to the end of all that they held.

use crate::hardware::Hardware;
use crate::refusal::Refusal;
use crate::sleep::{Awake, HostSleep};
use crate::vm_file;
use crate::vm_node::{ImageCopy, VmNode};
use kernel::{
    new_mutex,
    prelude::*,
    sync::{Arc, Mutex},
};
use palacios_core::vm::VmName;

/// How many VMs there can be.
pub(crate) const MAX_VMS: usize = 256;

/// A number of a VM.
enum Slot {
    Free,
    /// Its VM is being made, or unmade.
    Busy(VmName),
    Used(VmName, Arc<VmNode>),
}

impl Slot {
    fn name(&self) -> Option<&VmName> {
        match self {
            Self::Free => None,
            Self::Busy(name) | Self::Used(name, _) => Some(name),
        }
    }
    fn node(&self) -> Option<&Arc<VmNode>> {
        match self {
            Self::Used(_, node) => Some(node),
            Self::Free | Self::Busy(_) => None,
        }
    }
}

/// All VMs, and the hardware that they run on.
#[pin_data]
pub(crate) struct Vms {
    awake: Arc<Awake>,
    #[pin]
    table: Mutex<KVec<Slot>>,
    hardware: Hardware,
}

impl Vms {
    /// None yet.
    pub(crate) fn new(hardware: Hardware) -> Result<Arc<Self>> {
        let awake = Arc::pin_init(Awake::new(), GFP_KERNEL)?;
        Arc::pin_init(
            pin_init!(Self {
                awake,
                table <- new_mutex!(KVec::new(), "v3vee_table"),
                hardware,
            }),
            GFP_KERNEL,
        )
    }

    pub(crate) fn hardware(&self) -> &Hardware {
        &self.hardware
    }

    /// Makes a VM of a name, from what `image` reads once the name is taken; returns its number.
    pub(crate) fn create(
        &self,
        name: VmName,
        image: impl FnOnce() -> Result<ImageCopy, Refusal>,
    ) -> Result<u32, Refusal> {
        let id = self.reserve(name)?;
        let made = image().and_then(|image| {
            let awake = self.awake.clone();
            VmNode::new(&self.hardware, awake, &vm_file::OPERATIONS, id, name, image)
        });
        match made {
            Ok(node) => {
                self.set(id, Slot::Used(name, node));
                Ok(id)
            }
            Err(refusal) => {
                self.set(id, Slot::Free);
                Err(refusal)
            }
        }
    }

    /// Takes the lowest free number, and the name.
    fn reserve(&self, name: VmName) -> Result<u32, Refusal> {
        let mut table = self.table.lock();
        if table.iter().any(|slot| slot.name() == Some(&name)) {
            return Err(Refusal::NameTaken(name));
        }
        let mut slots = table.iter_mut().enumerate();
        if let Some((id, slot)) = slots.find(|(_, slot)| matches!(slot, Slot::Free)) {
            *slot = Slot::Busy(name);
            return Ok(id as u32);
        }
        let id = table.len();
        if id == MAX_VMS {
            return Err(Refusal::Full(MAX_VMS));
        }
        let push = table.push(Slot::Busy(name), GFP_KERNEL_ACCOUNT);
        push.map_err(Error::from)?;
        Ok(id as u32)
    }

    fn set(&self, id: u32, new: Slot) {
        let old = match self.table.lock().get_mut(id as usize) {
            Some(slot) => core::mem::replace(slot, new),
            None => new,
        };
        // Dropped without the lock: it may be a VM's last reference.
        drop(old);
    }

    fn node(&self, id: u32) -> Result<Arc<VmNode>> {
        let table = self.table.lock();
        let node = table.get(id as usize).and_then(Slot::node);
        Ok(node.ok_or(ENOENT)?.clone())
    }

    /// All VMs, by their numbers.
    pub(crate) fn nodes(&self) -> Result<KVec<Arc<VmNode>>> {
        let mut nodes = KVec::new();
        for node in self.table.lock().iter().filter_map(Slot::node) {
            nodes.push(node.clone(), GFP_KERNEL)?;
        }
        Ok(nodes)
    }

    /// Ends a VM that does not run: see [`VmNode::free`].
    pub(crate) fn free(&self, id: u32) -> Result {
        let freed = self.node(id)?.free();
        match freed {
            // Another one frees it, or it runs.
            Err(ENOENT | EBUSY) => {}
            _ => self.set(id, Slot::Free),
        }
        freed
    }
}

impl HostSleep for Vms {
    /// All VMs stand still, and none starts, until the host wakes.
    fn host_sleeps(&self) -> Result {
        self.awake.set(false);
        let stand_still = || {
            for slot in self.table.lock().iter() {
                slot.node().map_or(Ok(()), |node| node.host_sleeps())?;
            }
            Ok(())
        };
        stand_still().inspect_err(|_| self.host_wakes())
    }

    /// Those go on that ran.
    fn host_wakes(&self) {
        let table = self.table.lock();
        table
            .iter()
            .filter_map(Slot::node)
            .for_each(|node| node.host_wakes());
        drop(table);
        self.awake.set(true);
    }
}
