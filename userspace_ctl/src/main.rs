// SPDX-License-Identifier: MIT OR Apache-2.0
//! `v3`: builds guest images, and runs and watches virtual machines. See `v3 --help`.
#![forbid(unsafe_code)]

mod cli;
mod commands;
mod complete;
mod escape;
mod failure;
mod far_end;
mod links;
mod newlines;
mod output;
mod progress;
mod pump;
mod signals;
mod terminal;
mod whole_file;

use clap::error::ErrorKind;
use clap::Parser;
use cli::{Cli, Command};
use failure::{Failure, Outcome, TOOL};
use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let code = answer().unwrap_or_else(|failure| {
        failure.tell();
        failure.code
    });
    code.into()
}

fn answer() -> Outcome {
    if complete::answer()? {
        return Ok(0);
    }
    match parse()? {
        Ok(command) => commands::execute(command),
        Err(error) => show_help(error),
    }
}

/// The command, by the name under which the program was called.
fn parse() -> Result<Result<Command, clap::Error>, Failure> {
    let args: Vec<OsString> = std::env::args_os().collect();
    let called = args.first().map(Path::new).and_then(Path::file_name);
    let name = called.unwrap_or_default().to_string_lossy();
    if !name.starts_with("v3_") {
        return Ok(Cli::try_parse_from(args).map(|cli| cli.command));
    }
    links::parse(&name, &args).ok_or_else(|| {
        Failure::tool(format!("no command is called {name}")).hint("`v3 links` lists all names")
    })
}

/// Prints help or the version, if it is that which clap gives in place of a command.
fn show_help(error: clap::Error) -> Outcome {
    let code = match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => 0,
        // Nothing was asked for.
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => TOOL,
        _ => return Err(error.into()),
    };
    // A reader that left early is no failure.
    let _ = error.print();
    Ok(code)
}
