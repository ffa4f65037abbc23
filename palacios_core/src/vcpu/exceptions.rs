// SPDX-License-Identifier: MIT OR Apache-2.0
//! Exceptions that the core raises, and what two of them in a row come to.
#![forbid(unsafe_code)]

use super::context::RunContext;
use super::owned::Vcpu;
use crate::backend::{Backend, BackendVcpu, Event};
use crate::emulator::Fault;
use crate::host::Host;
use crate::state::Exception;
use crate::vm::stop_reason::StopReason;

impl<H: Host, B: Backend<H>> Vcpu<H, B> {
    /// A #DB that says nothing in DR6 (APM 3: INT1). Its delivery clears RFLAGS.TF before a single step could trap.
    pub(super) fn icebp(&mut self, context: &RunContext<'_, H, B>) {
        if self.move_past(context).is_some() {
            self.fault(Exception::DEBUG);
        }
    }

    /// The guest traces instructions, and this one was done here (APM 2: 13.1.1.3).
    pub(super) fn single_step(&mut self) {
        const BS: u64 = 1 << 14;
        let dr6 = self.arch.debug_register(6);
        self.arch.set_debug_register(6, dr6 | BS);
        self.fault(Exception::DEBUG);
    }

    /// Delivers an exception at the next entry, together with what was under way (SDM 3A: 6.15, table 6-5).
    pub(super) fn fault(&mut self, exception: Exception) {
        if self.replay.is_some() {
            return self.replayed(Some(exception));
        }
        let first = match self.interrupted {
            Some(Event::Exception(first)) => Some(first),
            _ => self.fault,
        };
        if matches!(
            self.interrupted,
            Some(Event::Exception(_) | Event::Software { .. })
        ) {
            self.interrupted = None;
        }
        match first.map_or(Some(exception), |first| combine(first, exception)) {
            Some(exception) => self.fault = Some(exception),
            None => self.stop_by_triple_fault(first.map(Event::Exception)),
        }
    }

    /// What the emulator could not do by itself.
    pub(super) fn emulator_fault(&mut self, context: &RunContext<'_, H, B>, fault: Fault) {
        let rip = self.arch.rip();
        match fault {
            Fault::Exception(exception) => self.fault(exception),
            Fault::Retry => {}
            // A program does not stop the machine that it runs on. Its system sees to it.
            Fault::Unsupported(_) if self.arch.cpl() == 3 => self.fault(Exception::INVALID_OPCODE),
            Fault::Unsupported(bytes) => self.stop(StopReason::Unemulated { rip, bytes }),
            Fault::TaskSwitch => self.task_switch(),
            Fault::Memory(gpa) => {
                let reason = if context.board.memory().is_memory(gpa) {
                    StopReason::OutOfMemory
                } else {
                    StopReason::NoMemoryAt { rip, gpa: gpa.0 }
                };
                self.stop(reason);
            }
        }
    }
}

pub(super) const DOUBLE_FAULT: u8 = 8;
const PAGE_FAULT: u8 = 14;

/// The exception that follows when `second` arises while `first` is delivered; `None` is shutdown.
fn combine(first: Exception, second: Exception) -> Option<Exception> {
    let contributory = |vector: u8| matches!(vector, 0 | 10..=13);
    let worse = match first.vector {
        DOUBLE_FAULT if contributory(second.vector) || second.vector == PAGE_FAULT => return None,
        PAGE_FAULT => contributory(second.vector) || second.vector == PAGE_FAULT,
        vector => contributory(vector) && contributory(second.vector),
    };
    if worse {
        Some(Exception {
            vector: DOUBLE_FAULT,
            error_code: Some(0),
            cr2: None,
        })
    } else {
        Some(second)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exceptions_combine_as_the_manual_says() {
        let (gp, pf, ud) = (
            Exception::general_protection(0),
            Exception::page_fault(2, 0x1000),
            Exception::INVALID_OPCODE,
        );
        let df = Exception {
            vector: 8,
            error_code: Some(0),
            cr2: None,
        };
        assert_eq!(combine(gp, gp), Some(df));
        assert_eq!(combine(gp, pf), Some(pf));
        assert_eq!(combine(pf, gp), Some(df));
        assert_eq!(combine(pf, pf), Some(df));
        assert_eq!(combine(ud, gp), Some(gp));
        assert_eq!(combine(df, pf), None);
        assert_eq!(combine(df, ud), Some(ud));
    }
}
