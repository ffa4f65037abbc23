// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a device's stream is connected to, or a disk is in: opens it for a VM, which then holds it.

use crate::cli::{DiskFile, Ends};
use crate::failure::Failure;
use rustix::fd::{AsFd, AsRawFd, OwnedFd};
use rustix::fs::{fcntl_getfl, fcntl_setfl, fstat, open, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::pty::{grantpt, openpt, ptsname, unlockpt, OpenptFlags};
use rustix::termios::{tcgetattr, tcsetattr, OptionalActions};
use std::ffi::OsString;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use v3_ctl::{Error, Request, Role, Vm};

/// What was opened for a device.
#[derive(Default, Debug)]
pub struct FarEnd {
    /// The descriptors for the VM.
    descriptors: Vec<(OwnedFd, Role)>,
    /// The terminal at which the device can be talked to.
    pub terminal: Option<String>,
    /// This program's own end.
    pub own: Option<UnixStream>,
    /// A file that was not there before.
    made: Option<PathBuf>,
    /// The disk, if it is one.
    disk: Option<DiskFile>,
}

impl FarEnd {
    /// Opens what the command line asks for.
    pub fn open(ends: &Ends) -> Result<Self, Failure> {
        match ends {
            Ends {
                disk: Some(disk), ..
            } => Self::open_disk(disk),
            Ends { pty: true, .. } => Self::pty(),
            Ends { stdio: true, .. } => Self::stdio(),
            Ends {
                pipe: Some(path), ..
            } => Self::pipe(path),
            Ends {
                file: Some(path), ..
            } => Self::file(path),
            Ends {
                socket: Some(path), ..
            } => Self::socket(path),
            _ => Ok(Self::default()),
        }
    }

    /// Attaches a device to a VM, which holds the descriptors then; returns what it is known by. `wanted` is all but these, and but what it is as a disk.
    pub fn attach(&mut self, vm: &Vm, wanted: &Request<'_>) -> Result<String, Failure> {
        let attached = vm.attach(&Request {
            disk: self.disk.as_ref().map(|disk| disk.how),
            descriptors: &self.descriptors,
            ..*wanted
        });
        match attached {
            Ok(id) => {
                // Who is at the other end hears of it when the VM lets them go.
                self.descriptors.clear();
                Ok(id)
            }
            Err(error) => {
                self.take_back()?;
                Err(self.named(error).into())
            }
        }
    }

    /// Takes back what was made for a device that was not attached.
    fn take_back(&self) -> Result<(), Failure> {
        match &self.made {
            Some(path) => std::fs::remove_file(path).map_err(|e| Failure::file(path, &e)),
            None => Ok(()),
        }
    }

    /// The file or block device of a disk.
    pub fn open_disk(disk: &DiskFile) -> Result<Self, Failure> {
        let path = &disk.path;
        // Looked at first: to open a pipe waits for its other end.
        let kind = std::fs::metadata(path).map_err(|e| Failure::file(path, &e))?;
        let is_device = kind.file_type().is_block_device();
        if !kind.is_file() && !is_device {
            let what = format!("{}: this is no file and no block device", path.display());
            return Err(Failure::tool(what));
        }
        let mut flags = OFlags::CLOEXEC;
        flags |= if disk.writes() {
            OFlags::RDWR
        } else {
            OFlags::RDONLY
        };
        // What the host has mounted is not to be written by others.
        if is_device && disk.writes() && !disk.how.is_shared {
            flags |= OFlags::EXCL;
        }
        let file = open(path, flags, Mode::empty()).map_err(|errno| cannot_open(disk, errno))?;
        let role = if disk.writes() {
            Role::Disk
        } else {
            Role::ReadOnlyDisk
        };
        Ok(Self {
            descriptors: vec![(file, role)],
            disk: Some(disk.clone()),
            ..Self::default()
        })
    }

    /// A failure to attach it, in which the module's number of a disk's descriptor is the name of its file.
    fn named(&self, error: Error) -> Error {
        match (error, &self.disk, self.descriptors.first()) {
            (Error::NotAttached { vm, errno, message }, Some(disk), Some((fd, _))) => {
                let number = format!("descriptor {} ", fd.as_raw_fd());
                let path = format!("{} ", disk.path.display());
                Error::NotAttached {
                    vm,
                    errno,
                    message: message.replacen(&number, &path, 1),
                }
            }
            (error, ..) => error,
        }
    }

    /// A new terminal, which passes each byte on as it is.
    fn pty() -> Result<Self, Failure> {
        let failed = |errno: Errno| Failure::file("/dev/ptmx".as_ref(), &errno.into());
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags).map_err(failed)?;
        grantpt(&master).map_err(failed)?;
        unlockpt(&master).map_err(failed)?;
        let name = ptsname(&master, Vec::new()).map_err(failed)?;
        let mut modes = tcgetattr(&master)?;
        modes.make_raw();
        tcsetattr(&master, OptionalActions::Now, &modes)?;
        set_nonblocking(&master)?;
        Ok(Self {
            terminal: Some(name.to_string_lossy().into_owned()),
            descriptors: vec![(master, Role::Both)],
            ..Self::default()
        })
    }

    /// PATH.in and PATH.out, or PATH alone for output.
    fn pipe(path: &Path) -> Result<Self, Failure> {
        let (input, output) = (with_suffix(path, ".in"), with_suffix(path, ".out"));
        let descriptors = match (input.exists(), output.exists()) {
            (false, false) if !path.exists() => {
                return Err(Failure::tool(format!(
                    "{}: no such pipe, and no pair of pipes that end in .in and .out",
                    path.display()
                ))
                .hint(format!("mkfifo {} {}", input.display(), output.display())))
            }
            (false, false) => vec![(open_pipe(path)?, Role::Output)],
            // One that is missing is an error, not a half of what was wanted.
            _ => vec![
                (open_pipe(&input)?, Role::Input),
                (open_pipe(&output)?, Role::Output),
            ],
        };
        Ok(Self {
            descriptors,
            ..Self::default()
        })
    }

    /// A file, to whose end the output goes.
    fn file(path: &Path) -> Result<Self, Failure> {
        let failed = |errno: Errno| Failure::file(path, &errno.into());
        let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(0o666);
        let (file, is_new) = match open(path, flags | OFlags::CREATE | OFlags::EXCL, mode) {
            Err(Errno::EXIST) => (open(path, flags, mode).map_err(failed)?, false),
            file => (file.map_err(failed)?, true),
        };
        Ok(Self {
            descriptors: vec![(file, Role::Output)],
            made: is_new.then(|| path.into()),
            ..Self::default()
        })
    }

    /// A connection to whoever listens at a socket.
    fn socket(path: &Path) -> Result<Self, Failure> {
        let socket = UnixStream::connect(path).map_err(|error| {
            let failure = Failure::file(path, &error);
            match error.kind() {
                std::io::ErrorKind::ConnectionRefused => {
                    failure.hint("nobody listens there; socat UNIX-LISTEN:PATH - does")
                }
                _ => failure,
            }
        })?;
        socket.set_nonblocking(true)?;
        Ok(Self {
            descriptors: vec![(socket.into(), Role::Both)],
            ..Self::default()
        })
    }

    /// A connection to this program.
    fn stdio() -> Result<Self, Failure> {
        let (own, of_vm) = UnixStream::pair()?;
        own.set_nonblocking(true)?;
        of_vm.set_nonblocking(true)?;
        Ok(Self {
            descriptors: vec![(of_vm.into(), Role::Both)],
            own: Some(own),
            ..Self::default()
        })
    }
}

fn cannot_open(disk: &DiskFile, errno: Errno) -> Failure {
    let failure = Failure::file(&disk.path, &errno.into());
    match errno {
        Errno::BUSY => failure.hint("the host uses it, or another program has it alone: unmount it first"),
        Errno::ACCESS | Errno::PERM | Errno::ROFS if disk.writes() => {
            failure.hint("`,ro` behind it attaches it for reading alone, `,snapshot` keeps what is written in memory")
        }
        _ => failure,
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut path = OsString::from(path);
    path.push(suffix);
    path.into()
}

/// Opens a named pipe for both, so that nobody need be at its other end, and nothing ends when that one goes.
fn open_pipe(path: &Path) -> Result<OwnedFd, Failure> {
    let failed = |errno: Errno| Failure::file(path, &errno.into());
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let pipe = open(path, flags, Mode::empty()).map_err(failed)?;
    let kind = FileType::from_raw_mode(fstat(&pipe).map_err(failed)?.st_mode);
    match kind {
        FileType::Fifo => Ok(pipe),
        _ => Err(
            Failure::tool(format!("{}: not a named pipe", path.display()))
                .hint("mkfifo makes one; --file writes to a file"),
        ),
    }
}

fn set_nonblocking(fd: impl AsFd) -> Result<(), Failure> {
    let flags = fcntl_getfl(&fd)?;
    Ok(fcntl_setfl(fd, flags | OFlags::NONBLOCK)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::fs::OpenOptionsExt;
    use std::os::unix::net::UnixListener;

    fn roles(end: &FarEnd) -> Vec<Role> {
        end.descriptors.iter().map(|(_, role)| *role).collect()
    }

    fn make_pipe(path: &Path) {
        let made = std::process::Command::new("mkfifo").arg(path).status();
        assert!(made.unwrap().success());
    }

    #[test]
    fn a_terminal_is_raw_and_can_be_opened_again_and_again() {
        let end = FarEnd::pty().unwrap();
        let master = std::fs::File::from(end.descriptors[0].0.try_clone().unwrap());
        for _ in 0..2 {
            let mut terminal = std::fs::OpenOptions::new()
                .read(true)
                .write(true)
                .custom_flags(OFlags::NOCTTY.bits() as i32)
                .open(end.terminal.as_deref().unwrap())
                .unwrap();
            (&master).write_all(b"a\n").unwrap();
            let mut bytes = [0; 2];
            terminal.read_exact(&mut bytes).unwrap();
            assert_eq!(&bytes, b"a\n");
        }
    }

    #[test]
    fn a_pair_of_pipes_goes_before_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p");
        let missing = FarEnd::pipe(&path).unwrap_err();
        assert!(missing.to_string().contains("mkfifo"), "{missing}");
        make_pipe(&path);
        assert_eq!(roles(&FarEnd::pipe(&path).unwrap()), [Role::Output]);
        make_pipe(&dir.path().join("p.in"));
        let half = FarEnd::pipe(&path).unwrap_err();
        assert!(half.message().contains("p.out"), "{half}");
        make_pipe(&dir.path().join("p.out"));
        let both = FarEnd::pipe(&path).unwrap();
        assert_eq!(roles(&both), [Role::Input, Role::Output]);
        let file = dir.path().join("file");
        std::fs::write(&file, "mine").unwrap();
        let none = FarEnd::pipe(&file).unwrap_err();
        assert!(none.message().ends_with("not a named pipe"), "{none}");
    }

    #[test]
    fn only_a_file_that_was_made_is_taken_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let end = FarEnd::file(&path).unwrap();
        assert_eq!(roles(&end), [Role::Output]);
        end.take_back().unwrap();
        assert!(!path.exists());
        std::fs::write(&path, "mine").unwrap();
        FarEnd::file(&path).unwrap().take_back().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"mine");
        assert!(FarEnd::file(&dir.path().join("no/log")).is_err());
    }

    #[test]
    fn a_socket_needs_somebody_who_listens() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        assert!(FarEnd::socket(&path).is_err());
        let listener = UnixListener::bind(&path).unwrap();
        assert_eq!(roles(&FarEnd::socket(&path).unwrap()), [Role::Both]);
        drop(listener);
        let refused = FarEnd::socket(&path).unwrap_err();
        assert!(refused.to_string().contains("listens"), "{refused}");
    }
}
