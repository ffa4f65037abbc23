// SPDX-License-Identifier: MIT OR Apache-2.0
//! A guest as its maker sees it, and the guest.img made of it. The format is described in `palacios_core::image`.

use crate::contents::{BuildError, Contents};
use crate::ram_disk::{self, RamDisk};
use palacios_core::addr::{Gpa, NotRam};
use palacios_core::boot;
use palacios_core::devices::uart::ComPort;
use palacios_core::devices::{example_rng, test_device, test_dma, Machines};
use palacios_core::features::{Feature, FeatureSet, Offer, TABLE};
use palacios_core::image::machine::{
    self, Machine, Serial, CPU_WITHOUT, MAX_MEMORY_BYTES, MAX_VCPUS, MIN_MEMORY_BYTES,
    ON_TRIPLE_FAULT,
};
use palacios_core::image::{write, BootKind, Image};
use palacios_core::interfaces::GuestMemory;
use palacios_core::ram::RamLayout;
use serde::Deserialize;
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
    /// As a Multiboot 2 kernel.
    Multiboot2,
    /// As an ELF file with a PVH note.
    Pvh,
}

impl Boot {
    /// As an image says it.
    fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Linux => "linux",
            Self::Multiboot => "multiboot",
            Self::Multiboot2 => "multiboot2",
            Self::Pvh => "pvh",
        }
    }
}

impl From<BootKind> for Boot {
    fn from(kind: BootKind) -> Self {
        match kind {
            BootKind::Auto => Self::Auto,
            BootKind::Linux => Self::Linux,
            BootKind::Multiboot => Self::Multiboot,
            BootKind::Multiboot2 => Self::Multiboot2,
            BootKind::Pvh => Self::Pvh,
        }
    }
}

/// What becomes of the machine when a processor shuts down, by a triple fault.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnTripleFault {
    /// It stops.
    #[default]
    Stop,
    /// It starts anew, as a PC does.
    Reset,
}

impl From<machine::OnTripleFault> for OnTripleFault {
    fn from(what: machine::OnTripleFault) -> Self {
        match what {
            machine::OnTripleFault::Stop => Self::Stop,
            machine::OnTripleFault::Reset => Self::Reset,
        }
    }
}

/// A module: a file for a kernel that is no bzImage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModuleFile {
    /// What is in it.
    pub contents: Contents,
    /// Its command line.
    pub cmdline: String,
}

/// One of the four serial ports of a PC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SerialPort {
    /// Which one.
    pub port: ComPort,
    /// The name of its byte stream.
    pub stream: String,
}

impl SerialPort {
    /// A port whose stream has the port's own name.
    #[must_use]
    pub fn new(port: ComPort) -> Self {
        let stream = format!("com{}", port.number());
        Self { port, stream }
    }

    /// The port that an image describes.
    fn of_image(serial: &Serial<'_>) -> Self {
        Self {
            port: serial.port,
            stream: serial.stream.into(),
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
    /// For each of the first virtual CPUs the host CPU on which it stays; `None` lets it run on any.
    pub pins: Vec<Option<u32>>,
    /// Features of the host's processor that its own do not have.
    pub without: FeatureSet,
    /// Its kernel.
    pub kernel: Contents,
    /// How to start it.
    pub boot: Boot,
    /// The kernel's command line.
    pub cmdline: String,
    /// Initial file systems, joined in this order. A kernel that is no bzImage finds them as its last module.
    pub initrds: Vec<Contents>,
    /// Files for a kernel that is no bzImage.
    pub modules: Vec<ModuleFile>,
    /// Its serial ports.
    pub serials: Vec<SerialPort>,
    /// The stream of the console; the first serial port's by default.
    pub console: Option<String>,
    /// What a triple fault does.
    pub on_triple_fault: OnTripleFault,
    /// It has the device of test kernels.
    pub test_device: bool,
    /// The disks that it brings along.
    pub disks: Vec<RamDisk>,
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
            without: FeatureSet::default(),
            kernel: kernel.into(),
            boot: Boot::Auto,
            cmdline: String::new(),
            initrds: Vec::new(),
            modules: Vec::new(),
            serials: vec![SerialPort::new(ComPort::Com1)],
            console: None,
            on_triple_fault: OnTripleFault::Stop,
            test_device: false,
            disks: Vec::new(),
        }
    }

    /// The guest that an image describes. `file` is where the image lies, for messages.
    pub fn of_image(image: &[u8], file: &Path) -> Result<Self, BuildError> {
        let wrong = |e| BuildError::Image(format!("{}: {e}", file.display()));
        let machine = Image::parse(image).and_then(|image| image.machine());
        Ok(Self::of_machine(&machine.map_err(wrong)?, file))
    }

    fn of_machine(machine: &Machine<'_>, file: &Path) -> Self {
        let part = |what: &str, bytes: &[u8]| Contents::Bytes {
            origin: format!("{}, its {what}", file.display()),
            bytes: bytes.to_vec(),
        };
        let modules = machine.modules().map(|module| ModuleFile {
            contents: part("module", module.data),
            cmdline: module.bootargs.into(),
        });
        Self {
            name: machine.name.map(Into::into),
            memory_bytes: machine.ram.bytes(),
            vcpus: machine.vcpus,
            pins: (0..machine.vcpus).map(|vcpu| machine.pin(vcpu)).collect(),
            without: machine.without,
            kernel: part("kernel", machine.kernel),
            boot: machine.boot.into(),
            cmdline: machine.bootargs.into(),
            initrds: machine.initrds().map(|data| part("initrd", data)).collect(),
            modules: modules.collect(),
            serials: machine
                .serials()
                .map(|serial| SerialPort::of_image(&serial))
                .collect(),
            console: machine.console.map(Into::into),
            on_triple_fault: machine.on_triple_fault.into(),
            test_device: machine.has(&test_device::KIND),
            disks: machine
                .devices()
                .filter_map(|device| device.disk)
                .map(|disk| RamDisk::of_image(&disk, part("disk", disk.contents)))
                .collect(),
        }
    }

    /// Reads all files and makes the image; then reads it back as the module will, so that what the module would refuse
    /// is refused here. `progress` is called with the bytes read so far, and those to read.
    pub fn build(&self, progress: &mut dyn FnMut(u64, u64)) -> Result<Vec<u8>, BuildError> {
        let files = self.files();
        let mut total = 0;
        for file in &files {
            total += file.bytes_to_read()?;
        }
        let mut done = 0;
        let mut step = |bytes| {
            done += bytes;
            progress(done, total);
        };
        let mut blobs = Vec::new();
        for file in &files {
            blobs.push(file.get(&mut step)?);
        }
        let slices: Vec<&[u8]> = blobs.iter().map(AsRef::as_ref).collect();
        let tree = self.tree().map_err(|e| BuildError::Image(e.to_string()))?;
        let image = write::image(&tree, &slices).map_err(|e| BuildError::Image(e.to_string()))?;
        self.check(&image)?;
        Ok(image)
    }

    /// The files, in the order in which the tree numbers them.
    fn files(&self) -> Vec<&Contents> {
        let modules = self.modules.iter().map(|module| &module.contents);
        let disks = ram_disk::contents(&self.disks);
        let all = [&self.kernel].into_iter().chain(&self.initrds);
        all.chain(modules).chain(disks).collect()
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
        let without: Vec<String> = self.without.iter().map(|f| f.name().into()).collect();
        let resets = self.on_triple_fault != OnTripleFault::Stop;
        let required = [
            (!without.is_empty(), CPU_WITHOUT),
            (resets, ON_TRIPLE_FAULT),
        ];
        let required = required.into_iter().filter(|(needed, _)| *needed);
        let required: Vec<String> = required.map(|(_, name)| name.into()).collect();
        if !required.is_empty() {
            fdt.property_string_list("v3vee,requires", required)?;
        }
        let memory = fdt.begin_node("memory@0")?;
        fdt.property_array_u64("reg", &[0, self.memory_bytes])?;
        fdt.end_node(memory)?;
        self.write_cpus(&mut fdt, without)?;
        self.write_chosen(&mut fdt)?;
        self.write_blobs(&mut fdt)?;
        self.write_devices(&mut fdt)?;
        fdt.end_node(root)?;
        fdt.finish()
    }

    fn write_cpus(&self, fdt: &mut FdtWriter, without: Vec<String>) -> vm_fdt::FdtWriterResult<()> {
        let cpus = fdt.begin_node("cpus")?;
        fdt.property_u32("#address-cells", 1)?;
        fdt.property_u32("#size-cells", 0)?;
        if !without.is_empty() {
            fdt.property_string_list("v3vee,without", without)?;
        }
        let mut pins = self.pins.iter();
        for number in 0..self.vcpus {
            let cpu = fdt.begin_node(&format!("cpu@{number:x}"))?;
            fdt.property_string("device_type", "cpu")?;
            fdt.property_u32("reg", number)?;
            if let Some(Some(pin)) = pins.next() {
                fdt.property_u32("v3vee,pin", *pin)?;
            }
            fdt.end_node(cpu)?;
        }
        fdt.end_node(cpus)
    }

    fn write_chosen(&self, fdt: &mut FdtWriter) -> vm_fdt::FdtWriterResult<()> {
        let chosen = fdt.begin_node("chosen")?;
        fdt.property_string("bootargs", &self.cmdline)?;
        fdt.property_string("v3vee,boot", self.boot.name())?;
        if let Some(console) = &self.console {
            fdt.property_string("v3vee,console", console)?;
        }
        if self.on_triple_fault == OnTripleFault::Reset {
            fdt.property_string("v3vee,on-triple-fault", "reset")?;
        }
        fdt.end_node(chosen)
    }

    /// One node a file, in the order of [`Guest::files`].
    fn write_blobs(&self, fdt: &mut FdtWriter) -> vm_fdt::FdtWriterResult<()> {
        let initrds = self.initrds.iter().map(|_| ("initrd", None));
        let modules = self.modules.iter().map(|m| ("module", Some(&m.cmdline)));
        let disks = ram_disk::contents(&self.disks).map(|_| ("disk", None));
        let all = [("kernel", None)].into_iter().chain(initrds);
        let all = all.chain(modules).chain(disks);
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
            let base = serial.port.base();
            let device = fdt.begin_node(&format!("serial@{base:x}"))?;
            fdt.property_string("compatible", "ns16550a")?;
            fdt.property_array_u64("reg", &[base.into(), 8])?;
            fdt.property_u32("interrupts", serial.port.irq())?;
            fdt.property_string("v3vee,stream", &serial.stream)?;
            fdt.end_node(device)?;
        }
        let first_blob = self.files().len() - ram_disk::contents(&self.disks).count();
        ram_disk::write(&self.disks, first_blob, fdt)?;
        if self.test_device {
            for kind in [&test_device::KIND, &test_dma::KIND, &example_rng::KIND] {
                let device = fdt.begin_node(kind.name)?;
                if let Machines::Described(compatible) = kind.machines {
                    fdt.property_string("compatible", compatible)?;
                }
                fdt.end_node(device)?;
            }
        }
        fdt.end_node(devices)
    }

    /// Reads the image as the module does, and loads its kernel into no memory at all.
    fn check(&self, image: &[u8]) -> Result<(), BuildError> {
        let parsed = Image::parse(image).map_err(|e| BuildError::Image(e.to_string()))?;
        let machine = parsed
            .machine()
            .map_err(|e| BuildError::Image(e.to_string()))?;
        let loaded = boot::load(&machine, &CheckedRam(machine.ram));
        loaded.map(|_| ()).map_err(|e| BuildError::Kernel {
            kernel: self.kernel.to_string(),
            why: e.to_string(),
        })
    }
}

/// Checks that a machine can have so much RAM.
pub fn check_memory(bytes: u64) -> Result<u64, String> {
    if (MIN_MEMORY_BYTES..=MAX_MEMORY_BYTES).contains(&bytes) && bytes % 4096 == 0 {
        return Ok(bytes);
    }
    let (least, most) = (MIN_MEMORY_BYTES >> 20, MAX_MEMORY_BYTES >> 20);
    Err(format!(
        "a machine has {least} to {most} MiB of memory, in steps of 4 KiB"
    ))
}

/// Checks that a machine can have so many virtual CPUs.
pub fn check_vcpus(count: u32) -> Result<u32, String> {
    let has = (1..=MAX_VCPUS).contains(&count).then_some(count);
    has.ok_or_else(|| format!("a machine has 1 to {MAX_VCPUS} virtual CPUs"))
}

/// A change of the processor, `-NAME`: the feature that it takes away.
pub fn feature_taken_away(change: &str) -> Result<Feature, String> {
    let Some(name) = change.strip_prefix('-') else {
        return Err(format!(
            "{change}: features can only be taken away: write `-{change}`"
        ));
    };
    let Some(feature) = Feature::by_name(name) else {
        let names = TABLE.iter().map(|row| row.name);
        let near = names.min_by_key(|known| strsim::damerau_levenshtein(known, name));
        return Err(format!(
            "no feature is called `{name}`; is it `{}`? `v3 info --cpuid` lists all",
            near.unwrap_or_default()
        ));
    };
    match feature.row().map(|row| row.offer) {
        Some(Offer::Never(why)) => Err(format!("no guest has {name}: {why}")),
        Some(Offer::Varies(how)) => Err(format!("{name} is there {how}, and cannot be taken away")),
        _ => Ok(feature),
    }
}

/// The names of the features that can be taken away.
pub fn features_to_take_away() -> impl Iterator<Item = &'static str> {
    let rows = TABLE.iter().filter(|row| row.feature.can_be_taken_away());
    rows.map(|row| row.name)
}

/// Guest memory that keeps nothing and knows only where it is: loading a kernel shows whether it fits.
struct CheckedRam(RamLayout);

impl CheckedRam {
    fn check(&self, at: Gpa, len: usize) -> Result<(), NotRam> {
        let is_ram = self.0.contains_all(at, len as u64);
        is_ram.then_some(()).ok_or(NotRam(at))
    }
}

impl GuestMemory for CheckedRam {
    fn read(&self, at: Gpa, buf: &mut [u8]) -> Result<(), NotRam> {
        buf.fill(0);
        self.check(at, buf.len())
    }
    fn write(&self, at: Gpa, data: &[u8]) -> Result<(), NotRam> {
        self.check(at, data.len())
    }
}
