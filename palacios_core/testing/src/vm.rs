// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whole VMs on the test host.

use crate::host::{LargePages, TestRam, TestShared};
use crate::processor::{self, trap};
use crate::{formats, heap, AdversarialBackend, Config, TestHost};
use palacios_core::backend::svm::Svm;
use palacios_core::backend::vmx::Vmx;
use palacios_core::backend::Backend;
use palacios_core::devices::ByteStream;
use palacios_core::features::{self, FeatureSet, GuestFeatures};
use palacios_core::host::{CpuId, Host, NoMemory};
use palacios_core::image::write;
use palacios_core::memory::nested::Format;
use palacios_core::stats::Counter;
use palacios_core::vm::{CreateError, Observer, Parts, State, Step, StopReason, Vm, VmName};
use std::collections::VecDeque;
use std::iter;
use std::ops::Deref;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use vm_fdt::{FdtWriter, FdtWriterResult};

/// How long no vCPU may be entered before a test takes its guest to hang. A slow machine needs a few seconds at most.
const QUIET: Duration = Duration::from_secs(600);
/// How often vCPUs may be entered before a test takes its guest to get nowhere: by far more often than any guest needs.
const MOST_ENTRIES: u64 = 30_000_000;

const KERNEL_GS_BASE: u32 = 0xc000_0102;
const TSC_AUX: u32 = 0xc000_0103;

/// The features of a guest from which nothing is taken away.
pub fn features_of<B: Backend<TestHost>>(backend: &B) -> GuestFeatures {
    features::judge(backend, FeatureSet::default(), |judge| judge.features())
}

/// What a machine is to be.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Its name.
    pub name: &'static str,
    /// A Multiboot kernel.
    pub kernel: Vec<u8>,
    /// Bytes of RAM.
    pub memory_bytes: u64,
    /// The host's CPU for each vCPU, if it is pinned.
    pub pins: Vec<Option<u32>>,
    /// When its RAM comes in large pages.
    pub large_pages: LargePages,
    /// It has the first serial port.
    pub serial: bool,
    /// Its command line, if it has one.
    pub bootargs: Option<&'static str>,
    /// Features that its processors do not have.
    pub without: Vec<&'static str>,
    /// The files behind the kernel, by their labels: `initrd`, or `module`.
    pub files: Vec<(&'static str, Vec<u8>)>,
}

impl Spec {
    /// A machine with one vCPU and 16 MiB.
    pub fn new(kernel: Vec<u8>) -> Self {
        Self {
            name: "test",
            kernel,
            memory_bytes: 16 << 20,
            pins: vec![None],
            large_pages: LargePages::Sometimes,
            serial: false,
            bootargs: None,
            without: Vec::new(),
            files: Vec::new(),
        }
    }

    /// The same with so many vCPUs, on whichever CPU.
    pub fn with_vcpus(self, vcpus: usize) -> Self {
        Self {
            pins: vec![None; vcpus],
            ..self
        }
    }

    /// The guest.img that describes it.
    pub fn image(&self) -> Vec<u8> {
        let files = self.files.iter().map(|(_, bytes)| bytes.as_slice());
        let blobs: Vec<&[u8]> = iter::once(self.kernel.as_slice()).chain(files).collect();
        write::image(&self.tree(), &blobs).expect("a small image")
    }

    /// The device tree in it.
    pub fn tree(&self) -> Vec<u8> {
        self.write_tree().expect("a small tree")
    }

    fn write_tree(&self) -> FdtWriterResult<Vec<u8>> {
        let mut fdt = FdtWriter::new()?;
        let root = fdt.begin_node("")?;
        fdt.property_string("compatible", "v3vee,pc")?;
        fdt.property_u32("#address-cells", 2)?;
        fdt.property_u32("#size-cells", 2)?;
        let memory = fdt.begin_node("memory@0")?;
        fdt.property_array_u64("reg", &[0, self.memory_bytes])?;
        fdt.end_node(memory)?;
        self.write_cpus(&mut fdt)?;
        if let Some(bootargs) = self.bootargs {
            let chosen = fdt.begin_node("chosen")?;
            fdt.property_string("bootargs", bootargs)?;
            fdt.end_node(chosen)?;
        }
        self.write_blobs(&mut fdt)?;
        if self.serial {
            write_serial_port(&mut fdt)?;
        }
        fdt.end_node(root)?;
        fdt.finish()
    }

    fn write_cpus(&self, fdt: &mut FdtWriter) -> FdtWriterResult<()> {
        let cpus = fdt.begin_node("cpus")?;
        if !self.without.is_empty() {
            let names = self.without.iter().map(|name| (*name).into()).collect();
            fdt.property_string_list("v3vee,without", names)?;
        }
        for (n, pin) in (0..).zip(&self.pins) {
            let cpu = fdt.begin_node(&format!("cpu@{n:x}"))?;
            fdt.property_u32("reg", n)?;
            if let Some(pin) = pin {
                fdt.property_u32("v3vee,pin", *pin)?;
            }
            fdt.end_node(cpu)?;
        }
        fdt.end_node(cpus)
    }

    fn write_blobs(&self, fdt: &mut FdtWriter) -> FdtWriterResult<()> {
        let blobs = fdt.begin_node("blobs")?;
        let labels = iter::once("kernel").chain(self.files.iter().map(|(label, _)| *label));
        for (n, label) in (0..).zip(labels) {
            let blob = fdt.begin_node(&format!("blob@{n:x}"))?;
            fdt.property_u32("v3vee,index", n)?;
            fdt.property_string("label", label)?;
            fdt.end_node(blob)?;
        }
        fdt.end_node(blobs)
    }
}

fn write_serial_port(fdt: &mut FdtWriter) -> FdtWriterResult<()> {
    let devices = fdt.begin_node("devices")?;
    let serial = fdt.begin_node("serial@3f8")?;
    fdt.property_string("compatible", "ns16550a")?;
    fdt.property_array_u64("reg", &[0x3f8, 8])?;
    fdt.property_u32("interrupts", 4)?;
    fdt.property_string("v3vee,stream", "com1")?;
    fdt.end_node(serial)?;
    fdt.end_node(devices)
}

/// A backend that runs on the test host's processors.
pub trait TestBackend: Backend<TestHost> {
    /// How much longer than others it takes for an exit: each instruction that the machine beneath refuses takes it some
    /// ten microseconds.
    const SLOWNESS: u32 = 1;
    /// The machine beneath refuses none of its instructions.
    const FAST: bool = false;
    /// A model-specific register that its guests have for their own, and can reach on these processors.
    const OWN_MSR: u32 = KERNEL_GS_BASE;
    /// A guest that shut down leaves nothing in its registers that can be used (APM 2: 15.14.3).
    const SHUTDOWN_LOSES_STATE: bool = false;
    /// Finds them.
    fn find(host: &TestHost) -> Self;
    /// The processors nearest to these that it runs on.
    fn adapt(processor: processor::Config) -> processor::Config {
        processor
    }
}

impl TestBackend for AdversarialBackend {
    const FAST: bool = true;
    fn find(host: &TestHost) -> Self {
        Self::probe(host).expect("the test host's processors")
    }
}

/// A host of the usual kind, with processors for the backend.
pub fn usual_config<B: TestBackend>() -> Config {
    Config {
        processor: B::adapt(processor::Config::default()),
        ..Config::default()
    }
}

/// The real one. Its privileged instructions are done by the test host's processors.
impl TestBackend for Svm<TestHost> {
    const OWN_MSR: u32 = TSC_AUX;
    const SHUTDOWN_LOSES_STATE: bool = true;
    fn find(host: &TestHost) -> Self {
        trap::install();
        Self::probe_with_cpuid(host, trap::cpuid(host)).expect("the test host's SVM")
    }
    fn adapt(processor: processor::Config) -> processor::Config {
        processor::Config {
            format: formats::npt(processor.format.levels),
            ..processor
        }
    }
}

/// The other real one.
impl TestBackend for Vmx<TestHost> {
    const SLOWNESS: u32 = 8;
    fn find(host: &TestHost) -> Self {
        trap::install();
        let tags = host.processors().config.tags;
        Self::probe_with_cpuid(host, trap::cpuid(host), tags).expect("the test host's VT-x")
    }
    fn adapt(processor: processor::Config) -> processor::Config {
        processor::Config {
            format: Format {
                large_executable: processor.format.large_executable,
                ..formats::ept(processor.format.levels)
            },
            vmx: Some(vt_x(processor.next_rip)),
            ..processor
        }
    }
}

/// A processor that has all that the backend can use, or one that has nothing that it can do without.
fn vt_x(new: bool) -> processor::VmxConfig {
    const TRUE_CONTROLS: (u32, u64) = (0x480, 1 << 55);
    const PREEMPTION_TIMER: (u32, u64) = (0x481, 1 << 38);
    const RDTSCP_SPIN_EXITS_INVPCID: (u32, u64) = (0x48b, (1 << 3 | 1 << 10 | 1 << 12) << 32);
    const MEMORY_CTRL: (u32, u64) = (0x33, u64::MAX);
    const PEBS_ENABLE: (u32, u64) = (0x3f1, u64::MAX);
    let optional = [
        MEMORY_CTRL,
        PEBS_ENABLE,
        TRUE_CONTROLS,
        PREEMPTION_TIMER,
        RDTSCP_SPIN_EXITS_INVPCID,
    ];
    processor::VmxConfig {
        lacks: if new { Vec::new() } else { optional.into() },
        machine_check_one_in: 64,
    }
}

/// Tests of the functions named, which take a [`TestBackend`], on each of the three.
#[macro_export]
macro_rules! on_all_backends {
    ($($name:ident,)*) => {
        mod adversarial {
            $(#[test]
            fn $name() {
                super::$name::<$crate::AdversarialBackend>();
            })*
        }
        mod svm {
            $(#[test]
            fn $name() {
                super::$name::<palacios_core::backend::svm::Svm<$crate::TestHost>>();
            })*
        }
        mod vmx {
            $(#[test]
            fn $name() {
                super::$name::<palacios_core::backend::vmx::Vmx<$crate::TestHost>>();
            })*
        }
    };
}

/// Virtualization on all CPUs of a host, until dropped.
pub struct Hypervisor<B: TestBackend> {
    host: TestHost,
    backend: TestShared<B>,
}

impl<B: TestBackend> Hypervisor<B> {
    /// Switches it on.
    pub fn new(host: &TestHost) -> Self {
        let backend = host.share(B::find(host)).expect("memory for the backend");
        host.on_each_cpu(&|cpu| backend.enable_cpu(cpu).expect("the CPU is there"));
        let host = host.clone();
        Self { host, backend }
    }
    /// A CPU goes, and comes back at once. What its processor keeps it still has; what the backend knew of it may be wrong.
    pub fn cycle(&self, which: CpuId) {
        self.host.on_each_cpu(&|cpu| {
            if cpu == which {
                self.backend.disable_cpu(cpu);
                self.backend.enable_cpu(cpu).expect("the CPU is there");
            }
        });
    }
    /// The backend.
    pub fn backend(&self) -> &B {
        &self.backend
    }
    /// Makes a VM, and launches nothing.
    pub fn create(&self, spec: &Spec) -> Result<TestVm, CreateError> {
        let (parts, ram, watcher, streams) = heap::exempt(|| {
            let watcher = Arc::<Watcher>::default();
            let ram = self.host.ram(spec.large_pages);
            let parts = Parts::<TestHost> {
                name: VmName::new(spec.name).expect("a good name"),
                image: Box::new(spec.image()),
                ram: ram.clone(),
                observer: Box::new(Watch(watcher.clone())),
            };
            (parts, ram, watcher, Streams::default())
        });
        let mut stream = |_: &str| {
            let stream: Box<dyn ByteStream> = heap::exempt(|| Box::new(streams.clone()));
            match heap::allocate() {
                true => Ok(stream),
                false => Err(NoMemory),
            }
        };
        let vm = Vm::new(&self.host, self.backend.clone(), parts, &mut stream)?;
        Ok(TestVm {
            vm,
            ram,
            watcher,
            streams,
        })
    }
    /// Makes a VM and launches it.
    pub fn launch(&self, spec: &Spec) -> TestVm {
        let vm = self.create(spec).expect("a VM");
        vm.launch();
        vm
    }
}

impl<B: TestBackend> Drop for Hypervisor<B> {
    fn drop(&mut self) {
        self.host.on_each_cpu(&|cpu| self.backend.disable_cpu(cpu));
    }
}

/// A VM of a test.
pub struct TestVm {
    /// The VM itself.
    pub vm: TestShared<Vm<TestHost>>,
    /// The provider of its RAM.
    pub ram: TestRam,
    watcher: Arc<Watcher>,
    streams: Streams,
}

impl TestVm {
    /// Launches it, or launches it again.
    #[track_caller]
    pub fn launch(&self) {
        Vm::<TestHost>::launch(&self.vm).expect("a launch");
    }
    /// Waits until the VM has stopped, and says why it did.
    #[track_caller]
    pub fn wait(&self) -> StopReason {
        let stopped = self.wait_for(|state| matches!(state, State::Stopped(_)));
        self.vm.join();
        match stopped {
            State::Stopped(reason) => reason,
            _ => unreachable!("the state that was waited for"),
        }
    }
    /// Waits for a state.
    #[track_caller]
    pub fn wait_for(&self, wanted: impl Fn(State) -> bool) -> State {
        let mut patience = Patience::new(self);
        loop {
            let seen = self.news();
            let state = self.vm.state();
            if wanted(state) {
                return state;
            }
            self.watcher.wait_while(seen);
            patience.check(self);
        }
    }
    /// Steps all vCPUs from this thread, so many rounds at most, until the VM has stopped. Virtual time passes when none has anything to do, up
    /// to the next timer.
    #[track_caller]
    pub fn step_rounds(&self, host: &TestHost, rounds: usize) -> State {
        for _ in 0..rounds {
            let mut all_idle = true;
            for index in 0..self.vm.vcpus() {
                let thread = self.vm.thread(index).expect("each vCPU has one");
                let step = thread.played(|| self.vm.step(index));
                all_idle &= step != Step::Again && !thread.take_unpark();
            }
            if let State::Stopped(_) = self.vm.state() {
                break;
            }
            if all_idle {
                let next_ns = host.next_timer_ns().expect("somebody waits for a time");
                host.advance(next_ns.saturating_sub(host.now_ns()));
            }
        }
        self.vm.state()
    }
    /// The sum of a counter over all vCPUs.
    pub fn count(&self, which: Counter) -> u64 {
        (0..self.vm.vcpus())
            .map(|n| self.vm.counters(n).get(which))
            .sum()
    }
    /// How often its observer was told something since it was made.
    pub fn news(&self) -> u64 {
        *self.watcher.changes()
    }

    /// What the guest printed, to whichever stream.
    pub fn output(&self) -> Vec<u8> {
        self.streams.output().clone()
    }
    /// Types into whichever stream the guest reads.
    pub fn type_in(&self, bytes: &[u8]) {
        self.streams.input().extend(bytes);
        self.vm.input_ready();
    }
    /// Waits until something holds.
    #[track_caller]
    pub fn wait_until(&self, holds: impl Fn() -> bool) {
        let mut patience = Patience::new(self);
        while !holds() {
            patience.check(self);
            std::thread::yield_now();
        }
    }
}

impl Deref for TestVm {
    type Target = Vm<TestHost>;
    fn deref(&self) -> &Self::Target {
        &self.vm
    }
}

/// Judges by what its vCPUs do, not by the clock, whether a VM will ever come to what a test waits for.
struct Patience {
    begin: u64,
    last: u64,
    since: Instant,
}

impl Patience {
    fn new(vm: &TestVm) -> Self {
        let entries = vm.count(Counter::Entries);
        Self {
            begin: entries,
            last: entries,
            since: Instant::now(),
        }
    }
    /// Panics if that is over.
    #[track_caller]
    fn check(&mut self, vm: &TestVm) {
        let entries = vm.count(Counter::Entries);
        if entries != self.last {
            (self.last, self.since) = (entries, Instant::now());
        }
        let patient = self.since.elapsed() < QUIET && entries - self.begin < MOST_ENTRIES;
        assert!(patient, "{entries} entries, and it is {:?}", vm.vm.state());
    }
}

#[derive(Default)]
struct Watcher {
    changes: Mutex<u64>,
    changed: Condvar,
}

impl Watcher {
    fn changes(&self) -> MutexGuard<'_, u64> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }
    /// Waits for a change, but not longer than a second.
    fn wait_while(&self, seen: u64) {
        let unchanged = |changes: &mut u64| *changes == seen;
        let second = Duration::from_secs(1);
        let waited = self
            .changed
            .wait_timeout_while(self.changes(), second, unchanged);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }
}

struct Watch(Arc<Watcher>);

impl Observer for Watch {
    fn state_changed(&self) {
        *self.0.changes() += 1;
        self.0.changed.notify_all();
    }
}

/// The far ends of all streams: one for all.
#[derive(Clone, Default)]
struct Streams {
    output: Arc<Mutex<Vec<u8>>>,
    input: Arc<Mutex<VecDeque<u8>>>,
}

impl Streams {
    fn output(&self) -> MutexGuard<'_, Vec<u8>> {
        self.output.lock().unwrap_or_else(PoisonError::into_inner)
    }
    fn input(&self) -> MutexGuard<'_, VecDeque<u8>> {
        self.input.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ByteStream for Streams {
    fn write(&mut self, data: &[u8]) {
        heap::exempt(|| self.output().extend_from_slice(data));
    }
    fn read(&mut self, buf: &mut [u8]) -> usize {
        let mut input = self.input();
        let count = buf.len().min(input.len());
        for (to, from) in buf.iter_mut().zip(input.drain(..count)) {
            *to = from;
        }
        count
    }
}
