// SPDX-License-Identifier: MIT OR Apache-2.0
//! Saves VMs, and makes VMs that go on from what was saved.

use super::make::{build_image, create_vm, default_name, Made};
use crate::cli::{EndOf, Load, Save};
use crate::failure::{Failure, Outcome};
use crate::far_end::FarEnd;
use crate::output::{print, print_json};
use crate::progress::{copying, copying_about, during};
use crate::whole_file::write_whole;
use palacios_core::devices;
use palacios_core::features::Feature;
use palacios_core::saved_file::Part;
use rustix::io::Errno;
use std::borrow::Cow;
use std::fs::{self, File};
use std::io::{self, BufReader, ErrorKind, Read, Write};
use std::path::Path;
use v3_ctl::{
    node_of, Control, Guest, Request, SavedDeviceInfo, SavedError, SavedReader, SavedState, Stat,
    State, Vm,
};

/// How much is copied at a time.
const CHUNK_BYTES: usize = 1 << 20;

pub fn save(args: &Save) -> Outcome {
    let vm = Vm::find(&args.target.vm)?;
    let was_running = vm.info()?.state == State::Running;
    if args.pause {
        vm.pause()?;
    }
    let saved = save_to(&vm, &args.file);
    if saved.is_err() && args.pause && was_running {
        // The failure that matters is that of saving.
        let _ = vm.resume();
    }
    saved.map(|()| 0)
}

fn save_to(vm: &Vm, file: &Path) -> Result<(), Failure> {
    if file.as_os_str() == "-" {
        return copy(vm, &mut io::stdout().lock(), file);
    }
    if fs::metadata(file).is_ok_and(|known| !known.is_file()) {
        // A pipe or a device is written to, and not replaced by a file.
        let to = File::options().write(true).open(file);
        return copy(vm, &mut to.map_err(|e| Failure::file(file, &e))?, file);
    }
    // It has all that the guest has in memory.
    write_whole(file, 0o600, |to| copy(vm, to, file))
}

/// Copies a VM to `to`, as long as that takes it.
fn copy(vm: &Vm, to: &mut dyn Write, file: &Path) -> Result<(), Failure> {
    let name = vm.info()?.name;
    let mut from = vm.save()?;
    let estimate = estimated_bytes(&vm.stats().unwrap_or_default());
    copying_about(&format!("saving {name}"), estimate, |step| {
        let (mut chunk, mut done) = (vec![0; CHUNK_BYTES], 0);
        loop {
            let len = match from.read(&mut chunk) {
                Ok(0) => break,
                Ok(len) => len,
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) => return Err(not_saved(vm, &name, &e)),
            };
            let written = to.write_all(chunk.get(..len).unwrap_or_default());
            written.map_err(|e| Failure::file(file, &e))?;
            done += len as u64;
            step(done);
        }
        to.flush().map_err(|e| Failure::file(file, &e))
    })
}

/// About how long a saved machine is: its image, and the RAM that has memory of the host's. Pages of zeroes among that are left out;
/// the rest of its state is small.
fn estimated_bytes(stats: &[Stat]) -> u64 {
    let stats = stats.iter().filter(|stat| stat.vcpu.is_none());
    let counted = ["memory_resident_bytes", "memory_image_bytes"];
    let counted = stats.filter(|stat| counted.contains(&stat.name.as_str()));
    counted.map(|stat| stat.value).sum()
}

fn not_saved(vm: &Vm, name: &str, error: &io::Error) -> Failure {
    match vm.info() {
        _ if error.raw_os_error() == Some(Errno::MEDIUMTYPE.raw_os_error()) => Failure::tool(format!(
            "cannot save {name}: a disk keeps in memory what its guest wrote, and that would be lost"
        ))
        .hint("disks in files can be saved; those of an image and snapshots cannot"),
        _ if error.raw_os_error() == Some(Errno::OPNOTSUPP.raw_os_error()) => Failure::tool(format!(
            "cannot save {name}: its memory is not where it was when the machine started"
        ))
        .hint("a device has moved some, or the guest logs its own writes: a guest of the test device does so"),
        Ok(info) if info.state == State::Stopped => {
            Failure::tool(format!("{name} was stopped while it was saved"))
        }
        _ => Failure::file(Path::new(name), error),
    }
}

pub fn load(args: &Load) -> Outcome {
    let control = Control::open()?;
    let saved = read(&args.file)?;
    let name = match &args.name {
        Some(name) => name.clone(),
        None => default_name(&saved.image, &args.file),
    };
    let ends = check_ends(args, &saved)?;
    let image = image_for(&control, &saved, &args.file)?;
    let vm = create_vm(&control, &image, &name)?;
    let loaded = go_on(args, &vm, &saved, ends);
    let terminals = loaded.inspect_err(|_| {
        // Nothing of it is left. The failure that matters is the first.
        let _ = control.free(vm.number());
    })?;
    tell(args, &vm, &name, &terminals)
}

/// The image of what was saved, from whose processors the features are taken that they have here and did not have there.
fn image_for<'a>(
    control: &Control,
    saved: &'a SavedState,
    file: &Path,
) -> Result<Cow<'a, [u8]>, Failure> {
    let Some(promised) = &saved.features else {
        return Ok(Cow::Borrowed(&saved.image));
    };
    let here = control.features()?.into_iter();
    let here = here.filter(|feature| feature.guest == Some(true));
    let mut more: Vec<_> = here
        .filter_map(|feature| Feature::by_name(&feature.name))
        .filter(|feature| !promised.has(*feature))
        .collect();
    if more.is_empty() {
        return Ok(Cow::Borrowed(&saved.image));
    }
    let mut guest = Guest::of_image(&saved.image, file)?;
    more.retain(|feature| !guest.without.contains(*feature));
    if more.is_empty() {
        return Ok(Cow::Borrowed(&saved.image));
    }
    more.iter()
        .for_each(|feature| guest.without.insert(*feature));
    Ok(Cow::Owned(build_image(&guest)?))
}

/// Reads all of a file but its RAM, and checks that too.
fn read(file: &Path) -> Result<SavedState, Failure> {
    let (from, total) = open(file)?;
    copying("checking what was saved", |step| {
        SavedState::read(from, |done| step(done, total)).map_err(|why| unreadable(file, why))
    })
}

pub fn open(file: &Path) -> Result<(BufReader<File>, u64), Failure> {
    let failed = |e: io::Error| Failure::file(file, &e);
    // Looked at first: to open a pipe waits for its other end.
    if !fs::metadata(file).map_err(failed)?.is_file() {
        let failure = Failure::tool(format!("{}: this is no file", file.display()));
        return Err(failure.hint("a saved machine is read twice: write it to a file first"));
    }
    let from = File::open(file).map_err(failed)?;
    let total = from.metadata().map_err(failed)?.len();
    Ok((BufReader::with_capacity(CHUNK_BYTES, from), total))
}

pub fn unreadable(file: &Path, why: SavedError) -> Failure {
    match why {
        SavedError::Io(e) => Failure::file(file, &e),
        SavedError::File(why) => Failure::refused(format!("{}: {why}", file.display())),
    }
}

/// The far ends that were asked for are those that the machine's devices need.
fn check_ends<'a>(args: &'a Load, saved: &SavedState) -> Result<&'a [EndOf], Failure> {
    for end in &args.ends {
        if !saved.devices.iter().any(|device| device.id == end.id) {
            let ids: Vec<_> = saved.devices.iter().map(|d| d.id.as_str()).collect();
            return Err(Failure::tool(format!(
                "--end {}: what was saved has no such device; it has {}",
                end.id,
                ids.join(", ")
            )));
        }
    }
    Ok(&args.ends)
}

/// Has a new VM go on from what was saved. Returns the terminals of its devices.
fn go_on(
    args: &Load,
    vm: &Vm,
    saved: &SavedState,
    ends: &[EndOf],
) -> Result<Vec<(String, String)>, Failure> {
    let terminals = attach_all(vm, saved, ends)?;
    load_ram(vm, &args.file)?;
    let loading = || vm.load_state(&saved.state, args.new_tsc_rate);
    during("loading the state", loading)?;
    if !args.no_launch {
        vm.launch()?;
    }
    Ok(terminals)
}

/// Gives a VM the devices that the saved one had, and no others.
fn attach_all(
    vm: &Vm,
    saved: &SavedState,
    ends: &[EndOf],
) -> Result<Vec<(String, String)>, Failure> {
    let mut terminals = Vec::new();
    let has = vm.devices()?;
    for device in has.iter().filter(|device| device.removable) {
        if !saved.devices.iter().any(|saved| saved.id == device.id) {
            vm.detach(&device.id)?;
        }
    }
    for device in &saved.devices {
        let end = ends.iter().find(|end| end.id == device.id);
        match (has.iter().any(|has| has.id == device.id), end) {
            (true, None) => {}
            (true, Some(end)) => {
                return Err(Failure::tool(format!(
                    "--end {}: the image makes this device, and its stream",
                    end.id
                )))
            }
            (false, end) => terminals.extend(attach(vm, device, end)?),
        }
    }
    Ok(terminals)
}

/// Attaches a device as it was; returns its terminal, if it has one.
fn attach(
    vm: &Vm,
    device: &SavedDeviceInfo,
    end: Option<&EndOf>,
) -> Result<Option<(String, String)>, Failure> {
    let (id, kind) = (&device.id, &device.kind);
    let known = devices::kind_by_name(kind);
    let has_store = known.is_some_and(|kind| kind.has_store);
    if has_store && end.is_none_or(|end| end.ends.disk.is_none()) {
        let failure = Failure::tool(format!(
            "what was saved has a disk {id}: say where its bytes are"
        ));
        return Err(failure.hint(format!(
            "--end {id}=disk:FILE, with the options of `v3 attach`"
        )));
    }
    if known.is_some_and(|kind| kind.has_stream) && end.is_none() {
        let failure = Failure::tool(format!(
            "what was saved has a device {id}, of the kind {kind}, which needs a far end"
        ));
        return Err(failure.hint(format!(
            "give it one: --end {id}=pty, or pipe:PATH, file:PATH, socket:PATH, none"
        )));
    }
    let mut far = match end {
        Some(end) => FarEnd::open(&end.ends)?,
        None => FarEnd::default(),
    };
    let wanted = Request {
        id: Some(id),
        port: device.port,
        slot: device.slot,
        ..Request::of_kind(kind)
    };
    far.attach(vm, &wanted)?;
    Ok(far.terminal.map(|terminal| (id.clone(), terminal)))
}

fn load_ram(vm: &Vm, file: &Path) -> Result<(), Failure> {
    let (from, total) = open(file)?;
    copying("loading memory", |step| {
        let unreadable = |why| unreadable(file, why);
        let mut reader = SavedReader::new(from).map_err(unreadable)?;
        while let Some((_, part, _)) = reader.next_section().map_err(unreadable)? {
            if let Part::Ram { page, bytes } = part {
                vm.load_ram(page, bytes)?;
            }
            step(reader.bytes(), total);
        }
        Ok(())
    })
}

fn tell(args: &Load, vm: &Vm, name: &str, terminals: &[(String, String)]) -> Outcome {
    let (number, node) = (vm.number(), node_of(vm.number()));
    if args.format.json {
        let mut told = serde_json::to_value(Made {
            vm: number,
            name,
            node,
        })
        .unwrap_or_default();
        let terminals = terminals
            .iter()
            .map(|(id, path)| (id.clone(), path.clone().into()));
        told["terminals"] = serde_json::Value::Object(terminals.collect());
        print_json(&told)?;
        return Ok(0);
    }
    let mut text = format!("VM ({name}) loaded at {node}\n");
    for (id, path) in terminals {
        text += &format!("{id}: {path}\n");
    }
    print(&text)?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_saved_is_estimated_by_the_vms_own_counters() {
        let stat = |vcpu, name: &str, value| Stat {
            vcpu,
            name: name.into(),
            value,
        };
        let stats = [
            stat(None, "memory_resident_bytes", 1 << 30),
            stat(None, "memory_table_bytes", 1 << 20),
            stat(None, "memory_image_bytes", 5000),
            stat(Some(0), "memory_resident_bytes", 7),
        ];
        assert_eq!(estimated_bytes(&stats), (1 << 30) + 5000);
        assert_eq!(estimated_bytes(&[]), 0);
    }
}
