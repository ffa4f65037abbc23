// SPDX-License-Identifier: MIT OR Apache-2.0
//! Says what is in a saved machine, without a module.

use super::keep::{open, unreadable};
use super::make::default_name;
use crate::cli::Inspect;
use crate::failure::{Failure, Outcome};
use crate::output::{print, print_json};
use crate::progress::copying;
use palacios_core::interrupts::lapic::LocalApic;
use palacios_core::saved_file::Part;
use palacios_core::sections::Section;
use palacios_core::state_io::StateReader;
use palacios_core::vcpu::record::CpuRecord;
use palacios_core::vm::SavedMachine;
use serde::Serialize;
use std::fmt::Write;
use std::path::Path;
use v3_ctl::{format_bytes, Hex, SavedReader};

/// A saved machine.
#[derive(Default, Serialize)]
struct Contents {
    name: String,
    machine: Option<Machine>,
    vcpus: Vec<Cpu>,
    devices: Vec<Device>,
    /// Bytes of RAM that are not zero.
    ram_bytes: u64,
    sections: Vec<SectionInfo>,
}

#[derive(Serialize)]
struct Machine {
    vcpus: u32,
    memory_bytes: u64,
    tsc_khz: u32,
    clock_ns: u64,
}

#[derive(Serialize)]
struct Cpu {
    vcpu: String,
    activity: String,
    rip: Hex,
    rsp: Hex,
    rflags: Hex,
    cr0: Hex,
    cr3: Hex,
    cr4: Hex,
    efer: Hex,
}

#[derive(Serialize)]
struct Device {
    id: String,
    kind: String,
    bytes: usize,
}

#[derive(Serialize)]
struct SectionInfo {
    path: String,
    kind: String,
    must_know: bool,
    bytes: usize,
}

pub fn inspect(args: &Inspect) -> Outcome {
    let contents = read(&args.file)?;
    match args.format.json {
        true => print_json(&contents)?,
        false => print(&text(&contents))?,
    }
    Ok(0)
}

fn read(file: &Path) -> Result<Contents, Failure> {
    let (from, total) = open(file)?;
    copying("reading what was saved", |step| {
        let unreadable = |why| unreadable(file, why);
        let mut contents = Contents::default();
        let mut reader = SavedReader::new(from).map_err(unreadable)?;
        while let Some((section, part, _)) = reader.next_section().map_err(unreadable)? {
            match part {
                Part::Image(image) => contents.name = default_name(image, file),
                Part::Ram { bytes, .. } => contents.ram_bytes += bytes.len() as u64,
                Part::State(section) => note(&mut contents, &section),
                Part::End => {}
            }
            contents.sections.push(SectionInfo {
                path: section.path.into(),
                kind: section.kind.into(),
                must_know: section.must_know,
                bytes: section.content.len(),
            });
            step(reader.bytes(), total);
        }
        Ok(contents)
    })
}

/// Notes what a section of the state says. One of a version that is not known here is among the sections alone.
fn note(contents: &mut Contents, section: &Section<'_>) {
    if let Ok(Some(machine)) = SavedMachine::of(section) {
        contents.machine = Some(Machine {
            vcpus: machine.vcpus,
            memory_bytes: machine.ram_bytes,
            tsc_khz: machine.tsc_khz,
            clock_ns: machine.now_ns,
        });
    }
    if let Some(id) = section.path.strip_prefix("device/") {
        contents.devices.push(Device {
            id: id.into(),
            kind: section.kind.into(),
            bytes: section.content.len(),
        });
    }
    if let Some(number) = section.path.strip_prefix("vcpu/") {
        contents.vcpus.extend(cpu(number, section));
    }
}

fn cpu(number: &str, section: &Section<'_>) -> Option<Cpu> {
    let index = number.parse::<u32>().ok()?;
    let apic = LocalApic::new(index, index == 0, 52);
    let record = CpuRecord::read(&mut StateReader::new(section.content), apic).ok()?;
    let (state, control) = (&record.state, &record.state.control);
    Some(Cpu {
        vcpu: number.into(),
        activity: format!("{:?}", record.activity),
        rip: Hex(state.rip),
        rsp: Hex(state.gprs[palacios_core::state::Reg::Rsp]),
        rflags: Hex(state.rflags),
        cr0: Hex(control.cr0),
        cr3: Hex(control.cr3),
        cr4: Hex(control.cr4),
        efer: Hex(control.efer),
    })
}

fn text(contents: &Contents) -> String {
    let mut text = format!("name: {}\n", contents.name);
    // A string takes everything.
    if let Some(machine) = &contents.machine {
        let memory = format_bytes(machine.memory_bytes);
        let held = format_bytes(contents.ram_bytes);
        let _ = writeln!(
            text,
            "vcpus: {}\nmemory: {memory}, of which {held} are not zero",
            machine.vcpus
        );
        let _ = writeln!(
            text,
            "clock: {} s, time stamp counter at {} kHz",
            machine.clock_ns / 1_000_000_000,
            machine.tsc_khz
        );
    }
    for cpu in &contents.vcpus {
        let _ = writeln!(
            text,
            "vcpu {}: {}, rip {} rsp {} rflags {} cr0 {} cr3 {} cr4 {} efer {}",
            cpu.vcpu,
            cpu.activity,
            cpu.rip,
            cpu.rsp,
            cpu.rflags,
            cpu.cr0,
            cpu.cr3,
            cpu.cr4,
            cpu.efer
        );
    }
    let is_ram = |section: &&SectionInfo| section.path.starts_with("ram/");
    let _ = writeln!(
        text,
        "sections: {}, and {} of RAM",
        contents.sections.iter().filter(|s| !is_ram(s)).count(),
        contents.sections.iter().filter(is_ram).count()
    );
    for section in contents.sections.iter().filter(|s| !is_ram(s)) {
        let _ = writeln!(
            text,
            "  {:<20} {:<12} {:>10} bytes",
            section.path, section.kind, section.bytes
        );
    }
    text
}
