// SPDX-License-Identifier: MIT OR Apache-2.0
//! Device models: one device a file, safe code only, no locks inside.
//!
//! `device.rs` is the contract of a device, `kind.rs` how machines come to have one, and this file the list of all kinds.
#![forbid(unsafe_code)]

pub mod acpi;
pub mod bus;
pub mod crtc;
pub mod debug;
mod device;
mod doorbell;
pub mod example_rng;
pub mod hpet;
pub mod keyboard;
mod kind;
pub mod layout;
pub mod links;
mod map;
mod memory_commands;
pub mod pci;
pub mod pit;
pub mod region;
pub mod reset;
pub mod rtc;
pub mod test_device;
pub mod test_dma;
#[cfg(any(test, feature = "test-support"))]
pub mod testing;
pub mod ticks;
pub mod uart;
pub mod virtio;

pub use device::{
    read_bytewise, write_bytewise, ByteStream, Device, Disk, Input, IoAddress, IoRegion, Nowhere,
    Request, Slots, Space, Step, Timed, WindowDevice, Work, MAX_COUNTER_NAME,
};
pub use kind::{AcpiDevice, DiskParts, Kind, Machines, Place, Resources};

/// All kinds of devices. A new device is its file, its line above, and one here. A machine's are attached in this order: where the guest moves one over
/// another, the first answers, so those whose regions move stand at the end. A machine that was saved before every PC had a device
/// has no section of it, and is refused (`vm/saved.rs`).
pub static KINDS: &[&Kind] = &[
    &uart::KIND,
    &pit::KIND,
    &rtc::KIND,
    &hpet::KIND,
    &reset::KIND,
    &keyboard::KIND,
    &crtc::KIND,
    &debug::KIND,
    &test_device::KIND,
    &test_dma::KIND,
    &pci::host_bridge::KIND,
    &pci::isa_bridge::KIND,
    &pci::hotplug::KIND,
    &pci::pm::KIND,
    &example_rng::KIND,
    &virtio::rng::KIND,
    &virtio::blk::KIND,
];

/// The kinds of which devices can be attached to a machine that exists.
pub fn attachable_kinds() -> impl Iterator<Item = &'static Kind> {
    let can_be_attached = |kind: &&Kind| kind.machines != Machines::All;
    KINDS.iter().copied().filter(can_be_attached)
}

/// The one of them with that name.
pub fn kind_by_name(name: &str) -> Option<&'static Kind> {
    attachable_kinds().find(|kind| kind.name == name)
}

/// The kind that an image knows by `compatible`.
pub fn kind_by_compatible(compatible: &str) -> Option<&'static Kind> {
    let is_it = |kind: &&Kind| match kind.machines {
        Machines::All => false,
        Machines::Described(name) => name == compatible,
    };
    KINDS.iter().copied().find(is_it)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::DeviceId;

    #[test]
    fn each_kind_has_names_of_its_own() {
        for (n, kind) in KINDS.iter().enumerate() {
            assert!(DeviceId::new(kind.name).is_some());
            let same_name = KINDS.iter().filter(|other| other.name == kind.name);
            assert_eq!(same_name.count(), 1);
            let found = kind_by_name(kind.name).map(|kind| kind.name);
            match kind.machines {
                Machines::All => assert_eq!(found, None, "nobody attaches one"),
                Machines::Described(compatible) => {
                    assert_eq!(found, Some(kind.name));
                    let found = kind_by_compatible(compatible).unwrap();
                    assert!(std::ptr::eq(found, *kind));
                }
            }
            for place in kind.places {
                assert!(DeviceId::new(place.name).is_some());
                let all = KINDS[n..].iter().flat_map(|kind| kind.places);
                assert_eq!(all.filter(|other| other.name == place.name).count(), 1);
            }
        }
        assert!(kind_by_name("floppy").is_none());
    }
}
