# SPDX-License-Identifier: MIT OR Apache-2.0
# Disks of the host's that go wrong: full, shorter than they were, with sectors that cannot be read, taken away. The guest hears of it as from a disk of
# its own, keeps the rest, and the VM goes on.
# bed: --kernel stock --timeout 600
# bed: --add build/guests/linux/initramfs --add build/guests/disk/tools.cpio
# bed: --add build/guests/linux/vmlinuz-6.12 --add build/guests/disk/modules-6.12.cpio
. ./common.sh

cat >linux.toml <<TOML
name = "linux"
memory = "192M"
vcpus = 2
kernel = "vmlinuz-6.12"
initrd = ["initramfs", "modules-6.12.cpio", "tools.cpio"]
cmdline = "console=ttyS0 quiet v3.token=faults"
TOML
guest=linux
mkdir small
mount -t tmpfs -o size=4M none small
truncate -s 64M small/full.img short.img gone.img
# Its tenth sector from 0x1234 on cannot be read.
modprobe sd_mod
modprobe scsi_debug dev_size_mb=16 opts=2
of_debug() { ls /sys/bus/pseudo/drivers/scsi_debug/adapter0/host*/target*/*/block 2>/dev/null; }
check "the host has a disk that fails" soon of_debug
bad=/dev/$(of_debug)
v3 create -b linux.toml linux >/dev/null
for disk in full=small/full.img short=short.img gone=gone.img bad=$bad; do
	check "the disk ${disk%%=*} is attached" v3 attach linux disk ${disk#*=} --id ${disk%%=*}
done
hears
v3 launch linux
check "Linux comes up" soon guest_says "token faults"
echo "$guest_run; . steps" >&3
check "it finds its disks" does drivers drivers full short gone bad
# Of a disk that is known by an id: writes some MiB of it from its beginning, or from MiB $3; reads them.
echo 'puts() { dd if=/dev/zero of=/dev/$(node $1) bs=1M count=$2 seek=${3-0} oflag=direct; }' >&3
echo 'gets() { dd if=/dev/$(node $1) of=/dev/null bs=${4-1M} count=$2 skip=${3-0} iflag=direct; }' >&3
fails() { ask "$@" >/dev/null; ended $1 1; }
# The guest was told that the disk is smaller: it reads nothing there.
ends() { case $(ask "$@") in *"0+0 records in"*) ;; *) return 1 ;; esac; }

check "what there is room for is written" does fits puts full 2
check "more is not" fails more puts full 16
check "what was written is read" does again gets full 2
rm -f small/full.img
check "the disk is shorter by then" truncate -s 8M short.img
check "what is left of it is read" does left gets short 8
check "the guest was told where it ends" ends behind gets short 1 32
check "what is written behind that is an error" fails beyond puts short 1 32
check "and the file does not grow by it" [ "$(wc -c <short.img)" = 8388608 ]
rm gone.img
check "a file without a name is written" does nameless puts gone 8
check "and read" does still gets gone 8
check "a sector that cannot be read is an error" fails sector gets bad 1 4660 512
check "its neighbours are read" does neighbours gets bad 1 4600 512
echo 1 >/sys/block/${bad#/dev/}/device/delete
check "a device that was taken away has nothing" ends away gets bad 1
check "the other disks work" does others gets short 8
v3 devices linux --json | tr ',{' '\n\n' | sed -n 's/^"errors":\([1-9].*\)/\1/p' >errors
check "the errors are counted, of those two that had some" [ "$(wc -l <errors)" = 2 ]
for disk in full short gone bad; do
	check "the disk $disk is detached" v3 detach linux $disk
done
powers_off "the guest powers off"
check "nothing is held" nothing_held
umount small
rmmod scsi_debug
check "rmmod" rmmod v3vee
