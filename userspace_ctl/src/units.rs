// SPDX-License-Identifier: MIT OR Apache-2.0
//! Sizes and times, as people write them.

use std::time::Duration;

const UNITS: [(&str, u32); 5] = [("T", 40), ("G", 30), ("M", 20), ("K", 10), ("B", 0)];

/// Reads how much memory a machine has: `512M`, `2 GiB`. A number without a unit counts MiB.
pub fn parse_memory(text: &str) -> Result<u64, String> {
    parse_bytes(text, "M")
}

/// Reads an address or the length of a range: `0x100000`, `4096`, `2M`. A number without a unit counts bytes.
pub fn parse_length(text: &str) -> Result<u64, String> {
    parse_bytes(text, "B")
}

/// Reads a decimal number, or a hexadecimal one behind `0x`, and its unit. Units are powers of 1024.
fn parse_bytes(text: &str, default_unit: &str) -> Result<u64, String> {
    let no_size = || format!("`{text}` is not a size: write it like 512M or 2 GiB");
    let trimmed = text.trim();
    let (radix, rest) = match trimmed.strip_prefix("0x") {
        Some(hexadecimal) => (16, hexadecimal),
        None => (10, trimmed),
    };
    let digits = rest.find(|c: char| !c.is_digit(radix));
    let (number, unit) = rest.split_at(digits.unwrap_or(rest.len()));
    let unit = match unit.trim_start() {
        "" => default_unit,
        unit => unit.strip_suffix("iB").unwrap_or(unit),
    };
    let known = UNITS
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case(unit));
    let (_, shift) = known.filter(|_| !number.is_empty()).ok_or_else(no_size)?;
    let number = u64::from_str_radix(number, radix).ok();
    let bytes = number.and_then(|number| number.checked_mul(1 << shift));
    bytes.ok_or_else(|| format!("`{text}` is too much"))
}

/// Writes a size with the greatest unit that divides it.
#[must_use]
pub fn format_bytes(bytes: u64) -> String {
    let divides = |(_, shift): &&(&str, u32)| bytes != 0 && bytes % (1 << shift) == 0;
    match UNITS.iter().find(divides) {
        Some((name, shift)) if *shift > 0 => format!("{} {name}iB", bytes >> shift),
        _ => format!("{bytes} B"),
    }
}

/// Reads a time in seconds, with or without decimals.
pub fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().ok();
    let time = seconds.and_then(|s| Duration::try_from_secs_f64(s).ok());
    time.ok_or_else(|| format!("`{text}` is not a time in seconds"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes() {
        assert_eq!(parse_memory("512M"), Ok(512 << 20));
        assert_eq!(parse_memory(" 2 GiB "), Ok(2 << 30));
        assert_eq!(parse_memory("4096K"), Ok(4 << 20));
        assert_eq!(parse_memory("64m"), Ok(64 << 20));
        assert_eq!(parse_length("1TiB"), Ok(1 << 40));
        assert_eq!(parse_length("8192 B"), Ok(8192));
        for bad in [
            "", "M", "5x", "-1M", "+1M", "1.5G", "512 MB", "1iB", "0x", "5 12",
        ] {
            let error = parse_memory(bad).unwrap_err();
            assert!(error.contains("is not a size"), "{error}");
        }
        for much in ["99999999999999999999M", "16777216T"] {
            assert!(parse_length(much).unwrap_err().contains("too much"));
        }
    }

    #[test]
    fn a_bare_number_counts_mib_of_memory_and_bytes_of_a_range() {
        assert_eq!(parse_memory("512"), Ok(512 << 20));
        assert_eq!(parse_length("4096"), Ok(4096));
        assert_eq!(
            parse_length("0x10_000"),
            Err("`0x10_000` is not a size: write it like 512M or 2 GiB".into())
        );
        assert_eq!(parse_length("0x100000"), Ok(1 << 20));
        assert_eq!(parse_length("0x10K"), Ok(16 << 10));
    }

    #[test]
    fn seconds() {
        assert_eq!(parse_seconds("1.5"), Ok(Duration::from_millis(1500)));
        for bad in ["", "-1", "nan", "inf", "x", "1s"] {
            assert!(parse_seconds(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_length_that_is_written_is_read(bytes in 0u64..1 << 50) {
            prop_assert_eq!(parse_length(&format_bytes(bytes)), Ok(bytes));
        }

        #[test]
        fn what_is_written_is_read(kib in 1u64..1 << 50) {
            prop_assert_eq!(parse_memory(&format_bytes(kib << 10)), Ok(kib << 10));
        }
    }
}
