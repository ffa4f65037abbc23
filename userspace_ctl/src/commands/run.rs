// SPDX-License-Identifier: MIT OR Apache-2.0
//! A VM from its making to its end, in one command.

use super::console::{set_nonblocking, with_keys};
use super::make::{build_image, default_name, load_image, name_of_file};
use super::{print_json, show};
use crate::cli::{Run, Wait};
use crate::failure::{Failure, REFUSED, TOOL};
use crate::pump::{End, Pump};
use crate::signals::Signals;
use crate::Outcome;
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::stdio::{stderr, stdin, stdout};
use serde::Serialize;
use serde_json::Value;
use std::thread;
use std::time::{Duration, Instant};
use v3_ctl::{Control, Error, Guest, Info, Reason, SerialPort, Vm};

/// Exit status when the timeout passed, as of timeout(1).
const TIMEOUT: u8 = 124;
/// Exit status when the guest died.
const DIED: u8 = 127;
/// Exit status when someone stopped the VM, as of SIGINT.
const STOPPED: u8 = 130;

/// What `--json` prints.
#[derive(Serialize)]
struct Report {
    exit: u8,
    reason: String,
    exit_status: Option<u32>,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    counters: Option<Value>,
}

impl Report {
    fn of_end(end: End, info: Info, counters: Value) -> Self {
        let (exit, reason) = outcome(end, &info);
        Self {
            exit,
            reason,
            exit_status: info.exit_status,
            message: info.message,
            name: Some(info.name),
            counters: Some(counters),
        }
    }

    fn of_failure(failure: &Failure) -> Self {
        let reason = if failure.code == REFUSED {
            "refused"
        } else {
            "tool-error"
        };
        Self {
            exit: failure.code,
            reason: reason.into(),
            exit_status: None,
            message: failure.message().into(),
            name: None,
            counters: None,
        }
    }
}

/// Exit status and reason. A VM that we stopped has our reason, unless it had ended by itself just before.
fn outcome(end: End, info: &Info) -> (u8, String) {
    let of_reason = || (exit_status(info), info.reason.name().into());
    if info.reason != Reason::Request {
        return of_reason();
    }
    match end {
        End::Stopped => of_reason(),
        End::Timeout => (TIMEOUT, "timeout".into()),
        End::Quit => (STOPPED, "escape".into()),
        End::Signal(signal) => (128 + signal, "signal".into()),
        End::OutputClosed => (TOOL, "output-closed".into()),
    }
}

/// The exit status for a VM that stopped.
fn exit_status(info: &Info) -> u8 {
    match info.reason {
        Reason::PowerOff => 0,
        Reason::TestExit => info.exit_status.unwrap_or(0).to_le_bytes()[0],
        Reason::Request => STOPPED,
        Reason::None | Reason::HostMemory | Reason::HostError => TOOL,
        Reason::Reset
        | Reason::TripleFault
        | Reason::UnknownExit
        | Reason::Emulation
        | Reason::BadState
        | Reason::GuestError
        | Reason::Other(_) => DIED,
    }
}

pub fn wait(args: &Wait) -> Outcome {
    let vm = Vm::find(&args.vm)?;
    if vm.wait(args.timeout)?.is_none() {
        return Ok(TIMEOUT);
    }
    let info = vm.info()?;
    eprintln!("{}", show::ending(&info));
    Ok(exit_status(&info))
}

pub fn run(args: &Run) -> Outcome {
    let report = run_vm(args);
    if args.json {
        let report = report.unwrap_or_else(|failure| {
            eprintln!("v3: {failure}");
            Report::of_failure(&failure)
        });
        print_json(&report)?;
        return Ok(report.exit);
    }
    let report = report?;
    if !["power-off", "test-exit", "escape"].contains(&report.reason.as_str()) {
        let name = report.name.as_deref().unwrap_or_default();
        let message = Some(report.message).filter(|m| !m.is_empty());
        let message = message.map_or(String::new(), |m| format!(": {m}"));
        eprintln!("v3: {name}: {}{message}", report.reason);
    }
    Ok(report.exit)
}

fn run_vm(args: &Run) -> Result<Report, Failure> {
    // From here on a signal ends the VM, not this program.
    let signals = Signals::new()?;
    let control = Control::open()?;
    let (image, name) = image(args)?;
    let name = args.name.clone().unwrap_or(name);
    let vm = Owned::create(&control, &image, &name)?;
    drop(image);
    let console = match vm.vm.stream("") {
        Err(Error::Call {
            errno: Errno::NOENT,
            ..
        }) => None,
        console => Some(console?),
    };
    if let Some(console) = &console {
        set_nonblocking(console.as_fd())?;
    }
    vm.vm.launch()?;
    let stopped = watch(&vm.vm, name.clone())?;
    let output = if args.json { stderr() } else { stdout() };
    let mut pump = Pump::new(console.as_ref().map(AsFd::as_fd), output, &signals);
    pump.input = Some(stdin());
    pump.stopped = Some(stopped.as_fd());
    pump.deadline = args
        .timeout
        .and_then(|timeout| Instant::now().checked_add(timeout));
    let end = with_keys(&mut pump, &name, "stops it and leaves", args.key.escape)?;
    vm.vm.stop()?;
    let report = Report::of_end(end, vm.vm.info()?, show::counters(&vm.vm.stats()?));
    vm.free()?;
    Ok(report)
}

/// The image to run, and a name for its VM that no other run has.
fn image(args: &Run) -> Result<(Vec<u8>, String), Failure> {
    let (image, name) = match (&args.image, guest(args)?) {
        (_, Some(guest)) => (build_image(&guest)?, name_of_file(&guest.kernel)),
        (Some(file), None) => {
            let image = load_image(file, args.build)?;
            let name = default_name(&image, file);
            (image, name)
        }
        // The command line's description rules this out.
        (None, None) => return Err(Failure::tool("no image and no kernel given")),
    };
    let short: String = name.chars().take(48).collect();
    Ok((image, format!("{short}-{}", std::process::id())))
}

/// The guest that the options describe, if they do.
fn guest(args: &Run) -> Result<Option<Guest>, Failure> {
    let Some(kernel) = args.kernel.clone() else {
        return Ok(None);
    };
    let mut guest = Guest::new(kernel);
    guest.initrds.clone_from(&args.initrd);
    guest.modules.clone_from(&args.module);
    guest.cmdline = args.append.clone().unwrap_or_default();
    guest.memory_bytes = args
        .mem
        .map_or(guest.memory_bytes, |mib| u64::from(mib) << 20);
    guest.vcpus = args.cpus.unwrap_or(1);
    if args.pins.len() > guest.vcpus as usize {
        let count = guest.vcpus;
        return Err(Failure::tool(format!(
            "--pins names more CPUs than the machine has, which is {count}"
        ))
        .hint(
            "give one for each virtual CPU that is to be pinned, and as many as that with --cpus",
        ));
    }
    guest.pins.clone_from(&args.pins);
    guest.serials = vec![SerialPort::com(1)];
    Ok(Some(guest))
}

/// How soon after its death a guest is told to be dead.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A descriptor that polls as ready once the VM stopped. Waiting itself cannot be polled, so a thread does it; it also
/// says, once, when nothing can wake the guest any more.
fn watch(vm: &Vm, name: String) -> Result<OwnedFd, Failure> {
    let (ready, sender) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let vm = Vm::open(vm.number())?;
    thread::spawn(move || {
        // Whether it stopped or could not be waited for shows when it is asked for its state.
        while let Ok(None) = vm.wait(Some(LOOK_EVERY)) {
            if let Some(info) = vm.info().ok().filter(|info| info.dead) {
                eprintln!("v3: {name}: {}", info.message);
                let _ = vm.wait(None);
                break;
            }
        }
        drop(sender);
    });
    Ok(ready)
}

/// A VM that ends with this program, whatever happens.
struct Owned<'a> {
    vm: Vm,
    control: &'a Control,
    freed: bool,
}

impl<'a> Owned<'a> {
    fn create(control: &'a Control, image: &[u8], name: &str) -> Result<Self, Failure> {
        let vm = control.create(image, name)?;
        Ok(Self {
            vm,
            control,
            freed: false,
        })
    }

    /// Frees it; unlike dropping this tells of a failure.
    fn free(mut self) -> Result<(), Failure> {
        self.freed = true;
        Ok(self.control.free(self.vm.number())?)
    }
}

impl Drop for Owned<'_> {
    fn drop(&mut self) {
        if !self.freed {
            // On the way out of a failure, which is what is told.
            let _ = self.vm.stop();
            let _ = self.control.free(self.vm.number());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use clap::Parser;
    use v3_ctl::State;

    fn stopped(reason: Reason, exit_status: Option<u32>) -> Info {
        Info {
            vm: 0,
            name: "guest-1".into(),
            state: State::Stopped,
            reason,
            exit_status,
            dead: false,
            vcpus: 1,
            memory_bytes: 0,
            message: "why".into(),
        }
    }

    #[test]
    fn pins_are_for_cpus_that_the_machine_has() {
        let guest = |line: &str| match Cli::parse_from(line.split(' ')).command {
            Command::Run(run) => guest(&run),
            _ => panic!(),
        };
        let pinned = guest("v3 run --kernel k --cpus 3 --pins 4,2")
            .unwrap()
            .unwrap();
        assert_eq!((pinned.vcpus, pinned.pins), (3, vec![4, 2]));
        let refused = guest("v3 run --kernel k --pins 4,2").err().unwrap();
        assert_eq!(refused.code, TOOL);
        assert!(refused.to_string().contains("which is 1\nhint: "));
        assert!(guest("v3 run guest.img").unwrap().is_none());
    }

    #[test]
    fn the_guests_own_end_decides() {
        let exit = |reason, status| outcome(End::Stopped, &stopped(reason, status)).0;
        assert_eq!(exit(Reason::PowerOff, None), 0);
        assert_eq!(exit(Reason::TestExit, Some(85)), 85);
        assert_eq!(exit(Reason::TestExit, Some(0x101)), 1);
        assert_eq!(exit(Reason::TripleFault, None), 127);
        assert_eq!(exit(Reason::HostMemory, None), 125);
        assert_eq!(exit(Reason::Request, None), 130);
        assert_eq!(exit(Reason::Other(99), None), 127);
    }

    #[test]
    fn our_reason_counts_only_if_we_stopped_it() {
        let ours = stopped(Reason::Request, None);
        assert_eq!(outcome(End::Timeout, &ours), (124, "timeout".into()));
        assert_eq!(outcome(End::Signal(15), &ours), (143, "signal".into()));
        assert_eq!(outcome(End::Quit, &ours), (130, "escape".into()));
        let its_own = stopped(Reason::PowerOff, None);
        assert_eq!(outcome(End::Timeout, &its_own), (0, "power-off".into()));
    }

    #[test]
    fn the_report_is_what_the_help_says() {
        let info = stopped(Reason::TestExit, Some(85));
        let report = Report::of_end(End::Stopped, info, show::counters(&[]));
        let expected = serde_json::json!({
            "exit": 85, "reason": "test-exit", "exit_status": 85, "message": "why",
            "name": "guest-1", "counters": {"vm": {}, "vcpus": []},
        });
        assert_eq!(serde_json::to_value(&report).unwrap(), expected);
        let failure = Report::of_failure(&Failure::tool("no"));
        let expected = serde_json::json!({
            "exit": 125, "reason": "tool-error", "exit_status": null, "message": "no",
        });
        assert_eq!(serde_json::to_value(&failure).unwrap(), expected);
    }
}
