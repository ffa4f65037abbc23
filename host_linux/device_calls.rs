// SPDX-License-Identifier: GPL-2.0
//! The ioctls of a VM's node about its devices: attach, detach, list.

use crate::descriptor::{self, FarEnd, Role};
use crate::device_refusal::DeviceRefusal;
use crate::disk_calls::DiskOptions;
use crate::error;
use crate::options::{id_of, options, slot_of};
use crate::user::{self, must_be_zero, Text};
use crate::vm_node::{Held, VmNode};
use kernel::{fs::LocalFile, prelude::*};
use palacios_core::alloc_ext::try_box;
use palacios_core::devices::bus::DeviceInfo;
use palacios_core::devices::layout::AttachError;
use palacios_core::devices::{self, IoRegion, Space};
use palacios_core::names::DeviceId;
use palacios_core::pump::FarEnds;
use palacios_core::vm::{Attachment, Disk};
use v3_abi::{self as abi, Abi as _};

/// `V3_VM_ATTACH`: attaches a device.
pub(crate) fn attach(node: &VmNode, arg: usize) -> Result {
    let mut attach: abi::v3_attach = user::read(arg)?;
    match attach_device(node, &attach) {
        Ok((held, id)) => {
            attach.id = Text::of(format_args!("{id}")).field;
            // A call that fails leaves nothing behind.
            user::write(arg, &attach).inspect_err(|_| {
                let _ = held.vm.detach(&id);
            })
        }
        Err(refusal) => {
            user::explain(attach.message, attach.message_len, &refusal)?;
            Err(refusal.error())
        }
    }
}

fn attach_device(
    node: &VmNode,
    attach: &abi::v3_attach,
) -> Result<(kernel::sync::Arc<Held>, DeviceId), DeviceRefusal> {
    if attach.flags != 0 {
        return Err(DeviceRefusal::NotZero);
    }
    let held = node.held()?;
    let kind = abi::until_nul(&attach.kind).ok_or(EINVAL)?;
    let kind = core::str::from_utf8(kind).unwrap_or_default();
    let known = devices::kind_by_name(kind);
    let known = known.ok_or(DeviceRefusal::Core(AttachError::NoSuchKind))?;
    let id = abi::until_nul(&attach.id).ok_or(DeviceRefusal::BadId)?;
    let name = match id {
        [] => None,
        id => Some(id_of(id).ok_or(DeviceRefusal::BadId)?),
    };
    let (mut port, mut slot, mut how) = (None, None, DiskOptions::default());
    match kind {
        "serial" => port = serial_port(attach)?,
        _ if known.has_store => (how, slot) = DiskOptions::read(attach)?,
        _ if known.is_pci => slot = pci_slot(attach)?,
        _ if attach.options_len != 0 => return Err(DeviceRefusal::NoOptions),
        _ => {}
    }
    let id = held.payer.during(|| {
        let given = given(&held, attach, how)?;
        let wanted = Attachment {
            kind,
            name,
            port,
            slot,
            ends: given.ends,
            disk: given.disk,
        };
        held.vm.attach(wanted).map_err(DeviceRefusal::Core)
    })?;
    Ok((held, id))
}

/// The port that the options of a serial port ask for.
fn serial_port(attach: &abi::v3_attach) -> Result<Option<u16>, DeviceRefusal> {
    let Some(given) = options(
        attach,
        abi::V3_SERIAL_VERSION,
        |given: &abi::v3_serial_options| (given.size, given.version),
    )?
    else {
        return Ok(None);
    };
    if given.pad != 0 {
        return Err(DeviceRefusal::NotZero);
    }
    match given.port {
        0 => Ok(None),
        port => u16::try_from(port)
            .map(Some)
            .map_err(|_| DeviceRefusal::NoSuchPort(port)),
    }
}

/// The slot that the options of a PCI device ask for.
fn pci_slot(attach: &abi::v3_attach) -> Result<Option<u8>, DeviceRefusal> {
    let Some(given) = options(
        attach,
        abi::V3_PCI_VERSION,
        |given: &abi::v3_pci_options| (given.size, given.version),
    )?
    else {
        return Ok(None);
    };
    if given.pad != 0 {
        return Err(DeviceRefusal::NotZero);
    }
    Ok(slot_of(given.slot))
}

/// What the caller's descriptors are to the device.
#[derive(Default)]
struct Given {
    /// The far ends of its stream.
    ends: Option<FarEnds>,
    disk: Option<Disk>,
}

/// Takes the caller's descriptors.
fn given(held: &Held, attach: &abi::v3_attach, how: DiskOptions) -> Result<Given, DeviceRefusal> {
    if attach.descriptor_count > abi::V3_MAX_DESCRIPTORS {
        return Err(DeviceRefusal::TooManyDescriptors(attach.descriptor_count));
    }
    let mut at = user::pointer(attach.descriptors)?;
    let mut all = Given::default();
    for _ in 0..attach.descriptor_count {
        let given: abi::v3_descriptor = user::read(at)?;
        take(held, &given, how, &mut all)?;
        at = at.wrapping_add(size_of::<abi::v3_descriptor>());
    }
    Ok(all)
}

/// Takes a descriptor of the caller for what it is to be.
fn take(
    held: &Held,
    given: &abi::v3_descriptor,
    how: DiskOptions,
    all: &mut Given,
) -> Result<(), DeviceRefusal> {
    let fd = given.fd;
    if given.pad != 0 {
        return Err(DeviceRefusal::NotZero);
    }
    let role = Role {
        input: given.role & abi::V3_ROLE_INPUT != 0,
        output: given.role & abi::V3_ROLE_OUTPUT != 0,
    };
    let is_known = matches!(
        (given.role, given.kind),
        (
            abi::V3_ROLE_INPUT | abi::V3_ROLE_BOTH,
            abi::V3_DESCRIPTOR_DISK
        ) | (
            abi::V3_ROLE_INPUT | abi::V3_ROLE_OUTPUT | abi::V3_ROLE_BOTH,
            abi::V3_DESCRIPTOR_STREAM
        )
    );
    if !is_known {
        return Err(DeviceRefusal::UnknownRole(fd));
    }
    let number = u32::try_from(fd).map_err(|_| DeviceRefusal::NotOpen(fd))?;
    let file = LocalFile::fget(number).map_err(|_| DeviceRefusal::NotOpen(fd))?;
    if given.kind == abi::V3_DESCRIPTOR_DISK {
        if all.disk.is_some() {
            return Err(DeviceRefusal::RoleTaken(fd));
        }
        let disk = how.open(&file, role.output, &held.payer);
        all.disk = Some(disk.map_err(|fault| DeviceRefusal::Disk(fd, fault))?);
        return Ok(());
    }
    descriptor::check(&file, role).map_err(|fault| DeviceRefusal::File(fd, fault))?;
    let ends = all.ends.get_or_insert_default();
    let places = [
        (role.input, &mut ends.input),
        (role.output, &mut ends.output),
    ];
    for (_, place) in places.into_iter().filter(|(wanted, _)| *wanted) {
        if place.is_some() {
            return Err(DeviceRefusal::RoleTaken(fd));
        }
        *place = Some(try_box(FarEnd::new(&file, held.payer.clone())?)?);
    }
    Ok(())
}

/// `V3_VM_DETACH`: takes a device away.
pub(crate) fn detach(node: &VmNode, arg: usize) -> Result {
    let detach: abi::v3_detach = user::read(arg)?;
    let id = abi::until_nul(&detach.id).and_then(id_of);
    let detached = node.held()?.vm.detach(&id.ok_or(EINVAL)?);
    detached.map_err(error::of_detach)
}

/// `V3_VM_EJECT`: asks the guest to let go of a device.
pub(crate) fn eject(node: &VmNode, arg: usize) -> Result {
    let eject: abi::v3_detach = user::read(arg)?;
    let id = abi::until_nul(&eject.id).and_then(id_of);
    let asked = node.held()?.vm.ask_to_eject(&id.ok_or(EINVAL)?);
    asked.map_err(error::of_detach)
}

/// `V3_VM_DEVICES`: lists the devices.
pub(crate) fn devices(node: &VmNode, arg: usize) -> Result {
    let mut devices: abi::v3_devices = user::read(arg)?;
    must_be_zero(devices.pad)?;
    let all = node.held()?.vm.bus().devices().map_err(|_| ENOMEM)?;
    let mut entries = KVVec::new();
    for device in all.iter().take(devices.count as usize) {
        entries.push(entry_of(device), GFP_KERNEL)?;
    }
    user::write_all(devices.entries, &entries)?;
    devices.count = all.len() as u32;
    user::write(arg, &devices)
}

fn entry_of(device: &DeviceInfo) -> abi::v3_device {
    let mut entry = abi::v3_device {
        id: Text::of(format_args!("{}", device.name)).field,
        kind: Text::of(format_args!("{}", device.kind)).field,
        region_count: device.regions.len() as u32,
        ..abi::v3_device::zeroed()
    };
    if device.is_removable {
        entry.flags |= abi::V3_DEVICE_REMOVABLE;
    }
    for (to, region) in entry.regions.iter_mut().zip(&device.regions) {
        *to = region_of(region);
    }
    entry
}

fn region_of(region: &IoRegion) -> abi::v3_device_region {
    abi::v3_device_region {
        at: region.at,
        bytes: region.end().saturating_sub(region.at),
        space: match region.space {
            Space::Ports => abi::V3_SPACE_PORTS,
            Space::Memory => abi::V3_SPACE_MEMORY,
            Space::PciConfig => abi::V3_SPACE_PCI,
        },
        flags: if region.on { abi::V3_REGION_ON } else { 0 },
    }
}
