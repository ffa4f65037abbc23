# SPDX-License-Identifier: MIT OR Apache-2.0
# What 4 KiB of a disk cost a Linux guest of ours, in instructions of guest and host together: read and written, one request at a time and 32. To be run by hand;
# disk-cost-kvm.sh measures the same guest under KVM:
#   scripts/testbed run --icount --timeout 600 --add build/tools/disk_cost --add build/guests/linux/initramfs --add build/guests/linux/vmlinuz \
#       --add build/guests/disk/modules-7.cpio --add scripts/bench/disk-cost-guest.sh --add scripts/bench/disk-cost.sh -- sh ./disk-cost.sh
# It is no test: see there why it may never end.
. ./disk-cost-guest.sh

v3 run --kernel vmlinuz --initrd initramfs --initrd modules-7.cpio --initrd measure.cpio --mem 256 --append "$cmdline" \
	--disk disks/disk </dev/null
