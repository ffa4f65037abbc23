// SPDX-License-Identifier: MIT OR Apache-2.0
//! Completes command lines for shells: commands, options, files, the names of VMs and of their streams.
//!
//! A shell runs `V3_COMPLETE=SHELL v3 -- WORDS`. The script that has it do so is printed by `v3 completions`. Both sides
//! are clap_complete's dynamic engine, which calls itself unstable: Cargo.toml names its version to the last digit.

use crate::cli::Cli;
use crate::links::{self, LINKS};
use clap::builder::PossibleValuesParser;
use clap::CommandFactory;
use clap_complete::engine::CompletionCandidate;
use clap_complete::env::Shells;
use clap_complete::CompleteEnv;
use palacios_core::devices;
use std::ffi::OsString;
use std::path::Path;
use std::{env, io};
use v3_ctl::{Control, Vm};

/// The environment variable by which a shell asks.
const ASKED: &str = "V3_COMPLETE";

/// The shells for which there are completions.
pub fn shells() -> PossibleValuesParser {
    PossibleValuesParser::new(Shells::builtins().names())
}

/// What a shell has to run so that it asks this program for completions, for `v3` and for all its links.
pub fn script(shell: &str) -> io::Result<Vec<u8>> {
    let shells = Shells::builtins();
    let shell = shells
        .completer(shell)
        .ok_or_else(|| io::Error::other("no such shell"))?;
    let mut script = Vec::new();
    for name in ["v3"].into_iter().chain(LINKS.map(|(link, _)| link)) {
        shell.write_registration(ASKED, name, name, "v3", &mut script)?;
    }
    Ok(script)
}

/// Answers a shell; false if none asked.
pub fn answer() -> Result<bool, clap::Error> {
    let words: Vec<OsString> = words().collect();
    CompleteEnv::with_factory(|| description(&words))
        .var(ASKED)
        .try_complete(env::args_os(), env::current_dir().ok().as_deref())
}

/// The words of the line that is to be completed.
fn words() -> impl Iterator<Item = OsString> {
    env::args_os().skip_while(|arg| arg != "--").skip(1)
}

/// The command that a line begins with: a link, or `v3` itself.
fn description(words: &[OsString]) -> clap::Command {
    let name = words.first().map(Path::new).and_then(Path::file_name);
    let link = LINKS
        .iter()
        .map(|(link, _)| *link)
        .find(|link| name.is_some_and(|name| name == *link));
    link.and_then(links::description)
        .unwrap_or_else(Cli::command)
}

/// All VMs. Without a module there are none.
pub fn vms() -> Vec<CompletionCandidate> {
    let all = Control::open().and_then(|control| control.list());
    let candidate = |vm: v3_ctl::Info| {
        CompletionCandidate::new(vm.name).help(Some(vm.state.name().into_owned().into()))
    };
    all.unwrap_or_default().into_iter().map(candidate).collect()
}

/// The streams of the VM that the line names.
pub fn streams() -> Vec<CompletionCandidate> {
    let words: Vec<OsString> = words().collect();
    let named = vm_in(&words).and_then(|vm| Vm::find(&vm).ok());
    let streams = named.and_then(|vm| vm.streams().ok()).unwrap_or_default();
    streams.into_iter().map(CompletionCandidate::new).collect()
}

/// The devices that can be detached from the VM that the line names.
pub fn devices() -> Vec<CompletionCandidate> {
    let words: Vec<OsString> = words().collect();
    let named = vm_in(&words).and_then(|vm| Vm::find(&vm).ok());
    let devices = named.and_then(|vm| vm.devices().ok()).unwrap_or_default();
    let removable = devices.into_iter().filter(|device| device.removable);
    removable
        .map(|device| CompletionCandidate::new(device.id).help(Some(device.kind.into())))
        .collect()
}

/// The kinds of devices that can be attached.
pub fn kinds() -> Vec<CompletionCandidate> {
    let kinds = devices::attachable_kinds();
    kinds
        .map(|kind| CompletionCandidate::new(kind.name))
        .collect()
}

/// The features that can be taken away from a guest's processor.
pub fn features() -> Vec<CompletionCandidate> {
    let names = v3_ctl::features_to_take_away();
    names
        .map(|name| CompletionCandidate::new(format!("-{name}")))
        .collect()
}

/// The VM in a line that need not be complete.
fn vm_in(words: &[OsString]) -> Option<String> {
    let description = description(words).ignore_errors(true);
    let matches = description.try_get_matches_from(words).ok()?;
    let matches = matches.subcommand().map_or(&matches, |(_, inner)| inner);
    matches.try_get_one::<String>("vm").ok()?.cloned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap_complete::engine::complete;

    fn words(line: &str) -> Vec<OsString> {
        line.split(' ').map(Into::into).collect()
    }

    /// What the last word of a line can become.
    fn candidates(line: &str) -> Vec<String> {
        let words = words(line);
        let last = words.len() - 1;
        let found = complete(&mut description(&words), words, last, None).unwrap();
        let text =
            |candidate: &CompletionCandidate| candidate.get_value().to_string_lossy().into_owned();
        found.iter().map(text).collect()
    }

    #[test]
    fn commands_and_options_are_completed() {
        assert_eq!(candidates("v3 lau"), ["launch"]);
        assert_eq!(candidates("v3 con"), ["continue", "console"]);
        assert_eq!(candidates("v3 run --exp"), ["--expect"]);
        assert_eq!(candidates("/usr/bin/v3_run --exp"), ["--expect"]);
        assert_eq!(candidates("v3_wait --for"), ["--for-launch"]);
        assert_eq!(candidates("v3 completions z"), ["zsh"]);
        assert_eq!(candidates("v3 info --cp"), ["--cpuid"]);
        assert_eq!(candidates("v3 attach debian ser"), ["serial"]);
        assert_eq!(candidates("v3_attach debian serial --so"), ["--socket"]);
        assert_eq!(candidates("v3 run --cpu=-la5"), ["--cpu=-la57"]);
    }

    #[test]
    fn files_are_completed() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("guest.img"), "").unwrap();
        let start = format!("{}/gue", dir.path().display());
        let file = [format!("{}/guest.img", dir.path().display())];
        for line in [
            "v3 run",
            "v3_create",
            "v3 run --kernel",
            "v3 create x y --initrd",
        ] {
            assert_eq!(candidates(&format!("{line} {start}")), file, "{line}");
        }
    }

    #[test]
    fn a_line_names_its_vm() {
        let vm = |line: &str| vm_in(&words(line));
        assert_eq!(vm("v3 stream debian co").as_deref(), Some("debian"));
        assert_eq!(vm("v3 stream -i debian ").as_deref(), Some("debian"));
        assert_eq!(
            vm("v3 stream --escape a debian ").as_deref(),
            Some("debian")
        );
        assert_eq!(vm("v3_stream debian co").as_deref(), Some("debian"));
        assert_eq!(vm("v3 detach debian ").as_deref(), Some("debian"));
        assert_eq!(vm("v3 list"), None);
        assert_eq!(vm("v3"), None);
    }

    #[test]
    fn every_name_is_registered_with_every_shell() {
        for shell in Shells::builtins().names() {
            let script = String::from_utf8(script(shell).unwrap()).unwrap();
            for (link, _) in LINKS {
                assert!(script.contains(link), "{shell} {link}");
            }
        }
    }
}
