// SPDX-License-Identifier: MIT OR Apache-2.0
//! `/dev/v3vee`: creates, lists and frees VMs.

use crate::answers::text;
use crate::error::Call;
use crate::node::{control_failed, open_control};
use crate::{ioctl, node_of, number_of, Error, Feature, Info, State, Vm};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use serde::Serialize;
use v3_abi::{v3_free, V3_MESSAGE_LEN};

/// What the module is and can do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Version {
    /// Number of its ABI.
    pub abi: u32,
    /// Its version, for people.
    pub module: String,
    /// The processor extension in use.
    pub backend: String,
    /// `V3_FEATURE_` bits.
    pub features: u64,
    /// VMs that exist.
    pub vms: u32,
    /// VMs that can exist at a time.
    pub max_vms: u32,
    /// Virtual CPUs that a VM can have.
    pub max_vcpus: u32,
}

/// Features by their names, in the order of their bits.
const FEATURES: [(u32, &str); 6] = [
    (v3_abi::V3_FEATURE_NESTED_PAGING, "nested-paging"),
    (v3_abi::V3_FEATURE_XSAVE, "xsave"),
    (v3_abi::V3_FEATURE_RELOCATE, "relocate"),
    (v3_abi::V3_FEATURE_TLB_TAGS, "tlb-tags"),
    (v3_abi::V3_FEATURE_NEXT_RIP, "next-rip"),
    (v3_abi::V3_FEATURE_DECODE_ASSISTS, "decode-assists"),
];

impl Version {
    /// The names of the features that are there; a newer module's, which this program does not know, are left out.
    pub fn feature_names(&self) -> Vec<&'static str> {
        FEATURES
            .into_iter()
            .filter(|(bit, _)| self.features & u64::from(*bit) != 0)
            .map(|(_, name)| name)
            .collect()
    }
}

/// The open control node of a module that speaks our ABI.
#[derive(Debug)]
pub struct Control {
    fd: OwnedFd,
}

impl Control {
    /// Opens the node and compares ABI numbers.
    pub fn open() -> Result<Self, Error> {
        let fd = open_control()?;
        Ok(Self { fd })
    }

    /// What the module is and can do.
    pub fn version(&self) -> Result<Version, Error> {
        let raw = ioctl::version(&self.fd).map_err(|errno| control_failed(Call::Version, errno))?;
        Ok(Version {
            abi: raw.abi,
            module: text(&raw.module),
            backend: text(&raw.backend),
            features: raw.features,
            vms: raw.vms,
            max_vms: raw.max_vms,
            max_vcpus: raw.max_vcpus,
        })
    }

    /// Makes a VM of a whole guest.img.
    pub fn create(&self, image: &[u8], name: &str) -> Result<Vm, Error> {
        if !v3_abi::is_vm_name(name.as_bytes()) {
            return Err(Error::BadName(name.into()));
        }
        let mut message = [0; V3_MESSAGE_LEN as usize];
        let made = ioctl::create(&self.fd, image, name.as_bytes(), &mut message);
        let number = made.map_err(|errno| Error::Refused {
            errno,
            message: text(&message),
        })?;
        Vm::open(number).inspect_err(|_| {
            // Nobody could use it. The error that matters is that of opening.
            let _ = self.free(number);
        })
    }

    /// The features of processors, and which of them a guest has from which its image takes none away.
    pub fn features(&self) -> Result<Vec<Feature>, Error> {
        let raw = ioctl::features(&self.fd, false)
            .map_err(|errno| control_failed(Call::Features, errno))?;
        Ok(raw.iter().map(Feature::from).collect())
    }

    /// All VMs, by ascending number.
    pub fn list(&self) -> Result<Vec<Info>, Error> {
        let raw = ioctl::list(&self.fd).map_err(|errno| control_failed(Call::List, errno))?;
        Ok(raw.iter().map(Info::from).collect())
    }

    /// Frees a VM that does not run.
    pub fn free(&self, vm: u32) -> Result<(), Error> {
        ioctl::free(&self.fd, v3_free { vm, pad: 0 }).map_err(|errno| match errno {
            Errno::NOENT => Error::NoSuchVm(node_of(vm)),
            errno => self.not_freed(vm, errno),
        })
    }

    /// Why a VM was not freed.
    fn not_freed(&self, vm: u32, errno: Errno) -> Error {
        let all = self.list().unwrap_or_default();
        match all.into_iter().find(|info| info.vm == vm) {
            Some(info) if matches!(info.state, State::Running | State::Paused) => {
                Error::WrongState {
                    call: Call::Free,
                    vm: info.name,
                    state: info.state,
                }
            }
            found => Error::Call {
                call: Call::Free,
                on: found.map_or_else(|| node_of(vm), |info| info.name),
                errno,
            },
        }
    }

    /// The number of the VM that `text` names: a name, a number, or `/dev/v3-vmN`.
    pub fn find(&self, text: &str) -> Result<u32, Error> {
        let all = self.list()?;
        let number = number_of(text);
        let found = all
            .iter()
            .find(|vm| number == Some(vm.vm) || vm.name == text);
        found
            .map(|vm| vm.vm)
            .ok_or_else(|| Error::NoSuchVm(text.into()))
    }
}

impl Vm {
    /// Opens the VM that `text` names: a name, a number, or `/dev/v3-vmN`.
    pub fn find(text: &str) -> Result<Self, Error> {
        match number_of(text) {
            Some(number) => Self::open(number),
            None => Self::open(Control::open()?.find(text)?),
        }
    }
}
