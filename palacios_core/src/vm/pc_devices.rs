// SPDX-License-Identifier: MIT OR Apache-2.0
//! The machine that an image describes: a PC's devices at a PC's addresses.
#![forbid(unsafe_code)]

use super::io::Io;
use super::parts::OpenStream;
use crate::alloc_ext::try_box;
use crate::devices::layout::AttachError;
use crate::devices::links::Links;
use crate::devices::{
    acpi, crtc, debug, hpet, keyboard, pit, reset, rtc, test_device, test_dma, uart, Device,
};
use crate::host::Host;
use crate::image::Machine;
use crate::names::DeviceId;
use alloc::boxed::Box;

/// The stream that the debug ports 0x402 and 0xe9 write to.
pub const DEBUG_STREAM: &str = "debug";

/// Attaches the devices. `stream` opens the byte stream of a name.
pub(super) fn attach<H: Host>(
    io: &Io<H>,
    links: &dyn Links,
    machine: &Machine<'_>,
    stream: &mut OpenStream<'_>,
) -> Result<(), AttachError> {
    let attach =
        |device: Box<dyn Device>| io.attach(DeviceId::of_kind(device.name()), device, None);
    for serial in machine.serials() {
        let far_end = stream(serial.stream)?;
        let port = try_box(uart::Uart::new(links, serial.port, far_end)?)?;
        io.attach(serial.port.name(), port, None)?;
    }
    attach(try_box(pit::Pit::new(links)?)?)?;
    attach(try_box(rtc::Rtc::new(links, machine.ram)?)?)?;
    let timer_width = acpi::TimerWidth::Bits24;
    attach(try_box(acpi::AcpiPm::new(links, timer_width)?)?)?;
    attach(try_box(hpet::Hpet::new(links)?)?)?;
    attach(try_box(reset::ResetPorts::new(links)?)?)?;
    attach(try_box(keyboard::KeyboardController::new(links)?)?)?;
    attach(try_box(crtc::Crtc::new())?)?;
    if machine.test_device {
        attach(try_box(test_device::TestDevice::new(links)?)?)?;
        attach(try_box(test_dma::TestDma::new(links)?)?)?;
    }
    let far_end = stream(DEBUG_STREAM)?;
    attach(try_box(debug::DebugPorts::new(links, far_end)?)?)?;
    Ok(())
}
