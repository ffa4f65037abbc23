// SPDX-License-Identifier: MIT OR Apache-2.0
//! Interrupt controllers: local APIC, I/O APIC, the PIC pair, and the messages between them.
//!
//! The PIC pair and the I/O APIC belong to the VM and sit behind one spin lock; each local APIC belongs to its vCPU's
//! thread alone. What crosses is a [`Message`], which the VM routes to the pending words of its targets.
//!
//! The way of an interrupt, from a device to the guest:
//!
//! ```text
//!  device's thread                                         vCPU's thread
//!   the device raises its line
//!   vm/links.rs        the device's link to the board
//!   vm/route.rs        raise: under the lock of the chipset
//!   chipset.rs         which inputs the line leads to: pic.rs, ioapic.rs
//!   ioapic.rs          the input's entry: a Message
//!   vm/route.rs        send: to whom? destination.rs
//!   pending.rs         post_vector
//!   vcpu/shared.rs     call: where is the vCPU? presence.rs
//!   Thread::kick or    ────────────────────────────────▶   it leaves the guest
//!   Thread::unpark     ────────────────────────────────▶   vm/drive.rs: its thread wakes
//!                                                          vcpu/run.rs: a step, up to the next entry
//!                                                          vcpu/deliver.rs: drains the pending word into lapic.rs,
//!                                                          and injects what the guest takes now
//! ```
//!
//! An MSI and another vCPU's message begin at `send`. The PIC pair's output is no message, but a wire: `MessageSink::pic_output`.
//! When a guest cannot keep up with its timers, their interrupts are held back on purpose: `vcpu/tick_cost.rs`, `vcpu/timers.rs`.
#![forbid(unsafe_code)]

pub mod apic_timer;
pub mod chipset;
pub mod destination;
pub mod ioapic;
pub mod lapic;
pub mod msi;
pub mod pending;
pub mod pic;
#[cfg(any(test, feature = "test-support"))]
pub mod testing;

#[cfg(test)]
mod routing_tests;

/// How a message is to be delivered (SDM 3A: 10.6.1; APM 2: 16.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// The vector, to every target.
    Fixed,
    /// The vector, to the target of lowest priority.
    LowestPriority,
    /// System management; ignored by this VMM.
    Smi,
    /// Non-maskable.
    Nmi,
    /// INIT; `false` is the obsolete level de-assert, which is ignored.
    Init(bool),
    /// Start-up at page `vector`.
    Startup,
    /// The vector comes from the PIC pair.
    ExtInt,
}

impl Delivery {
    /// The delivery mode in bits 10:8 of a redirection entry, an LVT entry or an interrupt command; `None` if reserved.
    pub const fn of_register(register: u32) -> Option<Self> {
        match register >> 8 & 7 {
            0b000 => Some(Self::Fixed),
            0b001 => Some(Self::LowestPriority),
            0b010 => Some(Self::Smi),
            0b100 => Some(Self::Nmi),
            0b101 => Some(Self::Init(true)),
            0b110 => Some(Self::Startup),
            0b111 => Some(Self::ExtInt),
            _ => None,
        }
    }
}

/// Whom a message is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// An APIC id. The broadcast id is 8 or 32 bits of ones, which only the sender can tell apart: it says
    /// [`Destination::All`] instead.
    Physical(u32),
    /// A logical destination, matched by each local APIC against its own registers.
    Logical(u32),
    /// The sender.
    Myself,
    /// Everybody.
    All,
    /// Everybody but the sender.
    Others,
}

impl Destination {
    /// The destination of an I/O APIC's entry and of an MSI: a byte, logical or not.
    pub const fn of_byte(id: u8, logical: bool) -> Self {
        match (logical, id) {
            (true, _) => Self::Logical(id as u32),
            (false, 0xff) => Self::All,
            (false, _) => Self::Physical(id as u32),
        }
    }
}

/// An interrupt message, from an IPI, the I/O APIC or an MSI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// For whom.
    pub destination: Destination,
    /// How.
    pub delivery: Delivery,
    /// The vector, or a start-up IPI's page.
    pub vector: u8,
    /// Level-triggered: the target's EOI is told to the I/O APICs.
    pub level: bool,
}

/// Takes messages to the local APICs. Never sleeps.
pub trait MessageSink {
    /// Posts the message to its targets. `from` is the sending vCPU; `None` for the I/O APIC and MSIs.
    fn send(&self, from: Option<u32>, message: Message);
    /// The PIC pair's output rose. It is a wire to the first vCPU's LINT0, and no message: that line is heard also where
    /// the local APIC is switched off.
    fn pic_output(&self);
}
