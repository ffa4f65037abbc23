// SPDX-License-Identifier: MIT OR Apache-2.0
//! Reads the values of options and arguments.

use clap::builder::{PossibleValuesParser, TypedValueParser};
use v3_ctl::{parse_length, ModuleFile, OnTripleFault};

/// A CPU of the host, or any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpu(pub Option<u32>);

pub fn cpu(text: &str) -> Result<Cpu, String> {
    match text {
        "any" => Ok(Cpu(None)),
        number => match number.parse() {
            Ok(cpu) if cpu != v3_abi::V3_CPU_ANY => Ok(Cpu(Some(cpu))),
            _ => Err("give the number of a CPU of the host, or `any`".into()),
        },
    }
}

/// The first port of a device.
pub fn port(text: &str) -> Result<u16, String> {
    let port = match text.strip_prefix("0x") {
        Some(digits) => u16::from_str_radix(digits, 16),
        None => text.parse(),
    };
    let port = port.ok().filter(|port| *port != 0);
    port.ok_or_else(|| "give the number of a port, such as 0x3e8".into())
}

/// A part of a guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Its first address.
    pub at: u64,
    /// How many bytes.
    pub len: u64,
}

/// How many bytes are dumped unless one says, and how many at most.
const USUAL_DUMP: u64 = 128;
const LONGEST_DUMP: u64 = 16 << 20;

/// An address.
pub fn address(text: &str) -> Result<u64, String> {
    let address = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    address.map_err(|_| format!("`{text}` is no address: write it like 0x100000, or in decimal"))
}

/// `ADDR` or `ADDR,LEN`.
pub fn memory(text: &str) -> Result<Memory, String> {
    let (at, len) = match text.split_once(',') {
        Some((at, len)) => (at, parse_length(len)?),
        None => (text, USUAL_DUMP),
    };
    let at = address(at)?;
    match len {
        1..=LONGEST_DUMP => Ok(Memory { at, len }),
        _ => Err("give a length of 1 byte to 16M".into()),
    }
}

/// The control character of a key: `]` is 0x1d, `a` is 0x01.
pub fn escape(key: &str) -> Result<u8, String> {
    match key.as_bytes() {
        [key @ (b'a'..=b'z' | b'[' | b'\\' | b']' | b'^' | b'_')] => Ok(key & 0x1f),
        _ => Err("give one of a to z, [, \\, ], ^, _".into()),
    }
}

pub fn module(text: &str) -> Result<ModuleFile, String> {
    let (file, cmdline) = text.split_once('=').unwrap_or((text, ""));
    if file.is_empty() {
        return Err("no file before the `=`".into());
    }
    Ok(ModuleFile {
        contents: v3_ctl::Contents::File(file.into()),
        cmdline: cmdline.into(),
    })
}

/// `stop` or `reset`.
pub fn on_triple_fault() -> impl TypedValueParser<Value = OnTripleFault> {
    PossibleValuesParser::new(["stop", "reset"]).map(|what| match what.as_str() {
        "reset" => OnTripleFault::Reset,
        _ => OnTripleFault::Stop,
    })
}

/// The exit status with which a guest shall end.
pub fn expected(text: &str) -> Result<u32, String> {
    let status = text.parse().ok();
    let possible = status.filter(|status| *status == 0 || status % 2 == 1);
    possible.ok_or_else(|| {
        "a test exit is an odd number, V * 2 + 1 for a write of V; 0 stands for a power-off".into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_and_keys() {
        assert_eq!(cpu("7"), Ok(Cpu(Some(7))));
        assert_eq!(cpu("any"), Ok(Cpu(None)));
        assert!(["-1", "4294967295", "none", ""]
            .map(cpu)
            .iter()
            .all(Result::is_err));
        assert_eq!((escape("]"), escape("a")), (Ok(0x1d), Ok(1)));
        assert!(escape("]]").is_err());
        assert_eq!((port("0x3e8"), port("1000")), (Ok(0x3e8), Ok(1000)));
        assert!(["0", "", "0x", "0x10000", "com3"]
            .map(port)
            .iter()
            .all(Result::is_err));
    }

    #[test]
    fn addresses_and_lengths() {
        assert_eq!(address("0xffffffff81000000"), Ok(0xffff_ffff_8100_0000));
        assert_eq!(address("4096"), Ok(4096));
        for bad in [
            "",
            "0x",
            "x",
            "-1",
            "ffffffff81000000",
            "0x10000000000000000",
            "1M",
        ] {
            assert!(address(bad).unwrap_err().contains("is no address"), "{bad}");
        }
        let of = |at, len| Ok(Memory { at, len });
        assert_eq!(memory("0x10"), of(16, USUAL_DUMP));
        assert_eq!(memory("0x10,0x20"), of(16, 32));
        assert_eq!(memory("16,4K"), of(16, 4096));
        for bad in ["", ",", "1,", "1,0", "1,17M", "1,2,3"] {
            assert!(memory(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_expected_end_is_one_that_a_guest_can_have() {
        assert_eq!(expected("0"), Ok(0));
        assert_eq!(expected("1"), Ok(1));
        assert_eq!(expected("257"), Ok(257));
        for never in ["2", "124", "-1", "", "x"] {
            assert!(expected(never).unwrap_err().contains("odd"), "{never}");
        }
    }

    #[test]
    fn a_module_may_have_a_command_line() {
        let read = module("words=a=b c").unwrap();
        assert_eq!(
            (read.contents.to_string().as_str(), read.cmdline.as_str()),
            ("words", "a=b c")
        );
        assert_eq!(module("words").unwrap().cmdline, "");
        assert!(module("=x").is_err());
    }
}
