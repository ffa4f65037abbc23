// SPDX-License-Identifier: MIT OR Apache-2.0
//! The ioctls of `v3vee.h`, with their types. The only unsafe code of the tool.

use rustix::fd::AsFd;
use rustix::io::Errno;
use rustix::ioctl::{ioctl, Getter, NoArg, Opcode, Setter, Updater};
use v3_abi::*;

macro_rules! calls {
    ($($name:ident: $pattern:ident $(<$arg:ident>)? = $number:ident;)*) => {$(
        calls!(@ $pattern $name $number $($arg)?);
    )*};
    (@ none $name:ident $number:ident) => {
        pub(crate) fn $name(fd: impl AsFd) -> Result<(), Errno> {
            // SAFETY: v3vee.h defines this call, without argument.
            unsafe { ioctl(fd, NoArg::<{ $number as Opcode }>::new()) }
        }
    };
    (@ out $name:ident $number:ident $arg:ident) => {
        pub(crate) fn $name(fd: impl AsFd) -> Result<$arg, Errno> {
            // SAFETY: v3vee.h defines this call as filling this struct, any bytes of which are a value.
            unsafe { ioctl(fd, Getter::<{ $number as Opcode }, $arg>::new()) }
        }
    };
    (@ input $name:ident $number:ident $arg:ident) => {
        pub(crate) fn $name(fd: impl AsFd, arg: $arg) -> Result<(), Errno> {
            // SAFETY: v3vee.h defines this call as reading this struct.
            unsafe { ioctl(fd, Setter::<{ $number as Opcode }, $arg>::new(arg)) }
        }
    };
    (@ inout $name:ident $number:ident $arg:ident) => {
        /// # Safety
        ///
        /// Addresses in `arg` lead to memory of the lengths beside them, which may be written.
        pub(crate) unsafe fn $name(fd: impl AsFd, arg: &mut $arg) -> Result<(), Errno> {
            // SAFETY: v3vee.h defines this call as updating this struct; the caller answers for its addresses.
            unsafe { ioctl(fd, Updater::<{ $number as Opcode }, $arg>::new(arg)) }
        }
    };
}

calls! {
    version: out<v3_version> = V3_VERSION;
    create_raw: inout<v3_create> = V3_CREATE;
    list_raw: inout<v3_list> = V3_LIST;
    free: input<v3_free> = V3_FREE;
    launch: none = V3_VM_LAUNCH;
    stop: none = V3_VM_STOP;
    pause: none = V3_VM_PAUSE;
    resume: none = V3_VM_CONTINUE;
    wait_raw: inout<v3_wait> = V3_VM_WAIT;
    info: out<v3_info> = V3_VM_INFO;
    stats_raw: inout<v3_stats> = V3_VM_STATS;
    stream: input<v3_stream> = V3_VM_STREAM;
    relocate: input<v3_relocate> = V3_VM_RELOCATE;
    move_vcpu: input<v3_vcpu> = V3_VM_MOVE;
    vcpu_raw: inout<v3_vcpu> = V3_VM_VCPU;
    streams_raw: inout<v3_streams> = V3_VM_STREAMS;
    vcpu_report_raw: inout<v3_vcpu_report> = V3_VM_VCPU_REPORT;
    features_raw: inout<v3_features> = V3_FEATURES;
    vm_features_raw: inout<v3_features> = V3_VM_FEATURES;
    attach_raw: inout<v3_attach> = V3_VM_ATTACH;
    detach: input<v3_detach> = V3_VM_DETACH;
    eject: input<v3_detach> = V3_VM_EJECT;
    resize_raw: inout<v3_resize> = V3_VM_RESIZE;
    devices_raw: inout<v3_devices> = V3_VM_DEVICES;
    memory_read_raw: inout<v3_memory_read> = V3_VM_MEMORY_READ;
    walk_raw: inout<v3_walk> = V3_VM_WALK;
    interrupts_raw: inout<v3_interrupts> = V3_VM_INTERRUPTS;
    chipset: out<v3_chipset> = V3_VM_CHIPSET;
    save: none = V3_VM_SAVE;
    load_ram_raw: inout<v3_load_ram> = V3_VM_LOAD_RAM;
    load_raw: inout<v3_load> = V3_VM_LOAD;
}

fn address<T>(data: *const T) -> u64 {
    data.expose_provenance() as u64
}

/// Makes a VM; returns its number. On failure `message` may hold an explanation, with its NUL.
pub(crate) fn create(
    fd: impl AsFd,
    image: &[u8],
    name: &[u8],
    message: &mut [u8],
) -> Result<u32, Errno> {
    let mut arg = v3_create {
        image: address(image.as_ptr()),
        image_len: image.len() as u64,
        message: address(message.as_mut_ptr()),
        message_len: u32::try_from(message.len()).unwrap_or(u32::MAX),
        ..v3_create::zeroed()
    };
    put_text(&mut arg.name, name);
    // SAFETY: Both slices have the given lengths, and outlive the call.
    unsafe { create_raw(fd, &mut arg) }?;
    Ok(arg.vm)
}

/// Waits until the VM stopped.
pub(crate) fn wait(fd: impl AsFd, timeout_ns: i64) -> Result<v3_wait, Errno> {
    let mut arg = v3_wait {
        timeout_ns,
        ..v3_wait::zeroed()
    };
    // SAFETY: There are no addresses in the struct.
    unsafe { wait_raw(fd, &mut arg) }?;
    Ok(arg)
}

/// The host's CPU on which a virtual CPU alone runs, or `V3_CPU_ANY`.
pub(crate) fn pin(fd: impl AsFd, vcpu: u32) -> Result<u32, Errno> {
    let mut arg = v3_vcpu { vcpu, cpu: 0 };
    // SAFETY: There are no addresses in the struct.
    unsafe { vcpu_raw(fd, &mut arg) }?;
    Ok(arg.cpu)
}

/// What a virtual CPU looks like inside, out of the guest. One that runs is called out for it.
pub(crate) fn vcpu_report(fd: impl AsFd, vcpu: u32) -> Result<v3_vcpu_report, Errno> {
    let mut arg = v3_vcpu_report {
        vcpu,
        ..v3_vcpu_report::zeroed()
    };
    // SAFETY: There are no addresses in the struct that the module would follow.
    unsafe { vcpu_report_raw(fd, &mut arg) }?;
    Ok(arg)
}

/// Reads guest memory from `gpa` on: what is there, how many bytes are of that kind, and these if they could be read.
pub(crate) fn memory_read(
    fd: impl AsFd,
    gpa: u64,
    len: usize,
) -> Result<(u32, usize, Vec<u8>), Errno> {
    let mut buffer = vec![0; len];
    let mut arg = v3_memory_read {
        gpa,
        buffer: address(buffer.as_mut_ptr()),
        len: u32::try_from(len).unwrap_or(u32::MAX),
        place: 0,
    };
    // SAFETY: The buffer has that length at least, and outlives the call.
    unsafe { memory_read_raw(fd, &mut arg) }?;
    let len = (arg.len as usize).min(len);
    buffer.truncate(len);
    Ok((arg.place, len, buffer))
}

/// Follows page tables to an address, as `wanted` says.
pub(crate) fn walk(fd: impl AsFd, mut wanted: v3_walk) -> Result<v3_walk, Errno> {
    // SAFETY: There are no addresses in the struct that the module would follow in this program.
    unsafe { walk_raw(fd, &mut wanted) }?;
    Ok(wanted)
}

/// What is on its way to a virtual CPU.
pub(crate) fn interrupts(fd: impl AsFd, vcpu: u32) -> Result<v3_interrupts, Errno> {
    let mut arg = v3_interrupts {
        vcpu,
        ..v3_interrupts::zeroed()
    };
    // SAFETY: There are no addresses in the struct.
    unsafe { interrupts_raw(fd, &mut arg) }?;
    Ok(arg)
}

/// Writes to RAM from page number `page` on.
pub(crate) fn load_ram(fd: impl AsFd, page: u64, bytes: &[u8]) -> Result<(), Errno> {
    let mut arg = v3_load_ram {
        page,
        buffer: address(bytes.as_ptr()),
        len: bytes.len() as u64,
    };
    // SAFETY: The slice has the given length, and outlives the call, which only reads it.
    unsafe { load_ram_raw(fd, &mut arg) }
}

/// Has a VM go on from a state. On failure `message` may hold an explanation, with its NUL.
pub(crate) fn load(
    fd: impl AsFd,
    state: &[u8],
    flags: u32,
    message: &mut [u8],
) -> Result<(), Errno> {
    let mut arg = v3_load {
        state: address(state.as_ptr()),
        state_len: state.len() as u64,
        message: address(message.as_mut_ptr()),
        message_len: u32::try_from(message.len()).unwrap_or(u32::MAX),
        flags,
    };
    // SAFETY: Both slices have the given lengths, and outlive the call; only the message is written.
    unsafe { load_raw(fd, &mut arg) }
}

pub(crate) fn list(fd: impl AsFd) -> Result<Vec<v3_info>, Errno> {
    all(|entries: &mut [v3_info]| {
        let mut arg = v3_list {
            entries: address(entries.as_mut_ptr()),
            count: entries.len() as u32,
            pad: 0,
        };
        // SAFETY: There are as many entries as said, and any bytes make one.
        unsafe { list_raw(&fd, &mut arg) }?;
        Ok(arg.count)
    })
}

pub(crate) fn stats(fd: impl AsFd) -> Result<Vec<v3_stat>, Errno> {
    all(|entries: &mut [v3_stat]| {
        let mut arg = v3_stats {
            entries: address(entries.as_mut_ptr()),
            count: entries.len() as u32,
            pad: 0,
        };
        // SAFETY: There are as many entries as said, and any bytes make one.
        unsafe { stats_raw(&fd, &mut arg) }?;
        Ok(arg.count)
    })
}

pub(crate) fn streams(fd: impl AsFd) -> Result<Vec<v3_stream>, Errno> {
    all(|entries: &mut [v3_stream]| {
        let mut arg = v3_streams {
            entries: address(entries.as_mut_ptr()),
            count: entries.len() as u32,
            pad: 0,
        };
        // SAFETY: There are as many entries as said, and any bytes make one.
        unsafe { streams_raw(&fd, &mut arg) }?;
        Ok(arg.count)
    })
}

/// Attaches a device; returns what it is known by. On failure `message` may hold an explanation, with its NUL.
pub(crate) fn attach(
    fd: impl AsFd,
    (kind, id): (&[u8], &[u8]),
    options: &[u8],
    descriptors: &[v3_descriptor],
    message: &mut [u8],
) -> Result<[u8; V3_DEVICE_ID_LEN as usize], Errno> {
    let count = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
    let mut arg = v3_attach {
        options: address(options.as_ptr()),
        options_len: count(options.len()),
        descriptors: address(descriptors.as_ptr()),
        descriptor_count: count(descriptors.len()),
        message: address(message.as_mut_ptr()),
        message_len: count(message.len()),
        ..v3_attach::zeroed()
    };
    put_text(&mut arg.kind, kind);
    put_text(&mut arg.id, id);
    // SAFETY: All slices have the given lengths, and outlive the call.
    unsafe { attach_raw(fd, &mut arg) }?;
    Ok(arg.id)
}

/// Gives a disk another size; returns how large it is then.
pub(crate) fn resize(
    fd: impl AsFd,
    id: [u8; V3_DEVICE_ID_LEN as usize],
    bytes: u64,
    flags: u32,
    message: &mut [u8],
) -> Result<u64, Errno> {
    let mut arg = v3_resize {
        bytes,
        message: address(message.as_mut_ptr()),
        message_len: u32::try_from(message.len()).unwrap_or(u32::MAX),
        flags,
        id,
    };
    // SAFETY: The message has the given length, and outlives the call.
    unsafe { resize_raw(fd, &mut arg) }?;
    Ok(arg.bytes)
}

pub(crate) fn devices(fd: impl AsFd) -> Result<Vec<v3_device>, Errno> {
    all(|entries: &mut [v3_device]| {
        let mut arg = v3_devices {
            entries: address(entries.as_mut_ptr()),
            count: entries.len() as u32,
            pad: 0,
        };
        // SAFETY: There are as many entries as said, and any bytes make one.
        unsafe { devices_raw(&fd, &mut arg) }?;
        Ok(arg.count)
    })
}

/// The features of processors, and which of them a guest has: that of a VM's node, or any by the control node.
pub(crate) fn features(fd: impl AsFd, of_a_vm: bool) -> Result<Vec<v3_feature>, Errno> {
    all(|entries: &mut [v3_feature]| {
        let mut arg = v3_features {
            entries: address(entries.as_mut_ptr()),
            count: entries.len() as u32,
            pad: 0,
        };
        // SAFETY: There are as many entries as said, and any bytes make one.
        unsafe {
            match of_a_vm {
                true => vm_features_raw(&fd, &mut arg),
                false => features_raw(&fd, &mut arg),
            }
        }?;
        Ok(arg.count)
    })
}

/// Asks with more and more room until all entries fit. `call` tells how many there are.
fn all<T: Abi>(mut call: impl FnMut(&mut [T]) -> Result<u32, Errno>) -> Result<Vec<T>, Errno> {
    let mut entries = vec![T::zeroed(); 64];
    loop {
        let count = call(&mut entries)? as usize;
        if count <= entries.len() {
            entries.truncate(count);
            return Ok(entries);
        }
        entries.resize(count.saturating_add(8), T::zeroed());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_that_grows_is_asked_again() {
        let mut asked = Vec::new();
        let got: Vec<v3_free> = all(|entries: &mut [v3_free]| {
            asked.push(entries.len());
            let exist = if asked.len() < 3 {
                100 * asked.len()
            } else {
                150
            };
            for (vm, entry) in (0..).zip(entries.iter_mut().take(exist)) {
                entry.vm = vm;
            }
            Ok(exist as u32)
        })
        .unwrap();
        assert_eq!(asked, [64, 108, 208]);
        assert_eq!(
            got.iter().map(|e| e.vm).collect::<Vec<_>>(),
            (0..150).collect::<Vec<_>>()
        );
    }
}
