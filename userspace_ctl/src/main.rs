// SPDX-License-Identifier: MIT OR Apache-2.0
//! `v3`: builds guest images, and runs and watches virtual machines. See `v3 --help`.
#![forbid(unsafe_code)]

mod cli;
mod commands;
mod escape;
mod failure;
mod pump;
mod signals;
mod terminal;

use clap::Parser;
use cli::{Cli, Command, Links};
use failure::{Failure, TOOL};
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let command = match parse() {
        Ok(command) => command,
        Err(error) => {
            // Help and version were asked for; anything else is a wrong command line.
            let code = if error.use_stderr() { TOOL } else { 0 };
            let _ = error.print();
            return code.into();
        }
    };
    match commands::execute(command) {
        Ok(code) => code.into(),
        Err(failure) => {
            eprintln!("v3: {failure}");
            failure.code.into()
        }
    }
}

/// The command, by the name under which the program was called.
fn parse() -> Result<Command, clap::Error> {
    let called = std::env::args_os().next().unwrap_or_default();
    let name = Path::new(&called).file_name().unwrap_or_default();
    if name.to_string_lossy().starts_with("v3_") {
        Links::try_parse().map(|links| links.link.into())
    } else {
        Cli::try_parse().map(|cli| cli.command)
    }
}

/// What a command ends with: an exit status, or why it failed.
type Outcome = Result<u8, Failure>;
