// SPDX-License-Identifier: MIT OR Apache-2.0
//! Attaches the user to a stream of a guest.

use crate::cli::{Console, Stream};
use crate::escape::Escape;
use crate::failure::Failure;
use crate::pump::{End, Pump};
use crate::signals::Signals;
use crate::terminal::RawMode;
use crate::Outcome;
use rustix::fd::{AsFd, BorrowedFd};
use rustix::fs::{fcntl_getfl, fcntl_setfl, OFlags};
use rustix::stdio::{stdin, stdout};
use v3_ctl::Vm;

pub fn console(args: &Console) -> Outcome {
    attach(&args.vm, "", true, args.key.escape)
}

pub fn stream(args: &Stream) -> Outcome {
    attach(&args.vm, &args.stream, args.interactive, args.key.escape)
}

fn attach(vm: &str, stream: &str, keys: bool, escape: u8) -> Outcome {
    let signals = Signals::new()?;
    let vm = Vm::find(vm)?;
    let stream = vm.stream(stream)?;
    set_nonblocking(stream.as_fd())?;
    let mut pump = Pump::new(Some(stream.as_fd()), stdout(), &signals);
    pump.input = Some(stdin());
    let name = vm.info()?.name;
    let end = if keys {
        with_keys(&mut pump, &name, "leaves", escape)?
    } else {
        pump.run()?
    };
    match end {
        End::Stopped => {
            eprintln!("[{}]", super::show::ending(&vm.info()?));
            Ok(0)
        }
        End::Signal(signal) => Ok(128 + signal),
        End::Quit | End::Timeout | End::OutputClosed => Ok(0),
    }
}

/// Pumps with the terminal, if there is one, passing each key on. It is restored when this returns.
pub fn with_keys(pump: &mut Pump<'_>, vm: &str, verb: &str, key: u8) -> Result<End, Failure> {
    let escape = Escape::new(key);
    let way_out = format!("[{vm}: {} q {verb}]", escape.name());
    let raw = RawMode::enter(stdin())?;
    if raw.is_some() {
        eprint!("{way_out}\r\n");
        pump.escape = Some(escape);
    }
    let end = pump.run();
    drop(raw);
    if pump.escape.is_some() {
        eprintln!();
    }
    Ok(end?)
}

/// The pump never waits in a read or a write.
pub fn set_nonblocking(fd: BorrowedFd<'_>) -> Result<(), Failure> {
    let flags = fcntl_getfl(fd)?;
    Ok(fcntl_setfl(fd, flags | OFlags::NONBLOCK)?)
}
