// SPDX-License-Identifier: MIT OR Apache-2.0
//! The machine that an image describes: a PC's devices at a PC's addresses.
#![forbid(unsafe_code)]

use super::parts::OpenStream;
use crate::alloc_ext::try_box;
use crate::devices::bus::Bus;
use crate::devices::layout::AttachError;
use crate::devices::links::Links;
use crate::devices::{acpi, crtc, debug, hpet, keyboard, pit, reset, rtc, test_device, uart};
use crate::host::Host;
use crate::image::Machine;

/// The stream that the debug ports 0x402 and 0xe9 write to.
pub const DEBUG_STREAM: &str = "debug";

/// Attaches the devices. `stream` opens the byte stream of a name.
pub(super) fn attach<H: Host>(
    bus: &Bus<H>,
    links: &dyn Links,
    machine: &Machine<'_>,
    stream: &mut OpenStream<'_>,
) -> Result<(), AttachError> {
    for serial in machine.serials() {
        let far_end = stream(serial.stream)?;
        bus.attach(try_box(uart::Uart::new(links, serial.port, far_end)?)?)?;
    }
    bus.attach(try_box(pit::Pit::new(links)?)?)?;
    bus.attach(try_box(rtc::Rtc::new(links, machine.ram)?)?)?;
    let timer_width = acpi::TimerWidth::Bits24;
    bus.attach(try_box(acpi::AcpiPm::new(links, timer_width)?)?)?;
    bus.attach(try_box(hpet::Hpet::new(links)?)?)?;
    bus.attach(try_box(reset::ResetPorts::new(links)?)?)?;
    bus.attach(try_box(keyboard::KeyboardController::new(links)?)?)?;
    bus.attach(try_box(crtc::Crtc::new())?)?;
    if machine.test_device {
        bus.attach(try_box(test_device::TestDevice::new(links)?)?)?;
    }
    let far_end = stream(DEBUG_STREAM)?;
    bus.attach(try_box(debug::DebugPorts::new(links, far_end)?)?)?;
    Ok(())
}
