// SPDX-License-Identifier: MIT OR Apache-2.0
//! Palacios' names of commands: each is a link to this program, which answers to the name by which it is called.

use crate::cli::{Cli, Command};
use clap::{CommandFactory, FromArgMatches};
use std::ffi::OsString;

/// Each link, and the command that it is. Whatever needs the names takes them from here.
pub const LINKS: [(&str, &str); 23] = [
    ("v3_build", "build"),
    ("v3_create", "create"),
    ("v3_launch", "launch"),
    ("v3_stop", "stop"),
    ("v3_pause", "pause"),
    ("v3_continue", "continue"),
    ("v3_free", "free"),
    ("v3_wait", "wait"),
    ("v3_run", "run"),
    ("v3_list", "list"),
    ("v3_info", "info"),
    ("v3_stats", "stats"),
    ("v3_cons", "console"),
    ("v3_stream", "stream"),
    ("v3_attach", "attach"),
    ("v3_detach", "detach"),
    ("v3_resize", "resize"),
    ("v3_devices", "devices"),
    ("v3_debug", "debug"),
    ("v3_save", "save"),
    ("v3_load", "load"),
    ("v3_relocate", "relocate"),
    ("v3_core_move", "core-move"),
];

/// The command that a link is.
pub fn command_of(link: &str) -> Option<&'static str> {
    let found = LINKS.iter().find(|(name, _)| *name == link);
    found.map(|(_, command)| *command)
}

/// The description of the command that a link is, under the link's name.
pub fn description(link: &'static str) -> Option<clap::Command> {
    let cli = Cli::command();
    let command = cli.find_subcommand(command_of(link)?)?;
    Some(command.clone().name(link))
}

/// The descriptions of all links.
pub fn descriptions() -> impl Iterator<Item = clap::Command> {
    LINKS.iter().filter_map(|(link, _)| description(link))
}

/// Reads the arguments of a link. `None` if there is no link of this name.
pub fn parse(called: &str, args: &[OsString]) -> Option<Result<Command, clap::Error>> {
    let (link, command) = LINKS.iter().find(|(link, _)| *link == called)?;
    let description = description(link)?;
    Some(parse_as(description, command, args))
}

fn parse_as(
    description: clap::Command,
    command: &str,
    args: &[OsString],
) -> Result<Command, clap::Error> {
    // The link's own description gives help and errors their name, that of `v3` gives the values.
    description.try_get_matches_from(args)?;
    let words = ["v3", command].map(OsString::from).into_iter();
    let words = words.chain(args.iter().skip(1).cloned());
    let mut matches = Cli::command().try_get_matches_from(words)?;
    Ok(Cli::from_arg_matches_mut(&mut matches)?.command)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{CoreMove, Cpu, Create, Free, Stream};

    fn link(line: &str) -> Command {
        let words: Vec<OsString> = line.split(' ').map(Into::into).collect();
        let name = words[0].to_str().unwrap();
        parse(name, &words)
            .unwrap()
            .map_err(|e| e.to_string())
            .unwrap()
    }

    #[test]
    fn each_link_is_a_command_and_each_command_of_vms_has_a_link() {
        assert_eq!(descriptions().count(), LINKS.len());
        let cli = Cli::command();
        let without: Vec<&str> = cli
            .get_subcommands()
            .map(clap::Command::get_name)
            .filter(|name| LINKS.iter().all(|(_, command)| command != name))
            .collect();
        assert_eq!(
            without,
            ["inspect", "version", "links", "completions", "man"]
        );
        assert!(LINKS.iter().all(|(link, _)| link.starts_with("v3_")));
        assert!(parse("v3_boil", &[]).is_none());
    }

    #[test]
    fn palacios_forms() {
        match link("v3_create -b guest.toml first") {
            Command::Create(Create {
                build: true,
                image,
                name,
                ..
            }) => {
                assert_eq!(
                    (image.to_str(), name.as_deref()),
                    (Some("guest.toml"), Some("first"))
                );
            }
            _ => panic!(),
        }
        match link("v3_stream -i /dev/v3-vm0 com1") {
            Command::Stream(Stream {
                interactive: true,
                target,
                stream,
                ..
            }) => {
                let given = (target.vm.as_str(), stream.as_str());
                assert_eq!(given, ("/dev/v3-vm0", "com1"));
            }
            _ => panic!(),
        }
        assert!(matches!(
            link("v3_free 0"),
            Command::Free(Free { force: false, .. })
        ));
        assert!(matches!(link("v3_cons /dev/v3-vm0"), Command::Console(_)));
        match link("v3_core_move /dev/v3-vm0 2 1") {
            Command::CoreMove(CoreMove { target, vcpu, cpu }) => {
                let given = (target.vm.as_str(), vcpu, cpu);
                assert_eq!(given, ("/dev/v3-vm0", 2, Cpu(Some(1))));
            }
            _ => panic!(),
        }
    }

    #[test]
    fn errors_are_in_the_links_name() {
        let words = ["v3_cons", "--colour"].map(OsString::from);
        let error = parse("v3_cons", &words).unwrap().err().unwrap().to_string();
        assert!(error.contains("Usage: v3_cons "), "{error}");
    }
}
