// SPDX-License-Identifier: GPL-2.0
//! The table of VMs: their numbers and names, from creation to the end of all that they held.

use crate::hardware::Hardware;
use crate::refusal::Refusal;
use crate::sleep::HostSleep;
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

/// All numbers.
struct Table {
    slots: KVec<Slot>,
    /// The host sleeps, or is about to: all VMs are held.
    sleeps: bool,
}

/// All VMs, and the hardware that they run on.
#[pin_data]
pub(crate) struct Vms {
    #[pin]
    table: Mutex<Table>,
    hardware: Hardware,
}

impl Vms {
    /// None yet.
    pub(crate) fn new(hardware: Hardware) -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                table <- new_mutex!(Table { slots: KVec::new(), sleeps: false }, "v3vee_table"),
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
        let made = image()
            .and_then(|image| VmNode::new(&self.hardware, &vm_file::OPERATIONS, id, name, image));
        match made {
            Ok(node) => {
                self.add(id, name, node);
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
        if table.slots.iter().any(|slot| slot.name() == Some(&name)) {
            return Err(Refusal::NameTaken(name));
        }
        let mut slots = table.slots.iter_mut().enumerate();
        if let Some((id, slot)) = slots.find(|(_, slot)| matches!(slot, Slot::Free)) {
            *slot = Slot::Busy(name);
            return Ok(id as u32);
        }
        let id = table.slots.len();
        if id == MAX_VMS {
            return Err(Refusal::Full(MAX_VMS));
        }
        let push = table.slots.push(Slot::Busy(name), GFP_KERNEL_ACCOUNT);
        push.map_err(Error::from)?;
        Ok(id as u32)
    }

    /// A VM was made.
    fn add(&self, id: u32, name: VmName, node: Arc<VmNode>) {
        let mut table = self.table.lock();
        if table.sleeps {
            // It was made just now, and is held as all others are.
            let _ = node.host_sleeps();
        }
        if let Some(slot) = table.slots.get_mut(id as usize) {
            *slot = Slot::Used(name, node);
        }
    }

    fn set(&self, id: u32, new: Slot) {
        let old = match self.table.lock().slots.get_mut(id as usize) {
            Some(slot) => core::mem::replace(slot, new),
            None => new,
        };
        // Dropped without the lock: it may be a VM's last reference.
        drop(old);
    }

    fn node(&self, id: u32) -> Result<Arc<VmNode>> {
        let table = self.table.lock();
        let node = table.slots.get(id as usize).and_then(Slot::node);
        Ok(node.ok_or(ENOENT)?.clone())
    }

    /// All VMs, by their numbers.
    pub(crate) fn nodes(&self) -> Result<KVec<Arc<VmNode>>> {
        let mut nodes = KVec::new();
        for node in self.table.lock().slots.iter().filter_map(Slot::node) {
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
    /// All VMs are held until the host wakes.
    fn host_sleeps(&self) -> Result {
        let mut table = self.table.lock();
        table.sleeps = true;
        let mut nodes = table.slots.iter().filter_map(Slot::node);
        let held = nodes.try_for_each(|node| node.host_sleeps());
        drop(table);
        held.inspect_err(|_| self.host_wakes())
    }

    /// Those go on that nobody else holds.
    fn host_wakes(&self) {
        let mut table = self.table.lock();
        table.sleeps = false;
        let nodes = table.slots.iter().filter_map(Slot::node);
        nodes.for_each(|node| node.host_wakes());
    }
}
