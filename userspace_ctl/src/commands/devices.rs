// SPDX-License-Identifier: MIT OR Apache-2.0
//! Attaches devices to VMs, detaches them, and lists them.

use super::console::with_keys;
use super::show;
use crate::cli::{Attach, Detach, Devices, Ends};
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
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};
use v3_ctl::{Device, DeviceRegion, Error, Request, Space, State, Vm};

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
    // From here on a signal does not end this program before the device is detached.
    let signals = args.ends.stdio.then(Signals::new).transpose()?;
    let vm = Vm::find(&args.target.vm)?;
    let mut end = FarEnd::open(&args.ends)?;
    let wanted = Request {
        kind: &args.kind,
        id: args.id.as_deref(),
        port: args.port,
        slot: args.slot,
        descriptors: &end.descriptors,
    };
    let id = match vm.attach(&wanted) {
        Ok(id) => id,
        Err(error) => {
            end.take_back()?;
            return Err(error.into());
        }
    };
    // The VM holds them. Who is at the other end hears of it when the VM lets them go.
    end.descriptors.clear();
    match (&end.own, &signals) {
        (Some(own), Some(signals)) => serve(args, &vm, &id, own, signals),
        _ => tell(args, &id, end.terminal.as_deref()).inspect_err(|_| {
            // The failure that matters is that of telling.
            let _ = vm.detach(&id);
        }),
    }
}

/// A stream leads somewhere, by the user's choice.
fn check_ends(kind: &str, ends: &Ends) -> Result<(), Failure> {
    let has_stream = devices::kind_by_name(kind).is_some_and(|kind| kind.has_stream);
    if has_stream && ends.is_none() {
        let failure = Failure::tool(format!("a device of the kind {kind} needs a far end"));
        return Err(
            failure.hint("give one of --pty, --pipe PATH, --file PATH, --socket PATH, --stdio")
        );
    }
    Ok(())
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

pub fn devices(args: &Devices) -> Outcome {
    let devices = Vm::find(&args.target.vm)?.devices()?;
    if args.format.json {
        print_json(&devices)?;
    } else {
        print(&table(&devices))?;
    }
    Ok(0)
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
    fn a_stream_needs_a_far_end() {
        let failure = check_ends("serial", &Ends::default()).unwrap_err();
        assert!(failure.to_string().contains("--pty"), "{failure}");
        check_ends("test-dma", &Ends::default()).unwrap();
        // Of a kind that this program does not know the module says what is wrong.
        check_ends("floppy", &Ends::default()).unwrap();
    }
}
