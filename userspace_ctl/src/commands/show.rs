// SPDX-License-Identifier: MIT OR Apache-2.0
//! Prints what the module says.

use crate::cli::{Format, Info, Stats};
use crate::failure::Outcome;
use crate::output::{print, print_json};
use serde::Serialize;
use serde_json::{Map, Value};
use std::fmt::Write;
use v3_ctl::{format_bytes, Control, Error, Feature, Reason, Stat, State, VcpuReport, Version, Vm};

pub fn list(args: &Format) -> Outcome {
    let vms = Control::open()?.list()?;
    if args.json {
        print_json(&vms)?;
    } else {
        print(&table(&vms))?;
    }
    Ok(0)
}

pub fn info(args: &Info) -> Outcome {
    match &args.vm {
        Some(vm) if args.cpuid => cpuid(&Vm::find(vm)?.features()?, args.format.json),
        None if args.cpuid => cpuid(&Control::open()?.features()?, args.format.json),
        Some(vm) => vm_info(vm, args.format.json),
        None => host_info(args.format.json),
    }
}

/// Lists features.
fn cpuid(features: &[Feature], json: bool) -> Outcome {
    if json {
        print_json(&features)?;
    } else {
        print(&feature_table(features))?;
    }
    Ok(0)
}

/// What the module makes of this machine.
#[derive(Serialize)]
struct Host<'a> {
    #[serde(flatten)]
    module: &'a Version,
    feature_names: Vec<&'static str>,
}

fn host_info(json: bool) -> Outcome {
    let version = Control::open()?.version()?;
    let feature_names = version.feature_names();
    if json {
        print_json(&Host {
            module: &version,
            feature_names,
        })?;
    } else {
        print(&format!(
            "module: {}\nbackend: {}\nfeatures: {}\nvms: {} of {}\nvcpus: up to {} a VM\n",
            version.module,
            version.backend,
            feature_names.join(", "),
            version.vms,
            version.max_vms,
            version.max_vcpus
        ))?;
    }
    Ok(0)
}

fn vm_info(vm: &str, json: bool) -> Outcome {
    let vm = Vm::find(vm)?;
    let info = vm.info()?;
    let pins = (0..info.vcpus).map(|vcpu| vm.pin(vcpu));
    let pins = pins.collect::<Result<Vec<_>, _>>()?;
    let details = Details {
        info: &info,
        pins,
        // An older module of the same ABI cannot list them.
        streams: vm.streams().unwrap_or_default(),
        vcpu_reports: remains(&vm, &info)?,
    };
    if json {
        print_json(&details)?;
    } else {
        print(&details.description())?;
    }
    Ok(0)
}

pub fn stats(args: &Stats) -> Outcome {
    let stats = Vm::find(&args.target.vm)?.stats()?;
    if args.format.json {
        print_json(&counters(&stats))?;
    } else {
        print(&stat_lines(&stats, args.all))?;
    }
    Ok(0)
}

/// A VM, with the host's CPU of each virtual CPU that is pinned, and its streams.
#[derive(Serialize)]
struct Details<'a> {
    #[serde(flatten)]
    info: &'a v3_ctl::Info,
    pins: Vec<Option<u32>>,
    streams: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    vcpu_reports: Vec<VcpuReport>,
}

/// What the virtual CPUs of a VM left behind, unless it runs yet or ended by its own wish.
pub fn remains(vm: &Vm, info: &v3_ctl::Info) -> Result<Vec<VcpuReport>, Error> {
    let own_wish = matches!(info.reason, Reason::PowerOff | Reason::TestExit);
    match info.state {
        State::Stopped if !own_wish => vm.vcpu_reports(),
        _ => Ok(Vec::new()),
    }
}

/// This program, and the module if it is there.
#[derive(Serialize)]
struct Versions {
    v3: &'static str,
    abi: u32,
    module: Option<Version>,
    /// Why the module could not be asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

impl Versions {
    fn new(module: Result<Version, Error>) -> Self {
        Self {
            v3: env!("CARGO_PKG_VERSION"),
            abi: v3_abi::V3_ABI,
            error: module.as_ref().err().map(ToString::to_string),
            module: module.ok(),
        }
    }

    fn line(&self) -> String {
        let module = match (&self.module, &self.error) {
            (Some(m), _) => format!(
                "module {} on {}, {} of {} VMs",
                m.module, m.backend, m.vms, m.max_vms
            ),
            (None, Some(error)) => format!("no module: {error}"),
            (None, None) => "no module".into(),
        };
        format!("v3 {}, ABI {}; {module}\n", self.v3, self.abi)
    }
}

pub fn version(args: &Format) -> Outcome {
    let versions = Versions::new(Control::open().and_then(|control| control.version()));
    if args.json {
        print_json(&versions)?;
    } else {
        print(&versions.line())?;
    }
    Ok(0)
}

/// A state, and whether the guest is past waking.
fn state(vm: &v3_ctl::Info) -> String {
    let dead = if vm.dead { " (dead)" } else { "" };
    format!("{}{dead}", vm.state.name())
}

/// A reason with what belongs to it; empty unless stopped.
fn reason(vm: &v3_ctl::Info) -> String {
    match (vm.reason, vm.exit_status) {
        (Reason::None, _) => String::new(),
        (reason, Some(status)) => format!("{} {status}", reason.name()),
        (reason, None) => reason.name().into(),
    }
}

fn feature_table(features: &[Feature]) -> String {
    let head = ["FEATURE", "CPUID", "HOST", "GUEST", "WHY"].map(String::from);
    let has = |it: bool| if it { "yes" } else { "no" };
    let rows = features.iter().map(|f| {
        let subleaf = match f.subleaf {
            0 => String::new(),
            n => format!(".{n}"),
        };
        [
            f.name.clone(),
            format!("{:#x}{subleaf}.{}.{}", f.leaf, f.register, f.bit),
            has(f.host).into(),
            f.guest.map_or("varies", has).into(),
            f.why.clone(),
        ]
    });
    lines(&[head].into_iter().chain(rows).collect::<Vec<_>>())
}

fn table(vms: &[v3_ctl::Info]) -> String {
    let head = ["VM", "NAME", "STATE", "VCPUS", "MEMORY", "REASON"].map(String::from);
    let rows = vms.iter().map(|vm| {
        let (state, memory) = (state(vm), format_bytes(vm.memory_bytes));
        [
            vm.vm.to_string(),
            vm.name.clone(),
            state,
            vm.vcpus.to_string(),
            memory,
            reason(vm),
        ]
    });
    lines(&[head].into_iter().chain(rows).collect::<Vec<_>>())
}

/// A table whose columns line up.
pub fn lines<const COLUMNS: usize>(rows: &[[String; COLUMNS]]) -> String {
    let widths: [usize; COLUMNS] =
        std::array::from_fn(|at| rows.iter().map(|row| row[at].len()).max().unwrap_or(0));
    let line = |row: &[String; COLUMNS]| {
        let cells = row
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:width$}"));
        format!("{}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

impl Details<'_> {
    fn description(&self) -> String {
        let vm = self.info;
        let pin = |pin: &Option<u32>| pin.map_or("any".into(), |cpu| cpu.to_string());
        let pins: Vec<String> = self.pins.iter().map(pin).collect();
        let mut text = format!(
            "vm: {}\nname: {}\nstate: {}\nvcpus: {}\npins: {}\nmemory: {}\n",
            vm.vm,
            vm.name,
            state(vm),
            vm.vcpus,
            pins.join(", "),
            format_bytes(vm.memory_bytes)
        );
        let rest = [
            ("streams", &self.streams.join(", ")),
            ("reason", &reason(vm)),
            ("message", &vm.message),
        ];
        for (key, value) in rest {
            if !value.is_empty() {
                let _ = writeln!(text, "{key}: {value}"); // A string takes everything.
            }
        }
        text.extend(self.vcpu_reports.iter().map(VcpuReport::to_string));
        text
    }
}

fn stat_lines(stats: &[Stat], all: bool) -> String {
    let shown = stats.iter().filter(|stat| all || stat.value != 0);
    let line = |stat: &Stat| {
        let owner = stat.vcpu.map_or("vm".into(), |vcpu| format!("vcpu{vcpu}"));
        format!("{owner:7} {:32} {:>20}\n", stat.name, stat.value)
    };
    shown.map(line).collect()
}

/// Counters by owner: `{"vm": {NAME: VALUE}, "vcpus": [{NAME: VALUE}, …]}`.
pub fn counters(stats: &[Stat]) -> Value {
    let of = |owner: Option<u32>| {
        let own = stats.iter().filter(|stat| stat.vcpu == owner);
        own.map(|stat| (stat.name.clone(), stat.value.into()))
            .collect::<Map<_, _>>()
    };
    let vcpus = stats
        .iter()
        .filter_map(|stat| stat.vcpu)
        .max()
        .map_or(0, |last| last + 1);
    let vcpus: Vec<_> = (0..vcpus).map(|vcpu| of(Some(vcpu))).collect();
    serde_json::json!({ "vm": of(None), "vcpus": vcpus })
}

/// Says how a VM ended, for people.
pub fn ending(vm: &v3_ctl::Info) -> String {
    end(&vm.name, &vm.reason.name(), vm.exit_status, &vm.message)
}

/// An end in one line: name, reason, and what else there is.
pub fn end(name: &str, reason: &str, exit_status: Option<u32>, message: &str) -> String {
    let status = exit_status.map_or(String::new(), |status| format!(" {status}"));
    let separator = if message.is_empty() { "" } else { ": " };
    format!("{name}: {reason}{status}{separator}{message}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vm(number: u32, name: &str) -> v3_ctl::Info {
        v3_ctl::Info {
            vm: number,
            name: name.into(),
            state: State::Running,
            dead: false,
            reason: Reason::None,
            exit_status: None,
            vcpus: 1,
            memory_bytes: 512 << 20,
            message: String::new(),
        }
    }

    fn stopped() -> v3_ctl::Info {
        v3_ctl::Info {
            state: State::Stopped,
            dead: false,
            reason: Reason::TestExit,
            exit_status: Some(85),
            message: "port 0xf4".into(),
            ..vm(10, "longer-name")
        }
    }

    #[test]
    fn a_table_lines_up() {
        let text = table(&[vm(0, "a"), stopped()]);
        let expected = "\
VM  NAME         STATE    VCPUS  MEMORY   REASON
0   a            running  1      512 MiB
10  longer-name  stopped  1      512 MiB  test-exit 85
";
        assert_eq!(text, expected);
    }

    #[test]
    fn features_are_told_with_their_reasons() {
        let feature = |name: &str, subleaf, host, guest, why: &str| Feature {
            name: name.into(),
            leaf: 7,
            subleaf,
            register: "ecx",
            bit: 16,
            host,
            guest,
            why: why.into(),
        };
        let text = feature_table(&[
            feature("la57", 0, true, Some(true), ""),
            feature(
                "avx_vnni",
                1,
                false,
                Some(false),
                "the host's processor does not have it",
            ),
            feature("ospke", 0, true, None, "as the guest sets CR4.PKE"),
        ]);
        let expected = "\
FEATURE   CPUID         HOST  GUEST   WHY
la57      0x7.ecx.16    yes   yes
avx_vnni  0x7.1.ecx.16  no    no      the host's processor does not have it
ospke     0x7.ecx.16    yes   varies  as the guest sets CR4.PKE
";
        assert_eq!(text, expected);
    }

    #[test]
    fn a_vm_is_described() {
        let describe = |info: &v3_ctl::Info, pins: &[Option<u32>]| {
            let (pins, streams) = (pins.to_vec(), vec!["com1".into(), "debug".into()]);
            let details = Details {
                info,
                pins,
                streams,
                vcpu_reports: Vec::new(),
            };
            details.description()
        };
        let text = describe(&vm(0, "a"), &[None, Some(3)]);
        assert!(!text.contains("reason"));
        assert!(text.contains("\npins: any, 3\n"));
        let text = describe(&stopped(), &[None]);
        assert!(text.ends_with(
            "memory: 512 MiB\nstreams: com1, debug\nreason: test-exit 85\nmessage: port 0xf4\n"
        ));
    }

    #[test]
    fn an_end_is_one_line() {
        assert_eq!(ending(&stopped()), "longer-name: test-exit 85: port 0xf4");
        assert_eq!(end("a", "request", None, ""), "a: request");
    }

    #[test]
    fn a_module_that_cannot_be_asked_is_not_said_to_be_missing() {
        let denied = Error::Open {
            node: "/dev/v3vee".into(),
            errno: rustix::io::Errno::ACCESS,
        };
        let line = Versions::new(Err(denied)).line();
        assert!(
            line.ends_with("; no module: /dev/v3vee: permission denied\n"),
            "{line}"
        );
    }

    #[test]
    fn counters_are_grouped() {
        let stat = |vcpu, name: &str, value| Stat {
            vcpu,
            name: name.into(),
            value,
        };
        let stats = [
            stat(None, "pages", 7),
            stat(Some(1), "exit_cpuid", 3),
            stat(Some(0), "kicks", 0),
        ];
        let json = serde_json::json!({
            "vm": {"pages": 7}, "vcpus": [{"kicks": 0}, {"exit_cpuid": 3}]
        });
        assert_eq!(counters(&stats), json);
        assert_eq!(counters(&[]), serde_json::json!({"vm": {}, "vcpus": []}));
        assert_eq!(stat_lines(&stats, false).lines().count(), 2);
        assert_eq!(stat_lines(&stats, true).lines().count(), 3);
    }

    #[test]
    fn a_number_of_vcpus_is_bounded_by_the_counters() {
        let stats = [Stat {
            vcpu: Some(63),
            name: "a".into(),
            value: 1,
        }];
        assert_eq!(counters(&stats)["vcpus"].as_array().unwrap().len(), 64);
    }
}
