// SPDX-License-Identifier: MIT OR Apache-2.0
//! The guests: how each is made of a module and launched, its console, and its end.

use super::console::{Console, ConsoleStream};
use super::host::Lwk;
use super::ram::Ram;
use super::requests::{VmRequest, MAX_CORES};
use crate::kernel::loader::Module;
use crate::kernel::shared::Shared;
use crate::kernel::thread::{self, Thread};
use crate::kernel::{cpu, log, memory, serial};
use crate::log;
use alloc::boxed::Box;
use palacios_core::alloc_ext::try_box;
use palacios_core::backend::any::Hardware;
use palacios_core::devices::ByteStream;
use palacios_core::host::{CpuId, Host, NoMemory};
use palacios_core::image::{self, Image};
use palacios_core::saved_file::{SavedFile, SavedFileError};
use palacios_core::stats::Counter;
use palacios_core::vm::{
    CreateError, LoadError, LoadFault, Observer, Parts, State, StopReason, TscRate, Vm, VmName,
};

/// One guest.
pub struct Guest {
    name: VmName,
    vm: Shared<Vm<Lwk>>,
    console: Shared<Console>,
    /// The serial port that shows its console; without one its output is lost.
    port: Option<usize>,
    ended: bool,
}

/// Wakes the control thread when a VM's state has changed.
struct StateObserver(&'static Thread);

impl Observer for StateObserver {
    fn state_changed(&self) {
        self.0.unpark();
    }
}

/// Makes and launches a VM that was asked for, as guest number `n`; logs why, if it cannot.
pub fn launch(
    hardware: &Hardware<Lwk>,
    request: VmRequest<'_>,
    module: Option<Module>,
    n: usize,
) -> Option<Guest> {
    let image = request.image;
    let made = match module {
        None => Err(Refusal::NoModule),
        Some(module) => make(hardware, request, module, n),
    };
    match made {
        Ok(guest) => Some(guest),
        Err(Refusal::NoModule) => {
            log!("{image}: the boot loader brought no such module");
            None
        }
        Err(Refusal::BadName) => {
            log!("{image}: a VM's name is made of letters, digits, '-', '_' and '.'");
            None
        }
        Err(Refusal::Cores(why)) => {
            let (cores, last) = (request.cores.unwrap_or_default(), cpu::count() - 1);
            log!("{image}: cores={cores}: {why}; this machine has 0-{last}");
            None
        }
        Err(Refusal::Ram(bytes)) => {
            let (want, free) = (bytes >> 20, memory::free_bytes() >> 20);
            log!(
                "{image}: no {want} MiB of memory in one piece for the guest; {free} MiB are free"
            );
            None
        }
        Err(Refusal::Vm(why)) => {
            log!("{image}: {why}");
            None
        }
        Err(Refusal::Damaged(why)) => {
            log!("{image}: {why}");
            None
        }
        Err(Refusal::Load(why)) => {
            log!("{image}: {why}");
            if matches!(why.why, LoadFault::OtherRate { .. }) {
                log!("{image}: with new-tsc-rate behind it, the guest has to bear that");
            }
            None
        }
    }
}

/// Why there is no VM.
enum Refusal {
    NoModule,
    BadName,
    Cores(&'static str),
    /// There are not so many bytes in one piece.
    Ram(u64),
    Vm(CreateError),
    /// It is a saved VM, but a damaged one.
    Damaged(SavedFileError),
    /// It is a saved VM that does not go on here.
    Load(LoadError),
}

impl From<LoadError> for Refusal {
    fn from(why: LoadError) -> Self {
        Self::Load(why)
    }
}

impl From<NoMemory> for Refusal {
    fn from(_: NoMemory) -> Self {
        Self::Vm(CreateError::NoMemory)
    }
}

impl From<CreateError> for Refusal {
    fn from(why: CreateError) -> Self {
        Self::Vm(why)
    }
}

fn make(
    hardware: &Hardware<Lwk>,
    request: VmRequest<'_>,
    module: Module,
    n: usize,
) -> Result<Guest, Refusal> {
    let (cores, len) = request.cores(cpu::count()).map_err(Refusal::Cores)?;
    let cores = cores.get(..len).unwrap_or_default();
    let name = name_of(module.name).ok_or(Refusal::BadName)?;
    let console = Lwk.share(Console::new(thread::current())?)?;
    let saved = saved_in(module.bytes)?;
    let image = saved.as_ref().map_or(module.bytes, |saved| saved.image);
    let parsed = Image::parse_again(image).map_err(CreateError::Image)?;
    let machine = parsed.machine().map_err(CreateError::Image)?;
    let layout = machine.ram;
    let console_name = console_of(&machine);
    let parts = Parts {
        name,
        image: try_box(image)?,
        ram: Ram::new(layout.bytes()).map_err(|NoMemory| Refusal::Ram(layout.bytes()))?,
        observer: try_box(StateObserver(thread::current()))?,
    };
    let mut stream = |name: &str| -> Result<Box<dyn ByteStream>, NoMemory> {
        let console = (Some(name) == console_name).then(|| console.clone());
        Ok(try_box(ConsoleStream(console))?)
    };
    let vm = hardware.vm(&Lwk, parts, &mut stream)?;
    let port = Some(n).filter(|port| serial::exists(*port));
    let guest = Guest {
        name,
        vm,
        console,
        port,
        ended: false,
    };
    if let Some(saved) = &saved {
        guest.load(saved, request.new_tsc_rate)?;
    }
    guest.fill_and_place(cores)?;
    guest.log_start(layout.bytes(), cores);
    if Vm::<Lwk>::launch(&guest.vm).is_err() {
        return Err(Refusal::Vm(CreateError::NoMemory));
    }
    Ok(guest)
}

/// `guest` of `/boot/guest.img`, and of `/boot/guest.v3`.
fn name_of(module: &str) -> Option<VmName> {
    let file = module.rsplit('/').next()?;
    let mut endings = [".img", ".v3"].iter();
    let name = endings.find_map(|ending| file.strip_suffix(ending));
    VmName::new(name.unwrap_or(file))
}

/// The saved VM that a module is, if it is one.
fn saved_in(module: &'static [u8]) -> Result<Option<SavedFile<'static>>, Refusal> {
    match SavedFile::recognises(module) {
        true => SavedFile::parse(module).map(Some).map_err(Refusal::Damaged),
        false => Ok(None),
    }
}

/// The stream that is a machine's console: the named one, or that of its first port.
fn console_of<'a>(machine: &image::Machine<'a>) -> Option<&'a str> {
    let first = || machine.serials().next().map(|serial| serial.stream);
    machine.console.or_else(first)
}

impl Guest {
    /// Maps all its memory and moves its vCPUs to their cores, before it runs: nothing is allocated later, and nothing moves.
    fn fill_and_place(&self, cores: &[CpuId]) -> Result<(), Refusal> {
        let filled = self.vm.with_memory(|memory, flush| memory.populate(flush));
        filled?;
        for (vcpu, core) in (0..self.vm.vcpus()).zip(cores.iter().cycle()) {
            let moved = self.vm.move_vcpu(vcpu, Some(*core));
            moved.map_err(|_| CreateError::NoSuchCpu(*core))?;
        }
        Ok(())
    }

    /// Has it go on from what was saved.
    fn load(&self, saved: &SavedFile<'_>, new_tsc_rate: bool) -> Result<(), Refusal> {
        for (page, bytes) in saved.ram() {
            self.vm.load_ram(page, bytes)?;
        }
        let rate = match new_tsc_rate {
            true => TscRate::New,
            false => TscRate::Same,
        };
        Ok(self.vm.load(saved.state, rate)?)
    }

    fn log_start(&self, bytes: u64, cores: &[CpuId]) {
        let used = self.vm.vcpus().min(MAX_CORES as u32) as usize;
        let mut list = [0; MAX_CORES];
        let homes = cores.iter().cycle().take(used);
        list.iter_mut()
            .zip(homes)
            .for_each(|(slot, core)| *slot = core.0);
        let (name, mib) = (self.name.as_str(), bytes >> 20);
        let homes = list.get(..used).unwrap_or_default();
        match self.port {
            Some(port) => log!(
                "{name}: {mib} MiB, on cores {homes:?}, console on serial port {}",
                port + 1
            ),
            None => log!("{name}: {mib} MiB, on cores {homes:?}, no serial port for its console"),
        }
    }

    /// Gives it what was typed at its port, and sends some of its output to the port; returns whether more output may wait.
    /// Interrupts are off while the port sends, and a guest may print faster than that. So it sends no more than the port takes at
    /// once.
    pub fn serve_console(&self) -> bool {
        let mut bytes = [0; serial::FIFO_BYTES];
        let len = self.console.take(&mut bytes);
        let output = bytes.get(..len).unwrap_or_default();
        match self.port {
            Some(serial::LOG) => log::guest_output(output),
            Some(port) => serial::send(port, output),
            None => {}
        }
        if let Some(port) = self.port.filter(|port| *port != serial::LOG) {
            while let Some(byte) = serial::receive(port) {
                self.type_in(byte);
            }
        }
        len == bytes.len()
    }

    /// A byte was typed at its console.
    pub fn type_in(&self, byte: u8) {
        self.console.give(byte);
        self.vm.input_ready();
    }

    /// Whether it has ended; logs that once. Stops it if nothing can wake it any more.
    pub fn has_ended(&mut self) -> bool {
        if self.ended {
            return true;
        }
        let name = self.name.as_str();
        match self.vm.state() {
            State::Stopped(reason) => {
                while self.serve_console() {}
                log!("{name}: {reason}");
                if !matches!(reason, StopReason::PoweredOff | StopReason::Exit(_)) {
                    self.log_reports();
                }
                self.log_statistics();
                self.ended = true;
            }
            // The core has logged why.
            State::Running if self.vm.is_dead() => self.stop(),
            _ => {}
        }
        self.ended
    }

    /// Stops it, soon.
    pub fn stop(&self) {
        // It may have ended by itself just now.
        let _ = self.vm.stop();
    }

    /// Logs the core's report of each vCPU.
    fn log_reports(&self) {
        let name = self.name.as_str();
        for vcpu in 0..self.vm.vcpus() {
            if let Some(report) = self.vm.report(vcpu) {
                report.tell(&mut |line| log!("{name}: vcpu {vcpu}: {line}"));
            }
        }
    }

    /// Logs what each vCPU did, in a few lines.
    pub fn log_statistics(&self) {
        let name = self.name.as_str();
        for vcpu in 0..self.vm.vcpus() {
            let counters = self.vm.counters(vcpu);
            let ms = |which| counters.get(which) / 1_000_000;
            log!(
                "{name}: vcpu {vcpu}: guest {} ms, handling {} ms, idle {} ms, waiting {} ms",
                ms(Counter::GuestNs),
                ms(Counter::HandlingNs),
                ms(Counter::IdleNs),
                ms(Counter::WaitingNs)
            );
            for which in Counter::ALL {
                let count = counters.get(*which);
                if count != 0 && !which.label().ends_with("_ns") {
                    log!("{name}: vcpu {vcpu}:   {} {count}", which.label());
                }
            }
        }
    }
}
