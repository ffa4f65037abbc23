// SPDX-License-Identifier: MIT OR Apache-2.0
//! Sizes and times, as people write them.

use std::time::Duration;

const UNITS: [(&str, u32); 4] = [("T", 40), ("G", 30), ("M", 20), ("K", 10)];

/// Reads a size with a unit: `512M`, `2 GiB`. Units are powers of 1024.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim_start();
    let number: u64 = number
        .parse()
        .map_err(|_| format!("`{text}` is not a size: write it like 512M or 2 GiB"))?;
    let unit = unit.strip_suffix("iB").unwrap_or(unit);
    let shift = UNITS
        .iter()
        .find(|(name, _)| *name == unit)
        .map(|(_, shift)| *shift);
    let shift = shift.ok_or_else(|| {
        format!("`{text}` has no unit that is known: write it like 512M or 2 GiB")
    })?;
    let bytes = number.checked_mul(1 << shift);
    bytes.ok_or_else(|| format!("`{text}` is too much"))
}

/// Writes a size with the greatest unit that divides it.
#[must_use]
pub fn format_bytes(bytes: u64) -> String {
    let unit = UNITS
        .iter()
        .find(|(_, shift)| bytes != 0 && bytes % (1 << shift) == 0);
    match unit {
        Some((name, shift)) => format!("{} {name}iB", bytes >> shift),
        None => format!("{bytes} B"),
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
        assert_eq!(parse_bytes("512M"), Ok(512 << 20));
        assert_eq!(parse_bytes(" 2 GiB "), Ok(2 << 30));
        assert_eq!(parse_bytes("4096K"), Ok(4 << 20));
        assert_eq!(parse_bytes("1TiB"), Ok(1 << 40));
        for bad in [
            "",
            "M",
            "512",
            "5x",
            "-1M",
            "1.5G",
            "512 MB",
            "99999999999999999999M",
            "16777216T",
        ] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
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
        fn what_is_written_is_read(kib in 1u64..1 << 50) {
            prop_assert_eq!(parse_bytes(&format_bytes(kib << 10)), Ok(kib << 10));
        }
    }
}
