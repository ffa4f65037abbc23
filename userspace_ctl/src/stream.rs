// SPDX-License-Identifier: MIT OR Apache-2.0
//! A byte stream of a guest: a serial port's far end.

use crate::ioctl;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use std::io::{self, Read, Write};
use v3_abi::{put_text, v3_stream, Abi, V3_STREAM_NAME_LEN};

/// An attached stream. Dropping it detaches.
///
/// [`Read`] gives what the guest sends, and 0 once the VM stopped and all was read; [`Write`] is what it receives.
/// The descriptor is in blocking mode and can be polled.
#[derive(Debug)]
pub struct Stream {
    fd: OwnedFd,
}

impl Stream {
    /// Turns an open descriptor of a VM into a stream.
    pub(crate) fn attach(fd: OwnedFd, name: &str) -> Result<Self, Errno> {
        if name.len() >= V3_STREAM_NAME_LEN as usize {
            return Err(Errno::NOENT);
        }
        let mut arg = v3_stream::zeroed();
        put_text(&mut arg.name, name.as_bytes());
        ioctl::stream(&fd, arg)?;
        Ok(Self { fd })
    }
}

impl From<OwnedFd> for Stream {
    /// Any descriptor that behaves like a stream, such as a socket.
    fn from(fd: OwnedFd) -> Self {
        Self { fd }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Read for Stream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::read(&self.fd, buf)?)
    }
}

impl Write for Stream {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        Ok(rustix::io::write(&self.fd, buf)?)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
