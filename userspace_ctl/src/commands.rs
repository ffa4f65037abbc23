// SPDX-License-Identifier: MIT OR Apache-2.0
//! One function a command.

mod console;
mod docs;
mod make;
mod run;
mod show;

use crate::cli::{Command, CoreMove, Free, Relocate};
use crate::failure::Failure;
use crate::Outcome;
use std::io::{self, Write};
use v3_ctl::{number_of, Control, Vm};

/// Runs a command; returns the exit status.
pub fn execute(command: Command) -> Outcome {
    match command {
        Command::Build(args) => make::build(&args),
        Command::Create(args) => make::create(&args),
        Command::Launch(args) => with(&args.vm, Vm::launch),
        Command::Stop(args) => with(&args.vm, Vm::stop),
        Command::Pause(args) => with(&args.vm, Vm::pause),
        Command::Continue(args) => with(&args.vm, Vm::resume),
        Command::Free(args) => free(&args),
        Command::Wait(args) => run::wait(&args),
        Command::Run(args) => run::run(&args),
        Command::List(args) => show::list(&args),
        Command::Info(args) => show::info(&args),
        Command::Stats(args) => show::stats(&args),
        Command::Console(args) => console::console(&args),
        Command::Stream(args) => console::stream(&args),
        Command::Relocate(args) => relocate(&args),
        Command::CoreMove(args) => core_move(&args),
        Command::Version(args) => show::version(&args),
        Command::Completions { shell } => docs::completions(shell),
        Command::Man { dir } => docs::man(dir.as_deref()),
    }
}

fn with(vm: &str, call: impl FnOnce(&Vm) -> Result<(), v3_ctl::Error>) -> Outcome {
    call(&Vm::find(vm)?)?;
    Ok(0)
}

fn free(args: &Free) -> Outcome {
    let control = Control::open()?;
    let number = match number_of(&args.vm) {
        Some(number) => number,
        None => control.find(&args.vm)?,
    };
    if args.force {
        Vm::open(number)?.stop()?;
    }
    control.free(number)?;
    Ok(0)
}

fn relocate(args: &Relocate) -> Outcome {
    with(&args.vm, |vm| vm.relocate(args.gpa, args.len))
}

fn core_move(args: &CoreMove) -> Outcome {
    with(&args.vm, |vm| vm.move_vcpu(args.vcpu, args.cpu.0))
}

/// Prints to standard output. A reader that left early, such as `head`, is no failure.
fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::tool(format!("standard output: {error}")))
        }
        _ => Ok(()),
    }
}

/// Prints a line of JSON.
fn print_json(value: &impl serde::Serialize) -> Result<(), Failure> {
    let json = serde_json::to_string(value).map_err(|e| Failure::tool(e.to_string()))?;
    print(&format!("{json}\n"))
}
