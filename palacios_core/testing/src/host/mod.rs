// SPDX-License-Identifier: MIT OR Apache-2.0
//! The host in memory.
//!
//! It panics where the core breaks the contract: sleeps in atomic context, takes locks out of order or holds one over an
//! entry or a sleep, frees what it did not get, uses a page after it was freed, parks another's thread. A panic on one of
//! the host's threads comes out of `join`. [`TestHost::run`] also panics if anything was not given back.

mod broken;
mod clock;
mod cpu;
mod here;
mod lock;
mod pages;
mod ram;
mod thread;

pub use broken::Broken;
pub use here::Usage;
pub use lock::TestLock;
pub use ram::{LargePages, TestRam};
pub use thread::TestThread;

use crate::heap;
use crate::processor::execute::Guest;
use crate::processor::{self, HostMachine, Processors, Violation};
use clock::{Clock, Timers};
use cpu::Cpu;
use pages::Arena;
use palacios_core::addr::Hpa;
use palacios_core::host::{
    CpuId, Host, Level, LockClass, MachineCheck, NoMemory, PageRequest, Scope,
};
use std::fmt;
use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// What host to make.
#[derive(Clone, Debug)]
pub struct Config {
    /// How many CPUs.
    pub cpus: u32,
    /// Physical memory below 4 GiB.
    pub low_pages: usize,
    /// Physical memory above.
    pub high_pages: usize,
    /// Time stands still until [`TestHost::advance`], but for what entries take.
    pub virtual_time: bool,
    /// What an entry takes in virtual time, together with the exit behind it. The guest's instructions take none.
    pub entry_ns: u64,
    /// After how many instructions of a guest a tick of the host's ends guest mode, as the one thread wants that steps all vCPUs; 0 is never.
    pub tick_looks: u64,
    /// Of how many windows one opens on another CPU than the last, for threads that are not pinned; 0 is none.
    pub migrate_one_in: u64,
    /// Where its random choices start.
    pub seed: u64,
    /// How many times as fast as outside its time passes.
    pub hurry: f64,
    /// What its processors are.
    pub processor: processor::Config,
    /// What it makes of machine checks that end a guest.
    pub machine_checks: MachineCheck,
    /// A promise that it does not keep.
    pub broken: Option<Broken>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            cpus: 2,
            low_pages: 1 << 10,
            high_pages: 1 << 14,
            virtual_time: false,
            entry_ns: 0,
            tick_looks: 0,
            migrate_one_in: 8,
            seed: 1,
            hurry: 1.0,
            processor: processor::Config::default(),
            machine_checks: MachineCheck::Raise,
            broken: None,
        }
    }
}

/// A handle to a host in memory.
#[derive(Clone)]
pub struct TestHost(Arc<Inner>);

/// The host itself.
struct Inner {
    config: Config,
    arena: Arena,
    cpus: Vec<Cpu>,
    clock: Clock,
    timers: Timers,
    objects: Objects,
    next_lock: AtomicU64,
    random: AtomicU64,
    log: Mutex<Vec<LogLine>>,
    processors: Processors,
    records: Mutex<Vec<Record>>,
    tsc_stable: AtomicBool,
    /// What a host gives that gives the same pages over and over.
    same_run: OnceLock<Option<Hpa>>,
}

/// What a vCPU did in its life.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// The how-manyth it was.
    pub vcpu: u64,
    /// How many instructions it executed.
    pub executed: u64,
    /// How often its translations were flushed.
    pub flushes: u64,
    /// What its thread had used by each mark that it passed.
    pub marks: Vec<(u32, Usage)>,
}

/// How many of each kind are alive.
#[derive(Debug, Default)]
struct Objects {
    threads: AtomicUsize,
    locks: AtomicUsize,
    shared: AtomicUsize,
    rams: AtomicUsize,
}

/// A line of log.
#[derive(Clone, Debug)]
pub struct LogLine {
    /// How much it matters.
    pub level: Level,
    /// What it is about: `vmm`, `vm NAME` or `vm NAME vcpu N`.
    pub scope: String,
    /// The line.
    pub text: String,
}

impl Inner {
    /// A pseudo-random number (xorshift64*).
    fn random(&self) -> u64 {
        let step = |x: u64| {
            let x = x ^ (x >> 12);
            let x = x ^ (x << 25);
            Some(x ^ (x >> 27))
        };
        let last = self.random.fetch_update(SeqCst, SeqCst, step);
        last.unwrap_or_else(|x| x)
            .wrapping_mul(0x2545_f491_4f6c_dd1d)
            >> 16
    }
    /// A run of pages, of which nobody else has any, unless it breaks that promise.
    fn alloc(&self, want: PageRequest) -> Option<Hpa> {
        const MANY_PAGES: u32 = 1 << 20;
        const SAME_RUN: PageRequest = PageRequest::run(4);
        let broken = self.config.broken;
        match want.pages {
            MANY_PAGES.. if broken == Some(Broken::PagesFewer) => {
                self.arena.alloc(PageRequest::ONE)
            }
            ..=4 if broken == Some(Broken::PagesGivenTwice) => {
                *self.same_run.get_or_init(|| self.arena.alloc(SAME_RUN))
            }
            _ => self.arena.alloc(want),
        }
    }
    fn any_cpu(&self) -> CpuId {
        CpuId((self.random() % self.cpus.len() as u64) as u32)
    }
    /// The CPU on which the calling thread opens its next window.
    fn place(&self) -> CpuId {
        let one_in = self.config.migrate_one_in;
        match here::thread() {
            None => self.any_cpu(),
            Some(thread) => {
                if !thread.pinned() && one_in > 0 && self.random() % one_in == 0 {
                    thread.migrate(self.any_cpu());
                }
                thread.cpu()
            }
        }
    }
}

impl TestHost {
    /// Makes a host, runs `test` on it, and panics if it left anything behind.
    pub fn run<R>(config: Config, test: impl FnOnce(&TestHost) -> R) -> R {
        let host = Self(Arc::new(Inner {
            arena: Arena::new(config.low_pages, config.high_pages),
            cpus: (0..config.cpus)
                .map(|_| Cpu::new(config.tick_looks))
                .collect(),
            clock: match config.virtual_time {
                true => Clock::Virtual(AtomicU64::new(1_000_000_000)),
                false => Clock::Real(Instant::now(), config.hurry),
            },
            timers: Timers::default(),
            objects: Objects::default(),
            next_lock: AtomicU64::new(1),
            random: AtomicU64::new(config.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            log: Mutex::default(),
            processors: Processors::new(config.processor.clone(), config.cpus),
            records: Mutex::default(),
            tsc_stable: AtomicBool::new(true),
            same_run: OnceLock::new(),
            config,
        }));
        struct End<'a>(&'a TestHost);
        impl Drop for End<'_> {
            fn drop(&mut self) {
                self.0 .0.stop_timers();
                if std::thread::panicking() {
                    eprintln!("what the processors saw: {:?}", self.0.violations());
                }
            }
        }
        let result = std::thread::scope(|scope| {
            let _end = End(&host);
            if !host.0.config.virtual_time {
                scope.spawn(|| host.0.run_timers());
            }
            let before = here::set_host(Some(host.clone()));
            let result = test(&host);
            here::set_host(before);
            result
        });
        if host.0.config.broken.is_none() {
            host.wait_for_threads();
            host.check_all_returned();
            assert_eq!(host.violations(), [], "what the guests' processors saw");
        }
        result
    }

    /// Waits for threads that nobody can join any more. One that never ends is told of after ten minutes.
    fn wait_for_threads(&self) {
        let end = Instant::now() + Duration::from_secs(600);
        while self.0.objects.threads.load(SeqCst) > 0 && Instant::now() < end {
            std::thread::yield_now();
        }
    }
    /// Panics unless everything that this host gave is back.
    pub fn check_all_returned(&self) {
        let pages = self.0.arena.given();
        let o = &self.0.objects;
        let objects = [&o.threads, &o.locks, &o.shared, &o.rams].map(|n| n.load(SeqCst));
        assert!(
            pages == 0 && objects == [0; 4],
            "not given back: {pages} pages, {o:?}"
        );
    }
    /// How many pages are in use, guest RAM included.
    pub fn pages_in_use(&self) -> usize {
        self.0.arena.given()
    }
    /// A provider of guest RAM.
    pub fn ram(&self, large: LargePages) -> TestRam {
        TestRam::new(self.0.clone(), large)
    }
    /// Moves a virtual clock on.
    pub fn advance(&self, by_ns: u64) {
        self.0.advance(by_ns);
    }
    /// The earliest time that any thread has armed.
    pub fn next_timer_ns(&self) -> Option<u64> {
        self.0.next_timer_ns()
    }
    /// In a window: an interrupt of the host waits, and would end guest mode.
    pub fn interrupted(&self) -> bool {
        let cpu = here::cpu().expect("a window is open");
        self.0.cpus[cpu.0 as usize].interrupted()
    }
    /// The CPU of the window that is open on this thread.
    pub fn window_cpu(&self) -> Option<CpuId> {
        here::cpu()
    }
    /// A pseudo-random number.
    pub fn random(&self) -> u64 {
        self.0.random()
    }
    /// Its processors.
    pub(crate) fn processors(&self) -> &Processors {
        &self.0.processors
    }
    /// How often a page has changed hands.
    pub(crate) fn owner(&self, page: Hpa) -> u32 {
        self.0.arena.owner(page)
    }
    /// What guests break: see [`crate::processor::Violation`].
    pub fn violations(&self) -> Vec<Violation> {
        self.0.processors.violations()
    }
    /// Goes down, as far as guests see it: switches SVM or VMX off on all CPUs, under whoever uses it.
    pub fn go_down(&self) {
        self.processors().go_down();
        self.on_each_cpu(&|cpu| self.processors().cpu(cpu).svm.switch_off());
    }
    /// Somebody else on the host takes SVM on all CPUs, as far as it can be seen: VM_HSAVE_PA holds `area`, or nothing.
    pub fn take_svm(&self, area: u64) {
        self.on_each_cpu(&|cpu| self.processors().cpu(cpu).svm.take_save_area(area));
    }
    /// VM_HSAVE_PA on a CPU, and whether SVM is on there.
    pub fn svm(&self, cpu: CpuId) -> (u64, bool) {
        let core = self.processors().cpu(cpu);
        (core.svm.save_area(), core.svm.is_on())
    }
    /// From now on its CPUs' time stamp counters cannot be compared.
    pub fn tsc_becomes_unstable(&self) {
        self.0.tsc_stable.store(false, SeqCst);
    }
    /// What guests broke so far; forgotten from now on.
    pub fn take_violations(&self) -> Vec<Violation> {
        self.0.processors.take_violations()
    }
    /// Keeps what a vCPU that ends has to tell.
    pub(crate) fn record(&self, id: u64, guest: &Guest) {
        let record = Record {
            vcpu: id,
            executed: guest.executed,
            flushes: guest.flushes,
            marks: guest.marks.clone(),
        };
        let records = self.0.records.lock();
        records.unwrap_or_else(PoisonError::into_inner).push(record);
    }
    /// What the vCPUs did, in the order in which they were made. Under [`crate::AdversarialBackend`] only those that have
    /// been dropped tell.
    pub fn records(&self) -> Vec<Record> {
        let records = self.0.records.lock();
        let mut records = records.unwrap_or_else(PoisonError::into_inner).clone();
        records.extend(self.0.processors.records());
        records.sort_by_key(|record| record.vcpu);
        records
    }
    /// The host that this thread is on, if any.
    pub(crate) fn here() -> Option<TestHost> {
        here::host()
    }
    /// What was logged.
    pub fn log_lines(&self) -> Vec<LogLine> {
        let log = self.0.log.lock();
        log.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What the host does beside an entry may fault, and be mended.
    fn faults(&self) {
        let cpu = here::cpu().expect("of a window");
        let at = self.random();
        self.processors().cpu(cpu).vmx.page_fault(at);
    }

    /// Counts what is to be allocated; fails if a test wants that.
    fn object<T>(&self, make: impl FnOnce() -> T) -> Result<T, NoMemory> {
        match heap::allocate() {
            true => Ok(heap::exempt(make)),
            false => Err(NoMemory),
        }
    }
}

impl Host for TestHost {
    type Thread = TestThread;
    type Ram = TestRam;
    type Shared<T: Send + Sync + 'static> = TestShared<T>;
    type Mutex<T: Send> = TestLock<T, false>;
    type SpinLock<T: Send> = TestLock<T, true>;

    fn alloc_pages(&self, want: PageRequest) -> Result<Hpa, NoMemory> {
        here::may_sleep("alloc_pages");
        let want = PageRequest {
            align_pages: match self.0.breaks(Broken::PagesNotAligned) {
                true => 1,
                false => want.align_pages,
            },
            below_4g: want.below_4g && !self.0.breaks(Broken::PagesAbove4g),
            ..want
        };
        let at = self.object(|| self.0.alloc(want))?.ok_or(NoMemory)?;
        let remembers = self.0.breaks(Broken::PagesRemember) && self.0.arena.owner(at) > 0;
        if self.0.breaks(Broken::PagesNotZeroed) || remembers {
            // SAFETY: a page that nobody has yet.
            unsafe { self.0.arena.address(at).add(77).write(1) };
        }
        Ok(at)
    }
    unsafe fn free_pages(&self, at: Hpa, want: PageRequest) {
        here::may_sleep("free_pages");
        let keeps = [
            Broken::PagesNotFreed,
            Broken::PagesGivenTwice,
            Broken::PagesFewer,
        ];
        if !keeps.into_iter().any(|broken| self.0.breaks(broken)) {
            self.0.arena.free(at, want.pages);
        }
    }
    fn phys_to_virt(&self, at: Hpa) -> NonNull<u8> {
        let offset = match self.0.breaks(Broken::OffsetsIgnored) {
            true => at.page_offset(),
            false => 0,
        };
        self.0.arena.address(Hpa(at.0 - offset))
    }

    fn cpu_limit(&self) -> u32 {
        self.0.config.cpus - u32::from(self.0.breaks(Broken::CpuLimitTooSmall))
    }
    fn current_cpu(&self) -> CpuId {
        let cpu = here::cpu().or_else(|| here::thread().map(|thread| thread.cpu()));
        let cpu = cpu.unwrap_or_else(|| self.0.any_cpu());
        match self.0.breaks(Broken::CurrentCpuWrong) {
            true => CpuId((cpu.0 + 1) % self.0.config.cpus),
            false => cpu,
        }
    }
    fn on_each_cpu(&self, f: &(dyn Fn(CpuId) + Sync)) {
        here::may_sleep("on_each_cpu");
        for (i, cpu) in (0..).zip(&self.0.cpus) {
            cpu.interrupt();
            let _turn = cpu.take();
            let _on = here::OnCpu::enter(CpuId(i));
            let _atomic = here::Atomic::enter();
            f(CpuId(i));
            if self.0.breaks(Broken::CpuCalledTwice) {
                f(CpuId(i));
            }
        }
    }
    fn window<R>(&self, f: impl FnOnce(CpuId) -> R) -> R {
        here::may_sleep("window");
        here::holds_nothing("window");
        let thread = here::thread();
        loop {
            let cpu = self.0.place();
            let shared = self.0.breaks(Broken::WindowShared);
            let take = || self.0.cpus[cpu.0 as usize].take();
            let _turn = (!shared).then(|| match &thread {
                Some(thread) => thread.waiting(take),
                None => take(),
            });
            let _on = here::OnCpu::enter(cpu);
            let _atomic = here::Atomic::enter();
            let stays = thread.as_ref().is_none_or(|thread| thread.open_window(cpu));
            if stays {
                let _close = CloseWindow(self, cpu, thread.as_deref());
                return f(cpu);
            }
        }
    }
    fn window_must_end(&self) -> bool {
        let cpu = here::cpu().expect("window_must_end is asked in a window");
        let moved = here::thread().is_some_and(|thread| thread.cpu() != cpu);
        moved || self.0.cpus[cpu.0 as usize].must_end()
    }
    fn guest_enter(&self) {
        assert!(here::cpu().is_some(), "guest_enter outside of a window");
        here::holds_nothing("guest_enter");
        self.faults();
        self.0.pass_entry(self.0.config.entry_ns);
    }
    fn guest_exit(&self) {
        self.faults();
    }

    fn machine_check(&self) -> MachineCheck {
        let cpu = here::cpu().expect("machine_check outside of a window");
        if self.0.config.machine_checks != MachineCheck::Raise {
            self.processors().cpu(cpu).vmx.handles(self, 18);
        }
        self.0.config.machine_checks
    }
    fn task_segment_cut(&self) {
        let cpu = here::cpu().expect("task_segment_cut outside of a window");
        self.processors().cpu(cpu).vmx.task_segment_cut();
    }

    fn now_ns(&self) -> u64 {
        let now_ns = self.0.clock.now_ns();
        match () {
            () if self.0.often_breaks(Broken::ClockOftenGoesBack) => now_ns - 500_000,
            () if self.0.breaks(Broken::ClockStandsStill) => 1_000_000_000,
            () => now_ns,
        }
    }
    fn wall_ns(&self) -> u64 {
        match self.0.breaks(Broken::WallClockInMicroseconds) {
            true => self.0.clock.wall_ns() / 1000,
            false => self.0.clock.wall_ns(),
        }
    }
    fn tsc_hz(&self) -> u64 {
        match self.0.config.broken {
            Some(Broken::TscRateInMhz) => 1000,
            Some(Broken::TscStableWithoutRate) => 0,
            _ => 1_000_000_000,
        }
    }
    fn tsc_stable(&self) -> bool {
        self.0.tsc_stable.load(SeqCst)
    }

    fn thread(&self, name: fmt::Arguments<'_>, cpu: Option<CpuId>) -> Result<TestThread, NoMemory> {
        here::may_sleep("thread");
        let cpu = cpu.filter(|_| !self.0.breaks(Broken::PinIgnored));
        self.object(|| TestThread::new(self.0.clone(), name.to_string(), cpu))
    }
    fn yield_now(&self) {
        here::may_sleep("yield_now");
        std::thread::yield_now();
    }
    fn share<T: Send + Sync + 'static>(&self, value: T) -> Result<TestShared<T>, NoMemory> {
        here::may_sleep("share");
        self.object(|| TestShared::new(self.0.clone(), value))
    }
    fn mutex<T: Send>(&self, class: LockClass, value: T) -> Result<Self::Mutex<T>, NoMemory> {
        here::may_sleep("mutex");
        self.object(|| TestLock::new(self.0.clone(), class, value))
    }
    fn spin_lock<T: Send>(
        &self,
        class: LockClass,
        value: T,
    ) -> Result<Self::SpinLock<T>, NoMemory> {
        here::may_sleep("spin_lock");
        self.object(|| TestLock::new(self.0.clone(), class, value))
    }

    fn random(&self, buf: &mut [u8]) -> bool {
        here::may_sleep("random");
        buf.fill(0x11);
        true
    }

    fn log(&self, level: Level, scope: Scope<'_>, line: fmt::Arguments<'_>) {
        heap::exempt(|| {
            let scope = match scope {
                Scope::Vmm => "vmm".into(),
                Scope::Vm(name) => format!("vm {name}"),
                Scope::Vcpu(name, n) => format!("vm {name} vcpu {n}"),
            };
            let text = line.to_string();
            let mut log = self.0.log.lock().unwrap_or_else(PoisonError::into_inner);
            log.push(LogLine { level, scope, text });
        });
    }
}

impl HostMachine for TestHost {
    fn processors(&self) -> &Processors {
        self.processors()
    }
    fn phys_to_virt(&self, at: Hpa) -> NonNull<u8> {
        Host::phys_to_virt(self, at)
    }
    fn owner(&self, page: Hpa) -> u32 {
        self.owner(page)
    }
    fn window_cpu(&self) -> Option<CpuId> {
        self.window_cpu()
    }
    fn interrupted(&self) -> bool {
        self.interrupted()
    }
    fn random(&self) -> u64 {
        self.random()
    }
}

struct CloseWindow<'a>(&'a TestHost, CpuId, Option<&'a thread::ThreadState>);

impl Drop for CloseWindow<'_> {
    fn drop(&mut self) {
        let Self(host, cpu, thread) = self;
        host.0.processors.window_closes(*cpu);
        if let Some(thread) = thread {
            thread.close_window();
        }
    }
}

/// A reference-counted pointer that the host counts.
pub struct TestShared<T>(Arc<Shared<T>>);

struct Shared<T> {
    host: Arc<Inner>,
    value: T,
}

impl<T> TestShared<T> {
    fn new(host: Arc<Inner>, value: T) -> Self {
        host.objects.shared.fetch_add(1, SeqCst);
        Self(Arc::new(Shared { host, value }))
    }
}

impl<T> Clone for TestShared<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Deref for TestShared<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.0.value
    }
}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        self.host.objects.shared.fetch_sub(1, SeqCst);
    }
}
