// SPDX-License-Identifier: MIT OR Apache-2.0
//! Looks into a VM, and changes nothing there.

use crate::cli::{Debug, Memory};
use crate::failure::{Failure, Outcome};
use crate::output::{print, print_json};
use serde::Serialize;
use std::fmt::Write;
use v3_ctl::{Chipset, Interrupts, Place, Space, VcpuReport, Vm, Walk};

/// What is seen of a VM as a whole.
#[derive(Serialize)]
struct Seen {
    vm: String,
    state: String,
    vcpus: Vec<Vcpu>,
    chipset: Chipset,
}

/// A virtual CPU.
#[derive(Serialize)]
struct Vcpu {
    #[serde(flatten)]
    report: VcpuReport,
    interrupts: Interrupts,
}

pub fn debug(args: &Debug) -> Outcome {
    let vm = Vm::find(&args.target.vm)?;
    let (vcpu, json) = (args.vcpu.unwrap_or(0), args.format.json);
    if let Some(address) = args.walk {
        return walk(&vm, &vm.walk(vcpu, address)?, json);
    }
    if let Some(address) = args.walk_physical {
        return walk(&vm, &vm.walk_physical(address)?, json);
    }
    if let Some(memory) = &args.memory {
        return dump(args, &vm, Some(vcpu), memory);
    }
    if let Some(memory) = &args.physical {
        return dump(args, &vm, None, memory);
    }
    everything(&vm, args.vcpu, json)
}

fn everything(vm: &Vm, vcpu: Option<u32>, json: bool) -> Outcome {
    let info = vm.info()?;
    let which = vcpu.map_or(0..info.vcpus, |vcpu| vcpu..vcpu.saturating_add(1));
    let look = |vcpu| {
        Ok(Vcpu {
            report: vm.vcpu_report(vcpu)?,
            interrupts: vm.interrupts(vcpu)?,
        })
    };
    let seen = Seen {
        vcpus: which.map(look).collect::<Result<_, v3_ctl::Error>>()?,
        chipset: vm.chipset()?,
        state: info.state.name().into_owned(),
        vm: info.name,
    };
    if json {
        print_json(&seen)?;
        return Ok(0);
    }
    let mut text = format!("{}: {}\n", seen.vm, seen.state);
    for vcpu in &seen.vcpus {
        let _ = write!(text, "{}{}", vcpu.report, vcpu.interrupts); // A string takes everything.
    }
    print(&format!("{text}{}", seen.chipset))?;
    Ok(0)
}

/// Shows a walk. One that shows nothing has failed.
fn walk(vm: &Vm, walk: &Walk, json: bool) -> Outcome {
    if let (Some(failure), true) = (walk.failure(), walk.entries.is_empty()) {
        return Err(Failure::tool(format!("{}: {failure}", walk.address)));
    }
    if json {
        print_json(walk)?;
        return Ok(0);
    }
    print(&walk.to_string())?;
    if let (Some(Place::NoMemory), Some(gpa)) = (walk.place, walk.gpa) {
        print(&format!("  {}\n", who_answers(vm, walk.vcpu, gpa.0)))?;
    }
    Ok(0)
}

fn dump(args: &Debug, vm: &Vm, vcpu: Option<u32>, memory: &Memory) -> Outcome {
    let dump = vm.dump(vcpu, memory.at, memory.len)?;
    if let Some(failure) = dump.failure() {
        let failure = Failure::tool(format!("{}: {failure}", dump.address));
        let name = &args.target.vm;
        let gpa = dump.pieces.first().and_then(|piece| piece.gpa);
        return Err(match (gpa, vcpu) {
            (Some(gpa), _) => failure.hint(who_answers(vm, vcpu, gpa.0)),
            (None, _) => failure.hint(format!(
                "`v3 debug {name} --walk {}` shows the way there",
                dump.address
            )),
        });
    }
    if args.format.json {
        print_json(&dump)?;
    } else {
        print(&dump.to_string())?;
    }
    Ok(0)
}

/// Who answers at an address where no memory is.
fn who_answers(vm: &Vm, vcpu: Option<u32>, gpa: u64) -> String {
    let apic = vm.interrupts(vcpu.unwrap_or(0)).map(|i| i.apic);
    if apic.is_ok_and(|apic| apic.mode == "xapic" && apic.address.0 == gpa & !0xfff) {
        return "the local APIC answers there".into();
    }
    // That of every PC. The interrupt controllers are not among the devices.
    if gpa & !0xfff == palacios_core::interrupts::ioapic::BASE_GPA {
        return "the I/O APIC answers there".into();
    }
    let devices = vm.devices().unwrap_or_default();
    let found = devices.iter().find(|device| {
        let mut regions = device.regions.iter();
        regions.any(|region| {
            region.on && region.space == Space::Memory && gpa.wrapping_sub(region.at) < region.bytes
        })
    });
    match found {
        Some(device) => format!("the device {} answers there", device.id),
        None => "no device answers there".into(),
    }
}
