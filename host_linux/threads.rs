// SPDX-License-Identifier: GPL-2.0
//! Threads of virtual CPUs: one kthread each, with one timer.
//!
//! The kthread exists as long as its [`Thread`], so others may wake and kick it at any time; between jobs it sleeps. It holds
//! the module, and lets go of it in its last step, in the kernel's own text.

use crate::counters::THREADS;
use crate::ffi;
use crate::ffi::THIS_MODULE;
use core::mem::{offset_of, transmute};
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, Ordering};
use kernel::{
    bindings,
    error::to_result,
    fmt, new_condvar, new_mutex, new_spinlock,
    prelude::*,
    str::CString,
    sync::{Arc, CondVar, Mutex, SpinLock},
    types::Opaque,
};
use palacios_core::host::{self, CpuId, NoMemory, NoSuchCpu};

/// Timers are absolute, fire in hard-interrupt context, and stay on the CPU where they were armed: most often the guest's,
/// where their interrupt alone ends the guest's run.
const TIMER_MODE: bindings::hrtimer_mode = bindings::hrtimer_mode_HRTIMER_MODE_ABS_PINNED_HARD;

/// `HRTIMER_NORESTART`, which bindgen names in one way for Linux 7.2, and in another since.
// SAFETY: A number, in whatever shape; this one is 0.
const NO_RESTART: bindings::hrtimer_restart = unsafe { core::mem::zeroed() };

/// A vCPU's thread.
pub(crate) struct Thread(Arc<Inner>);

#[pin_data(PinnedDrop)]
struct Inner {
    /// A counted reference. Written once, before anybody else has a reference to this.
    task: AtomicPtr<bindings::task_struct>,
    /// The CPU it is pinned to. Locked over each change, so that the scheduler knows the last one.
    #[pin]
    pin: Mutex<Option<CpuId>>,
    /// In the list of those that [`Homecoming`] brings back.
    #[pin]
    home: Opaque<bindings::hlist_node>,
    unparked: AtomicBool,
    /// Its [`Thread`] was dropped by the thread itself: it ends after this job.
    orphaned: AtomicBool,
    #[pin]
    timer: Opaque<bindings::hrtimer>,
    #[pin]
    job: SpinLock<Option<Job>>,
    /// A job was given and has not ended.
    #[pin]
    busy: Mutex<bool>,
    #[pin]
    ended: CondVar,
}

// SAFETY: The timer is the kernel's to synchronise; the rest is atomic or locked.
unsafe impl Send for Inner {}
// SAFETY: As above.
unsafe impl Sync for Inner {}

/// A boxed `FnOnce`, which can be called through a pointer. (The kernel's box cannot call one.)
struct Job {
    body: *mut c_void,
    /// Takes `body` back; runs it, or just drops it.
    take: unsafe fn(body: *mut c_void, run: bool),
}

// SAFETY: Made only of closures that are `Send`.
unsafe impl Send for Job {}

impl Job {
    fn new<F: FnOnce() + Send + 'static>(body: F) -> Result<Self, NoMemory> {
        /// # Safety
        /// `body` came from `KBox::into_raw` of a box of `F`, and is not used again.
        unsafe fn take<F: FnOnce()>(body: *mut c_void, run: bool) {
            // SAFETY: By the contract above.
            let body = unsafe { KBox::from_raw(body.cast::<F>()) };
            if run {
                KBox::into_inner(body)()
            }
        }
        let body = KBox::new(body, GFP_KERNEL_ACCOUNT).map_err(|_| NoMemory)?;
        Ok(Self {
            body: KBox::into_raw(body).cast(),
            take: take::<F>,
        })
    }

    fn run(self) {
        let job = core::mem::ManuallyDrop::new(self);
        // SAFETY: The pair was made in `new`; `self` is not dropped.
        unsafe { (job.take)(job.body, true) }
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        // SAFETY: The pair was made in `new` and not used yet.
        unsafe { (self.take)(self.body, false) }
    }
}

impl Inner {
    fn new(cpu: Option<CpuId>) -> impl PinInit<Self> {
        pin_init!(Self {
            task: AtomicPtr::new(ptr::null_mut()),
            pin <- new_mutex!(cpu, "v3vee_thread_pin"),
            home: Opaque::new(Default::default()),
            unparked: AtomicBool::new(false),
            orphaned: AtomicBool::new(false),
            // SAFETY: The slot is memory for a timer, pinned until the timer is cancelled.
            timer <- Opaque::ffi_init(|slot| unsafe {
                let clock = bindings::CLOCK_MONOTONIC as i32;
                bindings::hrtimer_setup(slot, Some(timer_fired), clock, TIMER_MODE)
            }),
            job <- new_spinlock!(None, "v3vee_thread_job"),
            busy <- new_mutex!(false, "v3vee_thread_busy"),
            ended <- new_condvar!("v3vee_thread_ended"),
        })
    }

    fn task(&self) -> *mut bindings::task_struct {
        self.task.load(Ordering::Relaxed)
    }

    fn is_current(&self) -> bool {
        // SAFETY: Reads a pointer.
        self.task() == unsafe { bindings::get_current() }
    }

    /// Tells the scheduler where it may run.
    fn allow(&self, cpu: Option<CpuId>) -> Result {
        // SAFETY: The task is alive, as in `wake`.
        to_result(match cpu {
            Some(cpu) => unsafe { ffi::v3vee_pin(self.task(), cpu.0) },
            // SAFETY: As above.
            None => unsafe { ffi::v3vee_unpin(self.task()) },
        })
    }

    fn wake(&self) {
        // SAFETY: The task is alive: only a `Thread` ends it, and this is called through one, or by the timer, which
        // does not outlive `Inner`.
        unsafe { bindings::wake_up_process(self.task()) };
    }

    fn unpark(&self) {
        // If it is set already, whoever set it wakes the thread.
        if !self.unparked.swap(true, Ordering::AcqRel) {
            self.wake();
        }
    }

    fn kick(&self) {
        // SAFETY: As in `wake`.
        unsafe { bindings::kick_process(self.task()) };
    }

    /// Sleeps until `ready`, which wakers make true before they call [`Inner::wake`]. Only on itself.
    fn sleep_until<T>(&self, mut ready: impl FnMut() -> Option<T>) -> T {
        loop {
            // SAFETY: A thread may set its own state and then schedule.
            unsafe { ffi::v3vee_set_idle() };
            if let Some(value) = ready() {
                // SAFETY: As above.
                unsafe { ffi::v3vee_set_running() };
                return value;
            }
            // SAFETY: As above.
            unsafe { bindings::schedule() };
        }
    }

    /// The thread's life.
    fn serve(&self) {
        let pin = self.pin.lock();
        if pin.is_some() {
            // A CPU that went offline is no loss: any other will do.
            let _ = self.allow(*pin);
        }
        drop(pin);
        while let Some(job) = self.sleep_until(|| self.next()) {
            job.run();
            *self.busy.lock() = false;
            self.ended.notify_all();
        }
    }

    /// What to do next: a job, or the end.
    fn next(&self) -> Option<Option<Job>> {
        let job = self.job.lock().take();
        // SAFETY: Called on a kthread.
        let stop = || unsafe { bindings::kthread_should_stop() };
        (job.is_some() || self.orphaned.load(Ordering::Relaxed) || stop()).then_some(job)
    }
}

#[pinned_drop]
impl PinnedDrop for Inner {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: Set up in `new`; nobody can arm it again. Returns when its function does not run any more.
        unsafe { bindings::hrtimer_cancel(self.timer.get()) };
        let task = self.task();
        if !task.is_null() {
            // SAFETY: `Thread::new` put it into the list, and took the reference.
            unsafe {
                Homecoming::remove(self.home.get());
                bindings::put_task_struct(task);
            }
        }
    }
}

/// # Safety
/// For the timer of an [`Inner`].
unsafe extern "C" fn timer_fired(timer: *mut bindings::hrtimer) -> bindings::hrtimer_restart {
    // SAFETY: Only `Inner::new` sets this function, on the timer inside an `Inner`, which lives until the timer is
    // cancelled.
    let inner = unsafe { &*timer.byte_sub(offset_of!(Inner, timer)).cast::<Inner>() };
    inner.unpark();
    inner.kick();
    NO_RESTART
}

/// # Safety
/// `data` is a counted reference to an [`Inner`].
unsafe extern "C" fn thread_main(data: *mut c_void) -> i32 {
    // SAFETY: `Thread::new` gave one reference to this thread.
    let inner = unsafe { Arc::<Inner>::from_raw(data.cast()) };
    inner.serve();
    drop(inner);
    THREADS.sub(1);
    // SAFETY: The reference to the module that `Thread::new` took. Does not return here.
    unsafe { bindings::__module_put_and_kthread_exit(THIS_MODULE, 0) }
}

impl Thread {
    pub(crate) fn new(name: fmt::Arguments<'_>, cpu: Option<CpuId>) -> Result<Self, NoMemory> {
        let inner = Arc::pin_init(Inner::new(cpu), GFP_KERNEL_ACCOUNT).map_err(|_| NoMemory)?;
        let name = CString::try_from_fmt(name).map_err(|_| NoMemory)?;
        // SAFETY: A descriptor or a VM holds the module at least until this returns.
        unsafe { bindings::__module_get(THIS_MODULE) };
        let data = Arc::into_raw(inner.clone());
        // SAFETY: `thread_main` takes the reference in `data`; the format takes one string.
        let task = unsafe {
            bindings::kthread_create_on_node(
                Some(thread_main),
                data.cast_mut().cast(),
                bindings::NUMA_NO_NODE,
                c"%s".as_char_ptr(),
                name.as_char_ptr(),
            )
        };
        let Ok(task) = kernel::error::from_err_ptr(task) else {
            // SAFETY: There is no thread that would take them.
            unsafe { Self::give_up(data) };
            return Err(NoMemory);
        };
        // SAFETY: A new kthread waits for its first wake-up and is alive until then. The reference keeps the task for
        // those who call it after its end.
        unsafe { bindings::get_task_struct(task) };
        inner.task.store(task, Ordering::Relaxed);
        // SAFETY: In an `Inner` that has its task now, and stays where it is until it is dropped.
        unsafe { Homecoming::add(inner.home.get()) };
        THREADS.add(1);
        inner.wake();
        Ok(Self(inner))
    }

    /// Takes back what a thread that never ran would have given back itself.
    ///
    /// # Safety
    /// `data` is the reference meant for `thread_main`, which will not run.
    unsafe fn give_up(data: *const Inner) {
        // SAFETY: By the contract above.
        unsafe {
            drop(Arc::from_raw(data));
            bindings::module_put(THIS_MODULE);
        }
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        if self.0.is_current() {
            self.0.orphaned.store(true, Ordering::Relaxed);
            return;
        }
        // SAFETY: A kthread with a counted reference, stopped once. Returns when it has exited.
        let status = unsafe { bindings::kthread_stop(self.0.task()) };
        if status == -(bindings::EINTR as i32) {
            // It was stopped before it first ran.
            THREADS.sub(1);
            // SAFETY: As the status says, `thread_main` did not run, and the task is gone.
            unsafe { Self::give_up(Arc::as_ptr(&self.0)) };
        }
    }
}

impl host::Thread for Thread {
    fn start(&self, body: impl FnOnce() + Send + 'static) -> Result<(), NoMemory> {
        let job = Job::new(body)?;
        *self.0.busy.lock() = true;
        *self.0.job.lock() = Some(job);
        self.0.wake();
        Ok(())
    }

    fn park(&self) {
        let unparked = &self.0.unparked;
        self.0
            .sleep_until(|| unparked.swap(false, Ordering::AcqRel).then_some(()));
    }

    fn unpark(&self) {
        self.0.unpark();
    }

    fn kick(&self) {
        self.0.kick();
    }

    fn arm(&self, at_ns: Option<u64>) {
        let timer = self.0.timer.get();
        match at_ns {
            // SAFETY: The timer was set up and lives as long as `self`.
            Some(ns) => unsafe {
                let at = i64::try_from(ns).unwrap_or(i64::MAX);
                bindings::hrtimer_start_range_ns(timer, at, 0, TIMER_MODE)
            },
            // SAFETY: As above. If its function runs just now, on another CPU, this waits for the end of that: until then
            // not even a time that was armed since could be taken back.
            None => unsafe {
                bindings::hrtimer_cancel(timer);
            },
        }
    }

    fn waited_ns(&self) -> Option<u64> {
        // SAFETY: The task is alive as long as this `Thread`.
        let waited_ns = unsafe { ffi::v3vee_waited_ns(self.0.task()) };
        u64::try_from(waited_ns).ok()
    }

    fn yield_to(&self) -> bool {
        // SAFETY: The task is alive as long as this `Thread`; this is thread context, with interrupts on.
        unsafe { ffi::v3vee_yield_to(self.0.task()) }
    }

    fn move_to(&self, cpu: Option<CpuId>) -> Result<(), NoSuchCpu> {
        let mut pin = self.0.pin.lock();
        if self.0.allow(cpu).is_err() {
            // All CPUs are always allowed.
            return cpu.map_or(Ok(()), |cpu| Err(NoSuchCpu(cpu)));
        }
        *pin = cpu;
        Ok(())
    }

    fn pin(&self) -> Option<CpuId> {
        *self.0.pin.lock()
    }

    fn join(&self) {
        let mut busy = self.0.busy.lock();
        while *busy {
            self.0.ended.wait(&mut busy);
        }
    }
}

/// Brings threads back to the CPU they are pinned to when it comes back, until dropped. When it went, the scheduler moved those
/// that it found there, and forgot where they belong.
pub(crate) struct Homecoming(());

/// The hotplug state whose instances are threads, while there is a [`Homecoming`].
static HOMECOMING: AtomicI32 = AtomicI32::new(0);

impl Homecoming {
    /// There may be one at a time, which outlives all threads.
    pub(crate) fn enable() -> Result<Self> {
        // SAFETY: Of a state with instances the callback gets the instance, too: the kernel's own type for both is that of
        // the other kind.
        let came = unsafe {
            transmute::<
                unsafe extern "C" fn(u32, *mut bindings::hlist_node) -> i32,
                unsafe extern "C" fn(u32) -> i32,
            >(cpu_came)
        };
        // SAFETY: The callback stays until `drop`.
        let state = unsafe {
            bindings::__cpuhp_setup_state(
                bindings::cpuhp_state_CPUHP_AP_ONLINE_DYN,
                c"v3vee:threads".as_char_ptr(),
                false,
                Some(came),
                None,
                true,
            )
        };
        to_result(state)?;
        HOMECOMING.store(state, Ordering::Relaxed);
        Ok(Self(()))
    }

    /// # Safety
    /// `home` is that of an [`Inner`] with a task, and in no list.
    unsafe fn add(home: *mut bindings::hlist_node) {
        let state = HOMECOMING.load(Ordering::Relaxed);
        // SAFETY: By the contract above. This fails for states without instances only.
        unsafe { bindings::__cpuhp_state_add_instance(state, home, false) };
    }

    /// # Safety
    /// `home` was added. No callback has it when this returns.
    unsafe fn remove(home: *mut bindings::hlist_node) {
        let state = HOMECOMING.load(Ordering::Relaxed);
        // SAFETY: By the contract above.
        unsafe { bindings::__cpuhp_state_remove_instance(state, home, false) };
    }
}

impl Drop for Homecoming {
    fn drop(&mut self) {
        // SAFETY: Set up in `enable`; there are no threads any more.
        unsafe { bindings::__cpuhp_remove_state(HOMECOMING.load(Ordering::Relaxed), false) };
    }
}

/// # Safety
/// For the hotplug core to call, with the home of an [`Inner`].
unsafe extern "C" fn cpu_came(cpu: u32, home: *mut bindings::hlist_node) -> i32 {
    // SAFETY: By the contract above; it is not dropped before it is out of the list.
    let inner = unsafe { &*home.byte_sub(offset_of!(Inner, home)).cast::<Inner>() };
    let pin = inner.pin.lock();
    if *pin == Some(CpuId(cpu)) {
        // It runs where it is if this fails.
        let _ = inner.allow(*pin);
    }
    0
}
