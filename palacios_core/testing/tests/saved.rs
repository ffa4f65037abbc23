// SPDX-License-Identifier: MIT OR Apache-2.0
//! VMs that are written down, and go on from that in another VM.

use palacios_core::addr::Gpa;
use palacios_core::interfaces::GuestMemory;
use palacios_core::saved_file::{SavedFile, SavedFileError};
use palacios_core::sections::{write_section, SectionName, Sections};
use palacios_core::state_io::StateError;
use palacios_core::vm::{
    HoldReason, LoadError, LoadFault, SaveError, Saver, State, StopReason, TscRate,
};
use palacios_testing::vm::{usual_config, Hypervisor, Spec, TestBackend, TestVm};
use palacios_testing::{guests, heap, on_all_backends, AdversarialBackend, Config, TestHost};

/// The status of `exit 0`.
const GOOD: StopReason = StopReason::Exit(1);
const RAM_BYTES: u64 = 4 << 20;

fn on_virtual_time<B: TestBackend>(test: impl Fn(&TestHost, &Hypervisor<B>)) {
    let config = Config {
        virtual_time: true,
        entry_ns: 1_000,
        tick_looks: 200,
        ..usual_config::<B>()
    };
    TestHost::run(config, |host| test(host, &Hypervisor::new(host)));
}

fn spec(kernel: Vec<u8>, vcpus: usize) -> Spec {
    Spec {
        memory_bytes: RAM_BYTES,
        serial: true,
        ..Spec::new(kernel).with_vcpus(vcpus)
    }
}

/// A VM as it is written down: its state, and its RAM.
struct Saved {
    state: Vec<u8>,
    ram: Vec<u8>,
}

fn save(host: &TestHost, vm: &TestVm) -> Saved {
    vm.hold(HoldReason::Saving).expect("it runs");
    while vm.state() != State::Paused {
        vm.step_rounds(host, 1);
    }
    let mut state = Vec::new();
    vm.save(&mut state).expect("it stands still");
    let mut ram = vec![0; RAM_BYTES as usize];
    vm.memory().read(Gpa(0), &mut ram).expect("it is RAM");
    Saved { state, ram }
}

fn load<B: TestBackend>(hypervisor: &Hypervisor<B>, spec: &Spec, saved: &Saved) -> TestVm {
    let vm = hypervisor.create(spec).expect("a VM");
    vm.load_ram(0, &saved.ram).expect("it is RAM");
    vm.load(&saved.state, TscRate::Same).expect("it was saved");
    vm
}

/// The names of all sections that differ.
fn differences(one: &[u8], other: &[u8]) -> Vec<String> {
    let sections = Sections::new(one).zip(Sections::new(other));
    let differ = sections.filter(|(one, other)| one != other);
    differ
        .map(|(one, other)| {
            let (one, other) = (one.expect("good"), other.expect("good"));
            let at = one
                .content
                .iter()
                .zip(other.content)
                .position(|(a, b)| a != b);
            format!("{} at {at:?}", one.path)
        })
        .collect()
}

/// What guests do while they are written down: (kernel, vCPUs).
fn guests_of<B: TestBackend>() -> Vec<(Vec<u8>, usize)> {
    let few = 60 / B::SLOWNESS;
    vec![
        (guests::halt_for_ticks(&[20, 1_000_000]), 1),
        (guests::spin_for_ticks(&[few, 500]), 1),
        (guests::ping_pong(&[few]), 2),
        (guests::nmi_ping_pong(&[few]), 2),
        (guests::nmis(&[few]), 1),
        (guests::workers(&[3, 40 * few, 4, 4096]), 3),
        (guests::counter(&[200 * few]), 1),
        (guests::resets(&[3]), 2),
        (guests::acknowledged_by_another(&[3]), 2),
    ]
}

/// Each is stopped in the middle, again and again, and goes on in another VM, whose state is the same to the bit before it does.
fn guests_go_on_in_another_vm<B: TestBackend>() {
    on_virtual_time::<B>(|host, hypervisor| {
        for (number, (kernel, vcpus)) in guests_of::<B>().into_iter().enumerate() {
            let spec = spec(kernel, vcpus);
            let mut vm = hypervisor.create(&spec).expect("a VM");
            vm.begin().expect("a new VM begins");
            let mut moves = 0;
            loop {
                let rounds = 1 + host.random() as usize % 12;
                match vm.step_rounds(host, rounds) {
                    State::Stopped(reason) => {
                        assert_eq!(reason, GOOD, "guest {number} after {moves} moves");
                        break;
                    }
                    State::Running if moves < 30 => {
                        let saved = save(host, &vm);
                        let next = load(hypervisor, &spec, &saved);
                        next.hold(HoldReason::Saving).expect("it is new");
                        next.begin().expect("it goes on");
                        let again = save(host, &next);
                        next.release(HoldReason::Saving).expect("it is held");
                        assert_eq!(
                            differences(&saved.state, &again.state),
                            [""; 0],
                            "guest {number}"
                        );
                        assert!(saved.state == again.state && saved.ram == again.ram);
                        next.release(HoldReason::Saving).expect("it is held");
                        let _ = vm.stop();
                        vm.step_rounds(host, 10);
                        (vm, moves) = (next, moves + 1);
                    }
                    _ => {}
                }
            }
            assert!(moves > 0, "guest {number}");
        }
    });
}

/// A guest that is stopped and goes on in another VM, or is not: at its end its memory is the same, and what it has sent. Time is virtual, and one thread
/// steps all vCPUs, so both are the same run.
fn a_run_that_moves_ends_as_one_that_does_not<B: TestBackend>() {
    on_virtual_time::<B>(|host, hypervisor| {
        let mut moved = 0;
        for (number, (kernel, vcpus)) in guests_of::<B>().into_iter().enumerate() {
            let spec = spec(kernel, vcpus);
            let end = |every: usize| {
                let mut vm = hypervisor.create(&spec).expect("a VM");
                vm.begin().expect("a new VM begins");
                let (mut moves, mut output) = (0, Vec::new());
                loop {
                    match vm.step_rounds(host, every) {
                        State::Running => {}
                        State::Stopping => continue,
                        _ => break,
                    }
                    let saved = save(host, &vm);
                    let next = load(hypervisor, &spec, &saved);
                    next.begin().expect("it goes on");
                    output.extend(vm.output());
                    let _ = vm.stop();
                    vm.step_rounds(host, 10);
                    (vm, moves) = (next, moves + 1);
                }
                assert_eq!(vm.state(), State::Stopped(GOOD), "guest {number}");
                output.extend(vm.output());
                let mut ram = vec![0; RAM_BYTES as usize];
                vm.memory().read(Gpa(0), &mut ram).expect("it is RAM");
                (ram, output, moves)
            };
            let (ram, output, _) = end(usize::MAX);
            let (moved_ram, moved_output, moves) = end(90);
            moved += moves;
            let differs = ram.iter().zip(&moved_ram).position(|(a, b)| a != b);
            assert_eq!(differs, None, "guest {number}, {moves} moves");
            assert_eq!(moved_output, output, "guest {number}");
        }
        assert!(moved > 20, "{moved}");
    });
}

/// What is cut, damaged, foreign or of another machine is refused, and the VM is a new one as before.
fn what_cannot_be_is_refused<B: TestBackend>() {
    on_virtual_time::<B>(|host, hypervisor| {
        let spec = spec(guests::ping_pong(&[1000]), 2);
        let vm = hypervisor.create(&spec).expect("a VM");
        let mut state = Vec::new();
        let created = Err(SaveError::WrongState(State::Created));
        assert_eq!(vm.save(&mut state), created);
        vm.begin().expect("a new VM begins");
        vm.step_rounds(host, 50);
        let saved = save(host, &vm);
        let twin = hypervisor.create(&spec).expect("a VM");
        let refused = |bytes: &[u8]| twin.load(bytes, TscRate::Same).expect_err("it is bad").why;
        let mut ends = vec![0];
        for section in Sections::new(&saved.state) {
            let content = section.expect("it is good").content;
            let end = content.as_ptr_range().end as usize - saved.state.as_ptr() as usize;
            ends.push(end);
        }
        for cut in ends.windows(2) {
            assert_eq!(refused(&saved.state[..cut[0]]), LoadFault::Missing);
            let inside = refused(&saved.state[..cut[1] - 1]);
            assert!(matches!(inside, LoadFault::Record(_)), "{inside:?}");
            let twice = [&saved.state[..], &saved.state[cut[0]..cut[1]]].concat();
            let device_twice = refused(&twice);
            assert_eq!(device_twice, LoadFault::Twice, "{cut:?}");
        }
        let mut foreign = saved.state.clone();
        let unknown = |to: &mut palacios_core::state_io::StateWriter<'_>| to.u32(1);
        write_section(
            &mut foreign,
            &SectionName::new(format_args!("moon")),
            "cheese",
            unknown,
        )
        .expect("there is memory");
        assert_eq!(refused(&foreign), LoadFault::Unknown);
        // Whatever bits are flipped: it is refused, or the guest goes on somehow. Nothing else happens.
        for _ in 0..300 {
            let mut damaged = saved.state.clone();
            let at = host.random() as usize % damaged.len();
            damaged[at] ^= 1 << (host.random() % 8);
            if hypervisor
                .create(&spec)
                .expect("a VM")
                .load(&damaged, TscRate::Same)
                .is_err()
            {
                continue;
            }
        }
        let other = hypervisor.create(&spec.clone().with_vcpus(3));
        let differs = other
            .expect("a VM")
            .load(&saved.state, TscRate::Same)
            .expect_err("it has more CPUs");
        assert_eq!(differs.why, LoadFault::Differs("number of CPUs"));
        // After all that it is a new one, which can be loaded, and then is no new one.
        assert_eq!(twin.state(), State::Created);
        twin.load(&saved.state, TscRate::Same).expect("it is good");
        twin.begin().expect("it goes on");
        assert!(matches!(
            twin.load(&saved.state, TscRate::Same)
                .expect_err("it runs")
                .why,
            LoadFault::WrongState(_)
        ));
        for vm in [&vm, &twin] {
            let _ = vm.stop();
            vm.step_rounds(host, 10);
        }
    });
}

/// The whole file of a VM that is held, read in pieces of any size.
fn file_of(host: &TestHost, vm: &TestVm) -> Vec<u8> {
    let (mut saver, mut file) = (Saver::new(), Vec::new());
    loop {
        let mut piece = vec![0; 1 + host.random() as usize % 10_000];
        let len = vm
            .read_saved(&mut saver, &mut piece)
            .expect("it stands still");
        file.extend_from_slice(&piece[..len]);
        if len < piece.len() {
            break;
        }
    }
    assert_eq!(vm.read_saved(&mut saver, &mut [0; 9]), Ok(0));
    file
}

/// A file says all of a VM: one that is made of it goes on. Pages that the host took back are in it; those that nobody touched are not, and get no frame.
fn a_file_is_a_whole_vm<B: TestBackend>() {
    on_virtual_time::<B>(|host, hypervisor| {
        const MODULE: [u8; 9000] = [7; 9000];
        let spec = Spec {
            files: vec![("module", MODULE.to_vec())],
            ..spec(guests::workers(&[3, 400, 4, 4096]), 3)
        };
        let vm = hypervisor.create(&spec).expect("a VM");
        let ram_of = |vm: &TestVm| {
            let mut ram = vec![0; RAM_BYTES as usize];
            vm.memory().read(Gpa(0), &mut ram).expect("it is RAM");
            ram
        };
        // As a guest does with what it no longer needs of the image.
        let module = ram_of(&vm)
            .windows(MODULE.len())
            .position(|at| at == MODULE);
        let module = Gpa(module.expect("it was loaded") as u64);
        let zeroes = [0; MODULE.len()];
        vm.memory().write(module, &zeroes).expect("it is RAM");
        vm.begin().expect("a new VM begins");
        vm.step_rounds(host, 40);
        let saved = save(host, &vm);
        let again = hypervisor.create(&spec).expect("a VM");
        load_file(&again, &file_of(host, &vm)).expect("it was saved");
        assert!(ram_of(&again) == saved.ram, "nothing of the image is left");
        vm.revoke(Gpa(0), RAM_BYTES);
        assert_eq!(vm.memory().resident_bytes(), 0);
        let file = file_of(host, &vm);
        assert!(file.len() < RAM_BYTES as usize / 2, "zeroes are left out");
        let parsed = SavedFile::parse(&file).expect("it was written");
        assert!(parsed.state == saved.state);
        let mut ram = vec![0; RAM_BYTES as usize];
        for (page, bytes) in parsed.ram() {
            let at = page as usize * 4096;
            ram[at..at + bytes.len()].copy_from_slice(bytes);
        }
        assert!(ram == saved.ram);

        let next = hypervisor.create(&spec).expect("a VM");
        load_file(&next, &file).expect("it was saved");
        assert!(next.load_ram(RAM_BYTES / 4096, &[0; 4096]).is_err());
        next.begin().expect("it goes on");
        assert_eq!(next.step_rounds(host, usize::MAX), State::Stopped(GOOD));
        let _ = vm.stop();
        assert_eq!(
            vm.read_saved(&mut Saver::new(), &mut [0; 9]),
            Err(SaveError::WrongState(State::Stopping))
        );
        vm.step_rounds(host, 10);
    });
}

fn load_file(vm: &TestVm, file: &[u8]) -> Result<(), LoadError> {
    let file = SavedFile::parse(file).expect("it was written");
    for (page, bytes) in file.ram() {
        vm.load_ram(page, bytes)?;
    }
    vm.load(file.state, TscRate::Same)
}

/// Wherever a file is cut, and whatever bit of it is another.
fn a_damaged_file_is_refused<B: TestBackend>() {
    on_virtual_time::<B>(|host, hypervisor| {
        let vm = hypervisor
            .create(&spec(guests::ping_pong(&[1000]), 2))
            .expect("a VM");
        vm.begin().expect("a new VM begins");
        vm.step_rounds(host, 50);
        let _ = save(host, &vm);
        let file = file_of(host, &vm);
        let refused = |bytes: &[u8]| SavedFile::parse(bytes).err().expect("it is damaged");
        for cut in 0..file.len() {
            if cut < 5000 || cut % 97 == 0 || cut + 200 > file.len() {
                let why = refused(&file[..cut]);
                let right = match why {
                    SavedFileError::NotOne => cut < 8,
                    SavedFileError::Cut(_) => cut >= 8,
                    _ => false,
                };
                assert!(right, "{cut}: {why}");
            }
        }
        for _ in 0..300 {
            let mut damaged = file.clone();
            let at = host.random() as usize % damaged.len();
            damaged[at] ^= 1 << (host.random() % 8);
            refused(&damaged);
        }
        let longer = [&file[..], &file[8..]].concat();
        assert_eq!(refused(&longer), SavedFileError::TooLong);
        let _ = vm.stop();
        vm.step_rounds(host, 10);
    });
}

/// A machine whose counter ran at another rate is refused, unless its user says that the guest is to bear that.
fn another_rate_is_refused_or_borne<B: TestBackend>() {
    on_virtual_time::<B>(|host, hypervisor| {
        let spec = spec(guests::halt_for_ticks(&[20, 1_000_000]), 1);
        let vm = hypervisor.create(&spec).expect("a VM");
        vm.begin().expect("a new VM begins");
        vm.step_rounds(host, 40);
        let saved = save(host, &vm);
        let at_rate = |change: fn(u32) -> u32| {
            let mut state = saved.state.clone();
            let machine = Sections::new(&saved.state)
                .flatten()
                .next()
                .expect("it has one");
            assert_eq!(machine.path, "machine");
            let rate = machine.content.as_ptr() as usize - saved.state.as_ptr() as usize + 16;
            let khz = u32::from_le_bytes(state[rate..rate + 4].try_into().unwrap());
            state[rate..rate + 4].copy_from_slice(&change(khz).to_le_bytes());
            (khz, state)
        };
        let load = |state: &[u8], rate: TscRate| {
            let vm = hypervisor.create(&spec).expect("a VM");
            vm.load_ram(0, &saved.ram).expect("it is RAM");
            vm.load(state, rate).map(|()| vm)
        };
        for (change, same) in [
            ((|khz| khz + khz / 5000) as fn(u32) -> u32, true),
            (|khz| khz - khz / 5000, true),
            (|khz| khz + khz / 3000, false),
            (|khz| khz / 2, false),
        ] {
            let (here_khz, state) = at_rate(change);
            match load(&state, TscRate::Same) {
                Ok(_) => assert!(same),
                Err(refused) => {
                    let saved_khz = change(here_khz);
                    let why = LoadFault::OtherRate {
                        saved_khz,
                        here_khz,
                    };
                    assert_eq!((refused.why, same), (why, false));
                }
            }
            let vm = load(&state, TscRate::New).expect("its user wants it");
            vm.begin().expect("it goes on");
            assert_eq!(vm.step_rounds(host, usize::MAX), State::Stopped(GOOD));
        }
        let _ = vm.stop();
        vm.step_rounds(host, 10);
    });
}

/// Runs a machine of `file`, or a new one, on processors of one vendor; gives the file from which it is to go on elsewhere, or `None` when it has ended.
fn a_while_on<B: TestBackend>(spec: &Spec, file: Option<&[u8]>, rounds: usize) -> Option<Vec<u8>> {
    let next = std::cell::RefCell::new(None);
    on_virtual_time::<B>(|host, hypervisor| {
        let vm = hypervisor.create(spec).expect("a VM");
        if let Some(file) = file {
            let file = SavedFile::parse(file).expect("it was written");
            for (page, bytes) in file.ram() {
                vm.load_ram(page, bytes).expect("it is RAM");
            }
            vm.load(file.state, TscRate::New).expect("it was saved");
        }
        vm.begin().expect("it goes on");
        match vm.step_rounds(host, rounds) {
            State::Stopped(reason) => assert_eq!(reason, GOOD),
            _ => {
                let _ = save(host, &vm);
                *next.borrow_mut() = Some(heap::exempt(|| file_of(host, &vm)));
                let _ = vm.stop();
                vm.step_rounds(host, 10);
            }
        }
    });
    next.into_inner()
}

/// The features that a guest has on these processors.
fn features_on<B: TestBackend>() -> Vec<&'static str> {
    let names = std::cell::RefCell::new(Vec::new());
    on_virtual_time::<B>(|_, hypervisor| {
        let vm = hypervisor
            .create(&spec(guests::spin(&[]), 1))
            .expect("a VM");
        *names.borrow_mut() = heap::exempt(|| {
            vm.judge_features(|judge| {
                let has = judge
                    .report()
                    .filter(|verdict| verdict.guest() == Some(true));
                has.map(|verdict| verdict.row.name).collect()
            })
        });
    });
    names.into_inner()
}

/// From one vendor's processors to the other's, and back, again and again, to the end.
#[test]
fn guests_move_between_vendors() {
    use palacios_core::backend::{svm::Svm, vmx::Vmx};
    let on = [
        a_while_on::<Svm<TestHost>>,
        a_while_on::<Vmx<TestHost>>,
        a_while_on::<AdversarialBackend>,
    ];
    let features = [
        features_on::<Svm<TestHost>>(),
        features_on::<Vmx<TestHost>>(),
        features_on::<AdversarialBackend>(),
    ];
    let everywhere = |name: &&str| features.iter().all(|features| features.contains(name));
    let mut without: Vec<_> = features.iter().flatten().copied().collect();
    without.retain(|name| !everywhere(name));
    for (number, (kernel, vcpus)) in guests_of::<Vmx<TestHost>>().into_iter().enumerate() {
        let spec = Spec {
            without: without.clone(),
            ..spec(kernel, vcpus)
        };
        let mut moves = 0;
        let mut file = None;
        loop {
            let rounds = if moves == 0 { 3 } else { 15 + number + moves };
            file = on[moves % 3](&spec, file.as_deref(), rounds);
            if file.is_none() || moves == 60 {
                break;
            }
            moves += 1;
        }
        assert!(file.is_none() && moves > 0, "guest {number}: {moves} moves");
    }
}

/// The machine of `saved/*.state`.
fn kept_spec() -> Spec {
    spec(guests::ping_pong(&[1000]), 2)
}

/// Saves that machine where cargo keeps such files, as `saved.state`. When the version of a record changes, that file belongs into `saved/`.
fn save_for_later() -> std::path::PathBuf {
    let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("saved.state");
    on_virtual_time::<AdversarialBackend>(|host, hypervisor| {
        let vm = hypervisor.create(&kept_spec()).expect("a VM");
        vm.begin().expect("a new VM begins");
        vm.step_rounds(host, 50);
        let saved = save(host, &vm);
        std::fs::write(&path, &saved.state).expect("a writable folder");
        let _ = vm.stop();
        vm.step_rounds(host, 10);
    });
    path
}

/// Files that were saved by earlier versions: each is read, or refused with the name of a section whose version is no longer known.
#[test]
fn what_was_saved_earlier_is_read_or_refused_by_name() {
    let load = |path: &std::path::Path| {
        let state = std::fs::read(path).expect("a readable file");
        let mut loaded = Ok(());
        let result = &std::cell::RefCell::new(&mut loaded);
        on_virtual_time::<AdversarialBackend>(|_, hypervisor| {
            let vm = hypervisor.create(&kept_spec()).expect("a VM");
            **result.borrow_mut() = vm.load(&state, TscRate::Same);
        });
        loaded
    };
    assert_eq!(load(&save_for_later()), Ok(()));
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/saved");
    let files = std::fs::read_dir(folder).expect("the folder of kept files");
    let paths: Vec<_> = files.map(|file| file.expect("a file").path()).collect();
    assert!(!paths.is_empty());
    for path in paths {
        if let Err(refused) = load(&path) {
            let is_version = matches!(refused.why, LoadFault::Record(StateError::Version(_)));
            assert!(is_version, "{path:?}: {refused}");
            assert!(!refused.section.as_str().is_empty());
        }
    }
}

on_all_backends! {
    guests_go_on_in_another_vm,
    a_run_that_moves_ends_as_one_that_does_not,
    what_cannot_be_is_refused,
    a_file_is_a_whole_vm,
    a_damaged_file_is_refused,
    another_rate_is_refused_or_borne,
}
