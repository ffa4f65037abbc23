// SPDX-License-Identifier: MIT OR Apache-2.0
//! The kinds of devices that a machine may have or not. A new one is its file and a line in [`KINDS`].
#![forbid(unsafe_code)]

pub use super::kind::{AcpiDevice, Kind, Place, Resources};
use super::{test_device, test_dma, uart};

/// All kinds.
pub static KINDS: [&Kind; 3] = [&uart::KIND, &test_device::KIND, &test_dma::KIND];

/// The kind that its owner knows by a name.
pub fn by_name(name: &str) -> Option<&'static Kind> {
    KINDS.into_iter().find(|kind| kind.name == name)
}

/// The kind that an image knows by `compatible`.
pub fn by_compatible(compatible: &str) -> Option<&'static Kind> {
    KINDS.into_iter().find(|kind| kind.compatible == compatible)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::DeviceId;

    #[test]
    fn each_kind_has_names_of_its_own() {
        for (n, kind) in KINDS.iter().enumerate() {
            assert!(std::ptr::eq(by_name(kind.name).unwrap(), *kind));
            assert!(std::ptr::eq(by_compatible(kind.compatible).unwrap(), *kind));
            assert!(DeviceId::new(kind.name).is_some());
            for place in kind.places {
                assert!(DeviceId::new(place.name).is_some());
                let all = KINDS[n..].iter().flat_map(|kind| kind.places);
                assert_eq!(all.filter(|other| other.name == place.name).count(), 1);
            }
        }
        assert!(by_name("floppy").is_none());
    }
}
