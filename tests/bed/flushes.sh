# SPDX-License-Identifier: MIT OR Apache-2.0
# The kernel rewrites CR4 on all CPUs, a thousand times, while guests run: it finds nothing there that it does not know of.
# bed: --machines svm,vtx --add build/guests/tmk/tmk --timeout 600
# bed vtx: --cpus 2
# bed test: --kernel stock
. ./common.sh
entries() { v3 stats $1 | awk '$2 == "entries" { n += $3 } END { print n }'; }
for vm in one two; do
	printf 'name = "%s"\nmemory = "32M"\nkernel = "tmk"\ncmdline = "test=spin_without_interrupts"\n' $vm >$vm.toml
	v3 build $vm.toml -o $vm.img
	v3 create $vm.img >/dev/null && v3 launch $vm
done
before=$(entries one)
check "1000 flushes of all TLBs" [ "$(cat /sys/kernel/debug/v3vee/flushes)" = 1000 ]
check "the guests run on" sh -c 'for vm in one two; do v3 info $vm | grep -q "state: running" || exit 1; done'
check "they did meanwhile" [ "$(entries one)" -gt "$before" ]
for vm in one two; do v3 stop $vm && v3 free $vm; done
check "rmmod" rmmod v3vee
