// SPDX-License-Identifier: GPL-2.0
//! Ioctls of a VM's node that no other `*_calls.rs` has: wait, counters, relocation, virtual CPUs, names of streams, features.
//! Those on devices are in `device_calls.rs`; those that look inside in `look_calls.rs`; those that load a saved machine in `load_calls.rs`.
//!
//! To add one: its number and struct in `v3vee.h`, its arm in `vm_file.rs`, a function here or in one of those files.

use crate::host::Linux;
use crate::user::{self, must_be_zero, Text};
use crate::vm_node::VmNode;
use crate::{error, info, report};
use kernel::prelude::*;
use palacios_core::addr::{Gpa, PAGE_SIZE};
use palacios_core::host::{CpuId, Host};
use palacios_core::vm::State;
use v3_abi as abi;

/// `V3_VM_WAIT`: waits until the VM has stopped.
pub(crate) fn wait(node: &VmNode, arg: usize) -> Result {
    let mut wait: abi::v3_wait = user::read(arg)?;
    must_be_zero(wait.pad)?;
    let timeout_ns = u64::try_from(wait.timeout_ns).ok();
    let deadline_ns = timeout_ns.map(|ns| Linux.now_ns().saturating_add(ns));
    let reason = node.wait_stopped(deadline_ns)?;
    wait.state = abi::V3_STATE_STOPPED;
    (wait.reason, wait.exit_status) = info::reason(reason);
    user::write(arg, &wait)
}

/// `V3_VM_STATS`: its counters.
pub(crate) fn stats(node: &VmNode, arg: usize) -> Result {
    let mut stats: abi::v3_stats = user::read(arg)?;
    must_be_zero(stats.pad)?;
    let all = info::stats(&node.held()?.vm, &node.waiters.streams.lock())?;
    let fit = all.get(..stats.count as usize).unwrap_or(&all);
    user::write_all(stats.entries, fit)?;
    stats.count = all.len() as u32;
    user::write(arg, &stats)
}

/// `V3_VM_RELOCATE`: takes frames back, so that the guest gets others.
pub(crate) fn relocate(node: &VmNode, arg: usize) -> Result {
    let range: abi::v3_relocate = user::read(arg)?;
    if range.len == 0 || (range.gpa | range.len) % PAGE_SIZE != 0 {
        return Err(EINVAL);
    }
    let held = node.held()?;
    if let State::Stopped(_) = held.vm.state() {
        return Err(error::wrong_state());
    }
    let ram = held.vm.memory().layout();
    if !ram.contains_all(Gpa(range.gpa), range.len) {
        return Err(ERANGE);
    }
    held.vm.revoke(Gpa(range.gpa), range.len);
    Ok(())
}

/// `V3_VM_MOVE`: moves a vCPU.
pub(crate) fn move_vcpu(node: &VmNode, arg: usize) -> Result {
    let to: abi::v3_vcpu = user::read(arg)?;
    let held = node.held()?;
    if let State::Stopped(_) = held.vm.state() {
        return Err(error::wrong_state());
    }
    let cpu = (to.cpu != abi::V3_CPU_ANY).then_some(CpuId(to.cpu));
    let moved = held.vm.move_vcpu(to.vcpu, cpu);
    moved.map_err(error::of_move)
}

/// `V3_VM_VCPU`: says where a vCPU may run.
pub(crate) fn vcpu(node: &VmNode, arg: usize) -> Result {
    let mut vcpu: abi::v3_vcpu = user::read(arg)?;
    let held = node.held()?;
    if vcpu.vcpu >= held.vm.vcpus() {
        return Err(ENOENT);
    }
    let pin = held.vm.pin(vcpu.vcpu);
    vcpu.cpu = pin.map_or(abi::V3_CPU_ANY, |cpu| cpu.0);
    user::write(arg, &vcpu)
}

/// `V3_VM_VCPU_REPORT`: what a vCPU looks like inside. One that runs is called out of its guest for that.
pub(crate) fn vcpu_report(node: &VmNode, arg: usize) -> Result {
    let wanted: abi::v3_vcpu_report = user::read(arg)?;
    must_be_zero(wanted.pad)?;
    let report = node.held()?.vm.report(wanted.vcpu);
    let report = report.ok_or(ENOENT)?;
    user::write(arg, &report::of(wanted.vcpu, &report))
}

/// `V3_VM_STREAMS`: lists the names of the streams.
pub(crate) fn streams(node: &VmNode, arg: usize) -> Result {
    let mut streams: abi::v3_streams = user::read(arg)?;
    must_be_zero(streams.pad)?;
    node.held()?;
    // Copied first: writing to the caller's memory may sleep for long.
    let mut all = KVec::new();
    for stream in node.waiters.streams.lock().iter() {
        let name = Text::of(format_args!("{}", stream.name())).field;
        all.push(abi::v3_stream { name }, GFP_KERNEL)?;
    }
    let fit = all.get(..streams.count as usize).unwrap_or(&all);
    user::write_all(streams.entries, fit)?;
    streams.count = all.len() as u32;
    user::write(arg, &streams)
}

/// `V3_VM_FEATURES`: which features of processors its guest has.
pub(crate) fn features(node: &VmNode, arg: usize) -> Result {
    let all = node.held()?.vm.judge_features(info::features)?;
    info::write_features(arg, &all)
}
