// SPDX-License-Identifier: MIT OR Apache-2.0
//! Manual pages and completions, made of the command line's own description.

use crate::cli::Cli;
use crate::failure::{Failure, Outcome};
use crate::output::print;
use crate::{complete, links};
use clap::{Command, CommandFactory};
use clap_mangen::roff::{roman, Roff};
use clap_mangen::Man;
use std::path::Path;
use std::{fs, io};

pub fn completions(shell: &str) -> Outcome {
    print(&String::from_utf8_lossy(&complete::script(shell)?))?;
    Ok(0)
}

pub fn man(dir: Option<&Path>) -> Outcome {
    match dir {
        Some(dir) => write_all(dir).map_err(|e| Failure::file(dir, &e))?,
        None => print(&String::from_utf8_lossy(&page(&full(Cli::command()))?))?,
    }
    Ok(0)
}

/// A page for `v3`, one a command, and one for each of Palacios' names.
fn write_all(dir: &Path) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    let v3 = full(Cli::command());
    let commands = [&v3].into_iter().chain(v3.get_subcommands()).cloned();
    for command in commands.chain(links::descriptions().map(full)) {
        let file = Man::new(command.clone()).get_filename();
        fs::write(dir.join(file), page(&command)?)?;
    }
    Ok(())
}

/// The command with all that clap adds to it when it parses, such as the full names of its commands.
fn full(command: Command) -> Command {
    let mut command = command.disable_help_subcommand(true);
    command.build();
    command
}

/// A page. What follows the options in the help is laid out already: it is kept line by line.
fn page(command: &Command) -> io::Result<Vec<u8>> {
    let man = Man::new(command.clone());
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_options_section(&mut page)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut page)?;
    }
    if let Some(notes) = command.get_after_help() {
        let mut roff = Roff::new();
        roff.control("SH", ["NOTES"]).control("nf", []);
        roff.text([roman(notes.to_string())]).control("fi", []);
        roff.to_writer(&mut page)?;
    }
    Ok(page)
}
