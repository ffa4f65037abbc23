// SPDX-License-Identifier: MIT OR Apache-2.0
//! A guest described in TOML.
//!
//! ```toml
//! name = "debian"                 # Optional: the VM's name where `v3 create` is given none.
//! memory = "512M"                 # Text with a unit: K, M, G or T, also as MiB and so on; or a number of MiB.
//! vcpus = 2                       # Optional: 1.
//! pins = [0, 1]                   # Optional: the host CPUs on which the first virtual CPUs stay.
//! cpu = ["-la57"]                 # Optional: features of the host's processor that the guest's do not have.
//! kernel = "vmlinuz"              # A Linux bzImage, a Multiboot kernel, or an ELF file with a PVH note.
//! boot = "auto"                   # Optional: "linux", "multiboot", "multiboot2", "pvh", or "auto", as the kernel's header says.
//! cmdline = "console=ttyS0"       # Optional: the kernel's command line.
//! initrd = ["base.img", "more.img"]   # Optional: one or a list; joined in this order.
//! console = "com1"                # Optional: the stream that `v3 console` attaches to; the first port's.
//! on_triple_fault = "stop"        # Optional: or "reset".
//! test_device = false             # Optional: whether it has the device of test kernels.
//!
//! [[module]]                      # Optional, any number: a file for a kernel that is no bzImage.
//! file = "program"
//! cmdline = "program -v"          # Optional.
//!
//! [[serial]]                      # Optional, up to four; com1 alone if there is none. `serial = []` for no port.
//! port = "com1"                   # com1 to com4.
//! stream = "com1"                 # Optional: the name of its byte stream; the port's.
//!
//! [[disk]]                        # Optional, any number: a disk in memory, which goes with the VM.
//! file = "disk.img"               # What is on it to begin with; optional if it has a size.
//! size = "64M"                    # How large it is; optional if it has a file, which then is as large.
//! read_only = false               # Optional.
//! ```
//!
//! Paths are relative to the folder of the TOML file. Unknown keys are errors.

use crate::contents::Contents;
use crate::guest::{
    check_memory, check_vcpus, feature_taken_away, Boot, Guest, ModuleFile, OnTripleFault,
    SerialPort,
};
use crate::ram_disk::RamDisk;
use crate::units::parse_memory;
use palacios_core::block::SECTOR_BYTES;
use palacios_core::devices::uart::ComPort;
use palacios_core::features::FeatureSet;
use palacios_core::image::disk::MAX_DISK_BYTES;
use serde::Deserialize;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use toml::Spanned;
use v3_abi::V3_STREAM_NAME_LEN;

/// A guest.toml as it is written. [`Definition::guest`] makes a [`Guest`] of it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    name: Option<Spanned<String>>,
    memory: Spanned<TextOrNumber>,
    vcpus: Option<Spanned<u32>>,
    #[serde(default)]
    pins: Option<Spanned<Vec<u32>>>,
    #[serde(default)]
    cpu: Vec<Spanned<String>>,
    kernel: Spanned<PathBuf>,
    #[serde(default)]
    boot: Boot,
    #[serde(default)]
    cmdline: Option<Spanned<String>>,
    initrd: Option<Spanned<OneOrMany>>,
    console: Option<Spanned<String>>,
    #[serde(default)]
    on_triple_fault: OnTripleFault,
    #[serde(default)]
    test_device: bool,
    #[serde(default)]
    module: Vec<WrittenModule>,
    serial: Option<Vec<WrittenSerial>>,
    #[serde(default)]
    disk: Vec<Spanned<WrittenDisk>>,
}

#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "expected a size like \"512M\", or a number of MiB"
)]
enum TextOrNumber {
    Text(String),
    Number(u64),
}

impl TextOrNumber {
    fn text(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Number(number) => number.to_string(),
        }
    }
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a path or a list of paths")]
enum OneOrMany {
    One(PathBuf),
    Many(Vec<PathBuf>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenModule {
    file: Spanned<PathBuf>,
    cmdline: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenSerial {
    port: Spanned<String>,
    stream: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenDisk {
    file: Option<Spanned<PathBuf>>,
    size: Option<Spanned<TextOrNumber>>,
    #[serde(default)]
    read_only: bool,
}

/// The text of a guest.toml, and where it lies.
pub struct Definition<'a> {
    text: &'a str,
    file: &'a Path,
}

/// What is wrong with a guest.toml, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DefinitionError {
    /// The file.
    pub file: PathBuf,
    /// The line, from 1.
    pub line: usize,
    /// What is wrong there.
    pub message: String,
    /// The line names a file that cannot be used.
    pub is_about_a_file: bool,
}

impl fmt::Display for DefinitionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file.display(), self.line, self.message)
    }
}

impl std::error::Error for DefinitionError {}

type Result<T> = std::result::Result<T, DefinitionError>;

impl<'a> Definition<'a> {
    /// The text of `file`.
    #[must_use]
    pub fn new(text: &'a str, file: &'a Path) -> Self {
        Self { text, file }
    }

    /// The guest it describes. Files that it names were found, but not read.
    pub fn guest(&self) -> Result<Guest> {
        let written: Written = toml::from_str(self.text)
            .map_err(|e| self.error(e.span().unwrap_or(0..0), e.message().trim()))?;
        let vcpus = self.vcpus(written.vcpus.as_ref())?;
        let serials = self.serials(written.serial)?;
        let cmdline = self.line(written.cmdline, "cmdline")?;
        Ok(Guest {
            name: self.name(written.name)?,
            memory_bytes: self.memory(&written.memory)?,
            vcpus,
            pins: self.pins(written.pins, vcpus)?,
            without: self.without(&written.cpu)?,
            kernel: self.path(written.kernel.span(), written.kernel.get_ref(), "kernel")?,
            boot: written.boot,
            cmdline,
            initrds: self.initrds(written.initrd)?,
            modules: self.modules(written.module)?,
            console: self.console(written.console, &serials)?,
            on_triple_fault: written.on_triple_fault,
            test_device: written.test_device,
            serials,
            disks: self.disks(written.disk)?,
        })
    }

    fn error(&self, at: Range<usize>, message: impl Into<String>) -> DefinitionError {
        let before = self.text.get(..at.start).unwrap_or(self.text);
        DefinitionError {
            file: self.file.into(),
            line: before.matches('\n').count() + 1,
            message: message.into(),
            is_about_a_file: false,
        }
    }

    fn name(&self, name: Option<Spanned<String>>) -> Result<Option<String>> {
        match name {
            Some(name) if !v3_abi::is_vm_name(name.get_ref().as_bytes()) => Err(self.error(
                name.span(),
                "name: use 1 to 63 letters, digits, `.`, `_`, `-`, and not digits alone",
            )),
            name => Ok(name.map(Spanned::into_inner)),
        }
    }

    fn memory(&self, memory: &Spanned<TextOrNumber>) -> Result<u64> {
        let bytes = parse_memory(&memory.get_ref().text()).and_then(check_memory);
        bytes.map_err(|why| self.error(memory.span(), format!("memory: {why}")))
    }

    fn vcpus(&self, vcpus: Option<&Spanned<u32>>) -> Result<u32> {
        let Some(vcpus) = vcpus else {
            return Ok(1);
        };
        let checked = check_vcpus(*vcpus.get_ref());
        checked.map_err(|why| self.error(vcpus.span(), format!("vcpus: {why}")))
    }

    fn pins(&self, pins: Option<Spanned<Vec<u32>>>, vcpus: u32) -> Result<Vec<Option<u32>>> {
        match pins {
            Some(pins) if pins.get_ref().len() > vcpus as usize => Err(self.error(
                pins.span(),
                format!("pins: more than vcpus, which is {vcpus}"),
            )),
            pins => {
                let pins = pins.map(Spanned::into_inner).unwrap_or_default();
                Ok(pins.into_iter().map(Some).collect())
            }
        }
    }

    /// The features that are taken away.
    fn without(&self, changes: &[Spanned<String>]) -> Result<FeatureSet> {
        let mut without = FeatureSet::default();
        for change in changes {
            let feature = feature_taken_away(change.get_ref())
                .map_err(|why| self.error(change.span(), format!("cpu: {why}")))?;
            without.insert(feature);
        }
        Ok(without)
    }

    /// A command line: anything without a NUL.
    fn line(&self, line: Option<Spanned<String>>, key: &str) -> Result<String> {
        match line {
            Some(line) if line.get_ref().contains('\0') => {
                Err(self.error(line.span(), format!("{key}: has a NUL character")))
            }
            line => Ok(line.map(Spanned::into_inner).unwrap_or_default()),
        }
    }

    /// A file beside the TOML file.
    fn path(&self, at: Range<usize>, path: &Path, key: &str) -> Result<Contents> {
        let path = self.file.parent().unwrap_or(Path::new("")).join(path);
        let why = match std::fs::metadata(&path) {
            Ok(found) if found.is_file() => return Ok(path.into()),
            Ok(_) => "not a file".into(),
            Err(e) => rustix::io::Errno::from_io_error(&e)
                .map_or_else(|| e.to_string(), crate::error::plain),
        };
        Err(DefinitionError {
            is_about_a_file: true,
            ..self.error(at, format!("{key}: {}: {why}", path.display()))
        })
    }

    fn initrds(&self, written: Option<Spanned<OneOrMany>>) -> Result<Vec<Contents>> {
        let Some(written) = written else {
            return Ok(Vec::new());
        };
        let at = written.span();
        let paths = match written.into_inner() {
            OneOrMany::One(path) => vec![path],
            OneOrMany::Many(paths) => paths,
        };
        paths
            .iter()
            .map(|path| self.path(at.clone(), path, "initrd"))
            .collect()
    }

    fn modules(&self, written: Vec<WrittenModule>) -> Result<Vec<ModuleFile>> {
        let one = |module: WrittenModule| {
            Ok(ModuleFile {
                contents: self.path(module.file.span(), module.file.get_ref(), "file")?,
                cmdline: self.line(module.cmdline, "cmdline")?,
            })
        };
        written.into_iter().map(one).collect()
    }

    fn serials(&self, written: Option<Vec<WrittenSerial>>) -> Result<Vec<SerialPort>> {
        let Some(written) = written else {
            return Ok(vec![SerialPort::new(ComPort::Com1)]);
        };
        let mut serials: Vec<SerialPort> = Vec::new();
        for serial in written {
            let at = serial.port.span();
            let name = serial.port.get_ref();
            let mut ports = ComPort::ALL.into_iter().map(SerialPort::new);
            // The stream has the name of its port until the next line.
            let Some(mut port) = ports.find(|port| port.stream == *name) else {
                return Err(self.error(at, "port: is none of com1, com2, com3, com4"));
            };
            if let Some(stream) = serial.stream {
                port.stream = self.stream(stream)?;
            }
            if serials.iter().any(|other| other.port == port.port) {
                return Err(self.error(at, format!("port: {name} is there twice")));
            }
            if serials.iter().any(|other| other.stream == port.stream) {
                let why = format!("stream: `{}` is another port's, too", port.stream);
                return Err(self.error(at, why));
            }
            serials.push(port);
        }
        Ok(serials)
    }

    fn disks(&self, written: Vec<Spanned<WrittenDisk>>) -> Result<Vec<RamDisk>> {
        let one = |disk: Spanned<WrittenDisk>| {
            let (at, disk) = (disk.span(), disk.into_inner());
            if disk.file.is_none() && disk.size.is_none() {
                return Err(self.error(at, "disk: has neither a file nor a size"));
            }
            let contents = disk
                .file
                .map(|file| self.path(file.span(), file.get_ref(), "file"));
            let bytes = disk.size.map(|size| self.disk_size(&size));
            Ok(RamDisk {
                contents: contents.transpose()?,
                bytes: bytes.transpose()?,
                is_read_only: disk.read_only,
            })
        };
        written.into_iter().map(one).collect()
    }

    fn disk_size(&self, size: &Spanned<TextOrNumber>) -> Result<u64> {
        let wrong = |why: &str| self.error(size.span(), format!("size: {why}"));
        let bytes = parse_memory(&size.get_ref().text()).map_err(|why| wrong(&why))?;
        match bytes != 0 && bytes % SECTOR_BYTES == 0 && bytes <= MAX_DISK_BYTES {
            true => Ok(bytes),
            false => Err(wrong("a disk has 512 bytes to 1 TiB, in steps of 512")),
        }
    }

    fn stream(&self, name: Spanned<String>) -> Result<String> {
        let most = V3_STREAM_NAME_LEN as usize - 1;
        let fits = (1..=most).contains(&name.get_ref().len());
        if !fits || name.get_ref().contains(|c: char| !c.is_ascii_graphic()) {
            let why = format!("stream: use 1 to {most} printable characters without spaces");
            return Err(self.error(name.span(), why));
        }
        Ok(name.into_inner())
    }

    fn console(
        &self,
        name: Option<Spanned<String>>,
        serials: &[SerialPort],
    ) -> Result<Option<String>> {
        match name {
            Some(name) if !serials.iter().any(|s| s.stream == *name.get_ref()) => {
                let why = format!(
                    "console: no serial port has the stream `{}`",
                    name.get_ref()
                );
                Err(self.error(name.span(), why))
            }
            name => Ok(name.map(Spanned::into_inner)),
        }
    }
}

#[cfg(test)]
mod tests;
