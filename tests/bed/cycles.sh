# SPDX-License-Identifier: MIT OR Apache-2.0
# 200 VMs come and go, in `make soak` 2,000: nothing is held, the host's memory has no slope. On the debug kernel, which is slower, 30 and
# 2,000: the leak detector is silent.
# bed soak: --timeout 7200
# bed test: --timeout 900
# bed: --add build/guests/tmk/tmk
# What is in use: not free, not in a CPU's list of pages just freed, nothing that the kernel would give back. CPUs count
# pages apart and tell the total late, up to half a MiB each: have them tell it now.
. ./common.sh
used_kib() {
	echo 3 >/proc/sys/vm/drop_caches
	echo 1 >/proc/sys/vm/stat_refresh
	awk '/^MemTotal/ { t = $2 } /^(MemFree|SReclaimable):/ { f += $2 } $1 == "count:" { f += 4 * $2 } END { print t - f }' \
		/proc/meminfo /proc/zoneinfo
}
cat >guest.toml <<TOML
memory = "16M"
kernel = "tmk"
cmdline = "test=halt_for_ever"
TOML
v3 build guest.toml -o guest.img
failed=0
cycles() {
	for n in $(seq $1); do
		v3 create guest.img cycle >/dev/null && v3 launch cycle && v3 stop cycle && v3 free cycle || failed=$((failed + 1))
	done
}
first=50 slope=yes
if soak; then more=1950; elif [ -e /proc/lockdep ]; then first=10 more=20 slope=; else more=150; fi
cycles $first
after_first=$(used_kib)
cycles $more
after_all=$(used_kib)
echo "used after $first cycles: $after_first KiB, after $((first + more)): $after_all KiB"
# One page a cycle would be 600 KiB after 150. The kernel's own caches of inodes and names grow by 200 KiB, at times by 500 where it keeps
# a record of each object, and stop at 1,000 cycles: what is a leak goes on at the same rate.
flat() {
	[ $((after_all - after_first)) -lt 400 ] && return
	cycles 150
	after_more=$(used_kib)
	echo "after 150 more: $after_more KiB"
	[ $((after_more - after_all)) -lt 400 ]
}
check "$((first + more)) cycles" [ $failed = 0 ]
check "nothing is held" nothing_held
[ -z "$slope" ] || check "the host's memory has no slope" flat
if [ -e /sys/kernel/debug/kmemleak ]; then
	echo scan >/sys/kernel/debug/kmemleak
	sleep 6
	echo scan >/sys/kernel/debug/kmemleak
	leaks=$(grep -c v3vee /sys/kernel/debug/kmemleak)
	grep -A20 "unreferenced" /sys/kernel/debug/kmemleak | head -n 40
	check "the leak detector is silent" [ "$leaks" = 0 ]
fi
v3 create guest.img held >/dev/null
refused() { ! rmmod v3vee 2>/dev/null; }
check "no rmmod while there is a VM" refused
v3 free held
check "rmmod" rmmod v3vee
