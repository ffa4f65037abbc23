// SPDX-License-Identifier: MIT OR Apache-2.0
//! Making and running a VM.

use crate::{MinimalHost, MinimalRam};
use palacios_core::backend::any::Hardware;
use palacios_core::backend::Unsupported;
use palacios_core::devices::ByteStream;
use palacios_core::host::Host;
use palacios_core::vm::{CreateError, Observer, Parts, State, StopReason, Vm, VmName};
use std::sync::mpsc::{channel, Sender};
use std::sync::{Arc, Mutex};

// ANCHOR: enable
/// Switches virtualization on, on all CPUs.
pub fn enable(host: &MinimalHost, hardware: &Hardware<MinimalHost>) -> Result<(), Unsupported> {
    let failed = Mutex::new(None);
    host.on_each_cpu(&|cpu| {
        if let Err(why) = hardware.enable_cpu(cpu) {
            *failed.lock().expect("no holder has panicked") = Some(why);
        }
    });
    match failed.into_inner().expect("as above") {
        Some(why) => Err(why),
        None => Ok(()),
    }
}

/// Switches it off.
pub fn disable(host: &MinimalHost, hardware: &Hardware<MinimalHost>) {
    host.on_each_cpu(&|cpu| hardware.disable_cpu(cpu));
}
// ANCHOR_END: enable

// ANCHOR: console
/// The far end of a guest's serial port: keeps what the guest prints, and types nothing.
#[derive(Clone, Default)]
pub struct Console(Arc<Mutex<Vec<u8>>>);

impl Console {
    /// What the guest has printed so far.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().expect("no holder has panicked")).into_owned()
    }
}

impl ByteStream for Console {
    fn write(&mut self, data: &[u8]) {
        self.0.lock().expect("as above").extend_from_slice(data);
    }
    fn read(&mut self, _: &mut [u8]) -> usize {
        0
    }
}
// ANCHOR_END: console

// ANCHOR: observer
/// Passes on that the VM's state has changed, to whoever waits.
struct Changed(Sender<()>);

impl Observer for Changed {
    fn state_changed(&self) {
        // Nobody waits any more when the VM has ended.
        let _ = self.0.send(());
    }
}
// ANCHOR_END: observer

// ANCHOR: run
/// Makes a VM of a guest.img, runs it, and waits for its end.
pub fn run(
    host: &MinimalHost,
    hardware: &Hardware<MinimalHost>,
    image: Vec<u8>,
    console: &Console,
) -> Result<StopReason, CreateError> {
    let (tell, told) = channel();
    let parts = Parts {
        name: VmName::new("guest").expect("a good name"),
        image: Box::new(image),
        ram: MinimalRam::new(host),
        observer: Box::new(Changed(tell)),
    };
    let mut open_stream = |_: &str| Ok(Box::new(console.clone()) as Box<dyn ByteStream>);
    let vm = hardware.vm(host, parts, &mut open_stream)?;
    Vm::<MinimalHost>::launch(&vm).expect("a new VM can be launched");
    let reason = loop {
        match vm.state() {
            State::Stopped(reason) => break reason,
            _ => told.recv().expect("the VM has its observer"),
        }
    };
    vm.join();
    Ok(reason)
}
// ANCHOR_END: run
