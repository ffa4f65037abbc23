// SPDX-License-Identifier: MIT OR Apache-2.0
//! Devices of a VM: what there is, and what a new one is to be.

use crate::answers::text;
use crate::error::Call;
use crate::{ioctl, Error, Vm};
use palacios_core::names::DeviceId;
use rustix::fd::{AsRawFd, OwnedFd};
use rustix::io::Errno;
use serde::Serialize;
use std::collections::BTreeMap;
use v3_abi::{
    put_text, v3_descriptor, v3_detach, v3_disk_options, v3_pci_options, v3_serial_options, Abi,
};

/// A device of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Device {
    /// What it is known by.
    pub id: String,
    /// What it is.
    pub kind: String,
    /// It can be detached.
    pub removable: bool,
    /// Where it answers.
    pub regions: Vec<DeviceRegion>,
    /// What it has done since it came, if that was asked for.
    pub counters: BTreeMap<String, u64>,
}

/// Addresses at which a device answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DeviceRegion {
    /// What they are.
    pub space: Space,
    /// The first.
    pub at: u64,
    /// How many.
    pub bytes: u64,
    /// The device answers there now.
    pub on: bool,
}

/// What addresses are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Space {
    /// Those of ports.
    Ports,
    /// Those of memory.
    Memory,
    /// Those of configuration space of PCI.
    Pci,
    /// Those of something that this program does not know.
    Other,
}

impl From<&v3_abi::v3_device> for Device {
    fn from(raw: &v3_abi::v3_device) -> Self {
        let count = raw.region_count as usize;
        Self {
            id: text(&raw.id),
            kind: text(&raw.kind),
            removable: raw.flags & v3_abi::V3_DEVICE_REMOVABLE != 0,
            regions: raw.regions.iter().take(count).map(Into::into).collect(),
            counters: BTreeMap::new(),
        }
    }
}

impl From<&v3_abi::v3_device_region> for DeviceRegion {
    fn from(raw: &v3_abi::v3_device_region) -> Self {
        Self {
            space: match raw.space {
                v3_abi::V3_SPACE_PORTS => Space::Ports,
                v3_abi::V3_SPACE_MEMORY => Space::Memory,
                v3_abi::V3_SPACE_PCI => Space::Pci,
                _ => Space::Other,
            },
            at: raw.at,
            bytes: raw.bytes,
            on: raw.flags & v3_abi::V3_REGION_ON != 0,
        }
    }
}

/// What a descriptor is for a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The device reads it.
    Input,
    /// The device writes it.
    Output,
    /// Both.
    Both,
    /// It holds a disk's bytes.
    Disk,
    /// The same, for reading alone.
    ReadOnlyDisk,
}

impl Role {
    fn number(self) -> u32 {
        match self {
            Self::Input | Self::ReadOnlyDisk => v3_abi::V3_ROLE_INPUT,
            Self::Output => v3_abi::V3_ROLE_OUTPUT,
            Self::Both | Self::Disk => v3_abi::V3_ROLE_BOTH,
        }
    }

    fn kind(self) -> u32 {
        match self {
            Self::Input | Self::Output | Self::Both => v3_abi::V3_DESCRIPTOR_STREAM,
            Self::Disk | Self::ReadOnlyDisk => v3_abi::V3_DESCRIPTOR_DISK,
        }
    }
}

/// How a disk is to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskRequest {
    /// Others of whom the same is said may have the same file.
    pub is_shared: bool,
    /// What its guest writes stays in memory, and goes with the disk.
    pub is_snapshot: bool,
    /// How many queues it has; by default one for each virtual CPU.
    pub queues: Option<u16>,
}

/// A device that is to be attached.
#[derive(Debug)]
pub struct Request<'a> {
    /// Its kind, such as `serial`.
    pub kind: &'a str,
    /// What it is to be known by; by default the VM chooses.
    pub id: Option<&'a str>,
    /// The first port of a serial port; by default that of the first place that is free.
    pub port: Option<u16>,
    /// The slot of a PCI device; by default the first that is free.
    pub slot: Option<u8>,
    /// What it is as a disk, if it is one.
    pub disk: Option<DiskRequest>,
    /// The far ends of its stream, in non-blocking mode; or the file of a disk. The VM holds the files themselves.
    pub descriptors: &'a [(OwnedFd, Role)],
}

impl<'a> Request<'a> {
    /// One of a kind, as it usually is, without descriptors.
    #[must_use]
    pub fn of_kind(kind: &'a str) -> Self {
        Self {
            kind,
            id: None,
            port: None,
            slot: None,
            disk: None,
            descriptors: &[],
        }
    }

    /// Its options: those of a port, of a disk, or of a slot. No kind of device has more than one.
    fn options(&self) -> Vec<u8> {
        let serial = self.port.map(|port| v3_serial_options {
            size: size_of::<v3_serial_options>() as u32,
            version: v3_abi::V3_SERIAL_VERSION,
            port: port.into(),
            pad: 0,
        });
        let pci = self.slot.map(|slot| v3_pci_options {
            size: size_of::<v3_pci_options>() as u32,
            version: v3_abi::V3_PCI_VERSION,
            slot: slot.into(),
            pad: 0,
        });
        let disk = self.disk.map(|disk| v3_disk_options {
            size: size_of::<v3_disk_options>() as u32,
            version: v3_abi::V3_DISK_VERSION,
            slot: self.slot.unwrap_or(0).into(),
            flags: flag(disk.is_shared, v3_abi::V3_DISK_SHARED)
                | flag(disk.is_snapshot, v3_abi::V3_DISK_SNAPSHOT),
            queues: disk.queues.unwrap_or(0).into(),
            pad: 0,
        });
        let serial = serial.as_ref().map(Abi::as_bytes);
        let disk = disk.as_ref().map(Abi::as_bytes);
        let options = serial.or(disk).or(pci.as_ref().map(Abi::as_bytes));
        options.unwrap_or_default().to_vec()
    }

    fn descriptors(&self) -> Vec<v3_descriptor> {
        let raw = |(fd, role): &(OwnedFd, Role)| v3_descriptor {
            fd: fd.as_raw_fd(),
            role: role.number(),
            kind: role.kind(),
            pad: 0,
        };
        self.descriptors.iter().map(raw).collect()
    }
}

fn flag(is_set: bool, flag: u32) -> u32 {
    if is_set {
        flag
    } else {
        0
    }
}

/// Whether something may be what a device is known by: see `v3_attach.id` in the header.
fn is_id(id: &str) -> bool {
    DeviceId::new(id).is_some()
}

fn named(id: &str) -> Result<v3_detach, Error> {
    if !is_id(id) {
        return Err(Error::BadId(id.into()));
    }
    let mut arg = v3_detach::zeroed();
    put_text(&mut arg.id, id.as_bytes());
    Ok(arg)
}

impl Vm {
    /// Attaches a device, whatever the VM's state. Returns what it is known by.
    pub fn attach(&self, wanted: &Request<'_>) -> Result<String, Error> {
        let id = wanted.id.unwrap_or_default();
        if wanted.id.is_some() && !is_id(id) {
            return Err(Error::BadId(id.into()));
        }
        let options = wanted.options();
        let mut message = [0; v3_abi::V3_MESSAGE_LEN as usize];
        let named = (wanted.kind.as_bytes(), id.as_bytes());
        let attached = ioctl::attach(self, named, &options, &wanted.descriptors(), &mut message);
        let id = attached.map_err(|errno| Error::NotAttached {
            vm: self.name(),
            errno,
            message: text(&message),
        })?;
        Ok(text(&id))
    }

    /// Takes a device away, whatever the VM's state.
    pub fn detach(&self, id: &str) -> Result<(), Error> {
        let done = ioctl::detach(self, named(id)?);
        done.map_err(|errno| self.not_detached(id, errno))
    }

    /// Asks the guest to let go of a device, and does not wait for that. `false`: there is no guest to be asked for it.
    pub fn ask_to_eject(&self, id: &str) -> Result<bool, Error> {
        match ioctl::eject(self, named(id)?) {
            Ok(()) => Ok(true),
            // An older module detaches all devices at once.
            Err(Errno::OPNOTSUPP | Errno::NOTTY) => Ok(false),
            Err(errno) => Err(self.not_detached(id, errno)),
        }
    }

    /// Gives a disk another size, with its file; with `None` the one that its file or block device has now. Returns how many bytes it has then.
    pub fn resize(&self, id: &str, bytes: Option<u64>, may_shrink: bool) -> Result<u64, Error> {
        let flags = flag(may_shrink, v3_abi::V3_RESIZE_SHRINK)
            | flag(bytes.is_none(), v3_abi::V3_RESIZE_FOLLOW);
        let mut message = [0; v3_abi::V3_MESSAGE_LEN as usize];
        let id_field = named(id)?.id;
        let resized = ioctl::resize(self, id_field, bytes.unwrap_or(0), flags, &mut message);
        resized.map_err(|errno| match errno {
            Errno::NOENT => Error::NoSuchDevice {
                vm: self.name(),
                id: id.into(),
                removable: self.removable(),
            },
            errno => Error::NotResized {
                vm: self.name(),
                id: id.into(),
                errno,
                message: text(&message),
            },
        })
    }

    fn not_detached(&self, id: &str, errno: Errno) -> Error {
        match errno {
            Errno::NOENT => Error::NoSuchDevice {
                vm: self.name(),
                id: id.into(),
                removable: self.removable(),
            },
            Errno::PERM => Error::NotRemovable {
                vm: self.name(),
                id: id.into(),
            },
            errno => self.failed(Call::Detach)(errno),
        }
    }

    /// Its devices, in the order in which they came.
    pub fn devices(&self) -> Result<Vec<Device>, Error> {
        let raw = ioctl::devices(self).map_err(self.failed(Call::Devices))?;
        Ok(raw.iter().map(Device::from).collect())
    }

    /// The same, with what each has done.
    pub fn devices_with_counters(&self) -> Result<Vec<Device>, Error> {
        let mut devices = self.devices()?;
        let stats = self.stats()?;
        let counters = |id: &str| {
            let of_vm = stats.iter().filter(|stat| stat.vcpu.is_none());
            let of_device = of_vm.filter_map(|stat| {
                let counter = stat.name.strip_prefix(id)?.strip_prefix('.')?;
                // A name may have dots, too: that of a counter has none.
                (!counter.contains('.')).then(|| (counter.into(), stat.value))
            });
            of_device.collect()
        };
        for device in &mut devices {
            device.counters = counters(&device.id);
        }
        Ok(devices)
    }

    /// What can be detached. Without it a message is shorter, and still true.
    fn removable(&self) -> Vec<String> {
        let all = self.devices().unwrap_or_default().into_iter();
        all.filter(|device| device.removable)
            .map(|device| device.id)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids() {
        for good in ["com3", "a", "A.b_c-9", "7"] {
            assert!(is_id(good), "{good}");
        }
        for bad in [
            "",
            "a b",
            "a/b",
            "\u{e9}",
            "12345678901234567890123456789012",
        ] {
            assert!(!is_id(bad), "{bad}");
        }
    }

    #[test]
    fn a_request_says_what_is_wanted() {
        let (one, other) = std::os::unix::net::UnixStream::pair().unwrap();
        let descriptors = [(one.into(), Role::Input), (other.into(), Role::Output)];
        let wanted = Request {
            kind: "serial",
            id: None,
            port: Some(0x3e8),
            slot: None,
            disk: None,
            descriptors: &descriptors,
        };
        let words = |wanted: &Request<'_>| -> Vec<u32> {
            let options = wanted.options();
            let words = options.chunks(4);
            words
                .map(|word| u32::from_le_bytes(word.try_into().unwrap()))
                .collect()
        };
        assert_eq!(words(&wanted), [16, 1, 0x3e8, 0]);
        let roles: Vec<u32> = wanted.descriptors().iter().map(|d| d.role).collect();
        assert_eq!(roles, [1, 2]);
        assert_eq!(Role::Both.number(), 3);
        let anywhere = Request {
            port: None,
            ..wanted
        };
        assert!(anywhere.options().is_empty());
        let in_slot = Request {
            slot: Some(7),
            ..anywhere
        };
        assert_eq!(words(&in_slot), [16, 1, 7, 0]);
        let disk = DiskRequest {
            is_shared: true,
            is_snapshot: true,
            queues: Some(4),
        };
        let disk = Request {
            disk: Some(disk),
            ..in_slot
        };
        assert_eq!(words(&disk), [24, 1, 7, 3, 4, 0]);
        let numbers = |role: Role| (role.kind(), role.number());
        assert_eq!(numbers(Role::Disk), (1, 3));
        assert_eq!(numbers(Role::ReadOnlyDisk), (1, 1));
    }

    #[test]
    fn a_device_is_read() {
        let mut raw = v3_abi::v3_device::zeroed();
        put_text(&mut raw.id, b"com3");
        put_text(&mut raw.kind, b"serial");
        (raw.flags, raw.region_count) = (v3_abi::V3_DEVICE_REMOVABLE, 1);
        raw.regions[0].at = 0x3e8;
        raw.regions[0].bytes = 8;
        raw.regions[0].space = v3_abi::V3_SPACE_PORTS;
        raw.regions[0].flags = v3_abi::V3_REGION_ON;
        let device = Device::from(&raw);
        assert_eq!((device.id.as_str(), device.removable), ("com3", true));
        let region = DeviceRegion {
            space: Space::Ports,
            at: 0x3e8,
            bytes: 8,
            on: true,
        };
        assert_eq!(device.regions, [region]);
        // A newer module's device, with more regions than a list has.
        raw.region_count = 100;
        assert_eq!(Device::from(&raw).regions.len(), 8);
    }
}
