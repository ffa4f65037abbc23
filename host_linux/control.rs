// SPDX-License-Identifier: GPL-2.0
//! `/dev/v3vee`: version, create, list and free.

use crate::hardware::Hardware;
use crate::misc_device::{Device, Operations};
use crate::refusal::Refusal;
use crate::sleep::Notifier;
use crate::user::{self, must_be_zero, Text};
use crate::vm_node::ImageCopy;
use crate::vms::{Vms, MAX_VMS};
use crate::{info, memory};
use kernel::{
    fs::File,
    miscdevice::{MiscDevice, MiscDeviceRegistration},
    prelude::*,
    str::CString,
    sync::{Arc, ArcBorrow},
};
use palacios_core::image::machine;
use palacios_core::vm::VmName;
use v3_abi as abi;

/// The module's version, as `MODULE_VERSION` has it too.
const VERSION: &str = "0.1.0";
/// The longest image. It is copied, and disks are not part of it.
const MAX_IMAGE_BYTES: u64 = 1 << 30;

/// The module's control node.
#[pin_data]
pub(crate) struct Control {
    /// The first to be dropped, so that nobody comes any more.
    #[pin]
    device: Device,
    #[pin]
    notifier: Notifier<Vms>,
    vms: Arc<Vms>,
}

static OPERATIONS: Operations = Operations::new::<ControlFile>();

impl Control {
    /// Makes the node appear.
    pub(crate) fn new(hardware: Hardware) -> Result<Arc<Self>> {
        let name = CString::try_from_fmt(fmt!("v3vee"))?;
        let vms = Vms::new(hardware)?;
        let control = Arc::pin_init(
            pin_init!(Self {
                device <- Device::new(name, &OPERATIONS),
                notifier <- Notifier::new(vms.clone()),
                vms,
            }),
            GFP_KERNEL,
        )?;
        control.notifier.register()?;
        control.device.register()?;
        Ok(control)
    }

    /// Removes the node.
    pub(crate) fn close(&self) {
        self.device.unregister();
    }

    fn version(&self, arg: usize) -> Result {
        let features = self.vms.hardware().features();
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
            vms: self.vms.nodes()?.len() as u32,
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
                    let _ = self.vms.free(id);
                })
            }
            Err(refusal) => {
                user::explain(create.message, create.message_len, &refusal)?;
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
        self.vms.create(name, || image_of(create))
    }

    fn list(&self, arg: usize) -> Result {
        let mut list: abi::v3_list = user::read(arg)?;
        must_be_zero(list.pad)?;
        let mut infos = KVVec::new();
        for node in self.vms.nodes()? {
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
        self.vms.free(free.vm)
    }
}

/// Copies a VM's image from the caller's memory.
fn image_of(create: &abi::v3_create) -> Result<ImageCopy, Refusal> {
    if create.image_len > MAX_IMAGE_BYTES {
        let max_bytes = MAX_IMAGE_BYTES;
        return Err(Refusal::TooLong { max_bytes });
    }
    let image = memory::copy_from_caller(create.image, create.image_len as usize)?;
    Ok(ImageCopy(image))
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
                let all = me.vms.hardware().judge_features(info::features)?;
                info::write_features(arg, &all)
            }
            _ => Err(ENOTTY),
        }?;
        Ok(0)
    }
}
