// SPDX-License-Identifier: MIT OR Apache-2.0
//! Writing a VM down, all but its RAM, and going on from that: in sections, which [`crate::sections`] describes.
//!
//! | path | kind | what |
//! | --- | --- | --- |
//! | `machine` | `pc` | what it was made of, its clock, what it asked of its power supply |
//! | `features` | `cpuid` | the features that its processors promised |
//! | `device/NAME` | the device's | each device's own record, behind the doorbells that its worker has not heard |
//! | `interrupts` | `chipset` | the PIC pair and the I/O APIC |
//! | `vcpu/N` | `cpu` | a vCPU: [`CpuRecord`](crate::vcpu::record::CpuRecord) |
#![forbid(unsafe_code)]

use super::states::State;
use super::Vm;
use crate::devices::bus::{path_of, DeviceInfo};
use crate::features::GuestFeatures;
use crate::host::{Host, Lock};
use crate::interfaces::{Clock, PowerRequest};
use crate::sections::{write_section, Section, SectionName, Sections};
use crate::state_io::{StateError, StateReader, StateWriter};
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::Ordering;

const MACHINE: &str = "machine";
const FEATURES: &str = "features";
const INTERRUPTS: &str = "interrupts";
/// Of no section: where the list of devices could not be made.
const DEVICES: &str = "device";
const VCPU_PATH: &str = "vcpu/";
const VERSION: u32 = 1;

/// Why a VM could not be written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SaveError {
    /// It does not stand still: [`Vm::hold`] it first.
    WrongState(State),
    /// What is wrong.
    State(StateError),
}

/// Why a VM cannot go on from what was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadError {
    /// The section at fault.
    pub section: SectionName,
    /// What is wrong with it.
    pub why: LoadFault,
}

/// What is wrong with a section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadFault {
    /// The VM was launched, or has stopped: one goes on only from its beginning.
    WrongState(State),
    /// Its record cannot be read.
    Record(StateError),
    /// This VMM does not know it, and must not go on without.
    Unknown,
    /// It is not there.
    Missing,
    /// It is there twice.
    Twice,
    /// The machine is another than the one that was saved; names what differs.
    Differs(&'static str),
    /// A feature of the processors that the guest counts on is not there.
    Lacks(&'static str),
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "section {}: ", self.section)?;
        match self.why {
            LoadFault::WrongState(state) => write!(f, "the VM is not new, but {state:?}"),
            LoadFault::Record(why) => write!(f, "its record cannot be read: {why:?}"),
            LoadFault::Unknown => f.write_str("this VMM does not know it"),
            LoadFault::Missing => f.write_str("it is missing"),
            LoadFault::Twice => f.write_str("it is there twice"),
            LoadFault::Differs(what) => write!(f, "the VM that was saved has another {what}"),
            LoadFault::Lacks(feature) => {
                write!(
                    f,
                    "the guest uses {feature}, which this host cannot give it"
                )
            }
        }
    }
}

fn name(path: &str) -> SectionName {
    SectionName::new(format_args!("{path}"))
}
fn name_of_vcpu(index: u32) -> SectionName {
    SectionName::new(format_args!("{VCPU_PATH}{index}"))
}

fn at(path: &str, why: LoadFault) -> LoadError {
    LoadError {
        section: name(path),
        why,
    }
}

fn in_record(path: &str) -> impl Fn(StateError) -> LoadError + '_ {
    move |why| at(path, LoadFault::Record(why))
}

impl<H: Host> Vm<H> {
    /// Appends all that is to be written down of a VM that stands still, but its RAM. *Thread.*
    ///
    /// # Errors
    /// `WrongState` unless it is paused, and `NoMemory`. What was appended by then is of no use.
    pub fn save(&self, to: &mut Vec<u8>) -> Result<(), SaveError> {
        let _control = self.control.lock();
        match self.state() {
            State::Paused => self.save_paused(to).map_err(SaveError::State),
            state => Err(SaveError::WrongState(state)),
        }
    }

    fn save_paused(&self, to: &mut Vec<u8>) -> Result<(), StateError> {
        write_section(to, &name(MACHINE), "pc", |record| self.save_machine(record))?;
        let features = self.judge_features(|judge| judge.features());
        write_section(to, &name(FEATURES), "cpuid", |record| features.save(record))?;
        self.bus().save(to)?;
        write_section(to, &name(INTERRUPTS), "chipset", |record| {
            self.shared.board().chipset().lock().save(record)
        })?;
        for index in 0..self.vcpus() {
            write_section(to, &name_of_vcpu(index), "cpu", |record| {
                let saved = self.ask(index, |vcpu| vcpu.save(&self.shared, record));
                saved.unwrap_or(Err(StateError::Value("vcpu")))
            })?;
        }
        Ok(())
    }

    fn save_machine(&self, to: &mut StateWriter<'_>) -> Result<(), StateError> {
        let clock = self.shared.clock();
        to.u32(VERSION)?;
        to.u32(self.vcpus())?;
        to.u64(self.memory().layout().bytes())?;
        to.u32(clock.tsc_khz())?;
        to.u64(clock.now_ns())?;
        to.u64(clock.tsc(self.processor.tsc()))?;
        let (request, status) = match self.shared.board().power.waiting() {
            None => (0, 0),
            Some(PowerRequest::Off) => (1, 0),
            Some(PowerRequest::Reset) => (2, 0),
            Some(PowerRequest::Exit(status)) => (3, status),
        };
        to.u8(request)?;
        to.u32(status)
    }

    /// Has a VM that was never launched go on, once it is, from what [`Vm::save`] wrote. Its RAM is there already. *Thread.*
    ///
    /// # Errors
    /// The section at fault, and why. The VM is as it was then.
    pub fn load(&self, from: &[u8]) -> Result<(), LoadError> {
        let _control = self.control.lock();
        let state = self.state();
        if state != State::Created {
            return Err(at(MACHINE, LoadFault::WrongState(state)));
        }
        let sections = Sections::new(from);
        self.check(&sections)?;
        let loaded = self.load_checked(&sections);
        if loaded.is_err() {
            // That it can be reset was seen when it was made.
            let _ = self.reset_machine();
        }
        self.loaded.store(loaded.is_ok(), Ordering::SeqCst);
        loaded
    }

    /// Looks at all sections, and changes nothing.
    fn check(&self, sections: &Sections<'_>) -> Result<(), LoadError> {
        let devices = self.bus().devices().map_err(StateError::from);
        let devices = devices.map_err(in_record(DEVICES))?;
        for section in sections.clone() {
            let section = section.map_err(in_record("?"))?;
            if !self.knows(&devices, &section) && section.must_know {
                return Err(at(section.path, LoadFault::Unknown));
            }
        }
        self.check_machine(&find(sections, MACHINE)?)?;
        self.check_features(&find(sections, FEATURES)?)?;
        find(sections, INTERRUPTS)?;
        for device in &devices {
            find(sections, path_of(&device.name).as_str())?;
        }
        for index in 0..self.vcpus() {
            let section = find(sections, name_of_vcpu(index).as_str())?;
            let checked = self.ask(index, |vcpu| vcpu.check(&self.shared, section.content));
            let checked = checked.unwrap_or(Err(StateError::Value("vcpu")));
            checked.map_err(in_record(section.path))?;
        }
        Ok(())
    }

    fn knows(&self, devices: &[DeviceInfo], section: &Section<'_>) -> bool {
        let vcpu = section.path.strip_prefix(VCPU_PATH);
        let vcpu = vcpu.and_then(|index| index.parse::<u32>().ok());
        let is_of = |device: &DeviceInfo| {
            path_of(&device.name).as_str() == section.path && device.kind == section.kind
        };
        match (section.path, section.kind) {
            (MACHINE, "pc") | (FEATURES, "cpuid") | (INTERRUPTS, "chipset") => true,
            (_, "cpu") => vcpu.is_some_and(|index| index < self.vcpus()),
            _ => devices.iter().any(is_of),
        }
    }

    fn check_machine(&self, section: &Section<'_>) -> Result<(), LoadError> {
        let machine = MachineRecord::read(section).map_err(in_record(section.path))?;
        let checks = [
            (machine.vcpus == self.vcpus(), "number of CPUs"),
            (
                machine.ram_bytes == self.memory().layout().bytes(),
                "size of memory",
            ),
            (
                machine.tsc_khz == self.shared.clock().tsc_khz(),
                "rate of its time stamp counter",
            ),
        ];
        match checks.iter().find(|(same, _)| !same) {
            Some((_, what)) => Err(at(section.path, LoadFault::Differs(what))),
            None => Ok(()),
        }
    }

    fn check_features(&self, section: &Section<'_>) -> Result<(), LoadError> {
        let mut from = StateReader::new(section.content);
        let saved = GuestFeatures::read(&mut from).map_err(in_record(section.path))?;
        let mine = self.judge_features(|judge| judge.features());
        match saved.first_difference(&mine) {
            None => Ok(()),
            Some((feature, true)) => Err(at(section.path, LoadFault::Lacks(feature))),
            Some((_, false)) => Err(at(section.path, LoadFault::Differs("set of features"))),
        }
    }

    /// Devices first: they raise their lines. What that sends is not wanted: the controllers and vCPUs know of it already.
    fn load_checked(&self, sections: &Sections<'_>) -> Result<(), LoadError> {
        for section in sections.clone().flatten() {
            self.bus()
                .restore(&section)
                .map_err(in_record(section.path))?;
        }
        let section = find(sections, INTERRUPTS)?;
        let mut from = StateReader::new(section.content);
        let chipset = self.shared.board().chipset();
        let restored = chipset.lock().restore(&mut from);
        let ended = restored.and_then(|()| from.end("chipset.end"));
        ended.map_err(in_record(section.path))?;
        self.reset_shared();
        self.load_machine(&find(sections, MACHINE)?)?;
        for index in 0..self.vcpus() {
            let section = find(sections, name_of_vcpu(index).as_str())?;
            let restored = self.ask(index, |vcpu| vcpu.restore(&self.shared, section.content));
            let restored = restored.unwrap_or(Err(StateError::Value("vcpu")));
            restored.map_err(in_record(section.path))?;
        }
        Ok(())
    }

    fn load_machine(&self, section: &Section<'_>) -> Result<(), LoadError> {
        let machine = MachineRecord::read(section).map_err(in_record(section.path))?;
        self.shared.clock().restore(machine.now_ns, machine.tsc);
        self.shared.board().power.clear();
        if let Some(request) = machine.request {
            self.shared.board().request_power(request);
        }
        Ok(())
    }
}

/// The only section of a path.
fn find<'a>(sections: &Sections<'a>, path: &str) -> Result<Section<'a>, LoadError> {
    let mut found = sections
        .clone()
        .flatten()
        .filter(|section| section.path == path);
    let first = found.next().ok_or(at(path, LoadFault::Missing))?;
    match found.next() {
        Some(_) => Err(at(path, LoadFault::Twice)),
        None => Ok(first),
    }
}

/// The section of the machine, read.
struct MachineRecord {
    vcpus: u32,
    ram_bytes: u64,
    tsc_khz: u32,
    now_ns: u64,
    tsc: u64,
    request: Option<PowerRequest>,
}

impl MachineRecord {
    fn read(section: &Section<'_>) -> Result<Self, StateError> {
        let mut from = StateReader::new(section.content);
        from.version(VERSION)?;
        let (vcpus, ram_bytes, tsc_khz) = (from.u32()?, from.u64()?, from.u32()?);
        let (now_ns, tsc) = (from.u64()?, from.u64()?);
        let request = match (from.u8()?, from.u32()?) {
            (0, 0) => None,
            (1, 0) => Some(PowerRequest::Off),
            (2, 0) => Some(PowerRequest::Reset),
            (3, status) => Some(PowerRequest::Exit(status)),
            _ => return Err(StateError::Value("machine.request")),
        };
        // So far in the future nobody has come.
        if now_ns >> 63 != 0 {
            return Err(StateError::Value("machine.now_ns"));
        }
        from.end("machine.end")?;
        Ok(Self {
            vcpus,
            ram_bytes,
            tsc_khz,
            now_ns,
            tsc,
            request,
        })
    }
}
