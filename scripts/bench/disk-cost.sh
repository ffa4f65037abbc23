# SPDX-License-Identifier: MIT OR Apache-2.0
# disk-cost.sh KIND: what 4 KiB of a disk cost a Linux guest of ours, in instructions of guest and host together, and the addresses of the functions
# that had a part in it: for `scripts/measure disk`. disk-cost-kvm.sh measures the same guest under KVM; see there why this may never end.
kind=$1
. ./disk-cost-guest.sh

v3 run --kernel vmlinuz --initrd initramfs --initrd modules-7.cpio --initrd measure.cpio --mem 256 --append "$cmdline only=$kind nokaslr" \
	--disk disks/disk </dev/null
echo "== symbols of v3vee"
grep -i ' [tw] ' /proc/kallsyms | gzip -1 | base64
echo "== end"
