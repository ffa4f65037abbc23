// SPDX-License-Identifier: MIT OR Apache-2.0
//! One function a command.

mod console;
mod debug;
mod devices;
mod docs;
mod inspect;
mod keep;
mod links;
mod make;
mod report;
mod run;
mod show;

use crate::cli::{Command, CoreMove, Free, Relocate};
use crate::failure::Outcome;
use crate::progress::during;
use v3_ctl::{number_of, Control, Vm};

/// Runs a command; returns the exit status.
pub fn execute(command: Command) -> Outcome {
    match command {
        Command::Build(args) => make::build(&args),
        Command::Create(args) => make::create(&args),
        Command::Launch(args) => with(&args.vm, "launching", Vm::launch),
        Command::Stop(args) => with(&args.vm, "stopping", Vm::stop),
        Command::Pause(args) => with(&args.vm, "pausing", Vm::pause),
        Command::Continue(args) => with(&args.vm, "continuing", Vm::resume),
        Command::Free(args) => free(&args),
        Command::Wait(args) => run::wait(&args),
        Command::Run(args) => run::run(&args),
        Command::List(args) => show::list(&args),
        Command::Info(args) => show::info(&args),
        Command::Stats(args) => show::stats(&args),
        Command::Console(args) => console::console(&args),
        Command::Stream(args) => console::stream(&args),
        Command::Attach(args) => devices::attach(&args),
        Command::Detach(args) => devices::detach(&args),
        Command::Resize(args) => devices::resize(&args),
        Command::Devices(args) => devices::devices(&args),
        Command::Debug(args) => debug::debug(&args),
        Command::Save(args) => keep::save(&args),
        Command::Load(args) => keep::load(&args),
        Command::Inspect(args) => inspect::inspect(&args),
        Command::Relocate(args) => relocate(&args),
        Command::CoreMove(args) => core_move(&args),
        Command::Version(args) => show::version(&args),
        Command::Links(args) => links::links(&args),
        Command::Completions { shell } => docs::completions(&shell),
        Command::Man { dir } => docs::man(dir.as_deref()),
    }
}

/// Does something with a VM; `doing` says what, if it takes long.
fn with(vm: &str, doing: &str, call: impl FnOnce(&Vm) -> Result<(), v3_ctl::Error>) -> Outcome {
    let name = vm;
    let vm = Vm::find(vm)?;
    during(&format!("{doing} {name}"), || call(&vm))?;
    Ok(0)
}

fn free(args: &Free) -> Outcome {
    let control = Control::open()?;
    let vm = &args.target.vm;
    let number = match number_of(vm) {
        Some(number) => number,
        None => control.find(vm)?,
    };
    if args.force {
        let vm_to_stop = Vm::open(number)?;
        during(&format!("stopping {vm}"), || vm_to_stop.stop())?;
    }
    during(&format!("freeing {vm}"), || control.free(number))?;
    Ok(0)
}

fn relocate(args: &Relocate) -> Outcome {
    with(&args.target.vm, "relocating memory of", |vm| {
        vm.relocate(args.gpa, args.len)
    })
}

fn core_move(args: &CoreMove) -> Outcome {
    with(&args.target.vm, "moving a virtual CPU of", |vm| {
        vm.move_vcpu(args.vcpu, args.cpu.0)
    })
}
