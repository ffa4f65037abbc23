// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is attached to a VM that exists, and where.
#![forbid(unsafe_code)]

use crate::block::BlockStore;
use crate::devices::bus::{Bus, MAX_DEVICES};
use crate::devices::layout::AttachError;
use crate::devices::pci::{Bdf, FIRST_FREE_SLOT, SLOTS};
use crate::devices::virtio::blk::MAX_QUEUES;
use crate::devices::{DiskParts, Kind, Place};
use crate::host::Host;
use crate::names::DeviceId;
use crate::pump::FarEnds;
use alloc::boxed::Box;

/// A device that its owner wants.
pub struct Attachment<'a> {
    /// The name of its kind, as in [`KINDS`](crate::devices::KINDS): `serial`.
    pub kind: &'a str,
    /// What it is to be known by. By default the name of its place, or of its kind.
    pub name: Option<DeviceId>,
    /// The first of its ports. By default those of the first place that is free.
    pub port: Option<u16>,
    /// Its slot of the PCI bus. By default the first one that is free.
    pub slot: Option<u8>,
    /// The far ends of its stream; by default nowhere.
    pub ends: Option<FarEnds>,
    /// What is behind it, if it is a disk.
    pub disk: Option<Disk>,
}

/// What is behind a disk.
pub struct Disk {
    /// Where its bytes are.
    pub store: Box<dyn BlockStore>,
    /// How many queues it has; by default one for each vCPU, as far as there are so many.
    pub queues: Option<u16>,
}

impl Disk {
    /// The disk of a name, in a machine of so many vCPUs.
    pub(super) fn parts(self, name: &DeviceId, vcpus: u32) -> DiskParts {
        let usual = u16::try_from(vcpus).unwrap_or(MAX_QUEUES);
        DiskParts {
            store: self.store,
            queues: self.queues.unwrap_or(usual).clamp(1, MAX_QUEUES),
            serial: *name,
        }
    }
}

/// The slot of the PCI bus for a device of a kind. `None`: its kind has no use for one.
pub(super) fn find_slot<H: Host>(
    bus: &Bus<H>,
    kind: &'static Kind,
    slot: Option<u8>,
) -> Result<Option<Bdf>, AttachError> {
    let slot = match (kind.is_pci, slot) {
        (true, Some(slot)) if (FIRST_FREE_SLOT..SLOTS).contains(&slot) => slot,
        (_, Some(slot)) => return Err(AttachError::NoSuchSlot(slot)),
        (true, None) => bus.free_pci_slot().ok_or(AttachError::NoPlaceLeft)?,
        (false, None) => return Ok(None),
    };
    Ok(Some(Bdf::new(slot, 0)))
}

/// What a device is known by whose owner gives no name: as is usual for its kind, and with a number if another has that name already.
pub(super) fn find_name<H: Host>(
    bus: &Bus<H>,
    kind: &'static Kind,
    place: Option<&Place>,
) -> DeviceId {
    let usual = kind.usual_name(place);
    let mut others = (2..=MAX_DEVICES).map(|number| DeviceId::numbered(&usual, number));
    match bus.find(&usual) {
        Some(_) if kind.is_pci => {
            let free = others.find(|name| bus.find(name).is_none());
            free.unwrap_or(usual)
        }
        _ => usual,
    }
}

/// Where a device of a kind goes. `None`: its kind is always at the same addresses.
pub(super) fn find_place<H: Host>(
    bus: &Bus<H>,
    kind: &'static Kind,
    port: Option<u16>,
) -> Result<Option<&'static Place>, AttachError> {
    let why = match kind.places {
        [] => "cannot be chosen for a device of this kind",
        _ => kind.place_words,
    };
    match port {
        Some(port) => {
            let place = kind.places.iter().find(|place| place.port == port);
            let place = place.ok_or(AttachError::NoSuchPlace { port, why })?;
            Ok(Some(place))
        }
        None if kind.places.is_empty() => Ok(None),
        None => {
            let is_free = |place: &&Place| !bus.has_device_at(place.port);
            let place = kind.places.iter().find(is_free);
            Ok(Some(place.ok_or(AttachError::NoPlaceLeft)?))
        }
    }
}
