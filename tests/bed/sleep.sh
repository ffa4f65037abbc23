# SPDX-License-Identifier: MIT OR Apache-2.0
# The host sleeps and wakes under guests: to RAM and to disk.
# A host whose first CPU is kept apart (isolcpus=0) hangs on its way to sleep, VMs or not.
# bed: --use-cpu-0 --mem 1024 --add build/guests/tmk/tmk --timeout 300
# bed test: --kernel debug
. ./common.sh

# image NAME TEST [VCPU LINES]: NAME.img
image() {
	printf 'name = "%s"\nmemory = "32M"\nkernel = "tmk"\ncmdline = "test=%s"\n%s\n' $1 $2 "${3-}" >$1.toml
	v3 build $1.toml -o $1.img && v3 create $1.img $1 >/dev/null
}
state() { v3 info $1 | grep -q "state: $2"; }
entries() { v3 stats $1 | awk '$2 == "entries" { print $3 }'; }
# Entered again after now: an interrupt of the host ends a guest that spins.
runs() { before=$(entries $1); until [ "$(entries $1)" -gt "$before" ]; do :; done; }
passes() { v3 run --kernel tmk --mem 32 --append test=$1 --timeout 200 </dev/null >$1.out 2>&1; [ $? = 1 ] || { cat $1.out; return 1; }; }

# What a host may find: a VM that never gives up its CPU, one that waits, one on a CPU that goes, one that was paused, one that
# was never started, and programs that wait for them.
image spin spin_without_interrupts
image halt halt_for_ever
image pinned spin_without_interrupts 'pins = [1]'
image paused spin_without_interrupts
image young cpuid_signature
for vm in spin halt pinned paused; do v3 launch $vm; done
v3 pause paused
v3 wait halt & waiter=$!
passes sleep_is_not_counted & clock=$!
until grep -q ticking sleep_is_not_counted.out 2>/dev/null; do :; done

alarm=/sys/class/rtc/rtc0/wakealarm
sleeps() { echo 0 >$alarm && echo +15 >$alarm && echo mem >/sys/power/state; }
grep -q deep /sys/power/mem_sleep && echo deep >/sys/power/mem_sleep
for vm in spin halt pinned; do check "$vm runs" state $vm running; done
check "the host sleeps and wakes" sleeps
for vm in spin halt pinned; do check "$vm runs on" state $vm running; done
for vm in spin pinned; do check "$vm is entered again" runs $vm; done
check "the paused one is still paused" state paused paused
check "the waiter still waits" kill -0 $waiter
check "a guest's clocks stood still" wait $clock
check "the young one starts" sh -c 'v3 launch young && { v3 wait young; [ $? = 1 ]; }'
check "timers and interrupts come in a new one" passes apic_timer_periodic,pic_timer

# A hibernation: the image is written to a disk in memory, and the host goes back to it at once, as after a cold start.
modprobe brd rd_nr=1 rd_size=400000
mkswap /dev/ram0 >/dev/null 2>&1 && swapon /dev/ram0 && cat /sys/block/ram0/dev >/sys/power/resume
hibernates() { echo test_resume >/sys/power/disk && echo 0 >/sys/power/image_size && echo disk >/sys/power/state; }
check "the host hibernates, and comes back from its image" hibernates
for vm in spin pinned; do check "$vm is entered again after that" runs $vm; done

v3 stop halt
wait $waiter
for vm in spin halt pinned paused young; do v3 free -f $vm; done
check "nothing is held" nothing_held
check "rmmod" rmmod v3vee
