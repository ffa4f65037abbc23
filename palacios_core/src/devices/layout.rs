// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whose addresses are whose: the regions of all devices, laid out so that each address belongs to one.
#![forbid(unsafe_code)]

use super::region::{IoRegion, Space};
use crate::alloc_ext::{NoMemory, TryPush};
use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;

/// The most entries of ports and of memory. Each is some steps more for the models.
pub(super) const MAX_ENTRIES: usize = if cfg!(loom) { 1 } else { 128 };

/// A region of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Target {
    /// The device's slot.
    pub(super) slot: u16,
    /// The region's number.
    pub(super) region: u16,
}

impl Target {
    /// As one word.
    pub(super) fn packed(self) -> u64 {
        u64::from(self.slot) << 16 | u64::from(self.region)
    }
    /// From that word.
    pub(super) fn unpacked(word: u64) -> Self {
        Self {
            slot: (word >> 16) as u16,
            region: word as u16,
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
    pub(super) name: &'static str,
    pub(super) region: IoRegion,
    pub(super) target: Target,
}

/// Why a device cannot be attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachError {
    /// Another answers there already.
    Overlap {
        /// The device that is to be attached, or whose region is to be moved.
        name: &'static str,
        /// Its region.
        region: IoRegion,
        /// The other.
        other: &'static str,
    },
    /// A region has no addresses, or there are no such addresses.
    NoSuchAddresses {
        /// The device.
        name: &'static str,
        /// Its region.
        region: IoRegion,
    },
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
            Self::Full => f.write_str("the machine has as many devices as it can have"),
            Self::NoMemory => f.write_str("the host has no memory for this device"),
        }
    }
}

/// What belongs to whom, by ascending address.
#[derive(Debug, Default)]
pub(super) struct Layout {
    pub(super) ports: Vec<Entry>,
    pub(super) memory: Vec<Entry>,
}

impl Layout {
    /// Lays out `regions`. The last ones are those of the device that an error is about.
    pub(super) fn new(regions: &[Named]) -> Result<Self, AttachError> {
        for (number, new) in regions.iter().enumerate() {
            check_addresses(new)?;
            let before = regions.get(..number).unwrap_or_default();
            if let Some(other) = before.iter().find(|other| clash(other, new)) {
                return Err(AttachError::Overlap {
                    name: new.name,
                    region: new.region,
                    other: other.name,
                });
            }
        }
        Ok(Self {
            ports: entries(regions, Space::Ports)?,
            memory: entries(regions, Space::Memory)?,
        })
    }
}

fn check_addresses(named: &Named) -> Result<(), AttachError> {
    let region = named.region;
    let end = region.at.checked_add(region.length);
    let limit = match region.space {
        Space::Ports => 1 << 16,
        Space::Memory => u64::MAX,
    };
    match end.is_some_and(|end| region.length > 0 && end <= limit) {
        true => Ok(()),
        false => Err(AttachError::NoSuchAddresses {
            name: named.name,
            region,
        }),
    }
}

fn overlap(one: &IoRegion, other: &IoRegion) -> bool {
    one.space == other.space && one.at < other.end() && other.at < one.end()
}

fn clash(one: &Named, other: &Named) -> bool {
    one.region.priority == other.region.priority && overlap(&one.region, &other.region)
}

/// The entries of one space. Regions of higher priority come first; each takes what those before it left.
fn entries(regions: &[Named], space: Space) -> Result<Vec<Entry>, AttachError> {
    let mut wanted: Vec<&Named> = Vec::new();
    for named in regions.iter().filter(|named| named.region.space == space) {
        let priority = named.region.priority;
        let at = wanted.partition_point(|other| other.region.priority >= priority);
        insert(&mut wanted, at, named)?;
    }
    let mut all = Vec::new();
    for named in wanted {
        add(&mut all, named)?;
    }
    if all.len() > MAX_ENTRIES {
        return Err(AttachError::Full);
    }
    Ok(all)
}

/// Adds what is left of a region.
fn add(all: &mut Vec<Entry>, named: &Named) -> Result<(), NoMemory> {
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
            insert(all, index, entry)?;
            index = index.wrapping_add(1);
        }
        index = index.wrapping_add(1);
    }
    Ok(())
}

fn insert<T>(to: &mut Vec<T>, at: usize, value: T) -> Result<(), NoMemory> {
    to.try_push(value)?;
    if let Some(behind) = to.get_mut(at..) {
        behind.rotate_right(1);
    }
    Ok(())
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn named(slot: u16, region: IoRegion) -> Named {
        Named {
            name: ["one", "two", "three"][usize::from(slot % 3)],
            region,
            target: Target { slot, region: 7 },
        }
    }

    #[test]
    fn an_overlap_names_both() {
        let regions = [
            named(0, IoRegion::ports(0x3f8, 8)),
            named(1, IoRegion::ports(0x3ff, 2)),
        ];
        let error = Layout::new(&regions).unwrap_err();
        assert_eq!(
            std::format!("{error}"),
            "the device two cannot answer at ports 0x3ff to 0x400: the device one does"
        );
        // The same numbers of another space are others.
        let apart = [regions[0], named(1, IoRegion::memory(0x3f8, 8))];
        assert!(Layout::new(&apart).is_ok());
    }

    #[test]
    fn addresses_that_do_not_exist_are_refused() {
        for region in [
            IoRegion::ports(0x80, 0),
            IoRegion::ports(0xffff, 2),
            IoRegion::memory(u64::MAX, 2),
        ] {
            assert_eq!(
                Layout::new(&[named(0, region)]).unwrap_err(),
                AttachError::NoSuchAddresses {
                    name: "one",
                    region
                }
            );
        }
    }

    #[test]
    fn there_is_an_end_of_entries() {
        let regions = |count: u16| -> Vec<Named> {
            (0..count)
                .map(|n| named(n, IoRegion::ports(n * 2, 1)))
                .collect()
        };
        assert!(Layout::new(&regions(MAX_ENTRIES as u16)).is_ok());
        let error = Layout::new(&regions(MAX_ENTRIES as u16 + 1)).unwrap_err();
        assert_eq!(error, AttachError::Full);
    }

    /// Who has an address, found by looking at all regions.
    fn owner(regions: &[Named], at: u64) -> Option<Target> {
        let here = regions
            .iter()
            .filter(|named| named.region.at <= at && at < named.region.end());
        let best = here.max_by_key(|named| named.region.priority);
        best.map(|named| named.target)
    }

    proptest! {
        #[test]
        fn each_address_belongs_to_the_region_of_highest_priority(
            wanted in prop::collection::vec((0u64..60, 1u64..20, 0u8..3), 0..8),
        ) {
            let mut regions: Vec<Named> = Vec::new();
            for (slot, (at, length, priority)) in (0..).zip(wanted) {
                let region = IoRegion { priority, ..IoRegion::memory(at, length) };
                let new = named(slot, region);
                match regions.iter().any(|other| clash(other, &new)) {
                    true => prop_assert!(Layout::new(&[&regions[..], &[new]].concat()).is_err()),
                    false => regions.push(new),
                }
            }
            let layout = Layout::new(&regions).unwrap();
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
    }
}
