// SPDX-License-Identifier: MIT OR Apache-2.0
//! The tables, read back by walking them, and by `iasl`, the reference compiler (Debian package `acpica-tools`).

use super::*;
use crate::boot::testing::TestMemory;
use crate::image::testing::Spec;
use crate::image::Image;
use std::process::Command;

fn tables(spec: &Spec) -> (TestMemory, Vec<Vec<u8>>) {
    let bytes = spec.image(&[b"kernel"]);
    let machine = Image::parse(&bytes).unwrap().machine().unwrap();
    let memory = TestMemory::new(machine.ram);
    write(&machine, &memory).unwrap();
    let table = |at: u64| memory.bytes(at, memory.u32(at + 4) as usize);
    let xsdt = table(memory.u64(ACPI_TABLES + 24));
    let rsdt = table(memory.u32(ACPI_TABLES + 16).into());
    let entries: Vec<u64> = xsdt[36..]
        .chunks(8)
        .map(|e| u64::from_le_bytes(e.try_into().unwrap()))
        .collect();
    let short: Vec<u64> = rsdt[36..]
        .chunks(4)
        .map(|e| u32::from_le_bytes(e.try_into().unwrap()).into())
        .collect();
    assert_eq!(entries, short);
    let mut all = vec![rsdt, xsdt];
    all.extend(entries.into_iter().map(table));
    let fadt = &all[2];
    let pointer = |at: usize| u32::from_le_bytes(fadt[at..at + 4].try_into().unwrap()).into();
    assert_eq!(memory.bytes(pointer(36), 4), b"FACS");
    assert_eq!(pointer(36) % 64, 0);
    let dsdt = table(pointer(40));
    all.push(dsdt);
    (memory, all)
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

fn big() -> Spec {
    Spec {
        cpus: (0..64).map(|n| (n, None)).collect(),
        devices: [
            (0x3f8, 4, "a"),
            (0x2f8, 3, "b"),
            (0x3e8, 4, "c"),
            (0x2e8, 3, "d"),
        ]
        .map(|(p, i, s)| ("ns16550a", p, i, s))
        .to_vec(),
        ..Spec::default()
    }
}

#[test]
fn all_checksums_hold() {
    for spec in [Spec::default(), big()] {
        let (memory, all) = tables(&spec);
        let rsdp = memory.bytes(ACPI_TABLES, 36);
        assert_eq!(
            (&rsdp[..8], sum(&rsdp[..20]), sum(&rsdp)),
            (b"RSD PTR ".as_slice(), 0, 0)
        );
        let names: Vec<_> = all
            .iter()
            .map(|table| std::str::from_utf8(&table[..4]).unwrap())
            .collect();
        assert_eq!(
            names,
            ["RSDT", "XSDT", "FACP", "APIC", "HPET", "MCFG", "DSDT"]
        );
        assert!(all.iter().all(|table| sum(table) == 0));
        assert_eq!(all[2].len(), 276);
    }
}

#[test]
fn madt_lists_every_processor() {
    let (_, all) = tables(&big());
    let mut rest = &all[3][44..];
    let mut ids = Vec::new();
    while let [kind, len, ..] = *rest {
        if kind == 0 {
            ids.push(rest[3]);
            assert_eq!(rest[4], 1);
        }
        rest = &rest[usize::from(len)..];
    }
    assert_eq!(ids, (0..64).collect::<Vec<u8>>());
}

/// `iasl` takes every table apart, finds what was meant, and the devices' code compiles again.
#[test]
fn the_reference_compiler_agrees() {
    let (_, all) = tables(&big());
    let dir = std::env::temp_dir().join(format!("v3vee-acpi-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let mut text = String::new();
    for table in &all {
        let name = std::str::from_utf8(&table[..4]).unwrap();
        std::fs::write(dir.join(name), table).unwrap();
        let said = iasl(&dir, &["-d", name]);
        assert!(
            !said.contains("Error") && !said.contains("Invalid") && !said.contains("Warning"),
            "{name}: {said}"
        );
        text += &std::fs::read_to_string(dir.join(format!("{name}.dsl"))).unwrap();
    }
    let again = iasl(&dir, &["-tc", "DSDT.dsl"]);
    assert!(again.contains("0 Errors, 0 Warnings"), "{again}");
    std::fs::remove_dir_all(&dir).unwrap();
    for wanted in [
        "Device (COM4)",
        "Device (LNKD)",
        "EisaId (\"PNP0A03\")",
        "EisaId (\"PNP0C0F\")",
        "Name (_ADR, 0x001F0000)",
        "Method (_EJ0, 1, Serialized)",
        "Notify (SL02, One)",
        "Notify (SL1F, 0x03)",
        "GPE0 Block Address : 0000AFE0",
        "Base Address : 00000000F0000000",
        "0xC0000000,         // Range Minimum",
        "0x0000000800000000, // Range Minimum",
        "0xF0000000,         // Address Base",
        "EisaId (\"PNP0501\")",
        "EisaId (\"PNP0B00\")",
        "0x02E8,             // Range Minimum",
        "Name (\\_S5, Package (0x04)",
        "PM1A Event Block Address : 00000600",
        "PM1A Control Block Address : 00000604",
        "PM Timer Block Address : 00000608",
        "SCI Interrupt : 0009",
        "Value to cause reset : 06",
        "Reset Register Supported (V2) : 1",
        "Hardware Reduced (V5) : 0",
        "8042 Present on ports 60/64 (V2) : 0",
        "VGA Not Present (V4) : 1",
        "Interrupt Input LINT : 01",
        "Hardware Block ID : 8086A201",
        "Address : 00000000FED00000",
        "Polarity : 1",
        "Trigger Mode : 3",
    ] {
        assert!(text.contains(wanted), "no `{wanted}` in:\n{text}");
    }
}

fn iasl(dir: &std::path::Path, args: &[&str]) -> String {
    let done = Command::new("iasl").args(args).current_dir(dir).output();
    let done = done.expect("iasl runs: apt-get install acpica-tools");
    let said =
        String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{said}");
    said
}
