// SPDX-License-Identifier: MIT OR Apache-2.0
//! Attaches devices to VMs, detaches them, and lists them.

use super::console::with_keys;
use super::show;
use crate::cli::{Attach, Detach, Devices, Ends, Resize};
use crate::failure::{Failure, Outcome};
use crate::far_end::FarEnd;
use crate::output::{print, print_json};
use crate::pump::{End, Pump};
use crate::signals::Signals;
use crate::terminal::say;
use palacios_core::devices;
use rustix::fd::AsFd;
use rustix::stdio::{stdin, stdout};
use serde::Serialize;
use std::collections::BTreeMap;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};
use v3_ctl::{format_bytes, Device, DeviceRegion, Error, Request, Space, State, Vm};

/// How long a guest has to let go of a device. Linux waits five seconds for its user's programs.
const EJECT_TIMEOUT: Duration = Duration::from_secs(30);

/// What was attached, as `--json` prints it.
#[derive(Serialize)]
struct Attached<'a> {
    id: &'a str,
    /// The terminal at which it can be talked to.
    terminal: Option<&'a str>,
}

pub fn attach(args: &Attach) -> Outcome {
    check_ends(&args.kind, &args.ends)?;
    check_options(args)?;
    // From here on a signal does not end this program before the device is detached.
    let signals = args.ends.stdio.then(Signals::new).transpose()?;
    let vm = Vm::find(&args.target.vm)?;
    let mut end = FarEnd::open(&args.ends)?;
    let wanted = Request {
        id: args.id.as_deref(),
        port: args.port,
        slot: args.slot,
        ..Request::of_kind(&args.kind)
    };
    let id = end.attach(&vm, &wanted)?;
    match (&end.own, &signals) {
        (Some(own), Some(signals)) => serve(args, &vm, &id, own, signals),
        _ => tell(args, &id, end.terminal.as_deref()).inspect_err(|_| {
            // The failure that matters is that of telling.
            let _ = vm.detach(&id);
        }),
    }
}

/// A stream leads somewhere, and a disk is somewhere, by the user's choice.
fn check_ends(kind: &str, ends: &Ends) -> Result<(), Failure> {
    let Some(kind) = devices::kind_by_name(kind) else {
        // The module knows it, or says that it does not.
        return Ok(());
    };
    let name = kind.name;
    if kind.has_store && ends.disk.is_none() {
        let failure = Failure::tool(format!("a device of the kind {name} needs a file"));
        return Err(
            failure.hint("v3 attach VM disk FILE; `truncate -s 1G FILE` makes an empty one")
        );
    }
    if let Some(disk) = ends.disk.as_ref().filter(|_| !kind.has_store) {
        let failure = format!(
            "a device of the kind {name} has no use for `{}`: it is no disk",
            disk.path.display()
        );
        return Err(Failure::tool(failure));
    }
    if kind.has_stream && ends.is_none() {
        let failure = Failure::tool(format!("a device of the kind {name} needs a far end"));
        return Err(
            failure.hint("give one of --pty, --pipe PATH, --file PATH, --socket PATH, --stdio")
        );
    }
    Ok(())
}

/// A disk has no port.
fn check_options(args: &Attach) -> Result<(), Failure> {
    match (&args.ends.disk, args.port) {
        (Some(_), Some(_)) => Err(Failure::tool(
            "a disk is at no port: --slot chooses its place",
        )),
        _ => Ok(()),
    }
}

fn tell(args: &Attach, id: &str, terminal: Option<&str>) -> Outcome {
    if args.format.json {
        print_json(&Attached { id, terminal })?;
    } else if let Some(terminal) = terminal {
        print(&format!("{terminal}\n"))?;
    } else {
        print(&format!("{id}\n"))?;
    }
    Ok(0)
}

/// Passes bytes between the device and standard input and output, and detaches it at the end.
fn serve(args: &Attach, vm: &Vm, id: &str, own: &UnixStream, signals: &Signals) -> Outcome {
    let served = serve_keys(args, vm, id, own, signals);
    let detached = match vm.detach(id) {
        // Somebody else was faster, or freed the VM.
        Err(Error::NoSuchDevice { .. }) => Ok(()),
        Err(_) if vm.info().is_err() => Ok(()),
        detached => detached,
    };
    let end = served?;
    detached?;
    match end {
        End::Stopped => {
            let info = vm.info().ok().filter(|info| info.state == State::Stopped);
            let why = info.map_or_else(|| format!("{id} was detached"), |vm| show::ending(&vm));
            say(&format!("[{why}]"));
            Ok(0)
        }
        End::Signal(signal) => Ok(128 + signal),
        End::Quit | End::Timeout | End::OutputClosed => Ok(0),
    }
}

fn serve_keys(
    args: &Attach,
    vm: &Vm,
    id: &str,
    own: &UnixStream,
    signals: &Signals,
) -> Result<End, Failure> {
    let info = vm.info()?;
    close_when_stopped(vm, own.try_clone()?)?;
    let mut pump = Pump::new(Some(own.as_fd()), stdout(), signals);
    pump.input = Some(stdin());
    let what = format!("{}: {id}", info.name);
    with_keys(&mut pump, &what, "detaches it and leaves", args.key.escape)
}

/// Ends this program's end once the VM stopped: nothing more comes. Waiting itself cannot be polled, so a thread does it.
fn close_when_stopped(vm: &Vm, own: UnixStream) -> Result<(), Failure> {
    let vm = Vm::open(vm.number())?;
    thread::spawn(move || {
        // Whether it stopped or could not be waited for shows when it is asked for its state.
        let _ = vm.wait(None);
        // A socket that is closed already is what is wanted.
        let _ = own.shutdown(Shutdown::Both);
    });
    Ok(())
}

pub fn detach(args: &Detach) -> Outcome {
    let vm = Vm::find(&args.target.vm)?;
    if args.force || !vm.ask_to_eject(&args.id)? {
        vm.detach(&args.id)?;
        return Ok(0);
    }
    wait_for_eject(&vm, &args.id)
}

/// Waits until the guest has let go of a device.
fn wait_for_eject(vm: &Vm, id: &str) -> Outcome {
    let begin = Instant::now();
    while vm.devices()?.iter().any(|device| device.id == id) {
        if begin.elapsed() > EJECT_TIMEOUT {
            let seconds = EJECT_TIMEOUT.as_secs();
            let failure = Failure::tool(format!(
                "the guest did not let go of {id} in {seconds} seconds"
            ));
            return Err(failure.hint("`v3 detach --force` takes it away whatever the guest does"));
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(0)
}

pub fn resize(args: &Resize) -> Outcome {
    let vm = Vm::find(&args.target.vm)?;
    let bytes = vm.resize(&args.id, args.size, args.shrink)?;
    if args.format.json {
        print_json(&Resized {
            id: &args.id,
            bytes,
        })?;
    } else {
        print(&format!("{}: {}\n", args.id, format_bytes(bytes)))?;
    }
    Ok(0)
}

/// How large a disk is, as `--json` prints it.
#[derive(Serialize)]
struct Resized<'a> {
    id: &'a str,
    bytes: u64,
}

pub fn devices(args: &Devices) -> Outcome {
    let vm = Vm::find(&args.target.vm)?;
    if let Some(time) = args.rates {
        return rates(&vm, time, args.format.json);
    }
    let devices = vm.devices_with_counters()?;
    if args.format.json {
        print_json(&devices)?;
    } else {
        print(&table(&devices))?;
    }
    Ok(0)
}

/// What a device does in a second.
#[derive(Serialize)]
struct Rates {
    id: String,
    kind: String,
    per_second: BTreeMap<String, f64>,
}

/// Watches devices for a while, and tells what those do that count it.
fn rates(vm: &Vm, time: Duration, json: bool) -> Outcome {
    let (before, begin) = (vm.devices_with_counters()?, Instant::now());
    thread::sleep(time);
    let (now, seconds) = (vm.devices_with_counters()?, begin.elapsed().as_secs_f64());
    let rates: Vec<Rates> = now
        .into_iter()
        .filter(|device| !device.counters.is_empty())
        .map(|device| {
            let earlier = before.iter().find(|earlier| earlier.id == device.id);
            rates_of(&device, earlier, seconds)
        })
        .collect();
    if json {
        print_json(&rates)?;
    } else {
        print(&table_of_rates(&rates))?;
    }
    Ok(0)
}

/// A device that came meanwhile began at zero.
fn rates_of(device: &Device, earlier: Option<&Device>, seconds: f64) -> Rates {
    let rate = |(name, value): (&String, &u64)| {
        let before = earlier.and_then(|earlier| earlier.counters.get(name));
        // One that was detached and attached again may have counted less.
        let more = value.saturating_sub(before.copied().filter(|b| b <= value).unwrap_or(0));
        (name.clone(), more as f64 / seconds)
    };
    Rates {
        id: device.id.clone(),
        kind: device.kind.clone(),
        per_second: device.counters.iter().map(rate).collect(),
    }
}

fn table_of_rates(rates: &[Rates]) -> String {
    let head = ["ID", "KIND", "PER SECOND"].map(String::from);
    let rows = rates.iter().map(|device| {
        let all = device.per_second.iter();
        let all: Vec<String> = all
            .map(|(name, rate)| format!("{name} {rate:.0}"))
            .collect();
        [device.id.clone(), device.kind.clone(), all.join(", ")]
    });
    show::lines(&[head].into_iter().chain(rows).collect::<Vec<_>>())
}

fn table(devices: &[Device]) -> String {
    let head = ["ID", "KIND", "REMOVABLE", "AT"].map(String::from);
    let rows = devices.iter().map(|device| {
        let regions: Vec<String> = device.regions.iter().map(addresses).collect();
        [
            device.id.clone(),
            device.kind.clone(),
            if device.removable { "yes" } else { "no" }.into(),
            regions.join(", "),
        ]
    });
    show::lines(&[head].into_iter().chain(rows).collect::<Vec<_>>())
}

fn addresses(region: &DeviceRegion) -> String {
    let (first, last) = (region.at, region.at.saturating_add(region.bytes).max(1) - 1);
    let space = match region.space {
        Space::Ports => "port",
        Space::Memory => "memory",
        Space::Pci => {
            let (slot, function) = (region.at >> 15 & 31, region.at >> 12 & 7);
            return format!("pci {:02x}:{slot:02x}.{function}", region.at >> 20);
        }
        Space::Other => "other",
    };
    let off = if region.on { "" } else { " (off)" };
    match first == last {
        true => format!("{space} {first:#x}{off}"),
        false if region.space == Space::Ports => format!("ports {first:#x}-{last:#x}{off}"),
        false => format!("{space} {first:#x}-{last:#x}{off}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(space: Space, at: u64, bytes: u64, on: bool) -> DeviceRegion {
        DeviceRegion {
            space,
            at,
            bytes,
            on,
        }
    }

    #[test]
    fn a_table_says_what_can_be_detached_and_what_is_where() {
        let device = |id: &str, kind: &str, removable, regions| Device {
            id: id.into(),
            kind: kind.into(),
            removable,
            regions,
            counters: BTreeMap::new(),
        };
        let text = table(&[
            device(
                "hpet",
                "hpet",
                false,
                vec![region(Space::Memory, 0xfed0_0000, 1024, false)],
            ),
            device(
                "com3",
                "serial",
                true,
                vec![
                    region(Space::Ports, 0x3e8, 8, true),
                    region(Space::Ports, 0x80, 1, true),
                ],
            ),
            device("none", "x", true, vec![]),
        ]);
        let expected = "\
ID    KIND    REMOVABLE  AT
hpet  hpet    no         memory 0xfed00000-0xfed003ff (off)
com3  serial  yes        ports 0x3e8-0x3ef, port 0x80
none  x       yes
";
        assert_eq!(text, expected);
    }

    #[test]
    fn rates_are_of_what_was_done_meanwhile() {
        let device = |reads, bytes| Device {
            id: "disk".into(),
            kind: "disk".into(),
            removable: true,
            regions: vec![],
            counters: [("reads".into(), reads), ("read_bytes".into(), bytes)].into(),
        };
        let rates = rates_of(&device(30, 8192), Some(&device(10, 4096)), 2.0);
        let text = table_of_rates(&[rates]);
        let expected = "\
ID    KIND  PER SECOND
disk  disk  read_bytes 2048, reads 10
";
        assert_eq!(text, expected);
        // Another device of that name came meanwhile.
        let rates = rates_of(&device(4, 2), Some(&device(10, 4096)), 2.0);
        assert_eq!(rates.per_second["reads"], 2.0);
        let rates = rates_of(&device(4, 2), None, 2.0);
        assert_eq!(rates.per_second["read_bytes"], 1.0);
    }

    #[test]
    fn a_stream_needs_a_far_end() {
        let failure = check_ends("serial", &Ends::default()).unwrap_err();
        assert!(failure.to_string().contains("--pty"), "{failure}");
        let failure = check_ends("disk", &Ends::default()).unwrap_err();
        assert!(failure.to_string().contains("needs a file"), "{failure}");
        check_ends("test-dma", &Ends::default()).unwrap();
        // Of a kind that this program does not know the module says what is wrong.
        check_ends("floppy", &Ends::default()).unwrap();
    }
}
