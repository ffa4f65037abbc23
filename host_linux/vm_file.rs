// SPDX-License-Identifier: GPL-2.0
//! The open files of a VM's node: its ioctls, the streams of its devices, and its saved machine.

use crate::misc_device::{Operations, Poll};
use crate::queue::Until;
use crate::saving::Saving;
use crate::stream::{Attachment, Stream};
use crate::vm_node::VmNode;
use crate::{device_calls, disk_calls, load_calls, look_calls, user, vm_calls};
use kernel::{
    bindings,
    fs::{File, Kiocb},
    iov::{IovIterDest, IovIterSource},
    miscdevice::{MiscDevice, MiscDeviceRegistration},
    prelude::*,
    sync::{Arc, SetOnce},
};
use palacios_core::vm::State;
use v3_abi as abi;

/// What such files do.
pub(crate) static OPERATIONS: Operations = Operations::with_poll::<VmFile>();

/// An open file of a node; something else, once it was told so.
pub(crate) struct VmFile {
    node: Arc<VmNode>,
    other: SetOnce<Other>,
}

/// What a file of a node can be besides.
enum Other {
    Stream(Attachment),
    Saving(Pin<KBox<Saving>>),
}

#[vtable]
impl MiscDevice for VmFile {
    type Ptr = KBox<Self>;

    fn open(_file: &File, misc: &MiscDeviceRegistration<Self>) -> Result<KBox<Self>> {
        // SAFETY: Files of these operations are opened on nodes of VMs only.
        let node = unsafe { VmNode::of(misc.as_raw()) };
        let file = Self {
            node,
            other: SetOnce::new(),
        };
        Ok(KBox::new(file, GFP_KERNEL_ACCOUNT)?)
    }

    fn ioctl(me: &Self, _file: &File, cmd: u32, arg: usize) -> Result<isize> {
        if me.other.as_ref().is_some() {
            return Err(ENOTTY);
        }
        let node = &me.node;
        match cmd {
            abi::V3_VM_LAUNCH => node.launch(),
            abi::V3_VM_STOP => node.stop(),
            abi::V3_VM_PAUSE => node.pause(),
            abi::V3_VM_CONTINUE => node.resume(),
            abi::V3_VM_WAIT => vm_calls::wait(node, arg),
            abi::V3_VM_INFO => user::write(arg, &node.info()?),
            abi::V3_VM_STATS => vm_calls::stats(node, arg),
            abi::V3_VM_STREAM => me.attach(arg),
            abi::V3_VM_RELOCATE => vm_calls::relocate(node, arg),
            abi::V3_VM_MOVE => vm_calls::move_vcpu(node, arg),
            abi::V3_VM_VCPU => vm_calls::vcpu(node, arg),
            abi::V3_VM_STREAMS => vm_calls::streams(node, arg),
            abi::V3_VM_FEATURES => vm_calls::features(node, arg),
            abi::V3_VM_VCPU_REPORT => vm_calls::vcpu_report(node, arg),
            abi::V3_VM_ATTACH => device_calls::attach(node, arg),
            abi::V3_VM_DETACH => device_calls::detach(node, arg),
            abi::V3_VM_EJECT => device_calls::eject(node, arg),
            abi::V3_VM_RESIZE => disk_calls::resize(node, arg),
            abi::V3_VM_DEVICES => device_calls::devices(node, arg),
            abi::V3_VM_MEMORY_READ => look_calls::memory_read(node, arg),
            abi::V3_VM_WALK => look_calls::walk(node, arg),
            abi::V3_VM_INTERRUPTS => look_calls::interrupts(node, arg),
            abi::V3_VM_CHIPSET => look_calls::chipset(node, arg),
            abi::V3_VM_SAVE => me.becomes(Other::Saving(Saving::begin(node.clone())?)),
            abi::V3_VM_LOAD_RAM => load_calls::load_ram(node, arg),
            abi::V3_VM_LOAD => load_calls::load(node, arg),
            _ => Err(ENOTTY),
        }?;
        Ok(0)
    }

    fn read_iter(kiocb: Kiocb<'_, KBox<Self>>, to: &mut IovIterDest<'_>) -> Result<usize> {
        let file = kiocb.file();
        if let Some(Other::Saving(saving)) = file.other.as_ref() {
            return saving.read(to);
        }
        let (node, stream) = file.attached()?;
        loop {
            let seen = stream.queue.event_count();
            // Before the look at the ring: what came before the end is still read.
            let over = node.is_over();
            match stream.read(to)? {
                0 if over || to.is_empty() => return Ok(0),
                0 => may_block(&kiocb)?,
                len => return Ok(len),
            }
            stream.queue.wait(seen, Until::Interrupted, None)?;
        }
    }

    fn write_iter(kiocb: Kiocb<'_, KBox<Self>>, from: &mut IovIterSource<'_>) -> Result<usize> {
        let (node, stream) = kiocb.file().attached()?;
        let mut done = 0;
        let mut push = || loop {
            let seen = stream.queue.event_count();
            let held = node.held().map_err(|_| EPIPE)?;
            if let State::Stopped(_) = held.vm.state() {
                return Err(EPIPE);
            }
            let len = stream.write(from)?;
            done = len.saturating_add(done);
            if len > 0 {
                held.vm.input_ready();
            }
            drop(held);
            if from.is_empty() {
                return Ok(());
            }
            may_block(&kiocb)?;
            stream.queue.wait(seen, Until::Interrupted, None)?;
        };
        match push() {
            Err(error) if done == 0 => Err(error),
            _ => Ok(done),
        }
    }
}

/// `EAGAIN` for a file that does not want to wait.
fn may_block<T: kernel::types::ForeignOwnable>(kiocb: &Kiocb<'_, T>) -> Result {
    // SAFETY: The kiocb of a call in progress, and its file.
    let flags = unsafe { (*(*kiocb.as_raw()).ki_filp).f_flags };
    match flags & bindings::O_NONBLOCK {
        0 => Ok(()),
        _ => Err(EAGAIN),
    }
}

impl VmFile {
    /// Makes this file a stream.
    fn attach(&self, arg: usize) -> Result {
        let wanted: abi::v3_stream = user::read(arg)?;
        let name = abi::until_nul(&wanted.name).ok_or(EINVAL)?;
        self.node.held()?;
        let stream = self.node.find_stream(name).ok_or(ENOENT)?;
        let attachment = Attachment::new(stream).ok_or(EBUSY)?;
        self.becomes(Other::Stream(attachment))
    }

    fn becomes(&self, other: Other) -> Result {
        self.other.populate(other).then_some(()).ok_or(ENOTTY)
    }

    fn attached(&self) -> Result<(&VmNode, &Stream)> {
        match self.other.as_ref() {
            Some(Other::Stream(stream)) => Ok((&self.node, stream)),
            _ => Err(EINVAL),
        }
    }
}

impl Poll for VmFile {
    unsafe fn poll(me: &Self, file: &File, table: *mut bindings::poll_table) -> u32 {
        if let Some(Other::Saving(_)) = me.other.as_ref() {
            return POLLIN;
        }
        let Ok((node, stream)) = me.attached() else {
            return POLLERR;
        };
        // SAFETY: The table of this call; the file holds the stream.
        unsafe { stream.queue.poll(file, table) };
        let over = node.is_over();
        match (stream.readable(), over) {
            (true, true) => POLLIN,
            (false, true) => POLLIN | POLLHUP,
            (readable, false) => {
                let input = if readable { POLLIN } else { 0 };
                input | if stream.writable() { POLLOUT } else { 0 }
            }
        }
    }
}

/// Data can be read (`EPOLLIN`, `EPOLLRDNORM`).
const POLLIN: u32 = 0x41;
/// Data can be written (`EPOLLOUT`, `EPOLLWRNORM`).
const POLLOUT: u32 = 0x104;
/// Not a stream.
const POLLERR: u32 = 0x8;
/// The other end is gone.
const POLLHUP: u32 = 0x10;
