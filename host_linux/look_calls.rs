// SPDX-License-Identifier: GPL-2.0
//! The ioctls of a VM's node that look inside. None of them changes anything there.

use crate::look;
use crate::user;
use crate::vm_node::VmNode;
use kernel::{bindings, prelude::*};
use palacios_core::addr::{Gpa, Gva, PAGE_SIZE};
use v3_abi as abi;

/// `V3_VM_MEMORY_READ`: the guest's memory, to the end of a page.
pub(crate) fn memory_read(node: &VmNode, arg: usize) -> Result {
    let mut read: abi::v3_memory_read = user::read(arg)?;
    let to = user::pointer(read.buffer)?;
    let held = node.held()?;
    let len = u64::from(read.len).min(PAGE_SIZE) as usize;
    // It is copied by way of the heap: writing to the caller's memory may sleep for long, and a stack is small.
    let mut page = KVec::from_elem(0u8, len, GFP_KERNEL)?;
    let (place, len) = held.vm.memory().look(Gpa(read.gpa), &mut page);
    drop(held);
    (read.place, read.len) = (look::place(place), len as u32);
    if read.place == abi::V3_PLACE_MEMORY {
        user::write_bytes(to, page.get(..len).unwrap_or(&[]))?;
    }
    user::write(arg, &read)
}

/// `V3_VM_WALK`: the way to an address, through the guest's page tables and the nested ones.
pub(crate) fn walk(node: &VmNode, arg: usize) -> Result {
    let wanted: abi::v3_walk = user::read(arg)?;
    user::must_be_zero(wanted.pad)?;
    user::must_be_zero(wanted.flags & !abi::V3_WALK_PHYSICAL)?;
    let mut walk = abi::v3_walk {
        address: wanted.address,
        vcpu: wanted.vcpu,
        flags: wanted.flags,
        ..<abi::v3_walk as abi::Abi>::zeroed()
    };
    let held = node.held()?;
    let gpa = if wanted.flags & abi::V3_WALK_PHYSICAL != 0 {
        (walk.end, walk.gpa) = (abi::V3_WALK_MAPPED, wanted.address);
        Some(wanted.address)
    } else {
        let trace = held.vm.walk(wanted.vcpu, Gva(wanted.address));
        look::guest_walk(&mut walk, &trace.ok_or(ENOENT)?)
    };
    if let Some(gpa) = gpa {
        let (trace, place) = held.vm.walk_nested(Gpa(gpa));
        look::nested_walk(&mut walk, &trace, place);
    }
    drop(held);
    // SAFETY: It may be called by any task, about itself.
    if !unsafe { bindings::capable(bindings::CAP_SYS_ADMIN as i32) } {
        look::hide_host_addresses(&mut walk);
    }
    user::write(arg, &walk)
}

/// `V3_VM_INTERRUPTS`: what is on its way to a vCPU.
pub(crate) fn interrupts(node: &VmNode, arg: usize) -> Result {
    let wanted: abi::v3_interrupts = user::read(arg)?;
    user::must_be_zero(wanted.flags)?;
    user::must_be_zero(wanted.apic.pad)?;
    let interrupts = node.held()?.vm.interrupts(wanted.vcpu);
    let interrupts = interrupts.ok_or(ENOENT)?;
    user::write(arg, &look::interrupts(wanted.vcpu, &interrupts))
}

/// `V3_VM_CHIPSET`: the I/O APIC and the PIC pair.
pub(crate) fn chipset(node: &VmNode, arg: usize) -> Result {
    let registers = node.held()?.vm.chipset();
    user::write(arg, &look::chipset(&registers))
}
