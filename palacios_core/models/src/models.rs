// SPDX-License-Identifier: MIT OR Apache-2.0
//! The models. Each is run in every order, and again weakened, when it must fail.

use crate::atomic::{AtomicU64, Ordering, Orderings};
use crate::pending::Events;
use crate::run_word::{HoldReason, RunState, RunWord};
use crate::stuck::Stuck;
use crate::vcpu::{Taken, Vcpu};
use loom::sync::Notify;
use loom::thread;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
// Not loom's, which minds being dropped by a model that fails.
use std::sync::Arc;

/// Looks that a vCPU takes at most before it stays where it is.
const LOOKS: u32 = 3;

/// What another thread does to a vCPU.
type Other = Box<dyn FnOnce(&Vcpu)>;

fn all(others: &[fn(&Vcpu)]) -> Vec<Other> {
    let boxed = |&other: &fn(&Vcpu)| Box::new(other) as Other;
    others.iter().map(boxed).collect()
}

/// Runs `others` beside `own`, which is given what waits for their ends.
fn beside(others: Vec<Other>, own: impl FnOnce(&Vcpu, &mut dyn FnMut())) {
    let vcpu = Arc::new(Vcpu::new());
    let others = others.into_iter().map(|other| {
        let vcpu = vcpu.clone();
        thread::spawn(move || other(&vcpu))
    });
    let mut others: Vec<_> = others.collect();
    let mut join = || others.drain(..).for_each(|other| other.join().unwrap());
    own(&vcpu, &mut join);
    join();
}

/// `others` against a vCPU that runs. When they have ended it has no work left, or was kicked out; and it was not kicked
/// more often than it entered. `check` is given all that came.
fn running(others: &[fn(&Vcpu)], check: fn(Taken)) {
    beside(all(others), |vcpu, join| {
        let (mut taken, mut entries) = (Taken::default(), 0);
        while entries < LOOKS {
            entries += 1;
            if vcpu.enter(&mut taken) && !vcpu.is_interrupted() {
                join();
                assert!(vcpu.is_interrupted() || !vcpu.has_work(), "a kick was lost");
                break;
            }
            vcpu.presence.leave();
            taken.events |= vcpu.pending.take_events().bits();
        }
        join();
        assert!(vcpu.kicks.load(SeqCst) <= entries, "kicked without need");
        vcpu.take(&mut taken);
        check(taken);
    });
}

/// `others` against a vCPU that sleeps.
fn sleeping(others: &[fn(&Vcpu)], check: fn(Taken)) {
    beside(all(others), |vcpu, join| {
        let (mut taken, mut sleeps) = (Taken::default(), 0);
        while sleeps < LOOKS {
            sleeps += 1;
            vcpu.presence.park();
            if !vcpu.has_work() && !vcpu.take_unpark() {
                join();
                assert!(!vcpu.has_work() || vcpu.take_unpark(), "it sleeps on");
                break;
            }
            vcpu.presence.leave();
            vcpu.take(&mut taken);
        }
        join();
        assert!(vcpu.unparks.load(SeqCst) <= sleeps, "woken without need");
        assert_eq!(vcpu.kicks.load(SeqCst), 0, "it was never in the guest");
        vcpu.take(&mut taken);
        check(taken);
    });
}

const POST: fn(&Vcpu) = |vcpu| vcpu.post_vector(0x31, false);
const POST_OTHER: fn(&Vcpu) = |vcpu| vcpu.post_vector(0x32, false);
const POST_LEVEL: fn(&Vcpu) = |vcpu| vcpu.post_vector(0x31, true);
const POST_NMI: fn(&Vcpu) = |vcpu| vcpu.post(Events::NMI);
const START: fn(&Vcpu) = |vcpu| {
    if vcpu.pending.post_init() {
        vcpu.call();
    }
    if vcpu.pending.post_startup(0x12) {
        vcpu.call();
    }
};

fn one(taken: Taken) {
    assert_eq!(taken.vectors, [(0x31, false)]);
}
fn nmi(taken: Taken) {
    assert_eq!(taken.events, Events::NMI.bits());
}
fn one_and_nmi(taken: Taken) {
    assert_eq!(taken.events, Events::NMI.bits());
    one(taken);
}
fn both(mut taken: Taken) {
    taken.vectors.sort();
    assert_eq!(taken.vectors, [(0x31, false), (0x32, false)]);
}
/// Neither trigger mode turned into the other.
fn both_modes(mut taken: Taken) {
    taken.vectors.sort();
    assert_eq!(taken.vectors, [(0x31, false), (0x31, true)]);
}
fn started(taken: Taken) {
    let all = Events::INIT.bits() | Events::STARTUP.bits() | 0x12 << 8;
    assert_eq!(taken.events, all);
}

/// A timer's interrupt kicks and unparks as the host does, whatever the vCPU's presence. What it brings is that the time
/// has come, which the vCPU looks for in its window: `look`.
fn timer_against_entry(look: bool) {
    let clock = Arc::new(AtomicU64::new(0));
    let of_timer = clock.clone();
    let timer = move |vcpu: &Vcpu| {
        of_timer.store(1, Ordering::Release);
        vcpu.unpark();
        vcpu.raise_interrupt();
    };
    beside(vec![Box::new(timer)], |vcpu, _| {
        vcpu.open_window();
        if !look || clock.load(Ordering::Acquire) == 0 {
            vcpu.presence.enter(|| 0);
            vcpu.stay();
        }
    });
}

/// A VM is held, and goes on, or a vCPU is asked for, and answers, beside a vCPU that comes to rest: `Vm::hold`, `Vm::release`, `Vm::ask`,
/// `Vcpu::rest_until`. Before it sleeps it looks whether news has come since it took such: `look`.
fn rest(look: bool) {
    let paused = Arc::new(AtomicU64::new(0));
    let of_other = paused.clone();
    let other = move |vcpu: &Vcpu| {
        for state in [1, 0] {
            of_other.store(state, Ordering::SeqCst);
            vcpu.post(Events::STATE);
        }
    };
    beside(vec![Box::new(other)], |vcpu, join| {
        let is_paused = || paused.load(Ordering::SeqCst) == 1;
        let mut looks = 0;
        while looks < LOOKS && is_paused() {
            looks += 1;
            vcpu.pending.take(Events::STATE);
            vcpu.presence.park();
            let awake = !is_paused() || look && vcpu.pending.has(Events::STATE);
            if !awake && !vcpu.take_unpark() {
                join();
                assert!(vcpu.take_unpark(), "it sleeps on");
            }
            vcpu.presence.leave();
        }
        join();
    });
}

/// What a VM that is held is about.
#[derive(Clone)]
struct Held {
    word: Arc<RunWord>,
    /// The vCPU has come or gone.
    moved: Arc<Notify>,
    /// Not part of the model: the holder has seen that the vCPU is out.
    stands: Arc<AtomicBool>,
}

impl Held {
    fn new() -> Self {
        let word = RunWord::new();
        word.launch(true);
        Self {
            word: Arc::new(word),
            moved: Arc::new(Notify::new()),
            stands: Arc::default(),
        }
    }
    /// As `Vm::hold` and `Vm::release`.
    fn hold(&self, vcpu: &Vcpu) {
        self.word.hold(HoldReason::Debugger).unwrap();
        vcpu.post(Events::STATE);
        while self.word.state() == RunState::Resetting {
            self.moved.wait();
        }
        while vcpu.presence.is_stale(u64::MAX) {
            self.moved.wait();
        }
        self.stands.store(true, SeqCst);
        thread::yield_now();
        self.stands.store(false, SeqCst);
        self.word.release(HoldReason::Debugger);
        self.word.go_on();
        vcpu.post(Events::STATE);
    }
    /// As `Vcpu::before_entry`: with `look`, it looks again once it has said that it is in the guest.
    fn enter(&self, vcpu: &Vcpu, look: bool) {
        vcpu.open_window();
        vcpu.presence.enter(|| 0);
        let runs = self.word.state() == RunState::Running && !vcpu.pending.has_events();
        if runs || !look {
            assert!(!self.stands.load(SeqCst), "it runs under a hold");
        }
        vcpu.presence.leave();
        self.moved.notify();
    }
}

/// Somebody holds a VM and releases it, beside a vCPU that steps.
fn hold(look: bool) {
    let held = Held::new();
    let of_holder = held.clone();
    let holder = move |vcpu: &Vcpu| of_holder.hold(vcpu);
    beside(vec![Box::new(holder)], |vcpu, _| {
        for _ in 0..LOOKS {
            vcpu.pending.take_events();
            if held.word.state() == RunState::Running {
                held.enter(vcpu, look);
            }
        }
    });
}

/// The same, while the vCPU resets the machine. `finds`: the end of the reset finds the hold.
fn hold_a_reset(finds: bool) {
    let held = Held::new();
    let of_holder = held.clone();
    let holder = move |vcpu: &Vcpu| of_holder.hold(vcpu);
    beside(vec![Box::new(holder)], |vcpu, _| {
        if held.word.begin_reset() {
            held.word.reset_done();
            held.moved.notify();
        }
        vcpu.pending.take_events();
        if !finds || held.word.state() == RunState::Running {
            held.enter(vcpu, finds);
        }
    });
}

/// What a revocation is about: one frame.
#[derive(Clone)]
struct Frame {
    mapped: Arc<AtomicU64>,
    generation: Arc<AtomicU64>,
    /// The vCPU has come or gone.
    moved: Arc<Notify>,
    /// Not part of the model.
    released: Arc<AtomicBool>,
}

impl Frame {
    fn new() -> Self {
        Self {
            mapped: Arc::new(AtomicU64::new(1)),
            generation: Arc::new(AtomicU64::new(0)),
            moved: Arc::new(Notify::new()),
            released: Arc::default(),
        }
    }
    /// As `Memory::revoke` and `VcpuShared::leave_guest`.
    fn revoke(&self, vcpu: &Vcpu) {
        self.mapped.store(0, Ordering::Relaxed);
        let new = self.generation.fetch_add(1, Ordering::AcqRel) + 1;
        if vcpu.presence.is_stale(new) {
            vcpu.call();
        }
        while vcpu.presence.is_stale(new) {
            self.moved.wait();
        }
        self.released.store(true, SeqCst);
    }
    /// As a processor that keeps a translation in `cached` until it is flushed.
    fn access(&self, cached: &mut Option<u64>) {
        let mapped = *cached.get_or_insert_with(|| self.mapped.load(Ordering::Relaxed)) == 1;
        assert!(
            !mapped || !self.released.load(SeqCst),
            "a stale translation"
        );
    }
}

/// Nobody uses a frame through a translation from before its revocation once it was released. A vCPU that has such a one
/// stays in the guest until it is kicked.
fn revocation(mut others: Vec<Other>) {
    let frame = Frame::new();
    let of_revoker = frame.clone();
    others.push(Box::new(move |vcpu| of_revoker.revoke(vcpu)));
    beside(others, |vcpu, _| {
        let (mut flushed_at, mut cached) = (0, None);
        while flushed_at == 0 {
            vcpu.open_window();
            let now = vcpu
                .presence
                .enter(|| frame.generation.load(Ordering::Acquire));
            frame.moved.notify();
            if now != flushed_at {
                (flushed_at, cached) = (now, None);
            }
            vcpu.take(&mut Taken::default());
            frame.access(&mut cached);
            if now == 0 {
                vcpu.stay();
                frame.access(&mut cached);
            }
            vcpu.presence.leave();
            frame.moved.notify();
        }
    });
}

/// All orders of a model's steps.
pub const ALL: Option<usize> = None;

/// Runs a model in all orders in which its threads are interrupted at most so often; once more often where tests may take
/// long. Those with three threads, or one that waits in a loop, have too many orders to run all.
pub fn run(
    interruptions: Option<usize>,
    orderings: Orderings,
    body: impl Fn() + Sync + Send + 'static,
) {
    let soaks = std::env::var_os("V3VEE_SOAK").is_some_and(|value| value == "1");
    let mut model = loom::model::Builder::new();
    model.preemption_bound = interruptions.map(|most| most + usize::from(soaks));
    model.check(move || {
        orderings.set();
        body();
    });
}

/// One vCPU is stuck and the other sends it an NMI, then is stuck too; the first takes it, and is stuck again. Whoever finds
/// the VM dead does so after that, and one does. `first`: a vCPU that moves says so before it takes what came.
fn death(first: bool) {
    let (stuck, taken) = (Arc::new(Stuck::new()), Arc::new(AtomicBool::new(false)));
    let found = Arc::new(AtomicBool::new(false));
    stuck.enter();
    let find = {
        let (stuck, taken, found) = (stuck.clone(), taken.clone(), found.clone());
        move |vcpu: &Vcpu| {
            stuck.enter();
            if stuck.all(2, || !vcpu.pending.has_events()) {
                assert!(taken.load(SeqCst), "dead with an NMI on its way");
                found.store(true, SeqCst);
            }
        }
    };
    let of_other = find.clone();
    let other = move |vcpu: &Vcpu| {
        vcpu.pending.post(Events::NMI);
        of_other(vcpu);
    };
    beside(vec![Box::new(other)], |vcpu, join| {
        if !vcpu.pending.has_events() {
            // Asleep until it is called.
            join();
        }
        if first {
            stuck.leave();
        }
        vcpu.pending.take_events();
        if !first {
            stuck.leave();
        }
        // What the NMI makes it do.
        thread::yield_now();
        taken.store(true, SeqCst);
        find(vcpu);
        join();
        assert!(found.load(SeqCst), "nobody found it dead");
    });
}

/// `name: interruptions, body; fails: orderings, body, how`: two tests.
#[macro_export]
macro_rules! models {
    ($($name:ident: $bound:expr, $good:expr; fails: $orderings:ident, $bad:expr, $how:literal;)*) => {$(
        mod $name {
            use super::*;

            #[test]
            fn holds() {
                $crate::models::run($bound, $crate::atomic::Orderings::AsWritten, || $good);
            }
            #[test]
            #[should_panic(expected = $how)]
            fn fails_when_weakened() {
                $crate::models::run($bound, $crate::atomic::Orderings::$orderings, || $bad);
            }
        }
    )*};
}

models! {
    interrupt_against_entry: ALL, running(&[POST], one);
        fails: Relaxed, running(&[POST], one), "a kick was lost";
    event_against_entry: ALL, running(&[POST_NMI], nmi);
        fails: Relaxed, running(&[POST_NMI], nmi), "a kick was lost";
    interrupt_against_sleep: ALL, sleeping(&[POST], one);
        fails: Relaxed, sleeping(&[POST], one), "it sleeps on";
    event_against_sleep: ALL, sleeping(&[POST_NMI], nmi);
        fails: Relaxed, sleeping(&[POST_NMI], nmi), "it sleeps on";
    init_and_startup_against_sleep: ALL, sleeping(&[START], started);
        fails: Relaxed, sleeping(&[START], started), "it sleeps on";
    two_interrupts_against_drain: Some(4), running(&[POST, POST_OTHER], both);
        fails: Relaxed, running(&[POST, POST_OTHER], both), "a kick was lost";
    trigger_modes_against_drain: Some(4), running(&[POST, POST_LEVEL], both_modes);
        fails: Relaxed, running(&[POST, POST_LEVEL], both_modes), "a kick was lost";
    interrupt_and_event_against_entry: Some(4), running(&[POST, POST_NMI], one_and_nmi);
        fails: Relaxed, running(&[POST, POST_NMI], one_and_nmi), "a kick was lost";
    interrupt_and_event_against_sleep: Some(4), sleeping(&[POST, POST_NMI], one_and_nmi);
        fails: Relaxed, sleeping(&[POST, POST_NMI], one_and_nmi), "it sleeps on";
    timer_against_entry: ALL, timer_against_entry(true);
        fails: AsWritten, timer_against_entry(false), "deadlock";
    timer_and_interrupt_against_sleep: Some(4), sleeping(&[Vcpu::unpark, POST], one);
        fails: Relaxed, sleeping(&[Vcpu::unpark, POST], one), "it sleeps on";
    hold_against_rest: ALL, rest(true);
        fails: AsWritten, rest(false), "it sleeps on";
    hold_against_step: Some(4), hold(true);
        fails: AsWritten, hold(false), "it runs under a hold";
    hold_against_reset: Some(4), hold_a_reset(true);
        fails: AsWritten, hold_a_reset(false), "it runs under a hold";
    death: ALL, death(true);
        fails: AsWritten, death(false), "dead with an NMI on its way";
    revocation_against_entry: Some(3), revocation(vec![]);
        fails: Relaxed, revocation(vec![]), "deadlock";
    revocation_beside_interrupt: Some(1), revocation(all(&[POST]));
        fails: Relaxed, revocation(all(&[POST])), "deadlock";
}
