// SPDX-License-Identifier: GPL-2.0
//! A VM's state and counters in the words of `v3vee.h`.

use crate::hardware::Vm;
use crate::host::Linux;
use crate::stream::Stream;
use crate::user::{self, must_be_zero, Text};
use core::fmt;
use kernel::{prelude::*, sync::Arc};
use palacios_core::devices::MAX_COUNTER_NAME;
use palacios_core::features::Judge;
use palacios_core::host::{Host, PageSize};
use palacios_core::stats::Counter;
use palacios_core::vm::{State, StopReason, DEAD};
use v3_abi as abi;

/// A VM.
pub(crate) fn of(id: u32, vm: &Vm) -> abi::v3_info {
    let state = vm.state();
    let mut info = abi::v3_info {
        vm: id,
        state: match state {
            State::Created => abi::V3_STATE_CREATED,
            State::Running | State::Stopping => abi::V3_STATE_RUNNING,
            State::Paused => abi::V3_STATE_PAUSED,
            State::Stopped(_) => abi::V3_STATE_STOPPED,
        },
        reason: abi::V3_REASON_NONE,
        exit_status: 0,
        vcpus: vm.vcpus(),
        flags: 0,
        memory_bytes: vm.memory().layout().bytes(),
        name: Text::of(format_args!("{}", vm.name())).field,
        message: [0; abi::V3_MESSAGE_LEN as usize],
    };
    if let State::Stopped(why) = state {
        (info.reason, info.exit_status) = reason(why);
        info.message = Text::of(format_args!("{why}")).field;
    } else if vm.is_dead() {
        info.flags = abi::V3_INFO_DEAD;
        info.message = Text::of(format_args!("{DEAD}")).field;
    }
    info
}

/// A reason, and the exit status that goes with it.
pub(crate) fn reason(why: StopReason) -> (u32, u32) {
    let reason = match why {
        StopReason::PoweredOff => abi::V3_REASON_POWER_OFF,
        StopReason::Exit(status) => return (abi::V3_REASON_TEST_EXIT, status),
        StopReason::Requested => abi::V3_REASON_REQUEST,
        StopReason::TripleFault { .. } => abi::V3_REASON_TRIPLE_FAULT,
        StopReason::UnknownExit { .. } => abi::V3_REASON_UNKNOWN_EXIT,
        StopReason::Unemulated { .. } => abi::V3_REASON_EMULATION,
        StopReason::BadState(_) => abi::V3_REASON_BAD_STATE,
        StopReason::NoMemoryAt { .. } | StopReason::TaskSwitch { .. } => abi::V3_REASON_GUEST_ERROR,
        StopReason::OutOfMemory => abi::V3_REASON_HOST_MEMORY,
        StopReason::MachineCheck
        | StopReason::HostGone
        | StopReason::HostTaken
        | StopReason::ResetFailed
        | StopReason::NeverRests(_) => abi::V3_REASON_HOST_ERROR,
    };
    (reason, 0)
}

/// All features of processors, as they are judged.
pub(crate) fn features(judge: &Judge<'_>) -> Result<KVVec<abi::v3_feature>> {
    let mut all = KVVec::new();
    for verdict in judge.report() {
        let row = verdict.row;
        let (leaf, subleaf, register) = row.word.place();
        let feature = abi::v3_feature {
            leaf,
            subleaf,
            reg: register as u32,
            bit: row.bit,
            host: verdict.host.into(),
            guest: match verdict.guest() {
                None => abi::V3_GUEST_VARIES,
                Some(true) => abi::V3_GUEST_HAS,
                Some(false) => abi::V3_GUEST_LACKS,
            },
            name: Text::of(format_args!("{}", row.name)).field,
            why: Text::of(format_args!("{verdict}")).field,
        };
        all.push(feature, GFP_KERNEL)?;
    }
    Ok(all)
}

/// Answers a call that lists features.
pub(crate) fn write_features(arg: usize, all: &[abi::v3_feature]) -> Result {
    let mut list: abi::v3_features = user::read(arg)?;
    must_be_zero(list.pad)?;
    let fit = all.get(..list.count as usize).unwrap_or(all);
    user::write_all(list.entries, fit)?;
    list.count = all.len() as u32;
    user::write(arg, &list)
}

// A device's name, a dot, a counter's name, and the NUL behind them.
const _: () = assert!(
    abi::V3_DEVICE_ID_LEN as usize + 1 + MAX_COUNTER_NAME <= abi::V3_STAT_NAME_LEN as usize
);

/// All counters of a VM.
pub(crate) fn stats(vm: &Vm, streams: &[Arc<Stream>]) -> Result<KVVec<abi::v3_stat>> {
    let mut all = KVVec::new();
    let mut add = |vcpu: i32, name: fmt::Arguments<'_>, value: u64| {
        let name = Text::of(name).field;
        all.push(abi::v3_stat { vcpu, name, value }, GFP_KERNEL_ACCOUNT)
    };
    add(abi::V3_STAT_VM, format_args!("read_at_ns"), Linux.now_ns())?;
    let memory = vm.memory();
    add(
        abi::V3_STAT_VM,
        format_args!("memory_resident_bytes"),
        memory.resident_bytes(),
    )?;
    for (name, size) in [
        ("memory_huge_pages", PageSize::Huge),
        ("memory_large_pages", PageSize::Large),
        ("memory_small_pages", PageSize::Small),
    ] {
        add(abi::V3_STAT_VM, format_args!("{name}"), memory.frames(size))?;
    }
    add(
        abi::V3_STAT_VM,
        format_args!("memory_table_bytes"),
        memory.table_bytes(),
    )?;
    add(
        abi::V3_STAT_VM,
        format_args!("memory_image_bytes"),
        vm.image_bytes(),
    )?;
    for stream in streams {
        let name = stream.name();
        add(
            abi::V3_STAT_VM,
            format_args!("stream_{name}_lost_bytes"),
            stream.lost_bytes(),
        )?;
    }
    let mut added = Ok(());
    vm.bus().counters(|device, counter, value| {
        if added.is_ok() {
            added = add(abi::V3_STAT_VM, format_args!("{device}.{counter}"), value);
        }
    });
    added?;
    for vcpu in 0..vm.vcpus() {
        let counters = vm.counters(vcpu);
        for which in Counter::ALL {
            let value = counters.get(*which);
            add(vcpu as i32, format_args!("{}", which.label()), value)?;
        }
    }
    Ok(all)
}
