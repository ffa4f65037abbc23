// SPDX-License-Identifier: MIT OR Apache-2.0
//! INVEPT and INVVPID, where they are needed and only there.

use super::*;

#[test]
fn who_stays_forgets_nothing_and_who_moves_does() {
    on(2, 16, 2, READS, |bench| {
        // The first on each CPU forgets what was there before.
        for (cpu, vcpu) in [(0, 0), (1, 1), (1, 0), (0, 1)] {
            bench.halts_on(cpu, vcpu);
        }
        // It moves back: what its tables were then it does not know.
        let before = bench.flushes();
        bench.halts_on(0, 0);
        assert_eq!(bench.flushes(), before + 1);
        bench.halts_on(1, 1);
        assert_eq!(bench.flushes(), before + 2);
        for _ in 0..10 {
            bench.halts_on(0, 0);
            bench.halts_on(1, 1);
        }
        assert_eq!(bench.flushes(), before + 2);
        // Side by side, each with a tag of its own, which is not the one that it had elsewhere.
        bench.halts_on(0, 1);
        assert_eq!(bench.flushes(), before + 3);
        for _ in 0..5 {
            bench.halts_on(0, 0);
            bench.halts_on(0, 1);
        }
        assert_eq!(bench.flushes(), before + 3);
    });
}

#[test]
fn a_cpu_that_heard_nothing_of_a_revocation_has_nothing_stale() {
    on(2, 16, 1, READS, |bench| {
        bench.halts_on(0, 0);
        bench.memory.revoke(Gpa(DATA), PAGE_SIZE, &|| ());
        bench.vcpus[0].flush_tlb();
        assert!(matches!(bench.window(1, 0, 1), Exit::NestedFault(_)));
        // Whatever stands in the field for an instruction's length.
        assert_eq!(bench.vcpus[0].next_rip(), None);
        // Somebody else's in between, so that the page does not get its old frame.
        map_page(&bench.memory, Gpa(DATA + PAGE_SIZE)).unwrap();
        map_page(&bench.memory, Gpa(DATA)).unwrap();
        bench.halts_on(1, 0);
        bench.halts_on(0, 0);
    });
}

#[test]
fn tags_that_are_used_again_are_flushed() {
    // Two tags, three vCPUs of one VM: nested tables and the linear addresses alone do not tell them apart.
    on(1, 3, 3, READS, |bench| {
        for _ in 0..5 {
            (0..3).for_each(|vcpu| bench.halts_on(0, vcpu));
        }
    });
    // With tags enough nobody flushes anything.
    on(1, 16, 3, READS, |bench| {
        (0..3).for_each(|vcpu| bench.halts_on(0, vcpu));
        let before = bench.flushes();
        for _ in 0..5 {
            (0..3).for_each(|vcpu| bench.halts_on(0, vcpu));
        }
        assert_eq!(bench.flushes(), before);
    });
}

#[test]
fn what_changes_translation_is_flushed_and_nothing_else() {
    alone(READS, |bench| {
        bench.halts_on(0, 0);
        let flushes_after = |bench: &mut Bench, change: &dyn Fn(&mut Vcpu<TestHost>)| {
            let before = bench.flushes();
            change(&mut bench.vcpus[0]);
            bench.halts_on(0, 0);
            bench.flushes() - before
        };
        let control = |change: fn(&mut palacios_core::state::Control)| {
            move |vcpu: &mut Vcpu<TestHost>| {
                let mut control = vcpu.control();
                change(&mut control);
                vcpu.set_control(control);
            }
        };
        assert_eq!(flushes_after(bench, &control(|c| c.cr3 ^= 0x3000)), 1);
        assert_eq!(flushes_after(bench, &control(|c| c.cr4 ^= 1 << 4)), 1);
        assert_eq!(flushes_after(bench, &control(|c| c.cr0 ^= 1 << 16)), 1);
        assert_eq!(flushes_after(bench, &control(|c| c.cr0 ^= 1 << 3)), 0);
        assert_eq!(flushes_after(bench, &control(|c| c.cr2 ^= 1)), 0);
        assert_eq!(flushes_after(bench, &|vcpu| vcpu.flush_tlb()), 1);
    });
}
