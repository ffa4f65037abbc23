// SPDX-License-Identifier: MIT OR Apache-2.0
//! The machine that an image's device tree describes.
//!
//! ```dts
//! / {
//!     compatible = "v3vee,pc";
//!     model = "my-guest";                     // Optional: a name for the VM where the caller gives none.
//!     #address-cells = <2>;
//!     #size-cells = <2>;
//!     v3vee,requires = "feature", …;          // Optional: refused where the VMM lacks one: "cpu-without", "on-triple-fault".
//!     memory@0 { reg = <0 0 SIZE SIZE>; };    // A multiple of 4 KiB, from 2 MiB to 1 TiB; holes of a PC are made by the VMM. No other range.
//!     cpus {
//!         v3vee,without = "la57", …;          // Optional: features that the processors do not have, whatever the host's has.
//!         cpu@N { reg = <N>; v3vee,pin = <CPU>; };    // N from 0 without gaps; the pin, a host CPU, is optional.
//!     };
//!     chosen {
//!         bootargs = "…";                     // Optional: the kernel's command line.
//!         v3vee,boot = "auto";                // Optional: "linux", "multiboot", "multiboot2", "pvh" or "auto", the default.
//!         v3vee,console = "com1";             // Optional: the stream that `v3 console` attaches to; the first port by default.
//!         v3vee,on-triple-fault = "stop";     // Optional: "stop", the default, or "reset".
//!     };
//!     blobs {
//!         blob@I { v3vee,index = <I>; label = "kernel"; };    // "kernel" once; "initrd" and "module" any number of times,
//!         blob@J { v3vee,index = <J>; label = "module"; bootargs = "…"; };    // in this order; a module's command line.
//!         blob@K { v3vee,index = <K>; label = "disk"; };      // A disk's contents, any number of times.
//!     };
//!     devices {
//!         serial@3f8 {
//!             compatible = "ns16550a";        // At most one at each of a PC's four places:
//!             reg = <0 0x3f8 0 8>;            // 3f8, 2f8, 3e8, 2e8
//!             interrupts = <4>;               // 4,   3,   4,   3
//!             v3vee,stream = "com1";          // The name of its byte stream.
//!         };
//!         test-device { compatible = "v3vee,test-device"; };  // Optional: [`crate::devices::test_device`],
//!         test-dma { compatible = "v3vee,test-dma"; };        // and [`crate::devices::test_dma`].
//!         disk@0 {                            // Any number: a disk in memory.
//!             compatible = "v3vee,virtio-blk";
//!             v3vee,blob = <K>;               // Its contents; optional if it has a size.
//!             v3vee,bytes = <SIZE SIZE>;      // Its size, a multiple of 512; optional if it has contents.
//!             v3vee,read-only;                // Optional.
//!         };
//!         example-rng { compatible = "v3vee,example-rng"; };  // A PCI device is in the first slot that is free.
//!     };
//! };
//! ```
//!
//! A device with `status = "disabled"` is left out. The clocks, interrupt controllers and debug ports of a PC are always
//! there and are not listed. Unknown properties and nodes are ignored, but an unknown device, blob or required feature is
//! refused: a machine is never silently less than its description.
#![forbid(unsafe_code)]

use super::container::Image;
use super::disk::ImageDisk;
use super::error::ImageError;
use super::fdt::{missing, wrong, Children, Node};
use crate::addr::PAGE_SIZE;
use crate::devices::uart::ComPort;
use crate::devices::{self, Kind, Place};
use crate::features::{Feature, FeatureSet};
use crate::ram::RamLayout;
use core::fmt;

/// The most virtual CPUs of a machine.
pub const MAX_VCPUS: u32 = 64;
/// The most devices that an image describes.
pub const MAX_DEVICES: usize = 16;
/// The least memory of a machine: what firmware tables, boot data and a small kernel fit in.
pub const MIN_MEMORY_BYTES: u64 = 2 << 20;
/// The most memory of a machine.
pub const MAX_MEMORY_BYTES: u64 = 1 << 40;

/// The values of `v3vee,requires` that this VMM satisfies.
const FEATURES: [&str; 2] = [CPU_WITHOUT, ON_TRIPLE_FAULT];
/// The value of `v3vee,requires` in an image with `v3vee,without`, so that no VMM overlooks it.
pub const CPU_WITHOUT: &str = "cpu-without";
/// The feature that an image requires which has `v3vee,on-triple-fault`.
pub const ON_TRIPLE_FAULT: &str = "on-triple-fault";

/// How the kernel wants to be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootKind {
    /// As whatever its header says.
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

/// What becomes of the machine when a processor shuts down, by a triple fault.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnTripleFault {
    /// It stops, and says why.
    #[default]
    Stop,
    /// It starts anew, as a PC does.
    Reset,
}

/// A device that an image describes.
#[derive(Clone, Copy)]
pub struct ImageDevice<'a> {
    /// Its kind.
    pub kind: &'static Kind,
    /// Where it is, if its kind may be at several places.
    pub place: Option<&'static Place>,
    /// The name of its byte stream, if its kind has one.
    pub stream: Option<&'a str>,
    /// What is on it, if it is a disk.
    pub disk: Option<ImageDisk<'a>>,
}

impl ImageDevice<'_> {
    fn is_at_place_of(&self, other: &Self) -> bool {
        let is_same = core::ptr::eq(self.kind, other.kind) && self.place == other.place;
        // A PCI device is in a slot of its own.
        is_same && !self.kind.is_pci
    }
}

impl fmt::Debug for ImageDevice<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?} {:?}", self.kind.name, self.place, self.stream)
    }
}

/// A serial port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Serial<'a> {
    /// Which one.
    pub port: ComPort,
    /// The name of its byte stream.
    pub stream: &'a str,
}

/// A file for a kernel that is no bzImage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Module<'a> {
    /// Its contents.
    pub data: &'a [u8],
    /// Its command line.
    pub bootargs: &'a str,
}

/// A whole machine. Borrows the image; copying it is cheap.
#[derive(Clone, Copy, Debug)]
pub struct Machine<'a> {
    /// A name for the VM where its creator gives none.
    pub name: Option<&'a str>,
    /// Its RAM.
    pub ram: RamLayout,
    /// Number of virtual CPUs, at least 1.
    pub vcpus: u32,
    /// Features that its processors do not have, whatever the host's has.
    pub without: FeatureSet,
    /// How to start the kernel.
    pub boot: BootKind,
    /// The kernel's command line.
    pub bootargs: &'a str,
    /// The kernel.
    pub kernel: &'a [u8],
    /// The stream that is the console, if there is one.
    pub console: Option<&'a str>,
    /// What a triple fault does.
    pub on_triple_fault: OnTripleFault,
    image: Image<'a>,
}

impl<'a> Image<'a> {
    /// The machine that the tree describes, with its blobs.
    pub fn machine(&self) -> Result<Machine<'a>, ImageError> {
        Machine::parse(*self)
    }
}

impl<'a> Machine<'a> {
    pub(super) fn parse(image: Image<'a>) -> Result<Self, ImageError> {
        let root = image.tree().root();
        if root.strings("compatible")?.all(|name| name != "v3vee,pc") {
            return Err(wrong(
                &root,
                "compatible",
                "does not have \"v3vee,pc\": the image is for another kind of machine",
            ));
        }
        if let Some(feature) = root
            .strings("v3vee,requires")?
            .find(|feature| !FEATURES.contains(feature))
        {
            return Err(ImageError::UnknownFeature(feature.into()));
        }
        let chosen = root.child("chosen");
        let text = |name: &str| chosen.map_or(Ok(None), |chosen| chosen.str(name));
        let vcpus = parse_cpus(&root)?;
        check_devices(&image, &root)?;
        let streams = || serials_of(image).map(|serial| serial.stream);
        Ok(Machine {
            name: root.str("model")?,
            ram: parse_memory(&root)?,
            vcpus,
            without: parse_without(&root)?,
            boot: match text("v3vee,boot")? {
                None | Some("auto") => BootKind::Auto,
                Some("linux") => BootKind::Linux,
                Some("multiboot") => BootKind::Multiboot,
                Some("multiboot2") => BootKind::Multiboot2,
                Some("pvh") => BootKind::Pvh,
                Some(_) => {
                    return Err(wrong(
                        &chosen.unwrap_or(root),
                        "v3vee,boot",
                        "is none of linux, multiboot, multiboot2, pvh, auto",
                    ))
                }
            },
            bootargs: text("bootargs")?.unwrap_or(""),
            kernel: parse_blobs(&image, &root)?,
            console: match text("v3vee,console")? {
                None => streams().next(),
                Some(name) if streams().any(|stream| stream == name) => Some(name),
                Some(_) => {
                    return Err(wrong(
                        &chosen.unwrap_or(root),
                        "v3vee,console",
                        "is the stream of no device",
                    ))
                }
            },
            on_triple_fault: match text("v3vee,on-triple-fault")? {
                None | Some("stop") => OnTripleFault::Stop,
                Some("reset") => OnTripleFault::Reset,
                Some(_) => {
                    return Err(wrong(
                        &chosen.unwrap_or(root),
                        "v3vee,on-triple-fault",
                        "is neither stop nor reset",
                    ))
                }
            },
            image,
        })
    }

    /// The host CPU that this virtual CPU shall stay on, if any.
    pub fn pin(&self, vcpu: u32) -> Option<u32> {
        let cpus = self.image.tree().root().child("cpus")?;
        let node = cpu_nodes(&cpus).nth(usize::try_from(vcpu).ok()?)?;
        // `parse_cpus` has seen that it can be read.
        node.u32("v3vee,pin").ok()?
    }

    /// The devices that its image describes, in that order. A PC has others, too.
    pub fn devices(&self) -> impl Iterator<Item = ImageDevice<'a>> {
        Devices::new(&self.image)
    }

    /// Whether its image describes a device of that kind.
    pub fn has(&self, kind: &'static Kind) -> bool {
        self.devices()
            .any(|device| core::ptr::eq(device.kind, kind))
    }

    /// Its serial ports, by their numbers.
    pub fn serials(&self) -> impl Iterator<Item = Serial<'a>> {
        serials_of(self.image)
    }

    /// The initial file systems, in the order in which they shall be joined.
    pub fn initrds(&self) -> impl Iterator<Item = &'a [u8]> {
        self.blobs("initrd").map(|initrd| initrd.data)
    }

    /// The files for a kernel that is no bzImage.
    pub fn modules(&self) -> impl Iterator<Item = Module<'a>> {
        self.blobs("module")
    }

    /// The blobs of one label. [`parse_blobs`] has seen that none of them fails.
    fn blobs(&self, label: &'static str) -> Blobs<'a> {
        let blobs = self.image.tree().root().child("blobs");
        Blobs {
            image: self.image,
            label,
            nodes: blobs.map(|blobs| blobs.children()),
        }
    }
}

/// The devices of an image. [`check_devices`] has seen that none of them fails.
struct Devices<'a>(Image<'a>, DeviceNodes<'a>);

impl<'a> Devices<'a> {
    fn new(image: &Image<'a>) -> Self {
        Self(*image, DeviceNodes::new(&image.tree().root()))
    }
}

impl<'a> Iterator for Devices<'a> {
    type Item = ImageDevice<'a>;

    fn next(&mut self) -> Option<ImageDevice<'a>> {
        parse_device(&self.0, &self.1.next()?).ok()
    }
}

/// The serial ports of an image, by their numbers.
fn serials_of<'a>(image: Image<'a>) -> impl Iterator<Item = Serial<'a>> {
    ComPort::ALL.into_iter().filter_map(move |port| {
        let is_it = |device: &ImageDevice<'_>| device.place.and_then(ComPort::at) == Some(port);
        let device = Devices::new(&image).find(is_it)?;
        device.stream.map(|stream| Serial { port, stream })
    })
}

/// The blobs of one label.
struct Blobs<'a> {
    image: Image<'a>,
    label: &'static str,
    nodes: Option<Children<'a>>,
}

impl<'a> Iterator for Blobs<'a> {
    type Item = Module<'a>;

    fn next(&mut self) -> Option<Module<'a>> {
        let (image, label) = (&self.image, self.label);
        self.nodes.as_mut()?.find_map(|node| {
            let (found, blob) = parse_blob(image, &node).ok()?;
            (found == label).then_some(blob)
        })
    }
}

fn parse_memory(root: &Node<'_>) -> Result<RamLayout, ImageError> {
    let node = root
        .child("memory@0")
        .ok_or(wrong(root, "memory@0", "is missing"))?;
    let others = |node: &Node<'_>| node.name.starts_with("memory@") && node.name != "memory@0";
    if let Some(node) = root.children().find(others) {
        return Err(wrong(
            &node,
            "reg",
            "is a second range of RAM: `memory@0` has all of it, and the VMM leaves the holes of a PC",
        ));
    }
    refuse_numa(&node)?;
    let (start, bytes) = node.u64_pair("reg")?.ok_or(missing(&node, "reg"))?;
    if start != 0 {
        return Err(wrong(&node, "reg", "does not start at 0"));
    }
    if bytes < MIN_MEMORY_BYTES {
        return Err(ImageError::TooLittleMemory {
            bytes,
            least: MIN_MEMORY_BYTES,
        });
    }
    if bytes > MAX_MEMORY_BYTES {
        return Err(ImageError::TooMuchMemory {
            bytes,
            most: MAX_MEMORY_BYTES,
        });
    }
    if bytes % PAGE_SIZE != 0 {
        return Err(wrong(&node, "reg", "is not a multiple of 4096 bytes"));
    }
    Ok(RamLayout::new(bytes))
}

/// A machine has one NUMA node.
fn refuse_numa(node: &Node<'_>) -> Result<(), ImageError> {
    match node.u32("numa-node-id")? {
        None | Some(0) => Ok(()),
        Some(_) => Err(wrong(
            node,
            "numa-node-id",
            "is not 0: the machine has one NUMA node",
        )),
    }
}

/// The nodes of the processors below the node `cpus`.
fn cpu_nodes<'a>(cpus: &Node<'a>) -> impl Iterator<Item = Node<'a>> {
    cpus.children().filter(|node| node.name.starts_with("cpu@"))
}

/// Checks all processors; returns how many there are.
fn parse_cpus(root: &Node<'_>) -> Result<u32, ImageError> {
    let cpus = root.child("cpus").ok_or(missing(root, "cpus"))?;
    let found = cpu_nodes(&cpus).fold(0u32, |count, _| count.saturating_add(1));
    if found == 0 || found > MAX_VCPUS {
        return Err(ImageError::BadCpuCount {
            found,
            most: MAX_VCPUS,
        });
    }
    for (number, node) in (0..MAX_VCPUS).zip(cpu_nodes(&cpus)) {
        if node.u32("reg")? != Some(number) {
            return Err(wrong(
                &node,
                "reg",
                "is not its place in the list of processors",
            ));
        }
        node.u32("v3vee,pin")?;
        refuse_numa(&node)?;
    }
    Ok(found)
}

/// The features that are taken away.
fn parse_without(root: &Node<'_>) -> Result<FeatureSet, ImageError> {
    let mut without = FeatureSet::default();
    let Some(cpus) = root.child("cpus") else {
        return Ok(without);
    };
    for name in cpus.strings("v3vee,without")? {
        match Feature::by_name(name).filter(|feature| feature.can_be_taken_away()) {
            Some(feature) => without.insert(feature),
            None => return Err(ImageError::UnknownCpuFeature(name.into())),
        }
    }
    Ok(without)
}

/// Checks all blobs; returns the kernel.
fn parse_blobs<'a>(image: &Image<'a>, root: &Node<'a>) -> Result<&'a [u8], ImageError> {
    let mut kernel = None;
    for node in root
        .child("blobs")
        .into_iter()
        .flat_map(|blobs| blobs.children())
    {
        match parse_blob(image, &node)? {
            ("kernel", blob) if kernel.is_none() => kernel = Some(blob.data),
            ("initrd" | "module" | "disk", _) => {}
            ("kernel", _) => return Err(wrong(&node, "label", "is a second kernel")),
            _ => {
                return Err(wrong(
                    &node,
                    "label",
                    "is none of kernel, initrd, module, disk",
                ))
            }
        }
    }
    kernel.ok_or(ImageError::NoKernel)
}

/// A blob's label and contents.
fn parse_blob<'a>(image: &Image<'a>, node: &Node<'a>) -> Result<(&'a str, Module<'a>), ImageError> {
    let index = node
        .u32("v3vee,index")?
        .ok_or(missing(node, "v3vee,index"))?;
    let label = node.str("label")?.ok_or(missing(node, "label"))?;
    let module = Module {
        data: image.blob(index)?,
        bootargs: node.str("bootargs")?.unwrap_or(""),
    };
    Ok((label, module))
}

/// The nodes of an image's devices, but those that are left out.
struct DeviceNodes<'a>(Option<Children<'a>>);

impl<'a> DeviceNodes<'a> {
    fn new(root: &Node<'a>) -> Self {
        Self(root.child("devices").map(|devices| devices.children()))
    }
}

impl<'a> Iterator for DeviceNodes<'a> {
    type Item = Node<'a>;

    fn next(&mut self) -> Option<Node<'a>> {
        let is_there = |node: &Node<'_>| !matches!(node.str("status"), Ok(Some("disabled")));
        self.0.as_mut()?.find(is_there)
    }
}

/// Checks all devices. There are few, so each is held against those before it.
fn check_devices(image: &Image<'_>, root: &Node<'_>) -> Result<(), ImageError> {
    let mut before = 0usize;
    for node in DeviceNodes::new(root) {
        if before >= MAX_DEVICES {
            return Err(wrong(
                &node,
                "compatible",
                "is of one device more than an image may have",
            ));
        }
        node.str("status")?;
        let device = parse_device(image, &node)?;
        for other in DeviceNodes::new(root).take(before) {
            let other = parse_device(image, &other)?;
            if other.stream.is_some() && other.stream == device.stream {
                return Err(wrong(
                    &node,
                    "v3vee,stream",
                    "is another device's stream, too",
                ));
            }
            if other.is_at_place_of(&device) {
                return Err(wrong(&node, "reg", "is another device's, too"));
            }
        }
        before = before.wrapping_add(1);
    }
    Ok(())
}

fn parse_device<'a>(image: &Image<'a>, node: &Node<'a>) -> Result<ImageDevice<'a>, ImageError> {
    let compatible = node.str("compatible")?.ok_or(missing(node, "compatible"))?;
    let unknown = || ImageError::UnknownDevice {
        node: node.name.into(),
        compatible: compatible.into(),
    };
    let kind = devices::kind_by_compatible(compatible).ok_or_else(unknown)?;
    let stream = node.str("v3vee,stream")?.filter(|name| !name.is_empty());
    let device = ImageDevice {
        kind,
        place: parse_place(node, kind)?,
        stream: stream.filter(|_| kind.has_stream),
        disk: match kind.has_store {
            true => Some(ImageDisk::parse(image, node)?),
            false => None,
        },
    };
    match kind.has_stream && stream.is_none() {
        true => Err(missing(node, "v3vee,stream")),
        false => Ok(device),
    }
}

/// Where a device of a kind is, if it may be at several places.
fn parse_place(node: &Node<'_>, kind: &'static Kind) -> Result<Option<&'static Place>, ImageError> {
    if kind.places.is_empty() {
        return Ok(None);
    }
    let reg = node.u64_pair("reg")?.ok_or(missing(node, "reg"))?;
    let is_there = |place: &&Place| reg == (place.port.into(), place.ports.into());
    let place = kind.places.iter().find(is_there);
    let place = place.ok_or(wrong(node, "reg", kind.place_words))?;
    match node.u32("interrupts")? == Some(place.irq) {
        true => Ok(Some(place)),
        false => Err(wrong(node, "interrupts", kind.irq_words)),
    }
}
