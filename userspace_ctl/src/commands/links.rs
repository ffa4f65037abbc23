// SPDX-License-Identifier: MIT OR Apache-2.0
//! Makes the links with Palacios' names.

use crate::cli::Links;
use crate::failure::{Failure, Outcome};
use crate::links::LINKS;
use crate::output::{print, print_json};
use serde::Serialize;
use std::fs;
use std::io::{Error, ErrorKind};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// A link, as `--json` prints it.
#[derive(Serialize)]
struct Link {
    link: &'static str,
    command: &'static str,
}

pub fn links(args: &Links) -> Outcome {
    if let Some(dir) = &args.dir {
        let program = std::env::current_exe()?;
        make(dir, &program)?;
    }
    if args.format.json {
        print_json(&LINKS.map(|(link, command)| Link { link, command }))?;
    } else if args.dir.is_none() {
        let line = |(link, command)| format!("{link:14} v3 {command}\n");
        print(&LINKS.map(line).concat())?;
    }
    Ok(0)
}

/// Makes all links in a folder, which is made if it is not there.
fn make(dir: &Path, program: &Path) -> Result<(), Failure> {
    fs::create_dir_all(dir).map_err(|e| Failure::file(dir, &e))?;
    let target = target(dir, program);
    for (link, _) in LINKS {
        let link = dir.join(link);
        replace(&link, &target).map_err(|e| match e.kind() {
            ErrorKind::AlreadyExists => {
                Failure::tool(format!("{}: exists, and is no link", link.display()))
                    .hint("remove it, or take another folder")
            }
            _ => Failure::file(&link, &e),
        })?;
    }
    Ok(())
}

/// Where a link leads: to the neighbour, if the program lies in the same folder, so that both can be moved together.
fn target(dir: &Path, program: &Path) -> PathBuf {
    let is_beside = fs::canonicalize(dir).is_ok_and(|dir| program.parent() == Some(&dir));
    match program.file_name() {
        Some(name) if is_beside => name.into(),
        _ => program.into(),
    }
}

/// Makes a link, also in place of another link. At no moment is there none: another call may be making the same links.
fn replace(link: &Path, target: &Path) -> Result<(), Error> {
    if link
        .symlink_metadata()
        .is_ok_and(|found| !found.is_symlink())
    {
        return Err(ErrorKind::AlreadyExists.into());
    }
    let mut unfinished = link.as_os_str().to_owned();
    unfinished.push(format!(".{}", std::process::id()));
    symlink(target, &unfinished)?;
    fs::rename(&unfinished, link)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_lead_to_the_program_wherever_it_lies() {
        let dir = tempfile::tempdir().unwrap();
        let here = dir.path().canonicalize().unwrap();
        let program = here.join("v3");
        fs::write(&program, "").unwrap();
        let other = here.join("other/folder");
        for (dir, target) in [(&here, Path::new("v3")), (&other, &program)] {
            for _ in 0..2 {
                make(dir, &program).unwrap(); // Also over links that are there.
                for (link, _) in LINKS {
                    assert_eq!(fs::read_link(dir.join(link)).unwrap(), target);
                    assert_eq!(dir.join(link).canonicalize().unwrap(), program);
                }
            }
        }
    }

    #[test]
    fn a_link_is_always_there_while_it_is_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("v3");
        let make_all = || {
            for _ in 0..50 {
                replace(&dir.path().join("v3_stop"), &program).unwrap();
            }
        };
        make_all();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..1000 {
                    let link = dir.path().join("v3_stop");
                    assert!(link.symlink_metadata().unwrap().is_symlink());
                }
            });
            make_all();
        });
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_of_a_links_name_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("v3_stop");
        fs::write(&file, "mine").unwrap();
        let failure = make(dir.path(), Path::new("/bin/v3")).unwrap_err();
        assert!(failure
            .message()
            .ends_with("v3_stop: exists, and is no link"));
        assert_eq!(fs::read(file).unwrap(), b"mine");
    }
}
