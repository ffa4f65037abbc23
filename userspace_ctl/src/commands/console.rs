// SPDX-License-Identifier: MIT OR Apache-2.0
//! Attaches the user to a stream of a guest.

use super::show;
use crate::cli::{Console, Stream};
use crate::escape::Escape;
use crate::failure::{Failure, Outcome};
use crate::newlines::Newlines;
use crate::pump::{End, Pump};
use crate::signals::Signals;
use crate::terminal::{say, RawMode};
use rustix::fd::{AsFd, BorrowedFd};
use rustix::fs::{fcntl_getfl, fcntl_setfl, OFlags};
use rustix::stdio::{stdin, stdout};
use rustix::termios::isatty;
use v3_ctl::{Info, State, Vm};

pub fn console(args: &Console) -> Outcome {
    let attached = Attached::new(&args.target.vm, "")?;
    attached.serve_keys(args.key.escape, "console")
}

pub fn stream(args: &Stream) -> Outcome {
    let attached = Attached::new(&args.target.vm, &args.stream)?;
    if args.interactive {
        attached.serve_keys(args.key.escape, &format!("stream {}", args.stream))
    } else {
        attached.serve()
    }
}

/// A VM and one of its streams.
struct Attached {
    vm: Vm,
    stream: v3_ctl::Stream,
    signals: Signals,
}

impl Attached {
    fn new(vm: &str, stream: &str) -> Result<Self, Failure> {
        let signals = Signals::new()?;
        let vm = Vm::find(vm)?;
        let stream = vm.stream(stream)?;
        set_nonblocking(stream.as_fd())?;
        Ok(Self {
            vm,
            stream,
            signals,
        })
    }

    fn pump(&self) -> Pump<'_> {
        let mut pump = Pump::new(Some(self.stream.as_fd()), stdout(), &self.signals);
        pump.input = Some(stdin());
        pump
    }

    /// Passes bytes on as they are.
    fn serve(&self) -> Outcome {
        let end = self.pump().run()?;
        self.tell(end)
    }

    /// Passes each key on; `what` is what the user is attached to.
    fn serve_keys(&self, key: u8, what: &str) -> Outcome {
        let before = self.vm.info()?;
        if let Some(note) = why_silent(&before) {
            say(&format!("[{note}]"));
        }
        let end = with_keys(&mut self.pump(), &before.name, "leaves", key)?;
        if matches!(end, End::Quit | End::Signal(_)) {
            say(&format!(
                "[left the {what}; {}]",
                whereabouts(&self.vm.info()?)
            ));
        }
        self.tell(end)
    }

    /// Tells how the VM ended, if it did.
    fn tell(&self, end: End) -> Outcome {
        match end {
            End::Stopped => {
                // Whoever waited for its end may have freed it by now.
                let end = self.vm.info().map(|vm| show::ending(&vm));
                say(&format!("[{}]", end.unwrap_or("the VM was freed".into())));
                Ok(0)
            }
            End::Signal(signal) => Ok(128 + signal),
            End::Quit | End::Timeout | End::OutputClosed => Ok(0),
        }
    }
}

/// Why a VM says nothing now, and what makes it speak.
fn why_silent(vm: &Info) -> Option<String> {
    let name = &vm.name;
    match vm.state {
        State::Running if vm.dead => Some(format!(
            "{name} is {}; `v3 stop {name}` ends it",
            vm.message
        )),
        State::Created => Some(format!(
            "{name} was not launched yet: `v3 launch {name}` starts it"
        )),
        State::Paused => Some(format!(
            "{name} is paused: `v3 continue {name}` lets it go on"
        )),
        _ => None,
    }
}

/// What became of a VM that the user left.
fn whereabouts(vm: &Info) -> String {
    let name = &vm.name;
    match why_silent(vm) {
        Some(note) => note,
        None if vm.state == State::Running => {
            format!("{name} goes on running: `v3 console {name}` comes back")
        }
        None => show::ending(vm),
    }
}

/// Pumps with the terminal, if there is one, passing each key on. It is restored when this returns.
pub fn with_keys(
    pump: &mut Pump<'_>,
    vm: &str,
    leaving: &'static str,
    key: u8,
) -> Result<End, Failure> {
    let escape = Escape::new(key);
    let way_out = format!("[{vm}: {} q {leaving}]", escape.name());
    let raw = RawMode::enter(stdin())?;
    if raw.is_some() {
        say(&way_out);
        pump.escape = Some(escape);
        pump.leaving = leaving;
        pump.newlines = isatty(pump.output).then(Newlines::default);
    }
    let end = pump.run();
    drop(raw);
    if pump.escape.is_some() {
        say("");
    }
    Ok(end?)
}

/// The pump never waits in a read or a write.
pub fn set_nonblocking(fd: BorrowedFd<'_>) -> Result<(), Failure> {
    let flags = fcntl_getfl(fd)?;
    Ok(fcntl_setfl(fd, flags | OFlags::NONBLOCK)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use v3_ctl::Reason;

    fn vm(state: State) -> Info {
        Info {
            vm: 0,
            name: "debian".into(),
            state,
            reason: Reason::None,
            exit_status: None,
            dead: false,
            vcpus: 1,
            memory_bytes: 0,
            message: String::new(),
        }
    }

    #[test]
    fn who_leaves_hears_what_became_of_the_vm() {
        assert_eq!(
            whereabouts(&vm(State::Running)),
            "debian goes on running: `v3 console debian` comes back"
        );
        assert_eq!(
            whereabouts(&vm(State::Paused)),
            "debian is paused: `v3 continue debian` lets it go on"
        );
        assert_eq!(
            whereabouts(&vm(State::Created)),
            "debian was not launched yet: `v3 launch debian` starts it"
        );
        let dead = Info {
            dead: true,
            message: "dead: every CPU is halted".into(),
            ..vm(State::Running)
        };
        assert_eq!(
            whereabouts(&dead),
            "debian is dead: every CPU is halted; `v3 stop debian` ends it"
        );
        let stopped = Info {
            reason: Reason::PowerOff,
            message: "the guest powered off".into(),
            ..vm(State::Stopped)
        };
        assert_eq!(
            whereabouts(&stopped),
            "debian: power-off: the guest powered off"
        );
    }
}
