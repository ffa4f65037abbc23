// SPDX-License-Identifier: MIT OR Apache-2.0
//! The machine that an image describes: a PC's devices at a PC's addresses.
#![forbid(unsafe_code)]

use super::io::Io;
use super::parts::OpenStream;
use crate::alloc_ext::try_box;
use crate::devices::layout::AttachError;
use crate::devices::links::Links;
use crate::devices::registry::Resources;
use crate::devices::{acpi, crtc, debug, hpet, keyboard, pit, reset, rtc, Device};
use crate::host::Host;
use crate::image::machine::ImageDevice;
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
    for device in machine.devices() {
        let stream = device.stream.map(&mut *stream).transpose()?;
        let ImageDevice { kind, place, .. } = device;
        let name = DeviceId::of_kind(place.map_or(kind.name, |place| place.name));
        let resources = Resources {
            links,
            place,
            stream,
        };
        io.attach(name, (kind.make)(resources)?, None)?;
    }
    attach(try_box(pit::Pit::new(links)?)?)?;
    attach(try_box(rtc::Rtc::new(links, machine.ram)?)?)?;
    let timer_width = acpi::TimerWidth::Bits24;
    attach(try_box(acpi::AcpiPm::new(links, timer_width)?)?)?;
    attach(try_box(hpet::Hpet::new(links)?)?)?;
    attach(try_box(reset::ResetPorts::new(links)?)?)?;
    attach(try_box(keyboard::KeyboardController::new(links)?)?)?;
    attach(try_box(crtc::Crtc::new())?)?;
    let far_end = stream(DEBUG_STREAM)?;
    attach(try_box(debug::DebugPorts::new(links, far_end)?)?)?;
    Ok(())
}
