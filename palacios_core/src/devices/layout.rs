// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whose addresses are whose: the regions of all devices, laid out so that each address belongs to one.
#![forbid(unsafe_code)]

use super::region::{IoRegion, Space, PCI_CONFIG_END};
use crate::alloc_ext::{NoMemory, TryPush};
use crate::names::DeviceId;
use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;

/// The most regions of ports, of memory, and of configuration space.
pub(super) const MAX_REGIONS: usize = if cfg!(loom) { 1 } else { 128 };
/// The most entries of each. So many regions, of which each may cover a part of others, make no more.
pub(super) const MAX_ENTRIES: usize = 2 * MAX_REGIONS;

/// A region of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Target {
    /// The device's slot.
    pub(super) slot: u16,
    /// The region's number.
    pub(super) region: u16,
    /// It is a doorbell.
    pub(super) doorbell: bool,
}

impl Target {
    /// As one word.
    pub(super) fn packed(self) -> u64 {
        u64::from(self.doorbell) << 32 | u64::from(self.slot) << 16 | u64::from(self.region)
    }
    /// From that word.
    pub(super) fn unpacked(word: u64) -> Self {
        Self {
            slot: (word >> 16) as u16,
            region: word as u16,
            doorbell: word >> 32 != 0,
        }
    }
}

/// Addresses that belong to one region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// The addresses.
    pub(super) range: Range<u64>,
    /// Where the region begins, of which another may cover a part.
    pub(super) begin: u64,
    /// The region.
    pub(super) target: Target,
}

/// A region, with the name of its device.
#[derive(Clone, Copy, Debug)]
pub(super) struct Named {
    pub(super) name: DeviceId,
    pub(super) region: IoRegion,
    pub(super) target: Target,
}

/// Why a device cannot be attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachError {
    /// Another answers there already.
    Overlap {
        /// The device that is to be attached, or whose region is to be moved.
        name: DeviceId,
        /// Its region.
        region: IoRegion,
        /// The other.
        other: DeviceId,
    },
    /// A region has no addresses, or there are no such addresses.
    NoSuchAddresses {
        /// The device.
        name: DeviceId,
        /// Its region.
        region: IoRegion,
    },
    /// Another device has that name.
    NameTaken(DeviceId),
    /// There is no kind of that name.
    NoSuchKind,
    /// A device of its kind cannot be at that port.
    NoSuchPlace {
        /// The first of its ports.
        port: u16,
        /// Where one may be.
        why: &'static str,
    },
    /// All places for its kind have a device.
    NoPlaceLeft,
    /// A device of its kind cannot be in that slot of the PCI bus, or in none.
    NoSuchSlot(u8),
    /// A device of its kind has no stream, so it has no use for descriptors.
    NoStream,
    /// A device of its kind keeps bytes in a store, and was given none.
    NeedsStore,
    /// A device of its kind has no store, so it has no use for one.
    NoStore,
    /// The machine has as many devices or regions as it can have.
    Full,
    /// The host has no memory.
    NoMemory,
}

impl From<NoMemory> for AttachError {
    fn from(_: NoMemory) -> Self {
        Self::NoMemory
    }
}

impl fmt::Display for AttachError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Overlap {
                name,
                region,
                other,
            } => write!(
                f,
                "the device {name} cannot answer at {region}: the device {other} does"
            ),
            Self::NoSuchAddresses { name, region } => write!(
                f,
                "the device {name} cannot answer at {region}: there are no such addresses"
            ),
            Self::NoSuchKind => {
                f.write_str("there is no such kind of device: `v3 attach --help` lists them")
            }
            Self::NoSuchPlace { port, why } => write!(f, "port {port:#x} {why}"),
            Self::NoPlaceLeft => {
                f.write_str("all places for a device of this kind are taken: detach one first")
            }
            Self::NoSuchSlot(slot) => write!(
                f,
                "a device of this kind cannot be in slot {slot}: only PCI devices are in slots, from 2 to 31"
            ),
            Self::NoStream => f.write_str("a device of this kind has no stream to connect"),
            Self::NeedsStore => {
                f.write_str("a disk needs a file or a block device that holds its bytes")
            }
            Self::NoStore => f.write_str("a device of this kind holds no bytes of a disk's"),
            Self::NameTaken(name) => write!(f, "there is a device {name} already"),
            Self::Full => f.write_str("the machine has as many devices as it can have"),
            Self::NoMemory => f.write_str("the host has no memory for this device"),
        }
    }
}

/// What belongs to whom, by ascending address.
#[derive(Debug)]
pub(super) struct Layout {
    pub(super) ports: Vec<Entry>,
    pub(super) memory: Vec<Entry>,
    pub(super) pci: Vec<Entry>,
}

impl Layout {
    /// One of nothing, with room for all that may come: laying regions out needs no memory.
    pub(super) fn new() -> Result<Self, NoMemory> {
        let room = || {
            let mut entries = Vec::new();
            let reserved = entries.try_reserve_exact(MAX_ENTRIES);
            reserved.map(|()| entries).map_err(|_| NoMemory)
        };
        Ok(Self {
            ports: room()?,
            memory: room()?,
            pci: room()?,
        })
    }

    /// Lays `regions` out. One of higher priority comes first; of two with the same, the one that is named first.
    pub(super) fn lay_out(&mut self, regions: &[Named]) {
        self.ports.clear();
        self.memory.clear();
        self.pci.clear();
        let mut below = None;
        while let Some(priority) = next_priority(regions, below) {
            let now = |named: &&Named| named.region.priority == priority && is_answered(named);
            for named in regions.iter().filter(now) {
                add(self.entries(named.region.space), named);
            }
            below = Some(priority);
        }
    }

    fn entries(&mut self, space: Space) -> &mut Vec<Entry> {
        match space {
            Space::Ports => &mut self.ports,
            Space::Memory => &mut self.memory,
            Space::PciConfig => &mut self.pci,
        }
    }
}

/// Whether the regions `new` can be attached beside `others`.
///
/// # Errors
/// Why not.
pub(super) fn check(others: &[Named], new: &[Named]) -> Result<(), AttachError> {
    for (number, named) in new.iter().enumerate() {
        let region = named.region;
        if !has_addresses(&region) {
            let name = named.name;
            return Err(AttachError::NoSuchAddresses { name, region });
        }
        let before = new.get(..number).unwrap_or_default();
        let mut all = others.iter().chain(before);
        if let Some(other) = all.find(|other| clash(other, named)) {
            return Err(AttachError::Overlap {
                name: named.name,
                region,
                other: other.name,
            });
        }
    }
    let all = || others.iter().chain(new);
    let count = |space| all().filter(|named| named.region.space == space).count();
    match [Space::Ports, Space::Memory, Space::PciConfig].map(count) {
        counts if counts.iter().all(|count| *count <= MAX_REGIONS) => Ok(()),
        _ => Err(AttachError::Full),
    }
}

fn has_addresses(region: &IoRegion) -> bool {
    let limit = match region.space {
        Space::Ports => 1 << 16,
        Space::Memory => u64::MAX,
        Space::PciConfig => PCI_CONFIG_END,
    };
    let end = region.at.checked_add(region.length);
    end.is_some_and(|end| region.length > 0 && end <= limit)
}

/// A guest may switch a region off, or move it to where there are no addresses.
fn is_answered(named: &Named) -> bool {
    named.region.on && has_addresses(&named.region)
}

fn clash(one: &Named, other: &Named) -> bool {
    let (a, b) = (&one.region, &other.region);
    let overlap = a.space == b.space && a.at < b.end() && b.at < a.end();
    overlap && a.priority == b.priority && a.on && b.on
}

/// The highest priority of any region below that one.
fn next_priority(regions: &[Named], below: Option<u8>) -> Option<u8> {
    let all = regions.iter().map(|named| named.region.priority);
    all.filter(|priority| below.is_none_or(|below| *priority < below))
        .max()
}

/// Adds what others have left of a region.
fn add(all: &mut Vec<Entry>, named: &Named) {
    let Named { region, target, .. } = *named;
    let begin = region.at;
    let (mut from, mut index) = (region.at, 0);
    while from < region.end() {
        let taken = all.get(index).map(|entry| entry.range.clone());
        let left = from..taken
            .as_ref()
            .map_or(region.end(), |taken| taken.start.min(region.end()));
        from = from.max(taken.map_or(region.end(), |taken| taken.end));
        if !left.is_empty() {
            let entry = Entry {
                range: left,
                begin,
                target,
            };
            insert(all, index, entry);
            index = index.wrapping_add(1);
        }
        index = index.wrapping_add(1);
    }
}

/// There is room: see [`MAX_ENTRIES`].
fn insert(to: &mut Vec<Entry>, at: usize, entry: Entry) {
    if to.len() < MAX_ENTRIES && to.try_push(entry).is_ok() {
        if let Some(behind) = to.get_mut(at..) {
            behind.rotate_right(1);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn named(slot: u16, region: IoRegion) -> Named {
        Named {
            name: DeviceId::new(["one", "two", "three"][usize::from(slot % 3)]).unwrap(),
            region,
            target: Target {
                slot,
                region: 7,
                doorbell: slot % 2 == 0,
            },
        }
    }

    fn laid_out(regions: &[Named]) -> Layout {
        let mut layout = Layout::new().unwrap();
        layout.lay_out(regions);
        layout
    }

    #[test]
    fn an_overlap_names_both() {
        let one = named(0, IoRegion::ports(0x3f8, 8));
        let two = IoRegion::ports(0x3ff, 2);
        let error = check(&[one], &[named(1, two)]).unwrap_err();
        assert_eq!(
            std::format!("{error}"),
            "the device two cannot answer at ports 0x3ff to 0x400: the device one does"
        );
        // Its own regions may not overlap either.
        assert!(check(&[], &[one, named(0, two)]).is_err());
        // The same numbers of another space are others; and who is switched off is in nobody's way.
        let apart = named(1, IoRegion::memory(0x3f8, 8));
        assert_eq!(check(&[one], &[apart]), Ok(()));
        assert_eq!(check(&[one], &[named(1, two.switched(false))]), Ok(()));
    }

    #[test]
    fn addresses_that_do_not_exist_are_refused() {
        for region in [
            IoRegion::ports(0x80, 0),
            IoRegion::ports(0xffff, 2),
            IoRegion::memory(u64::MAX, 2),
        ] {
            let new = named(0, region);
            let name = DeviceId::new("one").unwrap();
            assert_eq!(
                check(&[], &[new]),
                Err(AttachError::NoSuchAddresses { name, region })
            );
            // If a guest moves a region there, nobody finds it.
            let layout = laid_out(&[new]);
            assert!(layout.ports.is_empty() && layout.memory.is_empty());
        }
    }

    #[test]
    fn there_is_an_end_of_regions() {
        let regions = |count: u16| -> Vec<Named> {
            (0..count)
                .map(|n| named(n, IoRegion::ports(n * 2, 1)))
                .collect()
        };
        let most = regions(MAX_REGIONS as u16);
        assert_eq!(check(&[], &most), Ok(()));
        let memory = named(99, IoRegion::memory(0, 1));
        assert_eq!(check(&most, &[memory]), Ok(()));
        let port = named(99, IoRegion::ports(0xffff, 1));
        assert_eq!(check(&most, &[port]), Err(AttachError::Full));
    }

    /// Who has an address, found by looking at all regions.
    fn owner(regions: &[Named], at: u64) -> Option<Target> {
        let here = regions
            .iter()
            .filter(|named| named.region.on && named.region.at <= at && at < named.region.end());
        // The last one of the best, and so the first.
        let best = here.rev().max_by_key(|named| named.region.priority);
        best.map(|named| named.target)
    }

    proptest! {
        #[test]
        fn each_address_belongs_to_the_first_region_of_highest_priority(
            wanted in prop::collection::vec((0u64..60, 1u64..20, 0u8..3, any::<bool>()), 0..=MAX_REGIONS),
        ) {
            let mut regions: Vec<Named> = Vec::new();
            for (slot, (at, length, priority, on)) in (0..).zip(wanted) {
                let region = IoRegion { priority, on, ..IoRegion::memory(at, length) };
                let new = named(slot, region);
                let clashes = regions.iter().any(|other| clash(other, &new));
                prop_assert_eq!(check(&regions, &[new]).is_err(), clashes);
                regions.push(new);
            }
            let layout = laid_out(&regions);
            prop_assert!(layout.ports.is_empty());
            for pair in layout.memory.windows(2) {
                prop_assert!(pair[0].range.end <= pair[1].range.start);
            }
            for at in 0..90 {
                let entry = layout.memory.iter().find(|entry| entry.range.contains(&at));
                prop_assert_eq!(entry.map(|entry| entry.target), owner(&regions, at));
                if let Some(entry) = entry {
                    let region = regions.iter().find(|named| named.target == entry.target).unwrap();
                    prop_assert_eq!(entry.begin, region.region.at);
                }
            }
        }

        #[test]
        fn there_is_room_for_all_entries(
            wanted in prop::collection::vec((0u64..1000, 1u64..1000, any::<u8>()), MAX_REGIONS),
        ) {
            let regions: Vec<Named> = (0..).zip(wanted).map(|(slot, (at, length, priority))| {
                named(slot, IoRegion { priority, ..IoRegion::memory(at, length) })
            }).collect();
            prop_assert!(laid_out(&regions).memory.len() < MAX_ENTRIES);
        }
    }
}
