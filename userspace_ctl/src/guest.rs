// SPDX-License-Identifier: MIT OR Apache-2.0
//! A guest as its maker sees it, and the guest.img made of it. The format is described in `palacios_core::image`.

use crate::error::plain;
use palacios_core::addr::{Gpa, NotRam};
use palacios_core::boot;
use palacios_core::devices::GuestMemory;
use palacios_core::image::{write, Image};
use palacios_core::memory::{HIGH_RAM, LOW_RAM_END};
use rustix::io::Errno;
use serde::Deserialize;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use vm_fdt::FdtWriter;

/// How the kernel wants to be started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Boot {
    /// As its header says.
    #[default]
    Auto,
    /// As a Linux bzImage.
    Linux,
    /// As a Multiboot 1 kernel.
    Multiboot,
}

/// A file for a Multiboot kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModuleFile {
    /// Its path.
    pub file: PathBuf,
    /// Its command line.
    pub cmdline: String,
}

/// One of the four serial ports of a PC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SerialPort {
    /// Which one: 1 to 4, as in com1.
    pub number: u8,
    /// The name of its byte stream.
    pub stream: String,
}

impl SerialPort {
    /// A port whose stream has the port's own name.
    #[must_use]
    pub fn com(number: u8) -> Self {
        let stream = format!("com{number}");
        Self { number, stream }
    }

    /// Its first I/O port and its interrupt line.
    fn place(&self) -> (u16, u32) {
        match self.number {
            1 => (0x3f8, 4),
            2 => (0x2f8, 3),
            3 => (0x3e8, 4),
            _ => (0x2e8, 3),
        }
    }
}

/// A guest: its machine, and the files it starts from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guest {
    /// The VM's name where `v3 create` is given none.
    pub name: Option<String>,
    /// Its RAM.
    pub memory_bytes: u64,
    /// Its virtual CPUs.
    pub vcpus: u32,
    /// The host CPUs on which the first virtual CPUs stay.
    pub pins: Vec<u32>,
    /// Its kernel.
    pub kernel: PathBuf,
    /// How to start it.
    pub boot: Boot,
    /// The kernel's command line.
    pub cmdline: String,
    /// Initial file systems for Linux, joined in this order.
    pub initrds: Vec<PathBuf>,
    /// Files for a Multiboot kernel.
    pub modules: Vec<ModuleFile>,
    /// Its serial ports.
    pub serials: Vec<SerialPort>,
    /// The stream of the console; the first serial port's by default.
    pub console: Option<String>,
}

impl Guest {
    /// A guest with one virtual CPU, 512 MiB of memory and a console at com1.
    #[must_use]
    pub fn new(kernel: PathBuf) -> Self {
        Self {
            name: None,
            memory_bytes: 512 << 20,
            vcpus: 1,
            pins: Vec::new(),
            kernel,
            boot: Boot::Auto,
            cmdline: String::new(),
            initrds: Vec::new(),
            modules: Vec::new(),
            serials: vec![SerialPort::com(1)],
            console: None,
        }
    }

    /// Reads all files and makes the image; then reads it back as the module will, so that what the module would refuse
    /// is refused here. `progress` is called with the bytes read so far, and those to read.
    pub fn build(&self, progress: &mut dyn FnMut(u64, u64)) -> Result<Vec<u8>, BuildError> {
        let files = self.files();
        let mut total = 0;
        for file in &files {
            total += std::fs::metadata(file)
                .map_err(|e| BuildError::file(file, &e))?
                .len();
        }
        let mut done = 0;
        let mut blobs = Vec::new();
        for file in &files {
            let mut step = |bytes| {
                done += bytes;
                progress(done, total);
            };
            blobs.push(read(file, &mut step).map_err(|e| BuildError::file(file, &e))?);
        }
        let slices: Vec<&[u8]> = blobs.iter().map(Vec::as_slice).collect();
        let tree = self.tree().map_err(|e| BuildError::Image(e.to_string()))?;
        let image = write::image(&tree, &slices).map_err(|e| BuildError::Image(e.to_string()))?;
        self.check(&image)?;
        Ok(image)
    }

    /// The files, in the order in which the tree numbers them.
    fn files(&self) -> Vec<&Path> {
        let modules = self.modules.iter().map(|module| &module.file);
        let all = [&self.kernel]
            .into_iter()
            .chain(&self.initrds)
            .chain(modules);
        all.map(PathBuf::as_path).collect()
    }

    fn tree(&self) -> vm_fdt::FdtWriterResult<Vec<u8>> {
        let mut fdt = FdtWriter::new()?;
        let root = fdt.begin_node("")?;
        fdt.property_string("compatible", "v3vee,pc")?;
        if let Some(name) = &self.name {
            fdt.property_string("model", name)?;
        }
        fdt.property_u32("#address-cells", 2)?;
        fdt.property_u32("#size-cells", 2)?;
        let memory = fdt.begin_node("memory@0")?;
        fdt.property_array_u64("reg", &[0, self.memory_bytes])?;
        fdt.end_node(memory)?;
        self.write_cpus(&mut fdt)?;
        self.write_chosen(&mut fdt)?;
        self.write_blobs(&mut fdt)?;
        self.write_devices(&mut fdt)?;
        fdt.end_node(root)?;
        fdt.finish()
    }

    fn write_cpus(&self, fdt: &mut FdtWriter) -> vm_fdt::FdtWriterResult<()> {
        let cpus = fdt.begin_node("cpus")?;
        fdt.property_u32("#address-cells", 1)?;
        fdt.property_u32("#size-cells", 0)?;
        let mut pins = self.pins.iter();
        for number in 0..self.vcpus {
            let cpu = fdt.begin_node(&format!("cpu@{number:x}"))?;
            fdt.property_string("device_type", "cpu")?;
            fdt.property_u32("reg", number)?;
            if let Some(pin) = pins.next() {
                fdt.property_u32("v3vee,pin", *pin)?;
            }
            fdt.end_node(cpu)?;
        }
        fdt.end_node(cpus)
    }

    fn write_chosen(&self, fdt: &mut FdtWriter) -> vm_fdt::FdtWriterResult<()> {
        let chosen = fdt.begin_node("chosen")?;
        fdt.property_string("bootargs", &self.cmdline)?;
        let boot = match self.boot {
            Boot::Auto => "auto",
            Boot::Linux => "linux",
            Boot::Multiboot => "multiboot",
        };
        fdt.property_string("v3vee,boot", boot)?;
        if let Some(console) = &self.console {
            fdt.property_string("v3vee,console", console)?;
        }
        fdt.end_node(chosen)
    }

    /// One node a file, in the order of [`Guest::files`].
    fn write_blobs(&self, fdt: &mut FdtWriter) -> vm_fdt::FdtWriterResult<()> {
        let initrds = self.initrds.iter().map(|_| ("initrd", None));
        let modules = self.modules.iter().map(|m| ("module", Some(&m.cmdline)));
        let all = [("kernel", None)].into_iter().chain(initrds).chain(modules);
        let blobs = fdt.begin_node("blobs")?;
        for (index, (label, cmdline)) in (0..).zip(all) {
            let blob = fdt.begin_node(&format!("blob@{index:x}"))?;
            fdt.property_u32("v3vee,index", index)?;
            fdt.property_string("label", label)?;
            if let Some(cmdline) = cmdline {
                fdt.property_string("bootargs", cmdline)?;
            }
            fdt.end_node(blob)?;
        }
        fdt.end_node(blobs)
    }

    fn write_devices(&self, fdt: &mut FdtWriter) -> vm_fdt::FdtWriterResult<()> {
        let devices = fdt.begin_node("devices")?;
        fdt.property_u32("#address-cells", 2)?;
        fdt.property_u32("#size-cells", 2)?;
        for serial in &self.serials {
            let (port, irq) = serial.place();
            let device = fdt.begin_node(&format!("serial@{port:x}"))?;
            fdt.property_string("compatible", "ns16550a")?;
            fdt.property_array_u64("reg", &[port.into(), 8])?;
            fdt.property_u32("interrupts", irq)?;
            fdt.property_string("v3vee,stream", &serial.stream)?;
            fdt.end_node(device)?;
        }
        fdt.end_node(devices)
    }

    /// Reads the image as the module does, and loads its kernel into no memory at all.
    fn check(&self, image: &[u8]) -> Result<(), BuildError> {
        let parsed = Image::parse(image).map_err(|e| BuildError::Image(e.to_string()))?;
        let machine = parsed
            .machine()
            .map_err(|e| BuildError::Image(e.to_string()))?;
        let loaded = boot::load(&machine, &Nowhere(machine.memory_bytes));
        loaded.map(|_| ()).map_err(|e| BuildError::Kernel {
            kernel: self.kernel.clone(),
            why: e.to_string(),
        })
    }
}

/// Reads a whole file; tells `step` of each piece.
fn read(file: &Path, step: &mut dyn FnMut(u64)) -> io::Result<Vec<u8>> {
    const PIECE_BYTES: u64 = 4 << 20;
    let mut from = File::open(file)?;
    let mut data = Vec::new();
    loop {
        let got = from.by_ref().take(PIECE_BYTES).read_to_end(&mut data)? as u64;
        step(got);
        if got == 0 {
            return Ok(data);
        }
    }
}

/// Guest memory of so many bytes which knows only where it ends: loading a kernel shows whether it fits.
struct Nowhere(u64);

impl Nowhere {
    fn check(&self, at: Gpa, len: usize) -> Result<(), NotRam> {
        let low_end = self.0.min(LOW_RAM_END);
        let high_end = HIGH_RAM + (self.0 - low_end);
        let end = at.0.checked_add(len as u64).ok_or(NotRam(at))?;
        let is_ram = end <= low_end || (at.0 >= HIGH_RAM && end <= high_end);
        is_ram.then_some(()).ok_or(NotRam(at))
    }
}

impl GuestMemory for Nowhere {
    fn read(&self, at: Gpa, buf: &mut [u8]) -> Result<(), NotRam> {
        buf.fill(0);
        self.check(at, buf.len())
    }
    fn write(&self, at: Gpa, data: &[u8]) -> Result<(), NotRam> {
        self.check(at, data.len())
    }
}

/// Why no image was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BuildError {
    /// A file cannot be read.
    File {
        /// Its path.
        file: PathBuf,
        /// Why.
        why: String,
    },
    /// The kernel cannot be started on this machine.
    Kernel {
        /// Its path.
        kernel: PathBuf,
        /// Why.
        why: String,
    },
    /// The machine cannot be described in an image, or the module would refuse it.
    Image(String),
}

impl BuildError {
    fn file(file: &Path, error: &io::Error) -> Self {
        let why = Errno::from_io_error(error).map_or_else(|| error.to_string(), plain);
        Self::File {
            file: file.into(),
            why,
        }
    }
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { file, why } => write!(f, "{}: {why}", file.display()),
            Self::Kernel { kernel, why } => write!(f, "{}: {why}", kernel.display()),
            Self::Image(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for BuildError {}
