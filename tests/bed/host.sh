# SPDX-License-Identifier: MIT OR Apache-2.0
# What the host does to VMs: memory that is not there, calls that race, allocations that fail. It stays well, and all comes back.
# The calls race longer in `make soak`.
# bed: --mem 640 --add build/guests/tmk/tmk --timeout 600
# bed test: --kernel debug
# bed soak: --timeout 7200
. ./common.sh

# image NAME MEMORY TEST [VCPU LINES]: NAME.img
image() {
	printf 'name = "%s"\nmemory = "%s"\nkernel = "tmk"\ncmdline = "test=%s"\n%s\n' "$@" "" >$1.toml
	v3 build $1.toml -o $1.img
}
image wide 3000M memory_keeps
image halt 32M halt_for_ever

# A guest that takes more memory than there is stops, and leaves the host enough to live on.
v3 create wide.img wide >/dev/null
v3 launch wide
until v3 info wide | grep -q "state: stopped"; do :; done
check "a guest too big for the host stops with that reason" sh -c 'v3 info wide | grep -q "memory for guest RAM"'
check "the host lives meanwhile" sh -c 'i=0; while [ $i -lt 50 ]; do i=$((i + 1)); (ls / >/dev/null) || exit 1; done'
check "nobody was killed for it" sh -c '! dmesg | grep -qi "out of memory:"'
v3 free wide
check "its memory is back" nothing_held

# Many callers at once, each call at any time: most are refused, none does harm.
if soak; then rounds=400; elif [ -e /proc/lockdep ]; then rounds=10; else rounds=40; fi
caller() {
	for _ in $(seq $rounds); do
		for call in "create halt.img race" "launch race" "pause race" "relocate race 0 0x100000" "continue race" "stop race" "free race"; do
			v3 $call >/dev/null 2>&1
		done
	done
}
callers=""
for _ in 1 2 3 4; do caller & callers="$callers $!"; done
wait $callers
v3 stop race 2>/dev/null
v3 free race 2>/dev/null
check "nothing is held after a race of calls" nothing_held

# Allocations that fail, wherever they may: a VM is made whole, or not at all.
fail() { for knob in failslab fail_page_alloc; do echo $2 >/sys/kernel/debug/$knob/$1; done; }
if [ -e /sys/kernel/debug/failslab ]; then
	fail task-filter Y; fail probability 100; fail times -1; fail verbose 0
	echo 0 >/sys/kernel/debug/fail_page_alloc/min-order
	echo N >/sys/kernel/debug/fail_page_alloc/ignore-gfp-wait
	echo N >/sys/kernel/debug/failslab/ignore-gfp-wait
	may_fail() { sh -c 'echo 1 >/proc/self/make-it-fail; exec v3 "$@"' sh "$@" >/dev/null 2>&1; }
	made=0 refused=0 attached=0 not_attached=0
	# Each so many allocations one fails. To make a VM takes some hundreds.
	for every in 7 53 211 997 3989; do
		fail interval $every
		for _ in $(seq 20); do
			may_fail create halt.img frail
			if [ ! -e /dev/v3-vm0 ]; then
				refused=$((refused + 1))
				continue
			fi
			made=$((made + 1))
			# An attachment takes fewer.
			fail interval $((every / 5))
			if may_fail attach frail serial --file frail.out; then attached=$((attached + 1)); else not_attached=$((not_attached + 1)); fi
			fail interval $every
			v3 free frail
		done
	done
	fail probability 0
	echo "attached $attached, not attached $not_attached"
	check "some devices were attached, some not" [ $attached -gt 0 -a $not_attached -gt 0 ]
	echo "made $made, refused $refused"
	check "some VMs were made, some not" [ $made -gt 0 -a $refused -gt 0 ]
	check "nothing is held after failed allocations" nothing_held
fi
check "rmmod" rmmod v3vee
