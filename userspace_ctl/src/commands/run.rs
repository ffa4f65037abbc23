// SPDX-License-Identifier: MIT OR Apache-2.0
//! A VM from its making to its end, in one command; and the wait for its end.

use super::console::{set_nonblocking, with_keys};
use super::make::{create_vm, default_name, image_of};
use super::report::Report;
use super::show;
use crate::cli::{Run, Wait};
use crate::failure::{Failure, Outcome};
use crate::far_end::FarEnd;
use crate::output::print_json;
use crate::progress::during;
use crate::pump::{End, Pump};
use crate::signals::Signals;
use crate::terminal::say;
use rustix::fd::{AsFd, OwnedFd};
use rustix::stdio::{stderr, stdin, stdout};
use std::thread;
use std::time::{Duration, Instant};
use v3_ctl::{Call, Control, Error, Request, State, Vm};

pub fn wait(args: &Wait) -> Outcome {
    let report = wait_for(args).map(|report| report.judged(args.expect));
    conclude(report, args.format.json, Report::tell_all)
}

pub fn run(args: &Run) -> Outcome {
    if args.check {
        return check(args).map(|()| 0);
    }
    let report = run_vm(args).map(|report| report.judged(args.expect));
    conclude(report, args.json, Report::tell)
}

/// Checks what can be known before there is a VM.
fn check(args: &Run) -> Result<(), Failure> {
    for disk in &args.disks {
        FarEnd::open_disk(disk)?;
    }
    if args.image.is_none() && args.changes.kernel.is_none() {
        return args.changes.check_alone();
    }
    image_of(args.image.as_deref(), args.build, &args.changes).map(drop)
}

/// Reports an end, or that there was none.
fn conclude(report: Result<Report, Failure>, json: bool, tell: fn(&Report)) -> Outcome {
    if !json {
        let report = report?;
        tell(&report);
        return Ok(report.exit);
    }
    let report = report.unwrap_or_else(|failure| {
        failure.tell();
        Report::of_failure(&failure)
    });
    print_json(&report)?;
    Ok(report.exit)
}

fn wait_for(args: &Wait) -> Result<Report, Failure> {
    let vm = Vm::find(&args.target.vm)?;
    let before = vm.info()?;
    if before.state == State::Created && !args.for_launch {
        // The wait might have no end.
        return Err(Error::WrongState {
            call: Call::Wait,
            vm: before.name,
            state: before.state,
        }
        .into());
    }
    if before.state == State::Paused {
        let name = before.name;
        say(&format!(
            "[{name} is paused: `v3 continue {name}` lets it go on]"
        ));
    }
    let end = match wait_for_end(&vm, args.timeout)? {
        true => End::Stopped,
        false => End::Timeout,
    };
    report_of(&vm, end)
}

fn run_vm(args: &Run) -> Result<Report, Failure> {
    // From here on a signal ends the VM, not this program.
    let signals = Signals::new()?;
    let control = Control::open()?;
    let image = image_of(args.image.as_deref(), args.build, &args.changes)?;
    let name = args.name.clone().unwrap_or_else(|| name_of(args, &image));
    let vm = Owned::create(&control, &image, &name)?;
    drop(image);
    for disk in &args.disks {
        FarEnd::open_disk(disk)?.attach(&vm.vm, &Request::of_kind("disk"))?;
    }
    let console = match vm.vm.stream("") {
        Err(Error::NoSuchStream { .. }) => None,
        console => Some(console?),
    };
    if let Some(console) = &console {
        set_nonblocking(console.as_fd())?;
    }
    vm.vm.launch()?;
    let stopped = watch(&vm.vm)?;
    let output = if args.json { stderr() } else { stdout() };
    let mut pump = Pump::new(console.as_ref().map(AsFd::as_fd), output, &signals);
    pump.input = Some(stdin());
    pump.stopped = Some(stopped.as_fd());
    pump.deadline = args
        .timeout
        .and_then(|timeout| Instant::now().checked_add(timeout));
    pump.silence = args.silence;
    let end = with_keys(&mut pump, &name, "stops it and leaves", args.key.escape)?;
    during("stopping the VM", || vm.vm.stop())?;
    let report = report_of(&vm.vm, end)?;
    during("freeing the VM", || vm.free())?;
    if end == End::Quit {
        say(&format!("[{name} was stopped and freed]"));
    }
    Ok(report)
}

/// The end of a VM, with what its virtual CPUs left behind if it was not the guest's own wish.
fn report_of(vm: &Vm, end: End) -> Result<Report, Failure> {
    let info = vm.info()?;
    let vcpus = show::remains(vm, &info)?;
    let counters = show::counters(&vm.stats()?);
    Ok(Report::of_end(end, info, counters).with_vcpus(vcpus))
}

/// A name for the VM that no other run has.
fn name_of(args: &Run, image: &[u8]) -> String {
    let file = args.image.as_ref().or(args.changes.kernel.as_ref());
    let name = default_name(image, file.map_or("vm".as_ref(), AsRef::as_ref));
    let short: String = name.chars().take(48).collect();
    format!("{short}-{}", std::process::id())
}

/// How soon after its death a guest is told to be dead.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A descriptor that polls as ready once the VM stopped. Waiting itself cannot be polled, so a thread does it.
fn watch(vm: &Vm) -> Result<OwnedFd, Failure> {
    let (ready, sender) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let vm = Vm::open(vm.number())?;
    thread::spawn(move || {
        // Whether it stopped or could not be waited for shows when it is asked for its state.
        let _ = wait_for_end(&vm, None);
        drop(sender);
    });
    Ok(ready)
}

/// Waits until the VM stops; false if the time is over before. Says once when nothing can wake the guest any more.
fn wait_for_end(vm: &Vm, timeout: Option<Duration>) -> Result<bool, Error> {
    let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    let mut dead = false;
    loop {
        let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        let look = (!dead).then_some(LOOK_EVERY);
        if vm.wait([left, look].into_iter().flatten().min())?.is_some() {
            return Ok(true);
        }
        if left.is_some_and(|left| left.is_zero()) {
            return Ok(false);
        }
        if !dead {
            dead = tell_if_dead(vm)?;
        }
    }
}

/// Says that a guest is dead, if it is.
fn tell_if_dead(vm: &Vm) -> Result<bool, Error> {
    let info = vm.info()?;
    if info.dead {
        say(&format!("v3: {}: {}", info.name, info.message));
        say(&format!("hint: `v3 stop {}` ends it", info.name));
    }
    Ok(info.dead)
}

/// A VM that ends with this program, whatever happens.
struct Owned<'a> {
    vm: Vm,
    control: &'a Control,
    freed: bool,
}

impl<'a> Owned<'a> {
    fn create(control: &'a Control, image: &[u8], name: &str) -> Result<Self, Failure> {
        let vm = create_vm(control, image, name)?;
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
