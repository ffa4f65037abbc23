// SPDX-License-Identifier: MIT OR Apache-2.0
//! Attaches the first devices of a new VM: those that every PC has, and those that its image describes. Which there are is not
//! written here: [`KINDS`] (`devices/mod.rs`) lists all, and each one's `KIND`, in its own file, says which machines have it.
#![forbid(unsafe_code)]

use super::attach::{find_name, find_slot};
use super::io::Io;
use super::parts::OpenStream;
use crate::devices::layout::AttachError;
use crate::devices::links::Links;
use crate::devices::{Kind, Machines, Resources, KINDS};
use crate::host::Host;
use crate::image::machine::ImageDevice;
use crate::image::Machine;

/// Attaches the devices, in the order of their kinds. `stream` opens the byte stream of a name.
pub(super) fn attach<H: Host>(
    io: &Io<H>,
    links: &dyn Links,
    machine: &Machine<'_>,
    stream: &mut OpenStream<'_>,
) -> Result<(), AttachError> {
    let of_kind = |kind: &'static Kind| {
        let of_every_pc = (kind.machines == Machines::All).then_some(ImageDevice {
            kind,
            place: None,
            stream: kind.has_stream.then_some(kind.name),
        });
        let described = machine.devices();
        let described = described.filter(move |device| core::ptr::eq(device.kind, kind));
        of_every_pc.into_iter().chain(described)
    };
    for device in KINDS.iter().copied().flat_map(of_kind) {
        let ImageDevice { kind, place, .. } = device;
        let slot = find_slot(io.bus(), kind, None)?;
        let name = find_name(io.bus(), kind, place);
        let resources = Resources {
            links,
            ram: machine.ram,
            place,
            slot,
            stream: device.stream.map(&mut *stream).transpose()?,
            disk: None,
        };
        io.attach(name, (kind.make)(resources)?, None)?;
    }
    Ok(())
}
