// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where streams of devices lead, and where disks have their bytes, as the command line says it.

use super::disk::{disk, DiskFile};
use clap::{Args, ValueHint};
use std::path::PathBuf;

/// Where the stream of a device leads, or where a disk has its bytes.
#[derive(Args, Clone, Default)]
#[command(next_help_heading = "Far ends")]
#[group(multiple = false)]
pub struct Ends {
    /// The file or block device of a disk; see below for what may stand behind it
    #[arg(value_name = "FILE[,OPTION…]", value_hint = ValueHint::FilePath, value_parser = disk)]
    pub disk: Option<DiskFile>,
    /// A new terminal, whose path is printed
    #[arg(long)]
    pub pty: bool,
    /// The named pipes PATH.in and PATH.out; or PATH, for output alone
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub pipe: Option<PathBuf>,
    /// A file, to whose end the output goes; made if it is not there
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub file: Option<PathBuf>,
    /// The Unix socket PATH, at which somebody listens
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub socket: Option<PathBuf>,
    /// This program's standard input and output, until it ends and detaches the device
    #[arg(long)]
    pub stdio: bool,
}

impl Ends {
    /// None was chosen.
    pub fn is_none(&self) -> bool {
        !self.pty
            && !self.stdio
            && self.disk.is_none()
            && self.pipe.is_none()
            && self.file.is_none()
            && self.socket.is_none()
    }
}

/// Where the stream of a device of a saved VM leads, or where its disk is.
#[derive(Clone)]
pub struct EndOf {
    /// What the device is known by.
    pub id: String,
    pub ends: Ends,
}

/// A device and where its stream leads, or its disk is: `com3=pty`, `com3=file:PATH`, `disk=disk:PATH,ro`.
pub fn end_of(text: &str) -> Result<EndOf, String> {
    let wrong = || {
        format!("`{text}` is not like com3=pty; there are pty, pipe:PATH, file:PATH, socket:PATH, disk:PATH[,OPTION…] and none")
    };
    let (id, end) = text.split_once('=').ok_or_else(wrong)?;
    let (way, path) = match end.split_once(':') {
        None => (end, None),
        Some((_, "")) => return Err(wrong()),
        Some((way, path)) => (way, Some(path)),
    };
    let mut ends = Ends::default();
    match (way, path) {
        ("none", None) => {}
        ("pty", None) => ends.pty = true,
        ("disk", Some(path)) => ends.disk = Some(disk(path)?),
        ("pipe", Some(path)) => ends.pipe = Some(path.into()),
        ("file", Some(path)) => ends.file = Some(path.into()),
        ("socket", Some(path)) => ends.socket = Some(path.into()),
        _ => return Err(wrong()),
    }
    Ok(EndOf {
        id: id.into(),
        ends,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_device() {
        let end = end_of("com3=file:a:b").ok().unwrap();
        assert_eq!(
            (end.id.as_str(), end.ends.file),
            ("com3", Some("a:b".into()))
        );
        let disk = end_of("data=disk:a:b,ro").ok().unwrap().ends.disk.unwrap();
        assert!(disk.is_read_only && disk.path.as_os_str() == "a:b");
        assert!(end_of("data=disk:a,rw").is_err());
        assert!(end_of("com3=pty").is_ok_and(|end| end.ends.pty));
        assert!(end_of("com3=none").is_ok_and(|end| end.ends.is_none()));
        for bad in [
            "",
            "com3",
            "com3=",
            "com3=moon",
            "com3=pty:x",
            "com3=file",
            "com3=file:",
            "com3=none:",
        ] {
            let refused = end_of(bad).err().expect(bad);
            assert!(refused.contains("is not like com3=pty"), "{refused}");
        }
    }
}
