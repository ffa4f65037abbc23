# SPDX-License-Identifier: MIT OR Apache-2.0
# Stock Debian kernels on more CPUs than the host has: processes, pipes, futexes and shoot-downs on all of them, and clocks
# that agree; in `make soak` for longer, and on the debug kernel too, which is slower.
# bed soak: --timeout 7200
# bed test: --timeout 1500 --kernel stock
# bed: --add build/guests/linux/initramfs --add build/guests/linux/vmlinuz-6.1 --add build/guests/linux/vmlinuz-6.12
# bed: --add build/guests/linux/vmlinuz-7 --add build/guests/tmk/tmk
. ./common.sh

# guest SERIES CPUS STEPS: one boot and what it says of each step; its exit status in `status`.
guest() {
	what="$1 on $2 CPUs"
	start=$(cut -d. -f1 /proc/uptime)
	v3 run --name "smp-$1-$2" --cpus $2 --kernel "vmlinuz-$1" --initrd initramfs --append "console=ttyS0 quiet v3.script=$3" \
		--timeout 600 </dev/null >log 2>&1
	status=$?
	sed "s/^/$what| /" log
	echo "$what took $(($(cut -d. -f1 /proc/uptime) - start)) s"
	for step in $(echo "$3" | tr , ' '); do
		case $step in
		load:* | clocks:*) check "$what: $step" grep -q "^guest: ok $step $2 CPUs" log ;;
		poweroff) check "$what: powers off" [ $status = 0 ] ;;
		esac
	done
	check "$what: the guest's kernel saw nothing wrong" sh -c '! grep -E "BUG|WARNING|soft lockup|rcu.*stall|Call Trace" log'
}

tables=mp_table_lists_the_processors,mp_table_wires_the_io_apic
check "the MP table has 64 CPUs" sh -c "v3 run --cpus 64 --kernel tmk --append test=$tables --timeout 300 </dev/null; [ \$? = 1 ]"
if soak; then load=20 clocks=60; else load=4 clocks=5; fi
for series in 6.1 6.12 7; do guest $series 4 load:$load,clocks:$clocks,poweroff; done
guest 7 16 load:$((load / 4)),clocks:5,poweroff
check "rmmod" rmmod v3vee
