// SPDX-License-Identifier: MIT OR Apache-2.0
//! Interrupts and their controllers, for people.

use super::{Chipset, Event, Interrupts, IoApicInput, LocalApic, MASKED};
use crate::vcpu_report::exception;
use std::fmt;

/// Numbers in a line; hexadecimal for vectors, decimal for inputs.
fn hex_list(numbers: &[u32]) -> String {
    list(numbers.iter().map(|n| format!("{n:#04x}")))
}
fn inputs(numbers: &[u32]) -> String {
    list(numbers.iter().map(u32::to_string))
}
fn list(words: impl Iterator<Item = String>) -> String {
    let words: Vec<String> = words.collect();
    match words.is_empty() {
        true => "none".into(),
        false => words.join(" "),
    }
}

impl fmt::Display for LocalApic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let by_software = if self.enabled { "enabled" } else { "disabled" };
        writeln!(
            f,
            "  local APIC: {}, id {}, {by_software} by software, registers at {}",
            self.mode, self.id, self.address
        )?;
        writeln!(
            f,
            "    task priority {}, processor priority {}, logical destination {}, errors {}, command {}",
            self.task_priority,
            self.processor_priority,
            self.logical_destination,
            self.errors,
            self.command
        )?;
        for entry in &self.lvt {
            let masked = if entry.masked { ", masked" } else { "" };
            write!(
                f,
                "    {:12} {} vector {:#04x}{masked}",
                entry.name, entry.delivery, entry.vector
            )?;
            match entry.delivery {
                "one-shot" | "periodic" => writeln!(
                    f,
                    ", count {} of {}, divided by {}",
                    self.current_count, self.initial_count, self.divisor
                )?,
                "tsc-deadline" => writeln!(f, ", deadline {}", self.tsc_deadline)?,
                _ => writeln!(f)?,
            }
        }
        writeln!(f, "    requested    {}", hex_list(&self.requests))?;
        writeln!(f, "    in service   {}", hex_list(&self.in_service))?;
        writeln!(f, "    level        {}", hex_list(&self.level))
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            "exception" => f.write_str(&exception(self.vector))?,
            "nmi" => f.write_str("NMI")?,
            "software" => write!(f, "INT {:#04x}", self.vector)?,
            kind => write!(f, "{kind} {:#04x}", self.vector)?,
        }
        match self.error_code {
            Some(code) => write!(f, ", error code {code}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Interrupts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.apic)?;
        let takes = |it: bool| if it { "takes" } else { "does not take" };
        writeln!(
            f,
            "  pending: it {} interrupts, it {} NMIs",
            takes(self.takes_interrupts),
            takes(self.takes_nmis)
        )?;
        if let Some(vector) = self.next_vector {
            writeln!(f, "    next         {vector:#04x} of the local APIC")?;
        }
        if self.pic_waits {
            writeln!(f, "    next         one of the PIC pair")?;
        }
        if self.waiting_nmis > 0 {
            writeln!(f, "    NMIs         {}", self.waiting_nmis)?;
        }
        let under_way = [
            ("raised", &self.raised),
            ("cut short", &self.cut_short),
            ("held", &self.held),
        ];
        for (name, event) in under_way {
            if let Some(event) = event {
                writeln!(f, "    {name:12} {event}")?;
            }
        }
        Ok(())
    }
}

impl IoApicInput {
    /// As after a reset: there is nothing to tell.
    fn is_plain(&self) -> bool {
        self.entry.0 == MASKED && !self.asserted
    }
}

impl fmt::Display for IoApicInput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let trigger = if self.level { "level" } else { "edge" };
        write!(
            f,
            "  input {:2}  vector {:#04x}  {} to {} {:#04x}, {trigger}",
            self.input, self.vector, self.delivery, self.destination_mode, self.destination
        )?;
        let more = [
            (self.active_low, "active low"),
            (self.masked, "masked"),
            (self.asserted, "asserted"),
            (self.remote_irr, "waits for its end"),
        ];
        let mut more = more.iter().filter(|(is, _)| *is);
        more.try_for_each(|(_, what)| write!(f, ", {what}"))
    }
}

impl fmt::Display for Chipset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "I/O APIC: id {}", self.ioapic.id)?;
        let plain = self
            .ioapic
            .inputs
            .iter()
            .filter(|input| input.is_plain())
            .count();
        for input in self.ioapic.inputs.iter().filter(|input| !input.is_plain()) {
            writeln!(f, "{input}")?;
        }
        writeln!(
            f,
            "  {plain} of {} inputs are as after a reset: masked",
            self.ioapic.inputs.len()
        )?;
        let replaced = match self.legacy_replacement {
            true => ", the HPET in place of timer and clock",
            false => "",
        };
        writeln!(f, "PIC pair{replaced}:")?;
        for pic in &self.pics {
            let silent = if pic.initialised {
                ""
            } else {
                ", not initialised"
            };
            writeln!(
                f,
                "  {:9}  vectors from {:#04x}{silent}; inputs asserted {}, requested {}, in service {}, masked {}, level {}",
                pic.name,
                pic.vector_base,
                inputs(&pic.asserted),
                inputs(&pic.requests),
                inputs(&pic.in_service),
                inputs(&pic.masked),
                inputs(&pic.level)
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::*;

    fn raw() -> v3_interrupts {
        let mut raw = v3_interrupts {
            flags: V3_TAKES_NMIS,
            next_vector: 0xec,
            waiting_nmis: 1,
            ..v3_interrupts::zeroed()
        };
        raw.apic.base = 0xfee0_0900;
        raw.apic.id = 3 << 24;
        raw.apic.spurious = 0x1ff;
        raw.apic.lvt = [0x2_00ec, 0x1_0000, 0x400, 0x1_0700, 0x400, 0xfe];
        raw.apic.initial_count = 1000;
        raw.apic.current_count = 10;
        raw.apic.divide = 0b1011;
        raw.apic.requests[7] = 1 << 12;
        raw.apic.in_service[1] = 1;
        raw.raised = v3_event {
            kind: V3_EVENT_EXCEPTION,
            vector: 14,
            has_error_code: 1,
            error_code: 2,
        };
        raw.held.kind = V3_EVENT_INTERRUPT;
        raw.held.vector = 0x30;
        raw
    }

    #[test]
    fn what_is_on_its_way_is_told() {
        let text = Interrupts::from(&raw()).to_string();
        for expected in [
            "  local APIC: xapic, id 3, enabled by software, registers at 0xfee00000\n",
            "    timer        periodic vector 0xec, count 10 of 1000, divided by 1\n",
            "    thermal      fixed vector 0x00, masked\n",
            "    lint0        extint vector 0x00, masked\n    lint1        nmi vector 0x00\n",
            "    requested    0xec\n    in service   0x20\n    level        none\n",
            "  pending: it does not take interrupts, it takes NMIs\n",
            "    next         0xec of the local APIC\n    NMIs         1\n",
            "    raised       #PF, page fault, error code 0x2\n    held         interrupt 0x30\n",
        ] {
            assert!(text.contains(expected), "{expected:?} in\n{text}");
        }
        let json = serde_json::to_value(Interrupts::from(&raw())).unwrap();
        assert_eq!(json["apic"]["requests"], serde_json::json!([0xec]));
        assert_eq!(json["apic"]["lvt"][0]["delivery"], "periodic");
        assert_eq!(json["raised"]["error_code"], "0x2");
        assert!(json["cut_short"].is_null());
    }

    #[test]
    fn a_timer_divides_and_has_a_deadline() {
        let mut apic = raw().apic;
        for (divide, divisor) in [(0, 2), (1, 4), (3, 16), (8, 32), (0b1010, 128), (0b1011, 1)] {
            apic.divide = divide;
            assert_eq!(LocalApic::from(&apic).divisor, divisor);
        }
        apic.lvt[0] = 0x5_00ec;
        apic.tsc_deadline = 0x1234;
        apic.base = 0xfee0_0d00;
        let text = LocalApic::from(&apic).to_string();
        assert!(
            text.contains("tsc-deadline vector 0xec, masked, deadline 0x1234\n"),
            "{text}"
        );
        assert!(text.contains("local APIC: x2apic, id 50331648, "), "{text}");
    }

    #[test]
    fn controllers_are_told_where_there_is_something_to_tell() {
        let mut raw = v3_chipset {
            ioapic_lines: 1 << 4,
            ioapic: [MASKED; 24],
            ..v3_chipset::zeroed()
        };
        raw.ioapic[2] = 0x30 | LOGICAL | 1 << 56;
        raw.ioapic[9] = 0x21 | LEVEL | REMOTE_IRR | ACTIVE_LOW;
        raw.pics[0].vector_base = 0x30;
        raw.pics[0].flags = V3_PIC_INITIALISED as u8;
        raw.pics[0].mask = 0xfb;
        raw.pics[0].requests = 1;
        let text = Chipset::from(&raw).to_string();
        let expected = "\
I/O APIC: id 0
  input  2  vector 0x30  fixed to logical 0x01, edge
  input  4  vector 0x00  fixed to physical 0x00, edge, masked, asserted
  input  9  vector 0x21  fixed to physical 0x00, level, active low, waits for its end
  21 of 24 inputs are as after a reset: masked
PIC pair:
  primary    vectors from 0x30; inputs asserted none, requested 0, in service none, masked 0 1 3 4 5 6 7, level none
  secondary  vectors from 0x00, not initialised; inputs asserted none, requested none, in service none, masked none, level none
";
        assert_eq!(text, expected);
        let json = serde_json::to_value(Chipset::from(&raw)).unwrap();
        assert_eq!(json["ioapic"]["inputs"].as_array().unwrap().len(), 24);
        assert_eq!(json["pics"][0]["masked"][1], 1);
    }
}
