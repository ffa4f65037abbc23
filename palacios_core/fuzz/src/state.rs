// SPDX-License-Identifier: MIT OR Apache-2.0
//! Hostile saved machines. What can be read is written as it was; all else is refused.
#![forbid(unsafe_code)]

use crate::image::edited;
use crate::Target;
use palacios_core::interrupts::lapic::LocalApic;
use palacios_core::saved_file::{SavedFile, MAGIC};
use palacios_core::sections::{Section, Sections};
use palacios_core::state_io::{StateReader, StateWriter};
use palacios_core::vcpu::record::CpuRecord;
use palacios_core::vm::{HoldReason, Saver};
use palacios_testing::vm::{Hypervisor, Spec};
use palacios_testing::{guests, AdversarialBackend, Config, TestHost};
use std::sync::OnceLock;

/// The target.
pub const TARGET: Target = Target {
    name: "state",
    run,
    header_bytes: 1,
    step_bytes: 3,
};

/// Either the input is a machine, or edits one that was saved, or the record of its CPU, or the whole file; or the input is a file.
fn run(data: &[u8]) {
    let Some((mode, rest)) = data.split_first() else {
        return;
    };
    match mode % 5 {
        0 => read_all(rest),
        1 => read_all(&edited(state().to_vec(), rest)),
        2 => read_cpu(&edited(cpu().to_vec(), rest)),
        3 => read_file(&edited(saved().to_vec(), rest)),
        _ => read_file(&[&MAGIC[..], rest].concat()),
    }
}

fn read_all(machine: &[u8]) {
    for section in Sections::new(machine).flatten() {
        assert!(section.content.len() <= machine.len());
        if section.kind == "cpu" {
            read_cpu(section.content);
        }
    }
}

/// All that a file that is taken for good says is in the file.
fn read_file(bytes: &[u8]) {
    let Ok(file) = SavedFile::parse(bytes) else {
        return;
    };
    let mut len = file.image.len() + file.state.len();
    for (page, bytes) in file.ram() {
        assert!(!bytes.is_empty() && bytes.len() % 4096 == 0);
        assert!(page.checked_add(bytes.len() as u64 / 4096).is_some());
        len += bytes.len();
    }
    assert!(len < bytes.len());
    read_all(file.state);
}

/// A record that can be read is written so that it is read as the same.
fn read_cpu(record: &[u8]) {
    let read = |bytes: &[u8]| {
        let apic = LocalApic::new(0, true, 48);
        CpuRecord::read(&mut StateReader::new(bytes), apic)
    };
    let write = |record: &CpuRecord| {
        let mut bytes = Vec::new();
        let written = record.save(&mut StateWriter::new(&mut bytes));
        written.expect("there is memory");
        bytes
    };
    if let Ok(record) = read(record) {
        let once = write(&record);
        let again = read(&once).expect("it was written just now");
        assert!(write(&again) == once);
    }
}

/// The state of that machine.
fn state() -> &'static [u8] {
    let file = SavedFile::parse(saved()).expect("it was written");
    file.state
}

/// The file of a machine with a CPU and a serial port.
fn saved() -> &'static [u8] {
    static SAVED: OnceLock<Vec<u8>> = OnceLock::new();
    SAVED.get_or_init(|| {
        TestHost::run(Config::default(), |host| {
            let spec = Spec {
                serial: true,
                ..Spec::new(guests::halt_for_ticks(&[u32::MAX, 1_000_000]))
            };
            let vm = Hypervisor::<AdversarialBackend>::new(host).launch(&spec);
            vm.hold(HoldReason::Saving).expect("it runs");
            let mut file = vec![0; 64 << 10];
            let len = vm.read_saved(&mut Saver::new(), &mut file);
            file.truncate(len.expect("it stands still"));
            vm.stop().expect("it has not stopped");
            vm.wait();
            file
        })
    })
}

/// The record of its CPU.
fn cpu() -> &'static [u8] {
    let is_cpu = |section: &Section<'static>| section.kind == "cpu";
    let mut sections = Sections::new(state()).flatten();
    sections.find(is_cpu).expect("it has a CPU").content
}
