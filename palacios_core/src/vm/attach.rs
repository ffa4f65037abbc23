// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is attached to a VM that exists, and where.
#![forbid(unsafe_code)]

use crate::devices::bus::Bus;
use crate::devices::layout::AttachError;
use crate::devices::{Kind, Place};
use crate::host::Host;
use crate::names::DeviceId;
use crate::pump::FarEnds;

/// A device that its owner wants.
pub struct Attachment<'a> {
    /// The name of its kind, as in [`KINDS`](crate::devices::KINDS): `serial`.
    pub kind: &'a str,
    /// What it is to be known by. By default the name of its place, or of its kind.
    pub name: Option<DeviceId>,
    /// The first of its ports. By default those of the first place that is free.
    pub port: Option<u16>,
    /// The far ends of its stream; by default nowhere.
    pub ends: Option<FarEnds>,
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
