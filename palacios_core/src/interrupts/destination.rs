// SPDX-License-Identifier: MIT OR Apache-2.0
//! Who a message is for: the part of a local APIC's state that other threads must know to route to it.
#![forbid(unsafe_code)]

use super::{Delivery, Destination, Message};

/// How a local APIC is reached (SDM 3A: 10.12.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ApicMode {
    /// Globally disabled by IA32_APIC_BASE: hears nothing.
    Disabled,
    /// Registers in memory, ids of 8 bits.
    #[default]
    XApic,
    /// Registers are MSRs, ids of 32 bits.
    X2Apic,
}

/// A mirror of what decides whether a local APIC is a destination. Its owner publishes it, packed in one word, whenever
/// [`super::lapic::Effect::Routing`] says that it changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DestinationFilter {
    /// The x2APIC id; the xAPIC id is its low byte.
    pub id: u32,
    /// The mode.
    pub mode: ApicMode,
    /// Enabled by the spurious-vector register. One that is not still takes NMI, INIT and start-up, but no vectors:
    /// lowest-priority arbitration leaves it out.
    pub software_enabled: bool,
    /// The logical id of xAPIC mode; that of x2APIC mode follows from the id.
    pub ldr: u8,
    /// xAPIC logical ids are clusters of four, not one bit each.
    pub cluster: bool,
    /// The class, 0 to 15, of the most urgent of what it does or has waiting, as last told: what lowest-priority
    /// arbitration goes by. It changes with every interrupt, and also without an exit, so it is told before each entry.
    pub priority: u8,
}

impl DestinationFilter {
    /// Packed for an `AtomicU64`.
    pub const fn to_bits(self) -> u64 {
        let mode = match self.mode {
            ApicMode::Disabled => 0,
            ApicMode::XApic => 1,
            ApicMode::X2Apic => 2,
        };
        self.id as u64
            | mode << 32
            | (self.software_enabled as u64) << 34
            | (self.cluster as u64) << 35
            | (self.priority as u64 & 0xf) << 36
            | (self.ldr as u64) << 40
    }

    /// Unpacks what [`Self::to_bits`] packed.
    pub const fn from_bits(bits: u64) -> Self {
        Self {
            id: bits as u32,
            mode: match bits >> 32 & 3 {
                1 => ApicMode::XApic,
                2 => ApicMode::X2Apic,
                _ => ApicMode::Disabled,
            },
            software_enabled: bits >> 34 & 1 != 0,
            cluster: bits >> 35 & 1 != 0,
            priority: (bits >> 36) as u8 & 0xf,
            ldr: (bits >> 40) as u8,
        }
    }

    /// Whether a message to `destination` is for this one, which `is_sender` or not (SDM 3A: 10.6.2, 10.12.10).
    pub const fn matches(self, destination: Destination, is_sender: bool) -> bool {
        if matches!(self.mode, ApicMode::Disabled) {
            return false;
        }
        match destination {
            Destination::All => true,
            Destination::Others => !is_sender,
            Destination::Myself => is_sender,
            Destination::Physical(id) => match self.mode {
                ApicMode::X2Apic => id == self.id,
                _ => id == self.id & 0xff,
            },
            Destination::Logical(to) => match self.mode {
                ApicMode::X2Apic => self.matches_x2apic_logical(to),
                _ => self.matches_xapic_logical(to),
            },
        }
    }

    const fn matches_xapic_logical(self, to: u32) -> bool {
        let ldr = self.ldr as u32;
        match to {
            // All ones are everybody, also in the longer form of an x2APIC.
            0xff | u32::MAX => true,
            0x100.. => false,
            _ if !self.cluster => to & ldr != 0,
            _ => (to >> 4 == 0xf || to >> 4 == ldr >> 4) && to & ldr & 0xf != 0,
        }
    }

    const fn matches_x2apic_logical(self, to: u32) -> bool {
        let ldr = x2apic_ldr(self.id);
        to == u32::MAX || (to >> 16 == ldr >> 16 && to & ldr & 0xffff != 0)
    }
}

/// Whom a message from vCPU `from` is for: bit `n` for the `n`th of at most 64 vCPUs, whose filters these are.
///
/// One of lowest priority goes to one of those that it names and that are switched on (SDM 3A: 10.6.2.4): to one of those
/// with the lowest priority, as far as they have told it, and always to the same of them for the same vector.
pub fn targets(
    filters: impl Iterator<Item = DestinationFilter>,
    from: Option<u32>,
    message: &Message,
) -> u64 {
    let lowest = message.delivery == Delivery::LowestPriority;
    let (mut named, mut least) = (0u64, u8::MAX);
    for (n, filter) in (0..64).zip(filters) {
        let is_target = filter.matches(message.destination, from == Some(n));
        if !is_target || lowest && (!filter.software_enabled || filter.priority > least) {
            continue;
        }
        if lowest && filter.priority < least {
            (named, least) = (0, filter.priority);
        }
        named |= 1 << n;
    }
    if !lowest || named == 0 {
        return named;
    }
    let turn = u32::from(message.vector).wrapping_rem(named.count_ones());
    (0..turn).for_each(|_| named &= named.wrapping_sub(1));
    named & named.wrapping_neg()
}

/// The logical id that an x2APIC id implies: a cluster of 16 above, one bit of it below (SDM 3A: 10.12.10.2).
pub const fn x2apic_ldr(id: u32) -> u32 {
    (id >> 4) << 16 | 1 << (id & 0xf)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn xapic(id: u32, ldr: u8, cluster: bool) -> DestinationFilter {
        DestinationFilter {
            id,
            mode: ApicMode::XApic,
            software_enabled: true,
            ldr,
            cluster,
            priority: 0,
        }
    }

    fn x2apic(id: u32) -> DestinationFilter {
        DestinationFilter {
            mode: ApicMode::X2Apic,
            ..xapic(id, 0, false)
        }
    }

    #[test]
    fn physical_ids_are_exact() {
        assert!(xapic(3, 0, false).matches(Destination::Physical(3), false));
        assert!(!xapic(3, 0, false).matches(Destination::Physical(0xff), false));
        assert!(x2apic(0xff).matches(Destination::Physical(0xff), false));
        assert!(!x2apic(0x103).matches(Destination::Physical(3), false));
    }

    #[test]
    fn shorthands_know_the_sender() {
        let one = x2apic(1);
        assert!(one.matches(Destination::All, true) && one.matches(Destination::All, false));
        assert!(one.matches(Destination::Others, false) && !one.matches(Destination::Others, true));
        assert!(one.matches(Destination::Myself, true) && !one.matches(Destination::Myself, false));
    }

    #[test]
    fn flat_ids_are_one_bit_each() {
        let third = xapic(2, 0x04, false);
        assert!(third.matches(Destination::Logical(0x0c), false));
        assert!(!third.matches(Destination::Logical(0x03), false));
        assert!(xapic(0, 0, false).matches(Destination::Logical(0xff), false));
        assert!(!third.matches(Destination::Logical(0x1_0004), false));
    }

    #[test]
    fn cluster_ids_need_their_cluster_or_all_of_them() {
        let one = xapic(5, 0x21, true);
        assert!(one.matches(Destination::Logical(0x23), false));
        assert!(!one.matches(Destination::Logical(0x31), false));
        assert!(!one.matches(Destination::Logical(0x22), false));
        assert!(one.matches(Destination::Logical(0xf1), false));
        assert!(one.matches(Destination::Logical(0xff), false));
    }

    #[test]
    fn x2apic_clusters_have_sixteen() {
        assert_eq!(x2apic_ldr(0x25), 0x0002_0020);
        assert!(x2apic(0x25).matches(Destination::Logical(0x0002_0030), false));
        assert!(!x2apic(0x25).matches(Destination::Logical(0x0003_0020), false));
        assert!(x2apic(0x25).matches(Destination::Logical(u32::MAX), false));
        assert!(!x2apic(0x8).matches(Destination::Logical(0xff), false));
    }

    proptest! {
        #[test]
        fn packs_without_loss(
            id: u32, ldr: u8, mode in 0..3, software_enabled: bool, cluster: bool, priority in 0u8..16,
        ) {
            let mode = [ApicMode::Disabled, ApicMode::XApic, ApicMode::X2Apic][mode as usize];
            let filter = DestinationFilter { id, mode, software_enabled, ldr, cluster, priority };
            prop_assert_eq!(DestinationFilter::from_bits(filter.to_bits()), filter);
        }

        #[test]
        fn a_disabled_one_hears_nothing(id: u32, to: u32, is_sender: bool) {
            let off = DestinationFilter { mode: ApicMode::Disabled, ..xapic(id, 0xff, false) };
            for destination in [Destination::All, Destination::Physical(to), Destination::Logical(to)] {
                prop_assert!(!off.matches(destination, is_sender));
            }
        }
    }
}
