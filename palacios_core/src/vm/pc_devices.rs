// SPDX-License-Identifier: MIT OR Apache-2.0
//! Attaches the first devices of a new VM: those that every PC has, and those that its image describes. Which there are is not
//! written here: [`KINDS`] (`devices/mod.rs`) lists all, and each one's `KIND`, in its own file, says which machines have it.
#![forbid(unsafe_code)]

use super::attach::{find_name, find_slot, Disk};
use super::io::Io;
use super::parts::OpenStream;
use crate::alloc_ext::{try_box, NoMemory};
use crate::block::ram::RamStore;
use crate::block::SECTOR_BYTES;
use crate::devices::layout::AttachError;
use crate::devices::links::Links;
use crate::devices::{DiskParts, Kind, Machines, Resources, KINDS};
use crate::host::Host;
use crate::image::disk::ImageDisk;
use crate::image::machine::ImageDevice;
use crate::image::Machine;
use crate::names::DeviceId;

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
            disk: None,
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
            disk: device
                .disk
                .map(|disk| ram_disk(&disk, &name, machine.vcpus))
                .transpose()?,
        };
        io.attach(name, (kind.make)(resources)?, None)?;
    }
    Ok(())
}

/// A disk that the image brings along.
fn ram_disk(disk: &ImageDisk<'_>, name: &DeviceId, vcpus: u32) -> Result<DiskParts, NoMemory> {
    let sectors = disk.bytes / SECTOR_BYTES;
    // What was too large for it was refused with the image.
    let store = RamStore::beginning_with(disk.contents, sectors).map_err(|_| NoMemory)?;
    let store = match disk.is_read_only {
        true => store.read_only(),
        false => store,
    };
    let store = try_box(store)?;
    let disk = Disk {
        store,
        queues: None,
    };
    Ok(disk.parts(name, vcpus))
}
