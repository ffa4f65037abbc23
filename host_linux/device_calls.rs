// SPDX-License-Identifier: GPL-2.0
//! The ioctls of a VM's node about its devices: attach, detach, list.

use crate::descriptor::{self, FarEnd, Role};
use crate::device_refusal::DeviceRefusal;
use crate::error;
use crate::user::{self, must_be_zero, Text};
use crate::vm_node::{Held, VmNode};
use kernel::{
    fs::LocalFile,
    prelude::*,
    uaccess::{UserPtr, UserSlice},
};
use palacios_core::alloc_ext::try_box;
use palacios_core::devices::bus::DeviceInfo;
use palacios_core::devices::layout::AttachError;
use palacios_core::devices::{self, IoRegion, Space};
use palacios_core::names::DeviceId;
use palacios_core::pump::FarEnds;
use palacios_core::vm::Attachment;
use v3_abi::{self as abi, Abi};

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
    let (mut port, mut slot) = (None, None);
    match (attach.options_len, kind) {
        (0, _) => {}
        (_, "serial") => port = serial_port(attach)?,
        _ if known.is_pci => slot = pci_slot(attach)?,
        _ => return Err(DeviceRefusal::NoOptions),
    }
    let id = held.payer.during(|| {
        let ends = far_ends(&held, attach)?;
        let wanted = Attachment {
            kind,
            name,
            port,
            slot,
            ends,
        };
        held.vm.attach(wanted).map_err(DeviceRefusal::Core)
    })?;
    Ok((held, id))
}

fn id_of(bytes: &[u8]) -> Option<DeviceId> {
    core::str::from_utf8(bytes).ok().and_then(DeviceId::new)
}

/// The port that the options of a serial port ask for.
fn serial_port(attach: &abi::v3_attach) -> Result<Option<u16>, DeviceRefusal> {
    let options: abi::v3_serial_options = read_options(attach)?;
    check_options(
        attach,
        options.size,
        (options.version, abi::V3_SERIAL_VERSION),
    )?;
    if options.pad != 0 {
        return Err(DeviceRefusal::NotZero);
    }
    match options.port {
        0 => Ok(None),
        port => u16::try_from(port)
            .map(Some)
            .map_err(|_| DeviceRefusal::NoSuchPort(port)),
    }
}

/// The slot that the options of a PCI device ask for.
fn pci_slot(attach: &abi::v3_attach) -> Result<Option<u8>, DeviceRefusal> {
    let options: abi::v3_pci_options = read_options(attach)?;
    check_options(attach, options.size, (options.version, abi::V3_PCI_VERSION))?;
    if options.pad != 0 {
        return Err(DeviceRefusal::NotZero);
    }
    match options.slot {
        0 => Ok(None),
        slot => Ok(Some(u8::try_from(slot).unwrap_or(u8::MAX))),
    }
}

/// The options, as far as this module knows them. What is behind them must be zero.
fn read_options<T: Abi>(attach: &abi::v3_attach) -> Result<T, DeviceRefusal> {
    let known_len = size_of::<T>();
    let len = attach.options_len as usize;
    if len < known_len {
        return Err(DeviceRefusal::BadOptions);
    }
    if attach.options_len > abi::V3_MAX_OPTIONS_LEN {
        return Err(DeviceRefusal::MoreOptions);
    }
    Ok(user::read(user::pointer(attach.options)?)?)
}

/// Checks what all options begin with: their size, and their version against the newest that is known.
fn check_options(
    attach: &abi::v3_attach,
    size: u32,
    (version, newest): (u32, u32),
) -> Result<(), DeviceRefusal> {
    match version {
        0 => return Err(DeviceRefusal::BadOptions),
        _ if version > newest => return Err(DeviceRefusal::NewerOptions(version, newest)),
        _ => {}
    }
    if size != attach.options_len {
        return Err(DeviceRefusal::BadOptions);
    }
    // Options of all kinds are as long as yet.
    const KNOWN_LEN: usize = size_of::<abi::v3_serial_options>();
    const _: () = assert!(KNOWN_LEN == size_of::<abi::v3_pci_options>());
    let at = user::pointer(attach.options)?.wrapping_add(KNOWN_LEN);
    match is_zero(at, (attach.options_len as usize).saturating_sub(KNOWN_LEN))? {
        true => Ok(()),
        false => Err(DeviceRefusal::MoreOptions),
    }
}

/// Whether memory of the caller is zero.
fn is_zero(at: usize, len: usize) -> Result<bool> {
    let mut bytes = KVec::new();
    UserSlice::new(UserPtr::from_addr(at), len).read_all(&mut bytes, GFP_KERNEL)?;
    Ok(bytes.iter().all(|byte| *byte == 0))
}

/// Takes the caller's descriptors. `None` if there are none.
fn far_ends(held: &Held, attach: &abi::v3_attach) -> Result<Option<FarEnds>, DeviceRefusal> {
    if attach.descriptor_count > abi::V3_MAX_DESCRIPTORS {
        return Err(DeviceRefusal::TooManyDescriptors(attach.descriptor_count));
    }
    let mut at = user::pointer(attach.descriptors)?;
    let mut ends = FarEnds::default();
    for _ in 0..attach.descriptor_count {
        let given: abi::v3_descriptor = user::read(at)?;
        take(held, &given, &mut ends)?;
        at = at.wrapping_add(size_of::<abi::v3_descriptor>());
    }
    Ok((attach.descriptor_count > 0).then_some(ends))
}

/// Takes a descriptor of the caller for what it is to be.
fn take(held: &Held, given: &abi::v3_descriptor, ends: &mut FarEnds) -> Result<(), DeviceRefusal> {
    let fd = given.fd;
    if given.pad != 0 {
        return Err(DeviceRefusal::NotZero);
    }
    let role = match (given.role, given.kind) {
        (
            abi::V3_ROLE_INPUT | abi::V3_ROLE_OUTPUT | abi::V3_ROLE_BOTH,
            abi::V3_DESCRIPTOR_STREAM,
        ) => Role {
            input: given.role & abi::V3_ROLE_INPUT != 0,
            output: given.role & abi::V3_ROLE_OUTPUT != 0,
        },
        _ => return Err(DeviceRefusal::UnknownRole(fd)),
    };
    let number = u32::try_from(fd).map_err(|_| DeviceRefusal::NotOpen(fd))?;
    let file = LocalFile::fget(number).map_err(|_| DeviceRefusal::NotOpen(fd))?;
    descriptor::check(&file, role).map_err(|fault| DeviceRefusal::File(fd, fault))?;
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
