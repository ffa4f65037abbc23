// SPDX-License-Identifier: MIT OR Apache-2.0
//! Writing a VM down, all but its RAM, and going on from that: in sections, which [`crate::sections`] describes.
//!
//! | path | kind | what |
//! | --- | --- | --- |
//! | `machine` | `pc` | what it was made of, its clock, what it asked of its power supply |
//! | `features` | `cpuid` | the features that its processors promised |
//! | `device/NAME` | the device's | each device's own record, behind the doorbells that its worker has not heard |
//! | `pci` | `address` | the address register of PCI configuration |
//! | `interrupts` | `chipset` | the PIC pair and the I/O APIC |
//! | `vcpu/N` | `cpu` | a vCPU: [`CpuRecord`](crate::vcpu::record::CpuRecord) |
#![forbid(unsafe_code)]

use super::states::State;
use super::Vm;
use crate::addr::{Gpa, PAGE_SIZE};
use crate::devices::bus::{path_of, place_of, DeviceInfo, SavedDevice, PCI_KIND, PCI_PATH};
use crate::features::{self, GuestFeatures};
use crate::host::{Host, Lock};
use crate::interfaces::{Clock, PowerRequest};
use crate::sections::{write_section, Section, SectionName, Sections};
use crate::state_io::{StateError, StateReader, StateWriter};
use crate::xsave::ComponentPlaces;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::Ordering;

const MACHINE: &str = "machine";
const FEATURES: &str = features::SECTION;
const INTERRUPTS: &str = "interrupts";
/// Of no section: where the list of devices could not be made.
const DEVICES: &str = "device";
const VCPU_PATH: &str = "vcpu/";
/// The second one has a PCI bus, and says what XSAVE stores where.
const VERSION: u32 = 2;
/// A machine has fewer.
const MOST_SECTIONS: usize = 4096;

/// Why a VM could not be written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SaveError {
    /// It does not stand still: [`Vm::hold`] it first.
    WrongState(State),
    /// Its memory is not where it was when the machine started, or its guest has a log of what it writes: none of that is written down.
    Rearranged,
    /// What is wrong.
    State(StateError),
}

impl From<StateError> for SaveError {
    fn from(why: StateError) -> Self {
        Self::State(why)
    }
}

/// What the rate of the time stamp counter has to do with it whether a VM can go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TscRate {
    /// It must be the one that the VM was saved with, to 250 parts per million.
    Same,
    /// The guest gets the one of this host: what it has measured is wrong from then on, but its deadlines are not.
    New,
}

/// Rates that differ by less are the same, in parts per million. So much two measurements of one counter may differ, and no clock that a guest disciplines
/// minds it.
const SAME_RATE_PPM: u64 = 250;

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
    /// Its time stamp counter ran at another rate.
    OtherRate {
        /// The rate that it had, in kHz.
        saved_khz: u32,
        /// The rate that this host gives it.
        here_khz: u32,
    },
    /// There is no such RAM.
    Ram,
    /// The machine is another than the one that was saved; names what differs.
    Differs(&'static str),
    /// A feature of the processors that the guest counts on is not there.
    Lacks(&'static str),
    /// A feature is there that the guest was told it has not.
    Adds(&'static str),
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "section {}: ", self.section)?;
        match self.why {
            LoadFault::WrongState(state) => write!(f, "the VM is not new, but {state:?}"),
            LoadFault::Record(why) => write!(f, "{why}"),
            LoadFault::Unknown => f.write_str("this VMM does not know it"),
            LoadFault::Missing => f.write_str("it is missing"),
            LoadFault::Twice => f.write_str("it is there twice"),
            LoadFault::OtherRate { saved_khz, here_khz } => write!(
                f,
                "the guest's time stamp counter ran at {saved_khz} kHz, and would at {here_khz} kHz here"
            ),
            LoadFault::Ram => f.write_str("the VM has no such memory"),
            LoadFault::Differs(what) => write!(f, "the VM that was saved has another {what}"),
            LoadFault::Adds(feature) => write!(
                f,
                "the guest was made without {feature}, which this host would give it"
            ),
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
            State::Paused if self.is_rearranged() => Err(SaveError::Rearranged),
            State::Paused => self.save_paused(to).map_err(SaveError::State),
            state => Err(SaveError::WrongState(state)),
        }
    }

    fn is_rearranged(&self) -> bool {
        self.memory().is_rearranged() || self.shared.board().guest_logs.load(Ordering::SeqCst)
    }

    fn save_paused(&self, to: &mut Vec<u8>) -> Result<(), StateError> {
        // Each has done what it was at: nothing of the machine changes any more.
        for index in 0..self.vcpus() {
            self.ask(index, |_| ());
        }
        write_section(to, &name(MACHINE), "pc", |record| self.save_machine(record))?;
        let features = self.judge_features(|judge| judge.features());
        write_section(to, &name(FEATURES), "cpuid", |record| features.save(record))?;
        self.bus().save(to)?;
        // Memory for the record may have to be waited for, which nobody does under the controllers' lock.
        let chipset = self.shared.board().chipset().lock().clone();
        write_section(to, &name(INTERRUPTS), "chipset", |record| {
            chipset.save(record)
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
        let tsc = clock.tsc(self.processor.tsc());
        to.u64(tsc)?;
        to.u64(clock.counted_ns(tsc))?;
        let (request, status) = match self.shared.board().power.waiting() {
            None => (0, 0),
            Some(PowerRequest::Off) => (1, 0),
            Some(PowerRequest::Reset) => (2, 0),
            Some(PowerRequest::Exit(status)) => (3, status),
        };
        to.u8(request)?;
        to.u32(status)?;
        self.component_places().save(to)
    }

    /// Where the guest's processors put the components of an XSAVE area: vendors do not agree.
    fn component_places(&self) -> ComponentPlaces {
        let features = self.judge_features(|judge| judge.features());
        let cpuid = |leaf, subleaf| self.processor.cpuid(leaf, subleaf);
        ComponentPlaces::new(features.xcr0(), cpuid)
    }

    /// Has a VM that was never launched go on, once it is, from what [`Vm::save`] wrote. Its RAM is there already. *Thread.*
    ///
    /// # Errors
    /// The section at fault, and why. The VM is a new one then, as it was when it was made: its RAM is to be loaded again.
    pub fn load(&self, from: &[u8], rate: TscRate) -> Result<(), LoadError> {
        let _control = self.control.lock();
        self.must_be_new()?;
        let sections = Sections::new(from);
        self.check(&sections, rate)?;
        self.empty_ram();
        let loaded = self.load_checked(&sections);
        if loaded.is_err() {
            // That it can be reset was seen when it was made. Its RAM has the image again.
            self.shared.clock().restore(0, 0, 0);
            let _ = self.reset_machine();
        }
        self.loaded.store(loaded.is_ok(), Ordering::SeqCst);
        loaded
    }

    fn must_be_new(&self) -> Result<(), LoadError> {
        match self.state() {
            State::Created => Ok(()),
            state => Err(at(MACHINE, LoadFault::WrongState(state))),
        }
    }

    /// What the image had put into RAM goes, once: what is not in a saved machine was zero there.
    fn empty_ram(&self) {
        if self.ram_is_empty.swap(true, Ordering::SeqCst) {
            return;
        }
        for range in self.memory().layout().ranges() {
            let bytes = range.end.wrapping_sub(range.start);
            self.with_memory(|memory, flush| memory.discard(Gpa(range.start), bytes, flush));
        }
    }

    /// Writes to the RAM of a VM that was never launched, from page number `page` on. *Thread.*
    ///
    /// # Errors
    /// It has no such RAM, or the host has none to give. A part may have been written.
    pub fn load_ram(&self, page: u64, bytes: &[u8]) -> Result<(), LoadError> {
        let _control = self.control.lock();
        self.must_be_new()?;
        self.empty_ram();
        let ram = || LoadError {
            section: SectionName::new(format_args!("ram/{page:x}")),
            why: LoadFault::Ram,
        };
        for (n, bytes) in bytes.chunks(PAGE_SIZE as usize).enumerate() {
            let page = page.saturating_add(n as u64);
            if page >= self.memory().ram_pages() {
                return Err(ram());
            }
            let written = self.memory().write_page(page, bytes);
            written.map_err(|why| LoadError {
                why: LoadFault::Record(why.into()),
                ..ram()
            })?;
        }
        Ok(())
    }

    /// Looks at all sections, and changes nothing.
    fn check(&self, sections: &Sections<'_>, rate: TscRate) -> Result<(), LoadError> {
        let devices = self.bus().devices().map_err(StateError::from);
        let devices = devices.map_err(in_record(DEVICES))?;
        for (number, section) in sections.clone().enumerate() {
            let section = section.map_err(in_record("?"))?;
            if number >= MOST_SECTIONS {
                let why = StateError::Value("sections.count");
                return Err(at(section.path, LoadFault::Record(why)));
            }
            if !self.knows(&devices, &section) && section.must_know {
                return Err(at(section.path, LoadFault::Unknown));
            }
        }
        self.check_machine(&find(sections, MACHINE, "pc")?, rate)?;
        self.check_features(&find(sections, FEATURES, "cpuid")?)?;
        find(sections, INTERRUPTS, "chipset")?;
        find(sections, PCI_PATH, PCI_KIND)?;
        for device in &devices {
            let section = find(sections, path_of(&device.name).as_str(), device.kind)?;
            let saved = SavedDevice::of(&section).map_err(in_record(section.path))?;
            if saved.is_none_or(|saved| saved.place != place_of(device)) {
                return Err(at(section.path, LoadFault::Differs("place of this device")));
            }
        }
        for index in 0..self.vcpus() {
            let section = find(sections, name_of_vcpu(index).as_str(), "cpu")?;
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
            (PCI_PATH, PCI_KIND) => true,
            (_, "cpu") => vcpu.is_some_and(|index| index < self.vcpus()),
            _ => devices.iter().any(is_of),
        }
    }

    fn check_machine(&self, section: &Section<'_>, rate: TscRate) -> Result<(), LoadError> {
        let machine = SavedMachine::read(section).map_err(in_record(section.path))?;
        let checks = [
            (machine.vcpus == self.vcpus(), "number of CPUs"),
            (
                machine.ram_bytes == self.memory().layout().bytes(),
                "size of memory",
            ),
            (
                machine.component_places == self.component_places(),
                "layout of what XSAVE stores",
            ),
        ];
        if let Some((_, what)) = checks.iter().find(|(same, _)| !same) {
            return Err(at(section.path, LoadFault::Differs(what)));
        }
        let (saved_khz, here_khz) = (machine.tsc_khz, self.shared.clock().tsc_khz());
        match rate {
            TscRate::Same if !is_same_rate(saved_khz, here_khz) => {
                let why = LoadFault::OtherRate {
                    saved_khz,
                    here_khz,
                };
                Err(at(section.path, why))
            }
            TscRate::Same | TscRate::New => Ok(()),
        }
    }

    fn check_features(&self, section: &Section<'_>) -> Result<(), LoadError> {
        let mut from = StateReader::new(section.content);
        let saved = GuestFeatures::read(&mut from).map_err(in_record(section.path))?;
        let mine = self.judge_features(|judge| judge.features());
        match saved.first_difference(&mine) {
            None => Ok(()),
            Some((feature, true)) => Err(at(section.path, LoadFault::Lacks(feature))),
            Some((feature, false)) => Err(at(section.path, LoadFault::Adds(feature))),
        }
    }

    /// Devices first: they raise their lines. What that sends is not wanted: the controllers and vCPUs know of it already.
    fn load_checked(&self, sections: &Sections<'_>) -> Result<(), LoadError> {
        for section in sections.clone().flatten() {
            self.bus()
                .restore(&section)
                .map_err(in_record(section.path))?;
        }
        let section = find(sections, INTERRUPTS, "chipset")?;
        let mut from = StateReader::new(section.content);
        let chipset = self.shared.board().chipset();
        let restored = chipset.lock().restore(&mut from);
        let ended = restored.and_then(|()| from.end("chipset.end"));
        ended.map_err(in_record(section.path))?;
        self.reset_shared();
        let machine = self.load_machine(&find(sections, MACHINE, "pc")?)?;
        for index in 0..self.vcpus() {
            let section = find(sections, name_of_vcpu(index).as_str(), "cpu")?;
            let restored = self.ask(index, |vcpu| {
                vcpu.restore(&self.shared, section.content)?;
                vcpu.count_tsc_from(&self.shared, machine.tsc, machine.tsc_khz);
                Ok(())
            });
            let restored = restored.unwrap_or(Err(StateError::Value("vcpu")));
            restored.map_err(in_record(section.path))?;
        }
        Ok(())
    }

    fn load_machine(&self, section: &Section<'_>) -> Result<SavedMachine, LoadError> {
        let machine = SavedMachine::read(section).map_err(in_record(section.path))?;
        let clock = self.shared.clock();
        clock.restore(machine.now_ns, machine.tsc, machine.counted_ns);
        self.shared.board().power.clear();
        if let Some(request) = machine.request {
            self.shared.board().request_power(request);
        }
        Ok(machine)
    }
}

fn is_same_rate(one_khz: u32, other_khz: u32) -> bool {
    let difference = u64::from(one_khz.abs_diff(other_khz));
    difference.saturating_mul(1_000_000) <= u64::from(one_khz).saturating_mul(SAME_RATE_PPM)
}

/// The only section of a path and a kind.
fn find<'a>(sections: &Sections<'a>, path: &str, kind: &str) -> Result<Section<'a>, LoadError> {
    let is_it = |section: &Section<'a>| section.path == path && section.kind == kind;
    let mut found = sections.clone().flatten().filter(is_it);
    let first = found.next().ok_or(at(path, LoadFault::Missing))?;
    match found.next() {
        Some(_) => Err(at(path, LoadFault::Twice)),
        None => Ok(first),
    }
}

/// The section of the machine, read.
#[derive(Clone, Copy, Debug)]
pub struct SavedMachine {
    /// How many vCPUs it has.
    pub vcpus: u32,
    /// How much RAM.
    pub ram_bytes: u64,
    /// At what its time stamp counter ran.
    pub tsc_khz: u32,
    /// The time on its clock, which counts from its first launch.
    pub now_ns: u64,
    /// Its time stamp counter, as it was before a vCPU wrote to its own.
    pub tsc: u64,
    /// How many nanoseconds that had counted.
    pub counted_ns: u64,
    request: Option<PowerRequest>,
    component_places: ComponentPlaces,
}

impl SavedMachine {
    /// Reads a section; `None` if it is of something else.
    pub fn of(section: &Section<'_>) -> Result<Option<Self>, StateError> {
        match section.path {
            MACHINE => Self::read(section).map(Some),
            _ => Ok(None),
        }
    }

    fn read(section: &Section<'_>) -> Result<Self, StateError> {
        let mut from = StateReader::new(section.content);
        from.version(VERSION)?;
        let (vcpus, ram_bytes, tsc_khz) = (from.u32()?, from.u64()?, from.u32()?);
        let (now_ns, tsc, counted_ns) = (from.u64()?, from.u64()?, from.u64()?);
        let request = match (from.u8()?, from.u32()?) {
            (0, 0) => None,
            (1, 0) => Some(PowerRequest::Off),
            (2, 0) => Some(PowerRequest::Reset),
            (3, status) => Some(PowerRequest::Exit(status)),
            _ => return Err(StateError::Value("machine.request")),
        };
        let component_places = ComponentPlaces::read(&mut from)?;
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
            counted_ns,
            request,
            component_places,
        })
    }
}
