// SPDX-License-Identifier: GPL-2.0
//! `/dev/v3vee`: version, create, list and free.

use crate::machine::Hardware;
use crate::memory;
use crate::misc::{Device, Operations};
use crate::sleep::{Awake, Notifier};
use crate::user::{self, must_be_zero, Text};
use crate::vm_node::{ImageCopy, NoVm, VmNode};
use crate::{error, info, VERSION};
use core::fmt;
use kernel::{
    fs::File,
    miscdevice::{MiscDevice, MiscDeviceRegistration},
    new_mutex,
    prelude::*,
    str::CString,
    sync::{Arc, ArcBorrow, Mutex},
    uaccess::{UserPtr, UserSlice},
};
use palacios_core::image::machine;
use palacios_core::vm::VmName;
use v3_abi as abi;

/// How many VMs there can be.
const MAX_VMS: usize = 256;
/// The longest image. It is copied, and disks are not part of it.
const MAX_IMAGE_BYTES: u64 = 1 << 30;

/// A number of a VM.
enum Slot {
    Free,
    /// Its VM is being made, or unmade.
    Busy(VmName),
    Used(VmName, Arc<VmNode>),
}

impl Slot {
    fn name(&self) -> Option<&VmName> {
        match self {
            Self::Free => None,
            Self::Busy(name) | Self::Used(name, _) => Some(name),
        }
    }
    fn node(&self) -> Option<&Arc<VmNode>> {
        match self {
            Self::Used(_, node) => Some(node),
            Self::Free | Self::Busy(_) => None,
        }
    }
}

/// The module's control node.
#[pin_data]
pub(crate) struct Control {
    /// The first to be dropped, so that nobody comes any more.
    #[pin]
    device: Device,
    #[pin]
    notifier: Notifier,
    awake: Arc<Awake>,
    #[pin]
    table: Mutex<KVec<Slot>>,
    hardware: Hardware,
}

static OPERATIONS: Operations = Operations::new::<ControlFile>();

/// Why there is no new VM.
enum Refusal {
    NotZero,
    BadName,
    TooLong,
    NameTaken(VmName),
    Full,
    NoVm(NoVm),
}

impl<E: Into<NoVm>> From<E> for Refusal {
    fn from(why: E) -> Self {
        Self::NoVm(why.into())
    }
}

impl Refusal {
    /// What the call answers.
    fn error(&self) -> Error {
        match self {
            Self::NotZero | Self::BadName => EINVAL,
            Self::TooLong => E2BIG,
            Self::NameTaken(_) => EEXIST,
            Self::Full => ENOSPC,
            Self::NoVm(NoVm::Host(error)) => *error,
            Self::NoVm(NoVm::Core(why)) => error::of_create(why),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotZero => f.write_str("flags and padding must be zero"),
            Self::BadName => {
                f.write_str("a name is 1 to 63 of A-Z a-z 0-9 . _ - and not digits alone")
            }
            Self::TooLong => write!(f, "the image is longer than {} MiB", MAX_IMAGE_BYTES >> 20),
            Self::NameTaken(name) => write!(f, "a VM with the name {} exists", name.as_str()),
            Self::Full => write!(f, "there are {MAX_VMS} VMs already: free one"),
            Self::NoVm(NoVm::Host(ENOMEM)) => f.write_str("the host has no memory for this VM"),
            Self::NoVm(NoVm::Host(EFAULT)) => {
                f.write_str("a pointer does not lead to memory of the caller")
            }
            Self::NoVm(NoVm::Host(error)) => {
                write!(
                    f,
                    "the host answered error {}",
                    error.to_errno().unsigned_abs()
                )
            }
            Self::NoVm(NoVm::Core(why)) => why.fmt(f),
        }
    }
}

impl Control {
    /// Where its notifier lies in it.
    pub(crate) const NOTIFIER: usize = core::mem::offset_of!(Self, notifier);

    /// Makes the node appear.
    pub(crate) fn new(hardware: Hardware) -> Result<Arc<Self>> {
        let name = CString::try_from_fmt(fmt!("v3vee"))?;
        let awake = Arc::pin_init(Awake::new(), GFP_KERNEL)?;
        let control = Arc::pin_init(
            pin_init!(Self {
                device <- Device::new(name, &OPERATIONS),
                notifier <- Notifier::new(),
                awake,
                table <- new_mutex!(KVec::new(), "v3vee_table"),
                hardware,
            }),
            GFP_KERNEL,
        )?;
        // SAFETY: It is this control's.
        unsafe { control.notifier.register() }?;
        control.device.register()?;
        Ok(control)
    }

    /// All VMs stand still, and none starts, until [`Control::host_wakes`].
    pub(crate) fn host_sleeps(&self) -> Result {
        self.awake.set(false);
        let stand_still = || {
            for slot in self.table.lock().iter() {
                slot.node().map_or(Ok(()), |node| node.host_sleeps())?;
            }
            Ok(())
        };
        stand_still().inspect_err(|_| self.host_wakes())
    }

    /// Those go on that ran.
    pub(crate) fn host_wakes(&self) {
        let table = self.table.lock();
        table
            .iter()
            .filter_map(Slot::node)
            .for_each(|node| node.host_wakes());
        drop(table);
        self.awake.set(true);
    }

    /// Removes the node.
    pub(crate) fn close(&self) {
        self.device.unregister();
    }

    fn version(&self, arg: usize) -> Result {
        let features = self.hardware.features();
        let found = [
            (abi::V3_FEATURE_NESTED_PAGING, true),
            (abi::V3_FEATURE_RELOCATE, true),
            (abi::V3_FEATURE_XSAVE, features.xcr0 != 0),
            (abi::V3_FEATURE_TLB_TAGS, features.address_space_tags != 0),
            (abi::V3_FEATURE_NEXT_RIP, features.next_rip),
            (abi::V3_FEATURE_DECODE_ASSISTS, features.decode_assists),
        ];
        let bits = found
            .iter()
            .filter(|(_, there)| *there)
            .fold(0, |bits, (bit, _)| bits | bit);
        let version = abi::v3_version {
            abi: abi::V3_ABI,
            vms: self.nodes()?.len() as u32,
            max_vms: MAX_VMS as u32,
            max_vcpus: machine::MAX_VCPUS,
            features: u64::from(bits),
            module: Text::of(format_args!("{VERSION}")).field,
            backend: Text::of(format_args!("{}", features.backend)).field,
        };
        user::write(arg, &version)
    }

    fn create(&self, arg: usize) -> Result {
        let mut create: abi::v3_create = user::read(arg)?;
        match self.create_vm(&create) {
            Ok(id) => {
                create.vm = id;
                // A call that fails leaves nothing behind.
                user::write(arg, &create).inspect_err(|_| {
                    let _ = self.free_vm(id);
                })
            }
            Err(refusal) => {
                explain(&create, &refusal)?;
                Err(refusal.error())
            }
        }
    }

    fn create_vm(&self, create: &abi::v3_create) -> Result<u32, Refusal> {
        if create.flags != 0 || create.pad != 0 {
            return Err(Refusal::NotZero);
        }
        let name = abi::until_nul(&create.name).filter(|name| abi::is_vm_name(name));
        let name = name.and_then(|name| core::str::from_utf8(name).ok());
        let name = name.and_then(VmName::new).ok_or(Refusal::BadName)?;
        let id = self.reserve(name)?;
        match self.make(id, name, create) {
            Ok(node) => {
                self.set(id, Slot::Used(name, node));
                Ok(id)
            }
            Err(refusal) => {
                self.set(id, Slot::Free);
                Err(refusal)
            }
        }
    }

    fn make(&self, id: u32, name: VmName, create: &abi::v3_create) -> Result<Arc<VmNode>, Refusal> {
        if create.image_len > MAX_IMAGE_BYTES {
            return Err(Refusal::TooLong);
        }
        let len = create.image_len as usize;
        if !memory::can_spare(len) {
            return Err(ENOMEM.into());
        }
        let mut image = VVec::new();
        let from = UserPtr::from_addr(user::pointer(create.image)?);
        UserSlice::new(from, len).read_all(&mut image, GFP_KERNEL_ACCOUNT | __GFP_NOWARN)?;
        let awake = self.awake.clone();
        Ok(VmNode::new(
            &self.hardware,
            awake,
            id,
            name,
            ImageCopy(image),
        )?)
    }

    /// Takes the lowest free number, and the name.
    fn reserve(&self, name: VmName) -> Result<u32, Refusal> {
        let mut table = self.table.lock();
        if table.iter().any(|slot| slot.name() == Some(&name)) {
            return Err(Refusal::NameTaken(name));
        }
        let mut slots = table.iter_mut().enumerate();
        if let Some((id, slot)) = slots.find(|(_, slot)| matches!(slot, Slot::Free)) {
            *slot = Slot::Busy(name);
            return Ok(id as u32);
        }
        let id = table.len();
        if id == MAX_VMS {
            return Err(Refusal::Full);
        }
        let push = table.push(Slot::Busy(name), GFP_KERNEL_ACCOUNT);
        push.map_err(Error::from)?;
        Ok(id as u32)
    }

    fn set(&self, id: u32, new: Slot) {
        let old = match self.table.lock().get_mut(id as usize) {
            Some(slot) => core::mem::replace(slot, new),
            None => new,
        };
        // Dropped without the lock: it may be a VM's last reference.
        drop(old);
    }

    fn node(&self, id: u32) -> Result<Arc<VmNode>> {
        let table = self.table.lock();
        let node = table.get(id as usize).and_then(Slot::node);
        Ok(node.ok_or(ENOENT)?.clone())
    }

    /// All VMs, by their numbers.
    fn nodes(&self) -> Result<KVec<Arc<VmNode>>> {
        let mut nodes = KVec::new();
        for node in self.table.lock().iter().filter_map(Slot::node) {
            nodes.push(node.clone(), GFP_KERNEL)?;
        }
        Ok(nodes)
    }

    fn list(&self, arg: usize) -> Result {
        let mut list: abi::v3_list = user::read(arg)?;
        must_be_zero(list.pad)?;
        let mut infos = KVVec::new();
        for node in self.nodes()? {
            // One that is being freed is none any more.
            if let Ok(info) = node.info() {
                infos.push(info, GFP_KERNEL)?;
            }
        }
        let fit = infos.get(..list.count as usize).unwrap_or(&infos);
        user::write_all(list.entries, fit)?;
        list.count = infos.len() as u32;
        user::write(arg, &list)
    }

    fn free(&self, arg: usize) -> Result {
        let free: abi::v3_free = user::read(arg)?;
        must_be_zero(free.pad)?;
        self.free_vm(free.vm)
    }

    fn free_vm(&self, id: u32) -> Result {
        let freed = self.node(id)?.free();
        match freed {
            // Another one frees it, or it runs.
            Err(ENOENT | EBUSY) => {}
            _ => self.set(id, Slot::Free),
        }
        freed
    }
}

/// Writes why there is no VM to where the caller wants it.
fn explain(create: &abi::v3_create, refusal: &Refusal) -> Result {
    let Some(room) = create
        .message_len
        .checked_sub(1)
        .filter(|_| create.message != 0)
    else {
        return Ok(());
    };
    let text = Text::<{ abi::V3_MESSAGE_LEN as usize }>::of(format_args!("{refusal}"));
    let text = text.as_bytes();
    let text = text.get(..room as usize).unwrap_or(text);
    let at = user::pointer(create.message)?;
    user::write_bytes(at, text)?;
    user::write_bytes(at.wrapping_add(text.len()), &[0])
}

/// An open file of the control node.
pub(crate) struct ControlFile;

#[vtable]
impl MiscDevice for ControlFile {
    type Ptr = Arc<Control>;

    fn open(_file: &File, misc: &MiscDeviceRegistration<Self>) -> Result<Arc<Control>> {
        // SAFETY: Files of these operations are opened on the device of a `Control` only, which lives in an `Arc`, and
        // the misc core keeps it registered until this returns.
        Ok(unsafe {
            let device = Device::of(misc.as_raw());
            let control = device
                .byte_sub(core::mem::offset_of!(Control, device))
                .cast::<Control>();
            Arc::from(ArcBorrow::from_raw(control))
        })
    }

    fn ioctl(me: ArcBorrow<'_, Control>, _file: &File, cmd: u32, arg: usize) -> Result<isize> {
        match cmd {
            abi::V3_VERSION => me.version(arg),
            abi::V3_CREATE => me.create(arg),
            abi::V3_LIST => me.list(arg),
            abi::V3_FREE => me.free(arg),
            abi::V3_FEATURES => {
                info::write_features(arg, &me.hardware.judge_features(info::features)?)
            }
            _ => Err(ENOTTY),
        }?;
        Ok(0)
    }
}
