# SPDX-License-Identifier: MIT OR Apache-2.0
# Every virtual CPU sends interrupts to every one, twice as many as the host has CPUs: 100,000, and none is lost or comes
# twice. By registers in memory and by MSRs; waiting in HLT, and looking all the time. A tenth of that on the debug kernel, which
# is slow; a million in `make soak`.
# bed soak: --timeout 14400
# bed test: --timeout 900 --kernel stock
# bed: --add build/guests/tmk/tmk
. ./common.sh
storm() {
	v3 run --kernel tmk --mem 64 --cpus 4 --append "test=storm $1" --timeout 4000 </dev/null >log
	status=$?
	grep -E "not ok|interrupts among" log
	[ $status = 1 ]
}
if soak; then k=10000; elif [ -e /proc/lockdep ]; then k=100; else k=1000; fi
check "a storm among CPUs that halt" storm "interrupts=$((40 * k))"
check "a storm in x2APIC mode" storm "interrupts=$((40 * k)) x2apic=1"
check "a storm among CPUs that spin" storm "interrupts=$((20 * k)) spin=1"
check "nothing is held" sh -c '[ "$(cat /sys/kernel/debug/v3vee/vms)" = 0 ]'
check "rmmod" rmmod v3vee
