// SPDX-License-Identifier: MIT OR Apache-2.0
//! The entropy device: fills the driver's buffers with random bytes of the host's (virtio 1.2: 5.4).
#![forbid(unsafe_code)]

use super::chain::{copy_in, total_bytes, Chain};
use super::contract::{DeviceType, Rings, VirtioDevice};
use super::error::QueueError;
use super::pci::VirtioPci;
use crate::alloc_ext::{try_box, NoMemory};
use crate::devices::kind::{Kind, Machines};
use crate::devices::pci::Function;
use crate::devices::Step;
use crate::interfaces::RandomSource;
use crate::state_io::{StateError, StateReader, StateWriter};
use alloc::boxed::Box;

/// How machines come to have one.
pub static KIND: Kind = Kind {
    name: "rng",
    machines: Machines::Described("v3vee,virtio-rng"),
    is_pci: true,
    make: |wanted| {
        let rng = try_box(Rng::new(wanted.links.random()?)?)?;
        let function = VirtioPci::new(KIND.name, rng, wanted.links)?;
        Function::boxed(wanted, function)
    },
    ..Kind::OF_EVERY_PC
};

const STATE_VERSION: u32 = 1;
const QUEUE: u16 = 0;
const QUEUE_SIZE: u16 = 64;
/// How many chains a step takes.
const STEP_CHAINS: usize = 16;
/// How much a chain gets at most. The driver comes again for more.
const CHAIN_BYTES: usize = 256;

/// The device.
pub struct Rng {
    source: Box<dyn RandomSource>,
    chain: Chain,
}

impl Rng {
    /// A device that gives out what `source` does.
    pub fn new(source: Box<dyn RandomSource>) -> Result<Self, NoMemory> {
        Ok(Self {
            source,
            chain: Chain::new(QUEUE_SIZE)?,
        })
    }

    /// Fills the beginning of the chain's buffer.
    fn fill(&mut self, rings: &Rings<'_>) -> Result<u32, QueueError> {
        let mut bytes = [0; CHAIN_BYTES];
        let writable = self.chain.writable();
        let count = total_bytes(writable).min(CHAIN_BYTES as u64) as usize;
        let wanted = bytes.get_mut(..count).unwrap_or_default();
        // A buffer that comes back empty is how the driver hears that there is nothing now.
        if !self.source.fill(wanted) {
            return Ok(0);
        }
        let written = copy_in(rings.dma(), writable, 0, wanted)?;
        Ok(written as u32)
    }
}

impl VirtioDevice for Rng {
    fn name(&self) -> &'static str {
        "rng"
    }
    fn device_type(&self) -> DeviceType {
        DeviceType::Entropy
    }
    fn features(&self) -> u64 {
        0
    }
    fn queue_count(&self) -> u16 {
        1
    }
    fn queue_size(&self) -> u16 {
        QUEUE_SIZE
    }
    fn read_config(&self, _offset: u64, _bytes: &mut [u8]) {}

    fn step(&mut self, rings: &mut Rings<'_>) -> Result<Step, QueueError> {
        for _ in 0..STEP_CHAINS {
            if !rings.take(QUEUE, &mut self.chain)? {
                return Ok(Step::Idle);
            }
            let written = self.fill(rings)?;
            rings.put(QUEUE, self.chain.head(), written)?;
        }
        Ok(Step::Again)
    }

    fn reset(&mut self) {}
    fn save(&self, to: &mut StateWriter<'_>) -> Result<(), StateError> {
        to.u32(STATE_VERSION)
    }
    fn restore(&mut self, from: &mut StateReader<'_>, _features: u64) -> Result<(), StateError> {
        from.version(STATE_VERSION)
    }
}

#[cfg(test)]
mod tests {
    use super::super::driver::{Buffer, TestDriver};
    use super::*;
    use crate::devices::testing::{Shared, TestMachine};

    /// Gives out 1, 2, 3 and so on, if it has anything.
    #[derive(Clone, Default)]
    struct Counting(Shared<u8>, Shared<bool>);

    impl RandomSource for Counting {
        fn fill(&mut self, buf: &mut [u8]) -> bool {
            for byte in buf.iter_mut() {
                let next = self.0.get().wrapping_add(1);
                self.0.set(next);
                *byte = next;
            }
            !self.1.get()
        }
    }

    fn bench() -> (TestDriver, Counting) {
        let source = Counting::default();
        let rng = Rng::new(Box::new(source.clone())).unwrap();
        let mut driver = TestDriver::new(TestMachine::new(), Box::new(rng));
        driver.start(u64::MAX, 16);
        (driver, source)
    }

    #[test]
    fn it_fills_buffers() {
        let (mut driver, source) = bench();
        let at = driver.allocate(1024);
        driver.offer(0, &[Buffer::write(at, 3), Buffer::write(at + 10, 4)]);
        driver.offer(0, &[Buffer::write(at + 20, 1000)]);
        driver.run();
        assert_eq!(driver.take_used(0), Some((0, 7)));
        assert_eq!(driver.take_used(0), Some((2, 256)));
        assert_eq!(
            driver.read_memory(at, 15),
            [1, 2, 3, 0, 0, 0, 0, 0, 0, 0, 4, 5, 6, 7, 0]
        );
        assert_eq!(
            *driver.sink.messages.borrow(),
            [1],
            "one interrupt for both"
        );
        source.1.set(true);
        driver.offer(0, &[Buffer::write(at, 8)]);
        driver.run();
        assert_eq!(driver.take_used(0), Some((3, 0)), "nothing to be had");
        assert_eq!(driver.read_memory(at, 3), [1, 2, 3]);
        assert!(!driver.needs_reset());
    }

    #[test]
    fn a_buffer_that_it_cannot_fill_stays_empty() {
        let (mut driver, _) = bench();
        let at = driver.allocate(16);
        driver.offer(0, &[Buffer::read(at, 8)]);
        driver.offer(0, &[Buffer::write(at, 0)]);
        driver.run();
        assert_eq!(driver.take_used(0), Some((0, 0)));
        assert_eq!(driver.take_used(0), Some((1, 0)));
        driver.offer(0, &[Buffer::write(u64::MAX / 2, 8)]);
        driver.run();
        assert!(driver.needs_reset());
    }
}
