// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the serial port promises, with `vm-superio`'s as an oracle where the two agree to model the same.

use super::*;
use crate::devices::testing::{assert_restores, assert_survives, saved, OwnLinks};
use crate::devices::testing::{Shared, TestMachine, TestStream};
use crate::interfaces::InterruptLines;
use crate::interrupts::chipset::{self, Chipset};
use crate::interrupts::{Message, MessageSink};
use proptest::prelude::*;

const IRQ: u32 = 4;

struct Bench {
    machine: TestMachine,
    stream: TestStream,
    uart: Uart,
}

impl Bench {
    fn new() -> Self {
        let (machine, stream) = (TestMachine::new(), TestStream::default());
        let far_end = Box::new(stream.clone());
        let uart = Uart::new(&machine, ComPort::Com1, far_end).unwrap();
        Self {
            machine,
            stream,
            uart,
        }
    }
    /// With FIFOs and a trigger level, at 115,200 baud and 8N1.
    fn with_fifo(trigger: u8) -> Self {
        let mut bench = Self::new();
        for (register, value) in [(3, 0x83), (0, 1), (1, 0), (3, 0x03), (2, 0x07 | trigger)] {
            bench.write(register, value);
        }
        bench
    }
    fn read(&mut self, register: u16) -> u8 {
        self.machine.inb(&mut self.uart, 0x3f8 + register)
    }
    fn write(&mut self, register: u16, value: u8) {
        self.machine.outb(&mut self.uart, 0x3f8 + register, value);
    }
    fn input(&mut self, data: &[u8]) {
        self.stream.give_input(data);
        self.uart.input_ready();
    }
    fn line(&self) -> bool {
        self.machine.line(IRQ)
    }
}

#[test]
fn output_leaves_at_once() {
    let mut bench = Bench::new();
    for byte in *b"hello" {
        assert_eq!(bench.read(5) & 0x60, 0x60);
        bench.write(0, byte);
    }
    assert_eq!(bench.stream.take_output(), b"hello");
}

#[test]
fn each_empty_transmitter_is_an_edge() {
    let mut bench = Bench::new();
    bench.write(1, ier::TRANSMITTER_EMPTY);
    assert!(bench.line(), "empty when enabled");
    assert_eq!(bench.read(2), iir::TRANSMITTER_EMPTY);
    assert!(!bench.line(), "told, and so cleared");
    assert_eq!(bench.read(2), iir::NONE);
    let before = bench.machine.edges(IRQ);
    bench.write(0, b'a');
    bench.write(0, b'b');
    assert_eq!(bench.machine.edges(IRQ), before + 2);
}

/// Linux asks so whether the port reasserts the interrupt whenever it is enabled anew, as a real one does.
#[test]
fn linux_finds_no_transmitter_bug() {
    let mut bench = Bench::new();
    for _ in 0..2 {
        bench.write(1, ier::TRANSMITTER_EMPTY);
        assert_eq!(bench.read(2) & 1, 0);
        bench.write(1, 0);
    }
}

/// Linux tells a 16550A from its ancestors so.
#[test]
fn linux_finds_a_16550a() {
    let mut bench = Bench::new();
    bench.write(7, 0xa5);
    assert_eq!(bench.read(7), 0xa5);
    bench.write(4, mcr::LOOPBACK | mcr::OUT2 | mcr::RTS);
    assert_eq!(bench.read(6) & 0xf0, msr::DCD | msr::CTS);
    bench.write(4, 0);
    bench.write(1, 0xff);
    assert_eq!(bench.read(1), 0x0f);
    bench.write(2, fcr::ENABLE);
    assert_eq!(bench.read(2) & 0xc0, 0xc0);
    bench.write(2, 0);
    assert_eq!(bench.read(2) & 0xc0, 0);
}

#[test]
fn input_waits_for_room() {
    let mut bench = Bench::with_fifo(0);
    bench.write(1, ier::RECEIVED);
    let sent: Vec<u8> = (0..100).collect();
    bench.input(&sent);
    assert_eq!(bench.stream.waiting(), 100 - 16);
    assert_eq!(bench.read(2), 0xc0 | iir::RECEIVED);
    let mut got = Vec::new();
    while bench.read(5) & lsr::DATA_READY != 0 {
        got.push(bench.read(0));
    }
    assert_eq!(got, sent);
    assert!(!bench.line());
    assert_eq!(bench.read(0), 0, "nothing is left");
}

#[test]
fn without_fifo_there_is_room_for_one() {
    let mut bench = Bench::new();
    bench.input(b"ab");
    assert_eq!(bench.stream.waiting(), 1);
    assert_eq!((bench.read(0), bench.read(0)), (b'a', b'b'));
}

#[test]
fn the_trigger_level_interrupts_and_less_times_out() {
    for (trigger, level) in [(0x40, 4), (0x80, 8), (0xc0, 14)] {
        let mut bench = Bench::with_fifo(trigger);
        bench.write(1, ier::RECEIVED);
        bench.input(&vec![1; level - 1]);
        assert!(!bench.line());
        bench.input(&[2]);
        assert_eq!(bench.read(2), 0xc0 | iir::RECEIVED);
        bench.read(0);
        assert!(!bench.line());

        // Four characters of ten bits at 115,200 baud.
        let due = bench.uart.deadline_ns().unwrap();
        assert!(due.abs_diff(4 * 10 * 1_000_000_000 / 115_200) < 1_000);
        bench.machine.run_until(&mut bench.uart, due);
        assert_eq!(bench.read(2), 0xc0 | iir::TIMEOUT);
        bench.read(0);
        assert!(!bench.line(), "a read starts the time anew");
        assert!(bench.uart.deadline_ns().is_some());
    }
}

#[test]
fn a_raised_trigger_level_forgets_no_data() {
    let mut bench = Bench::with_fifo(0);
    bench.write(1, ier::RECEIVED);
    bench.input(b"abc");
    bench.write(2, fcr::ENABLE | 0xc0);
    assert!(!bench.line());
    bench.machine.run_until(&mut bench.uart, 1_000_000);
    assert!(bench.line());
}

#[test]
fn line_status_comes_before_data_and_data_before_the_transmitter() {
    let mut bench = Bench::with_fifo(0);
    bench.write(4, mcr::LOOPBACK);
    for byte in 0..17 {
        bench.write(0, byte);
    }
    bench.write(1, 0x0f);
    assert_eq!(bench.read(2), 0xc0 | iir::LINE_STATUS);
    assert_eq!(bench.read(5), 0x60 | lsr::OVERRUN | lsr::DATA_READY);
    assert_eq!(bench.read(5), 0x60 | lsr::DATA_READY);
    assert_eq!(bench.read(2), 0xc0 | iir::RECEIVED);
    bench.write(2, fcr::ENABLE | fcr::CLEAR_RECEIVER);
    assert_eq!(bench.read(2), 0xc0 | iir::TRANSMITTER_EMPTY);
    assert_eq!(
        bench.read(2),
        0xc0 | iir::MODEM_STATUS,
        "the loop changed the modem lines"
    );
    bench.read(6);
    assert_eq!(bench.read(2), 0xc0 | iir::NONE);
}

/// PC16550D: 8.1 (bit 6), 8.4 (bit 4), 8.6.4.
#[test]
fn a_break_in_loopback_is_heard_once() {
    let mut bench = Bench::new();
    bench.write(1, 0x04);
    bench.write(3, 0x43);
    assert_eq!(bench.read(5) & 0x11, 0, "it goes to the far end");
    bench.write(3, 0x03);
    bench.write(4, 0x10);
    bench.write(3, 0x43);
    assert!(bench.line());
    assert_eq!(bench.read(2), 0x06, "a change of the line status");
    bench.write(0, b'x');
    assert_eq!(bench.read(5) & 0x11, 0x11, "what is sent meanwhile is lost");
    assert_eq!(bench.read(5) & 0x11, 0x01, "it was told");
    assert!(!bench.line());
    assert_eq!((bench.read(0), bench.read(5) & 0x01), (0, 0));
    bench.write(3, 0x03);
    bench.write(0, b'y');
    assert_eq!((bench.read(5) & 0x11, bench.read(0)), (0x01, b'y'));
    bench.write(3, 0x43);
    assert_eq!(bench.read(5) & 0x11, 0x11, "another one");
}

#[test]
fn a_break_is_told_of_when_its_byte_comes_to_the_head_of_the_fifo() {
    let mut bench = Bench::with_fifo(0);
    bench.write(4, 0x10);
    bench.write(0, b'a');
    bench.write(3, 0x43);
    assert_eq!(
        bench.read(5) & 0x91,
        0x81,
        "one of the bytes came with an error"
    );
    let record = saved(|w| bench.uart.save(w));
    assert_restores(&record, &mut Bench::new().uart);
    assert_eq!(bench.read(0), b'a');
    assert_eq!(bench.read(5) & 0x91, 0x91);
    assert_eq!(bench.read(5) & 0x91, 0x01);
    bench.write(3, 0x03);
    bench.write(3, 0x43);
    bench.write(2, 0x03);
    assert_eq!(bench.read(5) & 0x91, 0, "the FIFO was emptied");
}

/// Two ports on one level-triggered input: the I/O APIC sees the line high as long as one of them drives it.
#[derive(Clone, Default)]
struct SharedLine {
    machine: TestMachine,
    chipset: Shared<Chipset>,
    sent: Shared<Vec<u8>>,
}

impl InterruptLines for SharedLine {
    fn route_wire(&self, _: usize, _: Option<u8>) {}
    fn raise(&self, number: u32) {
        self.chipset.borrow_mut().raise(number, self);
    }
    fn lower(&self, number: u32) {
        self.chipset.borrow_mut().lower(number, self);
    }
    fn set_legacy_replacement(&self, _: bool) {}
}

impl MessageSink for SharedLine {
    fn send(&self, _: Option<u32>, message: Message) {
        self.sent.borrow_mut().push(message.vector);
    }
    fn pic_output(&self) {}
}

#[test]
fn two_ports_on_one_level_triggered_line() {
    let line = SharedLine::default();
    for (register, value) in [(0x18, 0x8030), (0x19, 0)] {
        let mut chipset = line.chipset.borrow_mut();
        chipset.write(chipset::IOAPIC, 0, 4, register, &line);
        chipset.write(chipset::IOAPIC, 0x10, 4, value, &line);
    }
    let machine = &line.machine;
    let lines = || Box::new(line.clone()) as Box<dyn InterruptLines>;
    let links = OwnLinks::with_lines(machine, &lines);
    let port = |port| Uart::new(&links, port, Box::new(TestStream::default())).unwrap();
    let (mut com1, mut com3) = (port(ComPort::Com1), port(ComPort::Com3));
    machine.outb(&mut com1, 0x3f9, 2);
    machine.outb(&mut com3, 0x3e9, 2);
    assert_eq!(*line.sent.borrow(), [0x30]);
    machine.outb(&mut com1, 0x3f9, 0);
    line.chipset.borrow_mut().eoi(0x30, &line);
    assert_eq!(*line.sent.borrow(), [0x30, 0x30], "COM3 still interrupts");
    machine.outb(&mut com3, 0x3e9, 0);
    line.chipset.borrow_mut().eoi(0x30, &line);
    assert_eq!(line.sent.borrow().len(), 2, "none of them does");
}

#[test]
fn loopback_keeps_the_world_out() {
    let mut bench = Bench::with_fifo(0);
    bench.write(4, mcr::LOOPBACK);
    bench.input(b"x");
    bench.write(0, b'y');
    assert_eq!(bench.read(0), b'y');
    assert_eq!(bench.read(5) & lsr::DATA_READY, 0);
    assert_eq!(bench.stream.take_output(), b"");
    bench.write(4, 0);
    assert_eq!(bench.read(0), b'x', "it had waited");
}

#[test]
fn without_fifo_an_overrun_keeps_the_new_byte() {
    let mut bench = Bench::new();
    bench.write(4, mcr::LOOPBACK);
    bench.write(0, b'a');
    bench.write(0, b'b');
    assert_eq!(bench.read(5) & lsr::OVERRUN, lsr::OVERRUN);
    assert_eq!(bench.read(0), b'b');
}

#[test]
fn modem_lines_tell_of_their_changes() {
    let mut bench = Bench::new();
    assert_eq!(bench.read(6), msr::CONNECTED);
    bench.write(4, mcr::LOOPBACK | mcr::OUT1);
    assert_eq!(
        bench.read(6),
        msr::RI | 0x0b,
        "a rising ring indicator tells nothing"
    );
    bench.write(4, mcr::LOOPBACK);
    assert_eq!(bench.read(6), msr::TRAILING_EDGE_RI);
    assert_eq!(bench.read(6), 0);
}

#[test]
fn the_divisor_hides_behind_its_latch() {
    let mut bench = Bench::new();
    bench.write(3, 0x80);
    assert_eq!((bench.read(0), bench.read(1)), (12, 0));
    bench.write(0, 0x34);
    bench.write(1, 0x12);
    assert_eq!((bench.read(0), bench.read(1)), (0x34, 0x12));
    bench.write(3, 0x03);
    assert_eq!((bench.read(0), bench.read(1)), (0, 0));
    assert_eq!(bench.stream.take_output(), b"");
}

#[test]
fn each_port_of_a_pc_has_its_place() {
    use ComPort::{Com1, Com2, Com3, Com4};
    for (port, irq) in [(Com1, 4), (Com2, 3), (Com3, 4), (Com4, 3)] {
        let machine = TestMachine::new();
        let mut uart = Uart::new(&machine, port, Box::new(TestStream::default())).unwrap();
        assert_eq!(uart.regions(), [IoRegion::ports(port.base(), 8)]);
        machine.outb(&mut uart, port.base() + 1, ier::TRANSMITTER_EMPTY);
        assert!(machine.line(irq));
    }
}

#[test]
fn a_reset_one_is_as_new() {
    let mut bench = Bench::with_fifo(0xc0);
    bench.input(b"left over");
    bench.write(1, ier::TRANSMITTER_EMPTY);
    assert!(bench.line());
    bench.uart.reset();
    assert!(!bench.line());
    let fresh = saved(|w| Bench::new().uart.save(w));
    assert_eq!(saved(|w| bench.uart.save(w)), fresh);
}

#[derive(Clone, Debug)]
enum Step {
    Read(u16, u8),
    Write(u16, u8, u32),
    Input(Vec<u8>),
    Wait(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let size = prop::sample::select(vec![1u8, 1, 1, 2, 4]);
    let step = prop_oneof![
        (0u16..8, size.clone()).prop_map(|(register, size)| Step::Read(register, size)),
        (0u16..8, size, any::<u32>()).prop_map(|(r, size, value)| Step::Write(r, size, value)),
        prop::collection::vec(any::<u8>(), 0..24).prop_map(Step::Input),
        (0u64..1 << 24).prop_map(Step::Wait),
    ];
    prop::collection::vec(step, 0..80)
}

/// Runs the steps; each read, each level of the line, and all output.
fn run(bench: &mut Bench, steps: &[Step]) -> (Vec<(u32, bool)>, Vec<u8>) {
    let mut seen = Vec::new();
    for step in steps {
        let mut read = 0;
        let (machine, uart) = (&bench.machine, &mut bench.uart);
        match step {
            Step::Read(register, size) => read = machine.port_read(uart, 0x3f8 + register, *size),
            Step::Write(register, size, value) => {
                machine.port_write(uart, 0x3f8 + register, *size, *value);
            }
            Step::Input(data) => bench.input(data),
            Step::Wait(ns) => {
                machine.advance_ns(*ns);
                uart.tick();
            }
        }
        seen.push((read, bench.line()));
    }
    (seen, bench.stream.take_output())
}

struct NoTrigger;

impl vm_superio::Trigger for NoTrigger {
    type E = std::convert::Infallible;
    fn trigger(&self) -> Result<(), Self::E> {
        Ok(())
    }
}

proptest! {
    #[test]
    fn agrees_with_another_model(steps in steps()) {
        let mut other = vm_superio::Serial::new(NoTrigger, Vec::new());
        let mut bench = Bench::with_fifo(0);
        for (register, value) in [(3, 0x83), (0, 1), (1, 0), (3, 0x03), (4, 0)] {
            other.write(register, value).unwrap();
        }
        let mut loopback = false;
        for step in &steps {
            match step {
                Step::Read(register, _) => {
                    // The other has neither overruns nor modem deltas, and interrupts of its own kind.
                    let common = match register {
                        2 => 0,
                        5 => !lsr::OVERRUN,
                        6 => 0xf0,
                        _ => 0xff,
                    };
                    let (ours, theirs) = (bench.read(*register), other.read(*register as u8));
                    prop_assert_eq!(ours & common, theirs & common, "register {}", register);
                }
                // It has no FIFO control register.
                Step::Write(2, ..) => {}
                Step::Write(register, _, value) => {
                    // It hears no breaks.
                    let common = match register {
                        3 => !lcr::BREAK,
                        4 => mcr::WRITABLE,
                        _ => 0xff,
                    };
                    let value = *value as u8 & common;
                    loopback = if *register == 4 { value & mcr::LOOPBACK != 0 } else { loopback };
                    bench.write(*register, value);
                    other.write(*register as u8, value).unwrap();
                }
                Step::Input(data) if !loopback => {
                    let fits = data.len().min(other.fifo_capacity());
                    bench.input(&data[..fits]);
                    if fits > 0 {
                        other.enqueue_raw_bytes(&data[..fits]).unwrap();
                    }
                }
                _ => {}
            }
        }
        prop_assert_eq!(&bench.stream.take_output(), other.writer());
    }

    #[test]
    fn the_line_is_up_exactly_while_an_interrupt_is_named(steps in steps()) {
        let mut bench = Bench::with_fifo(0x40);
        run(&mut bench, &steps);
        let line = bench.line();
        prop_assert_eq!(bench.read(2) & 1 == 0, line);
    }

    #[test]
    fn input_arrives_whole_and_in_order(data in prop::collection::vec(any::<u8>(), 0..200), fcr: u8) {
        let mut bench = Bench::new();
        bench.write(2, fcr);
        bench.input(&data);
        let mut got = Vec::new();
        while bench.read(5) & lsr::DATA_READY != 0 {
            got.push(bench.read(0));
        }
        prop_assert_eq!(got, data);
    }

    #[test]
    fn a_restored_one_goes_on_as_the_saved_one(before in steps(), after in steps()) {
        let mut bench = Bench::new();
        run(&mut bench, &before);
        let record = saved(|w| bench.uart.save(w));
        let mut twin = Bench::new();
        twin.stream.give_input(&vec![7; bench.stream.waiting()]);
        bench.stream.read(&mut vec![0; bench.stream.waiting()]);
        bench.stream.give_input(&vec![7; twin.stream.waiting()]);
        twin.machine.now_ns.set(bench.machine.now_ns.get());
        assert_restores(&record, &mut twin.uart);
        prop_assert_eq!(twin.line(), bench.line());
        prop_assert_eq!(run(&mut twin, &after), run(&mut bench, &after));
    }

    #[test]
    fn a_damaged_record_is_restored_or_refused(
        before in steps(), at in 0usize..50, byte: u8, length in 0usize..60, after in steps(),
    ) {
        let mut bench = Bench::new();
        run(&mut bench, &before);
        let mut record = saved(|w| bench.uart.save(w));
        if let Some(field) = record.get_mut(at) {
            *field = byte;
        }
        record.truncate(length);
        assert_survives(&record, &mut bench.uart);
        run(&mut bench, &after);
    }
}
