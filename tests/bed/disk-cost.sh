# SPDX-License-Identifier: MIT OR Apache-2.0
# What 4 KiB of a disk cost a Linux guest, in instructions of guest and host together: read and written, one request at a time and 32.
# scripts/bench/disk-cost-kvm.sh measures the same guest under KVM.
# bed: --kernel stock --icount --add build/tools/disk_cost --add build/guests/linux/initramfs --add build/guests/linux/vmlinuz
# bed: --add build/guests/disk/modules-7.cpio --add scripts/bench/disk-cost-guest.sh
. ./common.sh
. ./disk-cost-guest.sh

v3 run --kernel vmlinuz --initrd initramfs --initrd modules-7.cpio --initrd measure.cpio --mem 256 --append "$cmdline" \
	--disk disks/disk </dev/null >log
cat log
# at_most KIND LIMIT: what was measured when the limit was last set, and 5 %.
at_most() { cost=$(tr -d '\r' <log | sed -n "s/^$1: //p"); [ -n "$cost" ] && [ "$cost" -le "$2" ]; }
check "a write alone" at_most write-1 34800
check "one of 32 writes" at_most write-32 19200
check "a read alone" at_most read-1 45800
check "one of 32 reads" at_most read-32 19600
