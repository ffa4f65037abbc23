# SPDX-License-Identifier: MIT OR Apache-2.0
# Linux guests keep time by the paravirtual clock, which stands still while the VM is paused and never steps back. One guest on the stock
# kernel shows it; `make soak` runs all three, on both kernels.
# bed soak: --timeout 1800
# bed test: --timeout 600 --kernel stock
# bed: --add build/guests/linux/initramfs --add build/guests/linux/vmlinuz-6.1 --add build/guests/linux/vmlinuz-6.12
# bed: --add build/guests/linux/vmlinuz-7 --add build/guests/tmk/tmk
. ./common.sh
now_ms() { sed 's/\.\([0-9]*\).*/\10/' /proc/uptime; }

# seen LINE: waits until the guest says it, or ends.
seen() {
	while ! grep -q "$1" log; do
		kill -0 $run 2>/dev/null || return 1
		sleep 0.1
	done
}

if soak; then all="6.1 6.12 7"; else all=7; fi
for series in $all; do
	: >log
	v3 run --name "clock-$series" --kernel "vmlinuz-$series" --initrd initramfs \
		--append "console=ttyS0 v3.token=clock v3.script=watch,clock,poweroff" --timeout 180 </dev/null >log 2>&1 &
	run=$!
	seen "^guest: watching"
	begin_ms=$(now_ms)
	paused_ms=0
	for _ in 1 2 3; do
		v3 pause "clock-$series" || break
		sleep 2
		v3 continue "clock-$series"
		grep -q "^guest: ok watch" log && break
		paused_ms=$((paused_ms + 2000))
		sleep 0.3
	done
	seen "^guest: [a-zA-Z]* watch"
	took_ms=$(($(now_ms) - begin_ms))
	wait $run
	grep "^guest:" log | sed "s/^/$series| /"
	check "$series uses kvm-clock" grep -q "^guest: ok clock .* kvm-clock" log
	check "$series sees no clock step back" grep -q "^guest: ok watch" log
	check "$series was paused: $paused_ms ms" [ $paused_ms -gt 0 ]
	check "$series did not see the pauses: $took_ms ms" [ $took_ms -ge $((paused_ms + 5500)) ]
done

for test in clock_is_offered clock_runs_with_the_tsc clock_follows_a_written_tsc tsc_can_be_written wall_clock_is_written \
	steal_time_is_written bad_clock_addresses_fault clock_msrs_not_offered_fault; do
	v3 run --kernel tmk --append "test=$test" --timeout 60 </dev/null >log 2>&1
	status=$?
	check "$test" [ $status = 1 ]
	[ $status = 1 ] || cat log
done
