// SPDX-License-Identifier: MIT OR Apache-2.0
//! Images for tests, their trees made by `vm-fdt`.

use super::write;
use vm_fdt::{FdtWriter, FdtWriterResult};

/// What a test varies; the default is a small Linux machine.
pub struct Spec {
    pub memory: u64,
    /// It has a second range of RAM, which no machine may have.
    pub second_range: bool,
    /// The NUMA node of memory and processors.
    pub numa_node: Option<u32>,
    pub cpus: Vec<(u32, Option<u32>)>,
    pub bootargs: &'static str,
    pub boot: &'static str,
    pub requires: Option<&'static str>,
    /// Features that the processors do not have.
    pub without: Vec<&'static str>,
    pub compatible: &'static str,
    pub console: Option<&'static str>,
    pub on_triple_fault: Option<&'static str>,
    /// Label, number, command line.
    pub blobs: Vec<(&'static str, u32, Option<&'static str>)>,
    /// Kind, port, interrupt, stream.
    pub devices: Vec<(&'static str, u64, u32, &'static str)>,
    /// Blob, size, whether it is read-only.
    pub disks: Vec<(Option<u32>, Option<u64>, bool)>,
}

impl Default for Spec {
    fn default() -> Self {
        Spec {
            memory: 256 << 20,
            second_range: false,
            numa_node: None,
            cpus: vec![(0, None)],
            bootargs: "console=ttyS0",
            boot: "auto",
            requires: None,
            without: Vec::new(),
            compatible: "v3vee,pc",
            console: None,
            on_triple_fault: None,
            blobs: vec![("kernel", 0, None)],
            devices: vec![("ns16550a", 0x3f8, 4, "com1")],
            disks: Vec::new(),
        }
    }
}

impl Spec {
    pub fn tree(&self) -> Vec<u8> {
        self.write().unwrap()
    }

    fn write(&self) -> FdtWriterResult<Vec<u8>> {
        let mut fdt = FdtWriter::new()?;
        let root = fdt.begin_node("")?;
        fdt.property_string("compatible", self.compatible)?;
        fdt.property_string("model", "guest")?;
        fdt.property_null("something-new")?;
        if let Some(requires) = self.requires {
            fdt.property_string("v3vee,requires", requires)?;
        }
        let memory = fdt.begin_node("memory@0")?;
        fdt.property_array_u64("reg", &[0, self.memory])?;
        self.write_numa_node(&mut fdt)?;
        fdt.end_node(memory)?;
        if self.second_range {
            let memory = fdt.begin_node("memory@100000000")?;
            fdt.property_array_u64("reg", &[1 << 32, 1 << 20])?;
            fdt.end_node(memory)?;
        }
        let cpus = fdt.begin_node("cpus")?;
        if !self.without.is_empty() {
            let names = self.without.iter().map(|name| (*name).into()).collect();
            fdt.property_string_list("v3vee,without", names)?;
        }
        for (number, pin) in &self.cpus {
            let cpu = fdt.begin_node(&format!("cpu@{number}"))?;
            fdt.property_u32("reg", *number)?;
            self.write_numa_node(&mut fdt)?;
            if let Some(pin) = pin {
                fdt.property_u32("v3vee,pin", *pin)?;
            }
            fdt.end_node(cpu)?;
        }
        fdt.end_node(cpus)?;
        let chosen = fdt.begin_node("chosen")?;
        fdt.property_string("bootargs", self.bootargs)?;
        fdt.property_string("v3vee,boot", self.boot)?;
        if let Some(console) = self.console {
            fdt.property_string("v3vee,console", console)?;
        }
        if let Some(what) = self.on_triple_fault {
            fdt.property_string("v3vee,on-triple-fault", what)?;
        }
        fdt.end_node(chosen)?;
        self.write_blobs(&mut fdt)?;
        self.write_devices(&mut fdt)?;
        fdt.end_node(root)?;
        fdt.finish()
    }

    fn write_numa_node(&self, fdt: &mut FdtWriter) -> FdtWriterResult<()> {
        match self.numa_node {
            Some(node) => fdt.property_u32("numa-node-id", node),
            None => Ok(()),
        }
    }

    fn write_blobs(&self, fdt: &mut FdtWriter) -> FdtWriterResult<()> {
        let blobs = fdt.begin_node("blobs")?;
        for (at, (label, index, bootargs)) in self.blobs.iter().enumerate() {
            let blob = fdt.begin_node(&format!("blob@{at}"))?;
            fdt.property_string("label", label)?;
            fdt.property_u32("v3vee,index", *index)?;
            if let Some(bootargs) = bootargs {
                fdt.property_string("bootargs", bootargs)?;
            }
            fdt.end_node(blob)?;
        }
        fdt.end_node(blobs)
    }

    fn write_devices(&self, fdt: &mut FdtWriter) -> FdtWriterResult<()> {
        let devices = fdt.begin_node("devices")?;
        for (kind, port, irq, stream) in &self.devices {
            let device = fdt.begin_node(&format!("serial@{port:x}"))?;
            fdt.property_string("compatible", kind)?;
            fdt.property_array_u64("reg", &[*port, 8])?;
            fdt.property_u32("interrupts", *irq)?;
            fdt.property_string("v3vee,stream", stream)?;
            fdt.end_node(device)?;
        }
        for (at, (blob, bytes, is_read_only)) in self.disks.iter().enumerate() {
            let device = fdt.begin_node(&format!("disk@{at}"))?;
            fdt.property_string("compatible", "v3vee,virtio-blk")?;
            if let Some(blob) = blob {
                fdt.property_u32("v3vee,blob", *blob)?;
            }
            if let Some(bytes) = bytes {
                fdt.property_u64("v3vee,bytes", *bytes)?;
            }
            if *is_read_only {
                fdt.property_null("v3vee,read-only")?;
            }
            fdt.end_node(device)?;
        }
        fdt.end_node(devices)
    }

    pub fn image(&self, blobs: &[&[u8]]) -> Vec<u8> {
        write::image(&self.tree(), blobs).unwrap()
    }
}
