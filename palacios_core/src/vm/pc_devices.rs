// SPDX-License-Identifier: MIT OR Apache-2.0
//! The machine that an image describes: a PC's devices at a PC's addresses.
#![forbid(unsafe_code)]

use super::parts::OpenStream;
use crate::alloc_ext::try_box;
use crate::devices::acpi::SCI_IRQ;
use crate::devices::bus::Bus;
use crate::devices::{
    acpi, crtc, debug, hpet, keyboard, pit, reset, rtc, test_device, uart, IrqLine,
};
use crate::host::{Host, NoMemory};
use crate::image::Machine;

/// The stream that the debug ports 0x402 and 0xe9 write to.
pub const DEBUG_STREAM: &str = "debug";

/// Builds the buses. `stream` opens the byte stream of a name.
pub(super) fn build<H: Host>(
    host: &H,
    machine: &Machine<'_>,
    stream: &mut OpenStream<'_>,
) -> Result<Bus<H>, NoMemory> {
    let mut bus = Bus::new();
    for serial in machine.serials() {
        let far_end = stream(serial.stream)?;
        bus.attach(host, try_box(uart::Uart::new(serial.port, far_end))?)?;
    }
    bus.attach(host, try_box(pit::Pit::new(pit::IRQ))?)?;
    bus.attach(host, try_box(rtc::Rtc::new(rtc::IRQ, machine.ram))?)?;
    let power = acpi::AcpiPm::new(IrqLine(SCI_IRQ.into()), acpi::TimerWidth::Bits24);
    bus.attach(host, try_box(power)?)?;
    bus.attach(host, try_box(hpet::Hpet::new())?)?;
    bus.attach(host, try_box(reset::ResetPorts::new())?)?;
    bus.attach(host, try_box(keyboard::KeyboardController::new())?)?;
    bus.attach(host, try_box(crtc::Crtc::new())?)?;
    if machine.test_device {
        // Before the debug ports, one of which it has itself.
        bus.attach(host, try_box(test_device::TestDevice::new()?)?)?;
    }
    bus.attach(
        host,
        try_box(debug::DebugPorts::new(stream(DEBUG_STREAM)?))?,
    )?;
    Ok(bus)
}
