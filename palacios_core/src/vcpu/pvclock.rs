// SPDX-License-Identifier: MIT OR Apache-2.0
//! Linux' paravirtual clock and steal time (Linux: Documentation/virt/kvm/x86/cpuid.rst and msr.rst), as Linux guests look
//! for them: CPUID leaves at 0x4000_0100, and MSRs that take the address of a page.
//!
//! The clock's page says how the vCPU's time stamp counter converts to nanoseconds. Ours counts at one rate and from zero on,
//! pauses left out, so the page changes only with the counter itself. That of steal time says how long the vCPU waited for a
//! CPU of the host's. All is guest memory: what lies there is never read.
#![forbid(unsafe_code)]

use crate::addr::{Gpa, NotRam};
use crate::clock::NS_PER_S;
use crate::interfaces::GuestMemory;
use crate::interrupts::lapic::GeneralProtection;
use crate::ram::RamLayout;
use crate::state_io::{StateError, StateReader, StateWriter};
use core::sync::atomic::{fence, Ordering};

/// The first leaf: signature and last leaf.
pub(super) const SIGNATURE_LEAF: u32 = 0x4000_0100;
/// The second one: features.
pub(super) const FEATURES_LEAF: u32 = 0x4000_0101;
const SIGNATURE: [u32; 3] = [0x4b4d_564b, 0x564b_4d56, 0x0000_004d];
/// The clock is at the MSRs below.
const CLOCKSOURCE2: u32 = 1 << 3;
/// Steal time is at its MSR.
const STEAL: u32 = 1 << 5;
/// No vCPU's clock is ever behind another's: the flag in the page may be trusted.
const CLOCKSOURCE_STABLE: u32 = 1 << 24;

/// Where to write the wall-clock time at which the system time was zero.
pub(super) const WALL_CLOCK: u32 = 0x4b56_4d00;
/// Where to write how the counter converts; bit 0 enables.
pub(super) const SYSTEM_TIME: u32 = 0x4b56_4d01;
/// Where to write for how long the vCPU was ready and did not run; bit 0 enables.
pub(super) const STEAL_TIME: u32 = 0x4b56_4d03;
const ENABLE: u64 = 1;
/// `struct pvclock_wall_clock`.
const WALL_CLOCK_BYTES: u64 = 12;
/// `struct pvclock_vcpu_time_info`.
const SYSTEM_TIME_BYTES: u64 = 32;
/// `struct kvm_steal_time`, which is aligned to as many.
const STEAL_TIME_BYTES: u64 = 64;
/// All vCPUs' clocks agree.
const FLAG_STABLE: u8 = 1;

/// The instant of a publication.
#[derive(Clone, Copy, Debug)]
pub(super) struct Instant {
    /// Nanoseconds since 1970.
    pub(super) wall_ns: u64,
    /// Nanoseconds since the VM first ran, by the counter.
    pub(super) system_ns: u64,
    /// What the vCPU's counter showed when the VM first ran, modulo 2^64; or when it was loaded.
    pub(super) base_tsc: u64,
    /// Nanoseconds since the VM first ran, by the counter, at that moment.
    pub(super) base_ns: u64,
    /// The counter's rate.
    pub(super) tsc_khz: u32,
}

/// One vCPU's clock.
#[derive(Clone, Debug, Default)]
pub(super) struct PvClock {
    /// The MSRs.
    wall_clock: u64,
    system_time: u64,
    steal_time: u64,
    /// The pages are to be written before the next entry.
    wall_clock_due: bool,
    system_time_due: bool,
    steal_time_due: bool,
    /// That of the last page written, which is even.
    version: u32,
    /// The counters of all vCPUs agree.
    stable: bool,
    /// What its thread had waited for a CPU, at power-on and when last asked.
    waited_at_reset_ns: u64,
    waited_ns: u64,
}

impl PvClock {
    /// After power-on, of a thread that has waited so long.
    pub(super) fn new(waited_ns: u64) -> Self {
        Self {
            waited_at_reset_ns: waited_ns,
            waited_ns,
            ..Self::default()
        }
    }

    /// Writes down where its pages are. What a page says is written anew when it is taken back.
    pub(super) fn save(&self, to: &mut StateWriter<'_>) -> Result<(), StateError> {
        to.u64(self.wall_clock)?;
        to.bool(self.wall_clock_due)?;
        to.u64(self.system_time)?;
        to.u64(self.steal_time)?;
        to.u32(self.version)?;
        to.u64(self.waited_ns.wrapping_sub(self.waited_at_reset_ns))
    }
    /// Takes back what [`PvClock::save`] wrote. Where the pages may be is checked by [`PvClock::fits`].
    pub(super) fn restored(from: &mut StateReader<'_>) -> Result<Self, StateError> {
        let mut new = Self {
            wall_clock: from.u64()?,
            wall_clock_due: from.bool("pvclock.wall_clock_due")?,
            system_time: from.u64()?,
            steal_time: from.u64()?,
            version: from.u32()? & !1,
            waited_ns: from.u64()?,
            ..Self::default()
        };
        new.system_time_due = new.system_time & ENABLE != 0;
        new.steal_time_due = new.steal_time & ENABLE != 0;
        Ok(new)
    }
    /// Its pages are in this RAM.
    pub(super) fn fits(&self, ram: RamLayout) -> bool {
        let mut probe = Self::default();
        let clock =
            !self.wall_clock_due || probe.write_msr(WALL_CLOCK, self.wall_clock, ram).is_ok();
        let mut written = |index, value| probe.write_msr(index, value, ram).is_ok();
        clock && written(SYSTEM_TIME, self.system_time) && written(STEAL_TIME, self.steal_time)
    }
    /// From now on a thread that has waited so long counts what it waits.
    pub(super) fn count_from(&mut self, waited_ns: u64) {
        let stolen_ns = self.waited_ns.wrapping_sub(self.waited_at_reset_ns);
        self.waited_ns = waited_ns;
        self.waited_at_reset_ns = waited_ns.wrapping_sub(stolen_ns);
    }

    /// CPUID, for a counter of this rate.
    pub(super) fn cpuid(&self, leaf: u32, tsc_khz: u32) -> [u32; 4] {
        let stable = if self.stable { CLOCKSOURCE_STABLE } else { 0 };
        match leaf {
            _ if tsc_khz == 0 => [0; 4],
            SIGNATURE_LEAF => [FEATURES_LEAF, SIGNATURE[0], SIGNATURE[1], SIGNATURE[2]],
            FEATURES_LEAF => [CLOCKSOURCE2 | STEAL | stable, 0, 0, 0],
            _ => [0; 4],
        }
    }

    /// One of its MSRs.
    pub(super) fn read_msr(&self, index: u32) -> u64 {
        match index {
            WALL_CLOCK => self.wall_clock,
            STEAL_TIME => self.steal_time,
            _ => self.system_time,
        }
    }

    /// A write to one of them: an address, aligned and in RAM.
    pub(super) fn write_msr(
        &mut self,
        index: u32,
        value: u64,
        ram: RamLayout,
    ) -> Result<(), GeneralProtection> {
        let (at, enabled) = (value & !ENABLE, value & ENABLE != 0);
        let (at, align, bytes, wanted) = match index {
            WALL_CLOCK => (value, 4, WALL_CLOCK_BYTES, true),
            STEAL_TIME => (at, STEAL_TIME_BYTES, STEAL_TIME_BYTES, enabled),
            _ => (at, 4, SYSTEM_TIME_BYTES, enabled),
        };
        let fits = ram.contains_all(Gpa(at), bytes);
        if wanted && !(fits && at & (align - 1) == 0) {
            return Err(GeneralProtection);
        }
        match index {
            WALL_CLOCK => (self.wall_clock, self.wall_clock_due) = (value, true),
            STEAL_TIME => (self.steal_time, self.steal_time_due) = (value, wanted),
            _ => (self.system_time, self.system_time_due) = (value, wanted),
        }
        Ok(())
    }

    /// What the page says is no longer so.
    pub(super) fn counter_changed(&mut self) {
        self.system_time_due = self.system_time & ENABLE != 0;
    }
    /// The counters of all vCPUs agree, or no longer do.
    pub(super) fn set_stable(&mut self, stable: bool) {
        if self.stable != stable {
            self.stable = stable;
            self.counter_changed();
        }
    }
    /// Its thread has waited so long for a CPU.
    pub(super) fn set_waited(&mut self, waited_ns: u64) {
        if self.waited_ns != waited_ns {
            self.waited_ns = waited_ns;
            self.steal_time_due = self.steal_time & ENABLE != 0;
        }
    }
    /// The counters of all vCPUs agree.
    pub(super) fn is_stable(&self) -> bool {
        self.stable
    }
    /// [`PvClock::publish`] has something to do.
    pub(super) fn is_due(&self) -> bool {
        self.wall_clock_due || self.system_time_due || self.steal_time_due
    }

    /// Writes what is due. Sleeps, if the guest's memory has no frame there yet.
    pub(super) fn publish(&mut self, memory: &dyn GuestMemory, now: Instant) -> Result<(), NotRam> {
        if self.wall_clock_due {
            let zero_ns = now.wall_ns.saturating_sub(now.system_ns);
            let (seconds, rest_ns) = (zero_ns / NS_PER_S, zero_ns % NS_PER_S);
            let at = Gpa(self.wall_clock);
            let words = [seconds as u32, rest_ns as u32];
            self.write(memory, at, at.wrapping_add(4), &words)?;
            self.wall_clock_due = false;
        }
        if self.system_time_due {
            let (scale, shift) = scale(now.tsc_khz);
            let flags = if self.stable { FLAG_STABLE } else { 0 };
            let [low, high] = [now.base_tsc as u32, (now.base_tsc >> 32) as u32];
            let [ns_low, ns_high] = [now.base_ns as u32, (now.base_ns >> 32) as u32];
            let last = u32::from_le_bytes([shift as u8, flags, 0, 0]);
            let at = Gpa(self.system_time & !ENABLE);
            // Padding, the counter at a time, that time, how it goes on.
            let words = [0, low, high, ns_low, ns_high, scale, last];
            self.write(memory, at, at.wrapping_add(4), &words)?;
            self.system_time_due = false;
        }
        if self.steal_time_due {
            let stolen_ns = self.waited_ns.wrapping_sub(self.waited_at_reset_ns);
            let at = Gpa(self.steal_time & !ENABLE);
            let words = [stolen_ns as u32, (stolen_ns >> 32) as u32];
            self.write(memory, at.wrapping_add(8), at, &words)?;
            self.steal_time_due = false;
        }
        Ok(())
    }

    /// Writes words into a page whose version, elsewhere in it, is odd meanwhile.
    fn write(
        &mut self,
        memory: &dyn GuestMemory,
        version_at: Gpa,
        words_at: Gpa,
        words: &[u32],
    ) -> Result<(), NotRam> {
        let put = |at: Gpa, word: u32| {
            memory.write(at, &word.to_le_bytes())?;
            // In this order, as another vCPU may be reading.
            fence(Ordering::Release);
            Ok(())
        };
        let writing = self.version | 1;
        self.version = writing.wrapping_add(1);
        put(version_at, writing)?;
        let mut to = words_at;
        for word in words {
            put(to, *word)?;
            to = to.wrapping_add(4);
        }
        put(version_at, self.version)
    }
}

/// The factors by which ticks are nanoseconds: `(ticks << shift) * scale >> 32`, where a negative shift is one to the right.
fn scale(khz: u32) -> (u32, i8) {
    let (mut ns, mut ticks, mut shift) = (1_000_000u64, u64::from(khz.max(1)), 0i8);
    while ns >= ticks {
        (ticks, shift) = (ticks << 1, shift.wrapping_add(1));
    }
    while ns << 1 < ticks {
        (ns, shift) = (ns << 1, shift.wrapping_sub(1));
    }
    // Their quotient is from a half up to one, and both are below 2^32.
    let scale = (ns << 32).checked_div(ticks).unwrap_or(0);
    (scale as u32, shift)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::testing::TestMachine;
    use proptest::prelude::*;

    const RAM: u64 = 0x4000;
    const LAYOUT: RamLayout = RamLayout::new(RAM);

    fn now() -> Instant {
        Instant {
            wall_ns: 1_800_000_000_000_000_007,
            system_ns: 3,
            base_tsc: 77,
            base_ns: 0,
            tsc_khz: 2_600_000,
        }
    }

    /// What a guest computes, in the order in which the documentation says it.
    fn guest_ns(page: &[u8], tsc: u64) -> u64 {
        let u64_at = |at: usize| u64::from_le_bytes(page[at..at + 8].try_into().unwrap());
        let u32_at = |at: usize| u32::from_le_bytes(page[at..at + 4].try_into().unwrap());
        let delta = tsc.wrapping_sub(u64_at(8));
        let delta = match page[28] as i8 {
            shift @ 0.. => delta << shift,
            shift => delta >> -shift,
        };
        let ns = (u128::from(delta) * u128::from(u32_at(24))) >> 32;
        u64_at(16) + ns as u64
    }

    fn page(memory: &dyn GuestMemory, at: u64) -> [u8; 32] {
        let mut page = [0; 32];
        memory.read(Gpa(at), &mut page).unwrap();
        page
    }

    fn machine() -> TestMachine {
        let machine = TestMachine::new();
        machine.ram.borrow_mut().resize(RAM as usize, 0);
        machine
    }

    #[test]
    fn says_how_the_counter_converts_and_when_it_began() {
        let (mut clock, machine) = (PvClock::default(), machine());
        let enable = clock.write_msr(SYSTEM_TIME, 0x1ffc | ENABLE, LAYOUT);
        assert_eq!(enable, Ok(()));
        assert_eq!(clock.write_msr(WALL_CLOCK, 0x2100, LAYOUT), Ok(()));
        assert!(clock.is_due());
        clock.publish(&machine, now()).unwrap();
        assert!(!clock.is_due());
        let first = page(&machine, 0x1ffc);
        assert_eq!(guest_ns(&first, 77), 0);
        assert!(guest_ns(&first, 77 + 26_000_000_000).abs_diff(10_000_000_000) <= 5);
        assert_eq!((first[0] & 1, first[29]), (0, 0));
        let wall = page(&machine, 0x2100);
        assert_eq!(wall[4..8], 1_800_000_000u32.to_le_bytes());
        assert_eq!(wall[8..12], 4u32.to_le_bytes());
    }

    #[test]
    fn is_written_again_when_what_it_says_changes_and_only_then() {
        let (mut clock, machine) = (PvClock::default(), machine());
        clock.set_stable(true);
        assert!(!clock.is_due(), "nobody enabled it");
        clock
            .write_msr(SYSTEM_TIME, 0x1000 | ENABLE, LAYOUT)
            .unwrap();
        clock.publish(&machine, now()).unwrap();
        let first = page(&machine, 0x1000);
        clock.set_stable(true);
        assert!(first[29] == FLAG_STABLE && !clock.is_due());
        clock.set_stable(false);
        clock.publish(&machine, now()).unwrap();
        let second = page(&machine, 0x1000);
        assert!(second[29] == 0 && second[0] != first[0]);
        clock.write_msr(SYSTEM_TIME, 0, LAYOUT).unwrap();
        clock.counter_changed();
        assert!(!clock.is_due(), "disabled");
    }

    #[test]
    fn steal_time_is_what_was_waited_since_power_on() {
        let (mut clock, machine) = (PvClock::new(1_000), machine());
        clock.set_waited(3_000);
        assert!(!clock.is_due(), "nobody enabled it");
        clock
            .write_msr(STEAL_TIME, 0x1040 | ENABLE, LAYOUT)
            .unwrap();
        clock.publish(&machine, now()).unwrap();
        let stolen = |machine| u64::from_le_bytes(page(machine, 0x1040)[..8].try_into().unwrap());
        assert_eq!(stolen(&machine), 2_000);
        let version = page(&machine, 0x1040)[8];
        assert!(version != 0 && version & 1 == 0);
        clock.set_waited(3_000);
        assert!(!clock.is_due());
        clock.set_waited(5_000_000_000_000);
        clock.publish(&machine, now()).unwrap();
        assert_eq!(stolen(&machine), 4_999_999_999_000);
        assert_eq!(page(&machine, 0x1040)[8], version + 2);
        clock.write_msr(STEAL_TIME, 0, LAYOUT).unwrap();
        clock.set_waited(6_000_000_000_000);
        assert!(!clock.is_due(), "disabled");
    }

    /// Notes the version before each write of something else.
    struct Reader {
        machine: TestMachine,
        versions: std::cell::RefCell<Vec<u8>>,
    }

    impl GuestMemory for Reader {
        fn read(&self, at: Gpa, buf: &mut [u8]) -> Result<(), NotRam> {
            GuestMemory::read(&self.machine, at, buf)
        }
        fn write(&self, at: Gpa, data: &[u8]) -> Result<(), NotRam> {
            if at != Gpa(0x1000) {
                let version = page(&self.machine, 0x1000)[0];
                self.versions.borrow_mut().push(version);
            }
            GuestMemory::write(&self.machine, at, data)
        }
    }

    #[test]
    fn the_version_is_odd_while_the_page_is_written() {
        let mut clock = PvClock::default();
        let reader = Reader {
            machine: machine(),
            versions: Default::default(),
        };
        for round in 1..=2 {
            clock
                .write_msr(SYSTEM_TIME, 0x1000 | ENABLE, LAYOUT)
                .unwrap();
            clock.publish(&reader, now()).unwrap();
            let versions = reader.versions.take();
            assert_eq!(versions, [2 * round - 1; 7]);
            assert_eq!(page(&reader, 0x1000)[0], 2 * round);
        }
    }

    #[test]
    fn addresses_that_are_not_ram_or_not_aligned_fault() {
        let mut clock = PvClock::default();
        let last = RAM - SYSTEM_TIME_BYTES;
        for (index, value) in [
            (SYSTEM_TIME, (last + 4) | ENABLE),
            (SYSTEM_TIME, 0x1002 | ENABLE),
            (SYSTEM_TIME, u64::MAX),
            (WALL_CLOCK, u64::MAX - 3),
            (WALL_CLOCK, 0x1001),
            (WALL_CLOCK, RAM - 8),
            (STEAL_TIME, 0x1020 | ENABLE),
            (STEAL_TIME, RAM | ENABLE),
        ] {
            let answer = clock.write_msr(index, value, LAYOUT);
            assert_eq!(answer, Err(GeneralProtection), "{value:#x}");
            assert!(!clock.is_due());
        }
        let answer = clock.write_msr(SYSTEM_TIME, last | ENABLE, LAYOUT);
        assert_eq!(answer, Ok(()));
        assert_eq!(clock.read_msr(SYSTEM_TIME), last | ENABLE);
    }

    #[test]
    fn offers_what_is_true() {
        let mut clock = PvClock::default();
        let [last, b, c, d] = clock.cpuid(SIGNATURE_LEAF, 1);
        let text: Vec<u8> = [b, c, d].into_iter().flat_map(u32::to_le_bytes).collect();
        assert_eq!(
            (last, text.as_slice()),
            (FEATURES_LEAF, b"KVMKVMKVM\0\0\0".as_slice())
        );
        assert_eq!(clock.cpuid(FEATURES_LEAF, 1), [1 << 3 | 1 << 5, 0, 0, 0]);
        clock.set_stable(true);
        let features = clock.cpuid(FEATURES_LEAF, 1)[0];
        assert_eq!(features, 1 << 3 | 1 << 5 | 1 << 24);
        assert_eq!(clock.cpuid(SIGNATURE_LEAF, 0), [0; 4], "no known rate");
    }

    proptest! {
        #[test]
        fn the_scale_is_exact_to_one_part_in_a_billion(khz in 1000u32.., ticks in 0u64..1 << 50) {
            let (scale, shift) = scale(khz);
            let shifted = match shift {
                0.. => u128::from(ticks) << shift,
                _ => u128::from(ticks >> -shift),
            };
            let ours = (shifted * u128::from(scale)) >> 32;
            let exact = u128::from(ticks) * 1_000_000 / u128::from(khz);
            prop_assert!(ours.abs_diff(exact) <= (exact >> 30) + 2, "{ours} {exact}");
        }
    }
}
