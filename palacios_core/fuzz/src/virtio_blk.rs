// SPDX-License-Identifier: MIT OR Apache-2.0
//! A hostile driver at a disk whose store goes wrong at times. Beside what [`crate::virtio_queue`] asks of all devices: what another driver then
//! writes it reads again.
#![forbid(unsafe_code)]

use crate::virtio_queue::{Hostile, Step};
use crate::Target;
use palacios_core::block::faulty::{Fault, FaultyStore};
use palacios_core::block::ram::RamStore;
use palacios_core::block::snapshot::SnapshotStore;
use palacios_core::block::BlockStore;
use palacios_core::devices::virtio::blk::Blk;
use palacios_core::devices::virtio::driver::{Buffer, TestDriver, BUFFERS};

/// The target.
pub const TARGET: Target = Target {
    name: "virtio_blk",
    run,
    header_bytes: 2,
    step_bytes: 8,
};

const SECTORS: u64 = 24;
/// Where a request's header is, and where its status.
const HEADER: u64 = BUFFERS + 0x100;
const STATUS: u64 = BUFFERS + 0x200;
const DATA: u64 = BUFFERS + 0xf000;

fn run(data: &[u8]) {
    let &[features, kind, ref rest @ ..] = data else {
        return;
    };
    let (steps, record): (Vec<Step>, _) = crate::steps(rest);
    let disk = || Box::new(RamStore::new(SECTORS).unwrap());
    let (store, switch) = FaultyStore::new(disk());
    let store: Box<dyn BlockStore> = match kind & 1 {
        0 => Box::new(store),
        _ => {
            let snapshot = SnapshotStore::new(Box::new(store), 0x3000).unwrap();
            // A snapshot alone cannot be saved.
            Box::new(FaultyStore::new(Box::new(snapshot)).0)
        }
    };
    let blk = Blk::new(store, u16::from(kind >> 1 & 1) + 1, "fuzz").unwrap();
    let mut hostile = Hostile::new(Box::new(blk), features);
    for step in &steps {
        match step[0] {
            0xe0.. => switch.set(fault(step)),
            0xa0..0xe0 => request(&mut hostile.driver, step),
            _ => hostile.step(step),
        }
    }
    switch.set(Fault::None);
    let mut driver = hostile.end(record);
    let text = [0x5a; 512];
    let status = whole_request(&mut driver, 1, 3, &[Buffer::read(DATA, 512)], &text);
    assert_eq!(status, 0);
    let status = whole_request(&mut driver, 0, 3, &[Buffer::write(DATA, 512)], &[0; 512]);
    assert_eq!(status, 0);
    assert_eq!(driver.read_memory(DATA, 512), text);
}

fn fault(step: &Step) -> Fault {
    match step[0] % 8 {
        0 => Fault::Full,
        1 => Fault::FailsEvery(u32::from(step[1]) + 1),
        2 => Fault::Shrunk(step[1].into()),
        3 => Fault::Gone,
        4 => Fault::IgnoresFlush,
        5 => Fault::Slow,
        6 => Fault::Busy,
        _ => Fault::None,
    }
}

/// Something like a request: of any type, anywhere, of any length.
fn request(driver: &mut TestDriver, step: &Step) {
    let (kind, sector) = (
        u32::from(step[1] & 15),
        u64::from(step[2]) | u64::from(step[3] & 0x80) << 56,
    );
    header(driver, kind, sector);
    let bytes = u32::from(step[4]) << (step[3] & 15);
    let data = Buffer {
        at: DATA + u64::from(step[5]) * 64,
        bytes,
        write: kind == 0 || kind == 8 || step[6] & 1 != 0,
    };
    let range = [
        u64::from(step[2]).to_le_bytes(),
        u64::from(step[7]).to_le_bytes(),
    ];
    driver.write_memory(data.at, range.as_flattened());
    let buffers = [Buffer::read(HEADER, 16), data, Buffer::write(STATUS, 1)];
    match step[6] & 2 {
        0 => driver.offer(0, &buffers),
        _ => driver.offer_indirect(0, &buffers),
    };
    driver.virtio.notify(1);
    driver.virtio.step(&mut driver.sink);
}

fn header(driver: &TestDriver, kind: u32, sector: u64) {
    let mut header = [0; 16];
    header[..4].copy_from_slice(&kind.to_le_bytes());
    header[8..].copy_from_slice(&sector.to_le_bytes());
    driver.write_memory(HEADER, &header);
}

fn whole_request(
    driver: &mut TestDriver,
    kind: u32,
    sector: u64,
    data: &[Buffer],
    text: &[u8],
) -> u8 {
    header(driver, kind, sector);
    driver.write_memory(DATA, text);
    let mut buffers = vec![Buffer::read(HEADER, 16)];
    buffers.extend(data);
    buffers.push(Buffer::write(STATUS, 1));
    driver.offer(0, &buffers);
    driver.run();
    assert!(driver.take_used(0).is_some());
    driver.read_memory(STATUS, 1)[0]
}
