// SPDX-License-Identifier: GPL-2.0
//! The core's errors as error numbers, as `v3vee.h` has them.

use kernel::{bindings, prelude::*};
use palacios_core::backend::Unsupported;
use palacios_core::block::BlockError;
use palacios_core::devices::bus::{DetachError, ResizeError};
use palacios_core::devices::layout::AttachError;
use palacios_core::image::ImageError;
use palacios_core::state_io::StateError;
use palacios_core::vm::{CreateError, LifeError, LoadError, LoadFault, MoveError};

fn errno(number: u32) -> Error {
    Error::from_errno(-(number as i32))
}

/// A call that does not fit the VM's state.
pub(crate) fn wrong_state() -> Error {
    errno(bindings::EBADFD)
}

/// Why a VM did not go from one state to another.
pub(crate) fn of_life(error: LifeError) -> Error {
    match error {
        LifeError::WrongState(_) => wrong_state(),
        LifeError::NoMemory => ENOMEM,
        LifeError::NotLoadable => EIO,
        LifeError::TooManyHolds => EBUSY,
    }
}

/// Why a VM does not go on from a saved machine.
pub(crate) fn of_load(error: &LoadError) -> Error {
    match error.why {
        LoadFault::WrongState(_) => wrong_state(),
        LoadFault::Ram | LoadFault::OtherRate { .. } => ERANGE,
        LoadFault::Record(StateError::NoMemory) => ENOMEM,
        LoadFault::Record(StateError::Version(_))
        | LoadFault::Unknown
        | LoadFault::Differs(_)
        | LoadFault::Adds(_)
        | LoadFault::Lacks(_) => beyond_us(),
        LoadFault::Record(_) | LoadFault::Missing | LoadFault::Twice => EINVAL,
    }
}

/// Why a vCPU was not moved.
pub(crate) fn of_move(error: MoveError) -> Error {
    match error {
        MoveError::NoSuchVcpu => ENOENT,
        MoveError::NoSuchCpu(_) => ENXIO,
        MoveError::Stopped => wrong_state(),
    }
}

/// Why there is no VM.
pub(crate) fn of_create(error: &CreateError) -> Error {
    let beyond_us = beyond_us();
    match error {
        CreateError::NoMemory => ENOMEM,
        CreateError::NoSuchCpu(_) | CreateError::Attach(_) => beyond_us,
        CreateError::Image(ImageError::TooBig { .. })
        | CreateError::Image(ImageError::UnknownFeature(_))
        | CreateError::Image(ImageError::UnknownCpuFeature(_))
        | CreateError::Image(ImageError::UnknownDevice { .. }) => beyond_us,
        CreateError::Image(_) | CreateError::Boot(_) => ENOEXEC,
    }
}

/// What was asked for is beyond this module.
pub(crate) fn beyond_us() -> Error {
    errno(bindings::EOPNOTSUPP)
}

/// What a disk keeps in memory cannot be saved.
pub(crate) fn lost_with_vm() -> Error {
    errno(bindings::EMEDIUMTYPE)
}

/// Why a device was not attached.
pub(crate) fn of_attach(error: &AttachError) -> Error {
    match error {
        AttachError::Overlap { .. } | AttachError::NameTaken(_) => EEXIST,
        AttachError::NoSuchAddresses { .. }
        | AttachError::NoSuchPlace { .. }
        | AttachError::NoSuchSlot(_)
        | AttachError::NoStream
        | AttachError::NeedsStore
        | AttachError::NoStore => EINVAL,
        AttachError::NoSuchKind => ENOENT,
        AttachError::NoPlaceLeft | AttachError::Full => ENOSPC,
        AttachError::NoMemory => ENOMEM,
    }
}

/// Why a device was not detached.
pub(crate) fn of_detach(error: DetachError) -> Error {
    match error {
        DetachError::NoSuchDevice => ENOENT,
        DetachError::NotRemovable => EPERM,
        DetachError::NobodyToAsk => beyond_us(),
    }
}

/// Why a disk has no other size.
pub(crate) fn of_resize(error: ResizeError) -> Error {
    match error {
        ResizeError::NoSuchDevice => ENOENT,
        ResizeError::NoDisk => errno(bindings::ENOTBLK),
        ResizeError::NotWhole { .. } => EINVAL,
        ResizeError::Shrinks { .. } => EPERM,
        ResizeError::Store(BlockError::Unsupported | BlockError::ReadOnly) => beyond_us(),
        ResizeError::Store(BlockError::NoSpace) => ENOSPC,
        ResizeError::Store(BlockError::NoMemory) => ENOMEM,
        ResizeError::Store(_) => EIO,
    }
}

/// Why this machine cannot run guests: what `insmod` answers.
pub(crate) fn of_backend(error: Unsupported) -> Error {
    match error {
        Unsupported::Busy => EBUSY,
        Unsupported::NoMemory => ENOMEM,
        Unsupported::NoCpu | Unsupported::Firmware | Unsupported::Missing(_) => ENODEV,
    }
}
