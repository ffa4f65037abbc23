// SPDX-License-Identifier: MIT OR Apache-2.0
//! Processors and timers, as the ACPI tables name them (ACPI 6.5: 5.2.5, 5.2.7, 5.2.9, 5.2.12).

use core::slice::from_raw_parts;

const BIOS: core::ops::Range<u64> = 0xe_0000..0x10_0000;

fn bytes(at: u64, length: usize) -> &'static [u8] {
    // SAFETY: the first 4 GiB are mapped, and tables are in RAM or ROM.
    unsafe { from_raw_parts(at as *const u8, length) }
}

fn u32_at(at: u64) -> u32 {
    // SAFETY: as above.
    unsafe { (at as *const u32).read_unaligned() }
}

/// A table whose bytes add up to zero, if `at` is one.
fn table(at: u64) -> Option<&'static [u8]> {
    let table = bytes(at, u32_at(at + 4) as usize);
    let sum = table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    (sum == 0).then_some(table)
}

/// The table with this signature, by way of the root table.
fn find(signature: &[u8; 4]) -> Option<&'static [u8]> {
    let pointer = BIOS.step_by(16).find(|at| bytes(*at, 8) == b"RSD PTR ")?;
    let root = u32_at(pointer + 16).into();
    let entries = (table(root)?.len() as u64 - 36) / 4;
    (0..entries)
        .map(|n| u64::from(u32_at(root + 36 + 4 * n)))
        .find(|at| bytes(*at, 4) == signature)
        .and_then(table)
}

/// Where the high-precision event timer's registers are (IA-PC HPET 1.0a: 3.2.4).
pub fn hpet() -> Option<u64> {
    let table = find(b"HPET")?;
    let address = table.get(44..52)?;
    Some(u64::from_le_bytes(address.try_into().ok()?))
}

/// The port of the power management timer (ACPI 6.5: table 5.9).
pub fn pm_timer() -> Option<u16> {
    let port = find(b"FACP")?.get(76..78)?;
    Some(u16::from_le_bytes(port.try_into().ok()?))
}

/// Where configuration space of PCI is in memory (PCI Firmware Specification 3.0: 4.1.2).
pub fn ecam() -> Option<u64> {
    let address = find(b"MCFG")?.get(44..52)?;
    Some(u64::from_le_bytes(address.try_into().ok()?))
}

/// The entries of the MADT, each from its type on.
fn madt() -> impl Iterator<Item = &'static [u8]> {
    let mut rest = find(b"APIC")
        .and_then(|table| table.get(44..))
        .unwrap_or(&[]);
    core::iter::from_fn(move || {
        let length = usize::from(*rest.get(1)?);
        let (entry, behind) = rest.split_at_checked(length.max(2))?;
        rest = behind;
        Some(entry)
    })
}

/// The APIC ids of all processors that are there, the first one's too.
pub fn processors() -> impl Iterator<Item = u32> {
    const LOCAL_APIC: u8 = 0;
    const LOCAL_X2APIC: u8 = 9;
    madt().filter_map(|entry| match (entry.first()?, entry.get(1)?) {
        (&LOCAL_APIC, 8) if entry[4] & 1 != 0 => Some(entry[3].into()),
        (&LOCAL_X2APIC, 16) if entry[8] & 1 != 0 => Some(u32_at(entry.as_ptr() as u64 + 4)),
        _ => None,
    })
}
