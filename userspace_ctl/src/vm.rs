// SPDX-License-Identifier: MIT OR Apache-2.0
//! `/dev/v3-vmN`: runs and watches one VM.

use crate::answers::text;
use crate::error::Call;
use crate::node::{open_control, open_node};
use crate::vcpu_report::VcpuReport;
use crate::{
    ioctl, node_of, Chipset, Error, Feature, Info, Interrupts, Place, Stat, Stopped, Stream, Walk,
};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use std::time::Duration;
use v3_abi::{v3_relocate, v3_vcpu, v3_walk, Abi, V3_CPU_ANY, V3_WALK_PHYSICAL};

/// An open VM. It lives on when this is dropped.
#[derive(Debug)]
pub struct Vm {
    fd: OwnedFd,
    number: u32,
}

impl Vm {
    /// Opens `/dev/v3-vmN`.
    pub fn open(number: u32) -> Result<Self, Error> {
        let opened = open_node(&node_of(number));
        let fd = opened.map_err(|error| match error {
            // Without a module there is more to say than that this VM is missing.
            Error::Open {
                node,
                errno: Errno::NOENT | Errno::NODEV | Errno::NXIO,
            } => open_control().map_or_else(|e| e, |_| Error::NoSuchVm(node)),
            error => error,
        })?;
        Ok(Self { fd, number })
    }

    /// Its number.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Explains the error of a call, with the VM's name and state as the module tells them.
    pub(crate) fn failed(&self, call: Call) -> impl FnOnce(Errno) -> Error + '_ {
        move |errno| match ioctl::info(&self.fd).map(|raw| Info::from(&raw)) {
            Ok(info) if errno == Errno::BADFD => Error::WrongState {
                call,
                vm: info.name,
                state: info.state,
            },
            info => Error::Call {
                call,
                on: info.map_or_else(|_| node_of(self.number), |info| info.name),
                errno,
            },
        }
    }

    /// Its name, for messages; its node if it cannot be asked.
    pub(crate) fn name(&self) -> String {
        self.info()
            .map_or_else(|_| node_of(self.number), |info| info.name)
    }

    /// Starts it.
    pub fn launch(&self) -> Result<(), Error> {
        ioctl::launch(&self.fd).map_err(self.failed(Call::Launch))
    }

    /// Stops it for good; returns when no virtual CPU runs.
    pub fn stop(&self) -> Result<(), Error> {
        ioctl::stop(&self.fd).map_err(self.failed(Call::Stop))
    }

    /// Halts its CPUs and its clock; returns when they stand.
    pub fn pause(&self) -> Result<(), Error> {
        ioctl::pause(&self.fd).map_err(self.failed(Call::Pause))
    }

    /// Lets it go on after a pause.
    pub fn resume(&self) -> Result<(), Error> {
        ioctl::resume(&self.fd).map_err(self.failed(Call::Continue))
    }

    /// Waits until it stopped. Without a timeout only a signal that kills interrupts that; `Ok(None)` is a timeout.
    pub fn wait(&self, timeout: Option<Duration>) -> Result<Option<Stopped>, Error> {
        let ns = timeout.map(|t| i64::try_from(t.as_nanos()).unwrap_or(i64::MAX));
        match ioctl::wait(&self.fd, ns.unwrap_or(-1)) {
            Ok(raw) => Ok(Some(Stopped {
                reason: raw.reason.into(),
                exit_status: raw.exit_status,
            })),
            Err(Errno::TIMEDOUT) => Ok(None),
            Err(errno) => Err(self.failed(Call::Wait)(errno)),
        }
    }

    /// Describes it.
    pub fn info(&self) -> Result<Info, Error> {
        let raw = ioctl::info(&self.fd).map_err(self.failed(Call::Info))?;
        Ok(Info::from(&raw))
    }

    /// All its counters.
    pub fn stats(&self) -> Result<Vec<Stat>, Error> {
        let raw = ioctl::stats(&self.fd).map_err(self.failed(Call::Stats))?;
        Ok(raw.iter().map(Stat::from).collect())
    }

    /// Attaches to a stream; the empty name is the console's.
    pub fn stream(&self, name: &str) -> Result<Stream, Error> {
        let fd = open_node(&node_of(self.number))?;
        Stream::attach(fd, name).map_err(|errno| match errno {
            Errno::NOENT => self.no_such_stream(name),
            errno => self.failed(Call::Stream)(errno),
        })
    }

    fn no_such_stream(&self, name: &str) -> Error {
        Error::NoSuchStream {
            vm: self.name(),
            stream: name.into(),
            // Without them the message is shorter, and still true.
            known: self.streams().unwrap_or_default(),
        }
    }

    /// The names of its streams.
    pub fn streams(&self) -> Result<Vec<String>, Error> {
        let raw = ioctl::streams(&self.fd).map_err(self.failed(Call::Streams))?;
        Ok(raw.iter().map(|stream| text(&stream.name)).collect())
    }

    /// What its virtual CPUs look like inside, if they do not run; nothing from an older module of the same ABI.
    pub fn vcpu_reports(&self) -> Result<Vec<VcpuReport>, Error> {
        let vcpus = self.info()?.vcpus;
        let reports = (0..vcpus).map(|vcpu| ioctl::vcpu_report(&self.fd, vcpu));
        match reports.collect::<Result<Vec<_>, _>>() {
            Ok(raw) => Ok(raw.iter().map(VcpuReport::from).collect()),
            Err(Errno::NOTTY) => Ok(Vec::new()),
            Err(errno) => Err(self.failed(Call::Info)(errno)),
        }
    }

    /// What a virtual CPU looks like inside.
    pub fn vcpu_report(&self, vcpu: u32) -> Result<VcpuReport, Error> {
        let raw = ioctl::vcpu_report(&self.fd, vcpu).map_err(self.failed(Call::Look))?;
        Ok(VcpuReport::from(&raw))
    }

    /// Follows a virtual CPU's page tables to a linear address, and then the nested tables.
    pub fn walk(&self, vcpu: u32, address: u64) -> Result<Walk, Error> {
        self.walk_as(v3_walk {
            address,
            vcpu,
            ..v3_walk::zeroed()
        })
    }

    /// Follows the nested tables to a guest-physical address.
    pub fn walk_physical(&self, address: u64) -> Result<Walk, Error> {
        self.walk_as(v3_walk {
            address,
            flags: V3_WALK_PHYSICAL,
            ..v3_walk::zeroed()
        })
    }

    fn walk_as(&self, wanted: v3_walk) -> Result<Walk, Error> {
        let raw = ioctl::walk(&self.fd, wanted).map_err(self.failed(Call::Look))?;
        Ok(Walk::from(&raw))
    }

    /// What is on its way to a virtual CPU.
    pub fn interrupts(&self, vcpu: u32) -> Result<Interrupts, Error> {
        let raw = ioctl::interrupts(&self.fd, vcpu).map_err(self.failed(Call::Look))?;
        Ok(Interrupts::from(&raw))
    }

    /// What the I/O APIC and the PIC pair hold.
    pub fn chipset(&self) -> Result<Chipset, Error> {
        let raw = ioctl::chipset(&self.fd).map_err(self.failed(Call::Look))?;
        Ok(Chipset::from(&raw))
    }

    /// Reads its memory from a guest-physical address on, up to the end of the page: what is there, how many bytes are of that kind, and
    /// these if it is memory.
    pub fn read_memory(&self, gpa: u64, len: usize) -> Result<(Place, usize, Vec<u8>), Error> {
        let read = ioctl::memory_read(&self.fd, gpa, len).map_err(self.failed(Call::Look))?;
        let (place, len, bytes) = read;
        Ok((place.into(), len, bytes))
    }

    /// The features of processors, and which of them it has.
    pub fn features(&self) -> Result<Vec<Feature>, Error> {
        let raw = ioctl::features(&self.fd, true).map_err(self.failed(Call::Features))?;
        Ok(raw.iter().map(Feature::from).collect())
    }

    /// Has the host take the memory behind these guest pages away and give other, with the same contents.
    pub fn relocate(&self, gpa: u64, len: u64) -> Result<(), Error> {
        ioctl::relocate(&self.fd, v3_relocate { gpa, len }).map_err(self.failed(Call::Relocate))
    }

    /// Moves a virtual CPU to a CPU of the host, where it then stays; with `None` it may run on any.
    pub fn move_vcpu(&self, vcpu: u32, cpu: Option<u32>) -> Result<(), Error> {
        let cpu = cpu.unwrap_or(V3_CPU_ANY);
        ioctl::move_vcpu(&self.fd, v3_vcpu { vcpu, cpu }).map_err(self.failed(Call::CoreMove))
    }

    /// The host's CPU on which a virtual CPU alone runs; `None` if it may run on any.
    pub fn pin(&self, vcpu: u32) -> Result<Option<u32>, Error> {
        let cpu = ioctl::pin(&self.fd, vcpu).map_err(self.failed(Call::Pin))?;
        Ok((cpu != V3_CPU_ANY).then_some(cpu))
    }
}

impl AsFd for Vm {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
