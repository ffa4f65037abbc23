// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the local APIC promises.

use super::registers::register;
use super::*;
use crate::devices::testing::saved;
use crate::interrupts::Destination;
use crate::state_io::{StateError, StateReader};
use proptest::prelude::*;

fn at(ns: u64) -> Now {
    Now {
        ns,
        tsc: ns.saturating_mul(2),
        tsc_khz: 2_000_000,
    }
}

/// An APIC as a kernel leaves it: enabled, nothing masked by priority.
fn enabled() -> LocalApic {
    let mut apic = LocalApic::new(3, false, 40);
    let _ = apic.mmio_write(0xf0, 4, 0x1ff, at(0));
    apic
}

fn x2apic() -> LocalApic {
    let mut apic = enabled();
    let base = apic.base_msr() | base::X2APIC;
    assert_eq!(apic.write_base_msr(base), Ok(Effect::Routing));
    apic
}

fn write(apic: &mut LocalApic, number: u32, value: u32) -> Effect {
    apic.mmio_write(u64::from(number) << 4, 4, value.into(), at(0))
}

fn read(apic: &mut LocalApic, number: u32) -> u32 {
    apic.mmio_read(u64::from(number) << 4, 4, at(0)) as u32
}

/// Takes the next interrupt, as a processor with interrupts on.
fn take(apic: &mut LocalApic) -> Option<u8> {
    let vector = apic.next_interrupt()?;
    apic.start_service(vector);
    Some(vector)
}

#[test]
fn a_reset_one_is_disabled_by_software_and_masks_its_lvt() {
    let mut apic = LocalApic::new(3, true, 40);
    assert_eq!(apic.mmio_page(), Some(Gpa(BASE_GPA)));
    assert_eq!(apic.base_msr(), 0xfee0_0900);
    assert_eq!(read(&mut apic, register::ID), 3 << 24);
    assert_eq!(read(&mut apic, register::VERSION), 0x0005_0014);
    assert_eq!(read(&mut apic, register::SPURIOUS), 0xff);
    assert_eq!(read(&mut apic, register::DFR), u32::MAX);
    for number in register::LVT..register::INITIAL_COUNT {
        assert_eq!(
            write(&mut apic, number, 0x30) == Effect::Timer,
            number == register::LVT
        );
        assert_eq!(read(&mut apic, number), LVT_MASKED | 0x30);
    }
    assert!(!apic.accept(0x30, false));
    assert!(!apic.takes_extint());
}

#[test]
fn virtual_wire_mode_lets_the_pic_pair_and_nmi_through() {
    let mut apic = LocalApic::new(0, true, 40);
    apic.enter_virtual_wire_mode();
    assert!(apic.takes_extint());
    assert_eq!(apic.local_interrupt(Lvt::Lint0), Some(Delivery::ExtInt));
    assert_eq!(apic.local_interrupt(Lvt::Lint1), Some(Delivery::Nmi));
    let _ = write(&mut apic, register::LVT + 3, LVT_MASKED | 0x700);
    assert!(!apic.takes_extint());
}

#[test]
fn interrupts_nest_by_class_and_end_in_order() {
    let mut apic = enabled();
    assert!(apic.accept(0x35, false) && apic.accept(0x41, false) && apic.accept(0x44, false));
    assert_eq!(take(&mut apic), Some(0x44));
    assert_eq!(apic.next_interrupt(), None, "0x41 is of the same class");
    assert!(apic.accept(0x50, false));
    assert_eq!(take(&mut apic), Some(0x50));
    assert_eq!(apic.eoi(), None);
    assert_eq!(apic.ppr(), 0x40);
    assert_eq!(apic.eoi(), None);
    assert_eq!(take(&mut apic), Some(0x41));
    assert_eq!(apic.eoi(), None);
    assert_eq!(take(&mut apic), Some(0x35));
}

#[test]
fn task_priority_holds_classes_back() {
    let mut apic = enabled();
    apic.accept(0x3f, false);
    apic.set_cr8(3);
    assert_eq!(apic.next_interrupt(), None);
    assert_eq!(read(&mut apic, register::TPR), 0x30);
    let _ = write(&mut apic, register::TPR, 0x2f);
    assert_eq!((apic.cr8(), apic.ppr()), (2, 0x2f));
    assert_eq!(take(&mut apic), Some(0x3f));
    assert_eq!(apic.ppr(), 0x30, "the service is above the task");
}

#[test]
fn a_level_triggered_vector_is_broadcast_at_its_end() {
    let mut apic = enabled();
    apic.accept(0x61, true);
    apic.accept(0x51, false);
    assert_eq!(read(&mut apic, register::TMR + 3), 1 << 1);
    assert_eq!(take(&mut apic), Some(0x61));
    assert_eq!(write(&mut apic, register::EOI, 0), Effect::Eoi(0x61));
    assert_eq!(take(&mut apic), Some(0x51));
    assert_eq!(write(&mut apic, register::EOI, 0), Effect::None);
    assert_eq!(
        write(&mut apic, register::EOI, 0),
        Effect::None,
        "nothing is in service"
    );
}

#[test]
fn requests_and_services_show_in_their_registers() {
    let mut apic = enabled();
    apic.accept(0xff, false);
    apic.accept(0x20, false);
    assert_eq!(read(&mut apic, register::IRR + 7), 1 << 31);
    assert_eq!(take(&mut apic), Some(0xff));
    assert_eq!(read(&mut apic, register::IRR + 7), 0);
    assert_eq!(read(&mut apic, register::IRR + 1), 1);
    assert_eq!(read(&mut apic, register::ISR + 7), 1 << 31);
}

#[test]
fn software_disable_masks_the_lvt_and_keeps_what_is_pending() {
    let mut apic = enabled();
    let _ = write(&mut apic, register::LVT, 0x40);
    apic.accept(0x50, false);
    assert_eq!(write(&mut apic, register::SPURIOUS, 0xff), Effect::Routing);
    assert_eq!(read(&mut apic, register::LVT), LVT_MASKED | 0x40);
    assert!(!apic.accept(0x60, false));
    assert_eq!(take(&mut apic), Some(0x50));
    let _ = write(&mut apic, register::SPURIOUS, 0x1ff);
    assert_eq!(read(&mut apic, register::LVT), LVT_MASKED | 0x40);
}

#[test]
fn an_ipi_becomes_a_message() {
    let mut apic = enabled();
    let cases = [
        (0x0000_4030, 2, Delivery::Fixed, Destination::Physical(2)),
        (0x0000_4030, 0xff, Delivery::Fixed, Destination::All),
        (
            0x0000_4930,
            0x03,
            Delivery::LowestPriority,
            Destination::Logical(3),
        ),
        (0x0000_4400, 2, Delivery::Nmi, Destination::Physical(2)),
        (
            0x0000_c500,
            2,
            Delivery::Init(true),
            Destination::Physical(2),
        ),
        (
            0x0000_8500,
            2,
            Delivery::Init(false),
            Destination::Physical(2),
        ),
        (0x0000_4699, 2, Delivery::Startup, Destination::Physical(2)),
        (0x0008_4030, 0, Delivery::Fixed, Destination::All),
        (0x000c_4030, 0, Delivery::Fixed, Destination::Others),
    ];
    for (low, to, delivery, destination) in cases {
        let _ = write(&mut apic, register::ICR_HIGH, to << 24);
        let message = Message {
            destination,
            delivery,
            vector: low as u8,
            level: false,
        };
        assert_eq!(
            write(&mut apic, register::ICR, low | ICR_BUSY),
            Effect::Send(message)
        );
        assert_eq!(read(&mut apic, register::ICR), low, "delivered at once");
    }
}

const ICR_BUSY: u32 = 1 << 12;

#[test]
fn an_ipi_to_oneself_needs_no_messenger() {
    let mut apic = enabled();
    assert_eq!(write(&mut apic, register::ICR, 0x0004_4033), Effect::None);
    assert_eq!(take(&mut apic), Some(0x33));
    assert_eq!(
        write(&mut apic, register::ICR, 0x0004_4400),
        Effect::None,
        "no NMI by shorthand"
    );
}

#[test]
fn illegal_vectors_are_errors_that_interrupt_once_until_read() {
    let mut apic = enabled();
    let _ = write(&mut apic, register::LVT + 5, 0xfe);
    assert_eq!(write(&mut apic, register::ICR, 0x0000_400f), Effect::None);
    assert!(!apic.accept(3, false));
    assert_eq!(read(&mut apic, register::ERROR), 0, "until it is written");
    let _ = write(&mut apic, register::ERROR, 0);
    assert_eq!(read(&mut apic, register::ERROR), 0x60);
    assert_eq!(take(&mut apic), Some(0xfe));
    assert_eq!(take(&mut apic), None);
    let _ = write(&mut apic, register::ERROR, 0);
    assert_eq!(read(&mut apic, register::ERROR), 0);
}

#[test]
fn a_register_that_is_not_there_is_an_error() {
    let mut apic = enabled();
    assert_eq!(read(&mut apic, 0x3f), 0);
    let _ = write(&mut apic, register::ERROR, 0);
    assert_eq!(read(&mut apic, register::ERROR), 0x80);
    let _ = write(&mut apic, 0x2f, 0);
    let _ = write(&mut apic, register::VERSION, 0);
    let _ = write(&mut apic, register::ERROR, 0);
    assert_eq!(read(&mut apic, register::ERROR), 0x80);
}

#[test]
fn an_error_vector_that_is_illegal_itself_ends_there() {
    let mut apic = enabled();
    let _ = write(&mut apic, register::LVT + 5, 0x05);
    apic.accept(3, false);
    assert_eq!(take(&mut apic), None);
}

#[test]
fn only_aligned_words_are_written() {
    let mut apic = enabled();
    for (offset, size) in [(0x80, 1), (0x80, 2), (0x80, 8), (0x84, 4), (0x81, 4)] {
        assert_eq!(apic.mmio_write(offset, size, 0x50, at(0)), Effect::None);
    }
    assert_eq!(read(&mut apic, register::TPR), 0);
    assert_eq!(apic.mmio_read(0x31, 1, at(0)), 0x00);
    assert_eq!(apic.mmio_read(0x32, 2, at(0)), 0x05);
    assert_eq!(apic.mmio_read(0x30, 8, at(0)), 0x0005_0014);
    assert_eq!(apic.mmio_read(0x34, 4, at(0)), 0);
}

#[test]
fn modes_change_only_as_the_manual_draws() {
    use ApicMode::{Disabled, X2Apic, XApic};
    let value = |mode| match mode {
        Disabled => BASE_GPA,
        XApic => BASE_GPA | base::ENABLE,
        X2Apic => BASE_GPA | base::ENABLE | base::X2APIC,
    };
    let path = |mode| match mode {
        X2Apic => vec![X2Apic],
        XApic => vec![],
        Disabled => vec![Disabled],
    };
    let illegal = [(Disabled, X2Apic), (X2Apic, XApic)];
    for from in [Disabled, XApic, X2Apic] {
        for to in [Disabled, XApic, X2Apic] {
            let mut apic = enabled();
            for step in path(from) {
                let _ = apic.write_base_msr(value(step)).unwrap();
            }
            let written = apic.write_base_msr(value(to));
            assert_eq!(
                written.is_err(),
                illegal.contains(&(from, to)),
                "{from:?} {to:?}"
            );
            assert_eq!(apic.mode(), if written.is_ok() { to } else { from });
        }
    }
    let mut apic = enabled();
    assert_eq!(
        apic.write_base_msr(BASE_GPA | base::X2APIC),
        Err(GeneralProtection)
    );
    assert_eq!(
        apic.write_base_msr(1 << 40 | base::ENABLE),
        Err(GeneralProtection)
    );
    assert_eq!(
        apic.write_base_msr(BASE_GPA | base::ENABLE | 1),
        Err(GeneralProtection)
    );
}

#[test]
fn the_page_moves_and_goes() {
    let mut apic = enabled();
    let _ = apic.write_base_msr(0x1234_5000 | base::ENABLE).unwrap();
    assert_eq!(apic.mmio_page(), Some(Gpa(0x1234_5000)));
    let _ = apic.write_base_msr(0x1234_5000).unwrap();
    assert_eq!(apic.mmio_page(), None);
    assert!(apic.takes_extint(), "LINT0 is INTR now");
    assert_eq!(apic.next_interrupt(), None);
}

#[test]
fn disabling_forgets_and_init_keeps_the_mode() {
    let mut apic = enabled();
    apic.accept(0x50, false);
    let _ = apic.write_base_msr(BASE_GPA).unwrap();
    let _ = apic.write_base_msr(BASE_GPA | base::ENABLE).unwrap();
    assert_eq!(read(&mut apic, register::SPURIOUS), 0xff);
    assert_eq!(apic.next_interrupt(), None);

    let mut apic = x2apic();
    apic.accept(0x50, false);
    apic.init();
    assert_eq!(
        (apic.mode(), apic.next_interrupt()),
        (ApicMode::X2Apic, None)
    );
    apic.reset();
    assert_eq!(apic.mode(), ApicMode::XApic);
}

#[test]
fn x2apic_registers_are_msrs() {
    let mut apic = x2apic();
    assert_eq!(apic.read_msr(0x802, at(0)), Ok(3));
    assert_eq!(apic.read_msr(0x80d, at(0)), Ok(1 << 3));
    assert_eq!(
        apic.read_msr(0x80e, at(0)),
        Err(GeneralProtection),
        "no DFR"
    );
    assert_eq!(
        apic.read_msr(0x80b, at(0)),
        Err(GeneralProtection),
        "EOI is write-only"
    );
    assert_eq!(
        apic.read_msr(0x831, at(0)),
        Err(GeneralProtection),
        "no second half"
    );
    assert_eq!(apic.read_msr(0x8ff, at(0)), Err(GeneralProtection));
    for (msr, value) in [
        (0x802, 0),
        (0x803, 0),
        (0x80b, 1),
        (0x828, 1),
        (0x808, 0x100),
    ] {
        assert_eq!(
            apic.write_msr(msr, value, at(0)),
            Err(GeneralProtection),
            "{msr:#x}"
        );
    }
    for (msr, value) in [
        (0x808, 1 << 32),
        (0x80f, 1 << 12),
        (0x832, 1 << 20),
        (0x830, 1 << 20),
    ] {
        assert_eq!(
            apic.write_msr(msr, value, at(0)),
            Err(GeneralProtection),
            "{msr:#x}"
        );
    }
    assert_eq!(apic.write_msr(0x83f, 0x44, at(0)), Ok(Effect::None));
    assert_eq!(take(&mut apic), Some(0x44));
    assert_eq!(apic.write_msr(0x80b, 0, at(0)), Ok(Effect::None));
    assert_eq!(
        enabled().read_msr(0x802, at(0)),
        Err(GeneralProtection),
        "in xAPIC mode"
    );
}

#[test]
fn x2apic_ids_have_32_bits() {
    let mut apic = x2apic();
    let to = |destination| {
        let (delivery, vector, level) = (Delivery::Fixed, 0x40, false);
        Ok(Effect::Send(Message {
            destination,
            delivery,
            vector,
            level,
        }))
    };
    let mut send = |value| apic.write_msr(0x830, value, at(0));
    assert_eq!(send(0x0000_00ff_0000_4040), to(Destination::Physical(0xff)));
    assert_eq!(send(0xffff_ffff_0000_4040), to(Destination::All));
    assert_eq!(
        send(0x0001_0001_0000_4840),
        to(Destination::Logical(0x0001_0001))
    );
    assert_eq!(apic.read_msr(0x830, at(0)), Ok(0x0001_0001_0000_4840));
}

#[test]
fn the_filter_mirrors_what_routing_needs() {
    let mut apic = enabled();
    assert_eq!(
        write(&mut apic, register::LDR, 0x0800_0000),
        Effect::Routing
    );
    assert_eq!(
        write(&mut apic, register::DFR, 0x0fff_ffff),
        Effect::Routing
    );
    let expected = DestinationFilter {
        id: 3,
        mode: ApicMode::XApic,
        software_enabled: true,
        ldr: 8,
        cluster: true,
        priority: 0,
    };
    assert_eq!(apic.filter(), expected);
}

#[test]
fn the_timer_interrupts_at_its_deadline() {
    let mut apic = enabled();
    assert_eq!(write(&mut apic, register::DIVIDE, 0b1011), Effect::Timer);
    assert_eq!(write(&mut apic, register::LVT, 0x2_0040), Effect::Timer);
    assert_eq!(
        write(&mut apic, register::INITIAL_COUNT, 1_000_000),
        Effect::Timer
    );
    assert_eq!(apic.deadline_ns(at(0)), Some(1_000_000));
    apic.tick(at(999_999));
    assert_eq!(take(&mut apic), None);
    apic.tick(at(1_000_000));
    assert_eq!(take(&mut apic), Some(0x40));
    assert_eq!(apic.deadline_ns(at(1_000_000)), Some(2_000_000));
}

#[test]
fn a_masked_timer_counts_and_keeps_silent() {
    let mut apic = enabled();
    let _ = write(&mut apic, register::DIVIDE, 0b1011);
    let _ = write(&mut apic, register::INITIAL_COUNT, u32::MAX);
    assert_eq!(apic.deadline_ns(at(0)), None);
    assert_eq!(
        apic.mmio_read(0x390, 4, at(1000)),
        u64::from(u32::MAX) - 1000
    );
    let over = at(5_000_000_000);
    let _ = apic.mmio_write(0x320, 4, 0x40, over);
    assert_eq!(
        (take(&mut apic), apic.deadline_ns(over)),
        (None, None),
        "it ended while masked"
    );
}

#[test]
fn the_tsc_deadline_is_disarmed_by_its_interrupt() {
    let mut apic = enabled();
    let _ = write(&mut apic, register::LVT, 0x4_0040);
    assert_eq!(apic.write_tsc_deadline(4_000, at(0)), Effect::Timer);
    assert_eq!(apic.deadline_ns(at(0)), Some(2_000));
    assert_eq!(apic.tsc_deadline(at(1_999)), 4_000);
    assert_eq!(apic.tsc_deadline(at(2_000)), 0);
    assert_eq!(take(&mut apic), Some(0x40));
}

#[test]
fn a_record_of_another_cpu_is_refused() {
    let record = saved(|w| enabled().save(w));
    let mut other = LocalApic::new(4, false, 40);
    let restored = other.restore(&mut StateReader::new(&record));
    assert_eq!(restored, Err(StateError::Value("lapic.id")));
}

#[derive(Clone, Debug)]
enum Step {
    Accept(u8, bool),
    Take,
    Mmio(u64, u8, Option<u64>),
    Msr(u32, Option<u64>),
    Base(u64),
    Deadline(u64),
    Local(usize),
    Wait(u64),
    Init,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let size = prop::sample::select(vec![1u8, 2, 4, 4, 4, 8]);
    let mode = prop::sample::select(vec![0u64, 0x800, 0x800, 0xc00, 0xc00]);
    // Registers that matter, with values of all sizes.
    let offset = (0u64..0x40, prop_oneof![4 => Just(0u64), 1 => 0u64..16]);
    let value = prop_oneof![any::<u64>(), any::<u32>().prop_map(u64::from), 0u64..0x800];
    let step =
        prop_oneof![
            (any::<u8>(), any::<bool>()).prop_map(|(v, level)| Step::Accept(v, level)),
            Just(Step::Take),
            (offset, size, prop::option::of(value.clone()))
                .prop_map(|((r, low), size, v)| Step::Mmio(r << 4 | low, size, v)),
            (0x800u32..0x840, prop::option::of(value.clone())).prop_map(|(m, v)| Step::Msr(m, v)),
            mode.prop_map(|mode| Step::Base(BASE_GPA | mode)),
            value.clone().prop_map(Step::Base),
            value.prop_map(Step::Deadline),
            (0usize..6).prop_map(Step::Local),
            (0u64..1 << 34).prop_map(Step::Wait),
            Just(Step::Init),
        ];
    prop::collection::vec(step, 0..80)
}

fn run(apic: &mut LocalApic, ns: &mut u64, steps: &[Step]) -> Vec<String> {
    let mut seen = Vec::new();
    for step in steps {
        let now = at(*ns);
        let what = match *step {
            Step::Accept(vector, level) => format!("{:?}", apic.accept(vector, level)),
            Step::Take => format!("{:?}", take(apic)),
            Step::Mmio(offset, size, None) => format!("{:?}", apic.mmio_read(offset, size, now)),
            Step::Mmio(at, size, Some(v)) => format!("{:?}", apic.mmio_write(at, size, v, now)),
            Step::Msr(msr, None) => format!("{:?}", apic.read_msr(msr, now)),
            Step::Msr(msr, Some(value)) => format!("{:?}", apic.write_msr(msr, value, now)),
            Step::Base(value) => format!("{:?}", apic.write_base_msr(value)),
            Step::Deadline(tsc) => format!("{:?}", apic.write_tsc_deadline(tsc, now)),
            Step::Local(at) => format!("{:?}", apic.local_interrupt(Lvt::ALL[at])),
            Step::Init => format!("{:?}", apic.init()),
            Step::Wait(more) => {
                *ns += more;
                apic.tick(at(*ns));
                format!("{:?}", apic.deadline_ns(at(*ns)))
            }
        };
        seen.push(what);
    }
    seen
}

proptest! {
    #[test]
    fn a_restored_one_goes_on_as_the_saved_one(before in steps(), after in steps()) {
        let (mut apic, mut ns) = (enabled(), 0);
        run(&mut apic, &mut ns, &before);
        let record = saved(|w| apic.save(w));
        let mut twin = LocalApic::new(3, false, 40);
        prop_assert_eq!(twin.restore(&mut StateReader::new(&record)), Ok(()));
        prop_assert_eq!(saved(|w| twin.save(w)), record);
        let mut twin_ns = ns;
        prop_assert_eq!(run(&mut twin, &mut twin_ns, &after), run(&mut apic, &mut ns, &after));
    }

    #[test]
    fn what_is_delivered_is_above_all_that_is_served(before in steps()) {
        let (mut apic, mut ns) = (enabled(), 0);
        run(&mut apic, &mut ns, &before);
        if let Some(vector) = apic.next_interrupt() {
            prop_assert!(vector >= 16);
            let served = (0..=255).rev().find(|v| apic.in_service.get(*v));
            prop_assert!(served.is_none_or(|served| vector >> 4 > served >> 4));
            prop_assert!(vector >> 4 > apic.cr8());
            prop_assert_eq!((0..=255).rev().find(|v| apic.requests.get(*v)), Some(vector));
        }
    }

    #[test]
    fn a_tick_leaves_no_deadline_behind(before in steps()) {
        let (mut apic, mut ns) = (enabled(), 0);
        run(&mut apic, &mut ns, &before);
        apic.tick(at(ns));
        prop_assert!(apic.deadline_ns(at(ns)).is_none_or(|due| due > ns));
    }

    #[test]
    fn a_damaged_record_is_restored_or_refused(
        before in steps(), at in 0usize..200, byte: u8, length in 0usize..220, after in steps(),
    ) {
        let (mut apic, mut ns) = (enabled(), 0);
        run(&mut apic, &mut ns, &before);
        let mut record = saved(|w| apic.save(w));
        if let Some(field) = record.get_mut(at) {
            *field = byte;
        }
        record.truncate(length);
        let _ = apic.restore(&mut StateReader::new(&record));
        run(&mut apic, &mut ns, &after);
    }
}
