# SPDX-License-Identifier: MIT OR Apache-2.0
# A flush means flushed: Linux writes records, each with fsync, and says so when that has returned. The host kernel's own recorder (log-writes, of the
# device mapper) keeps what the disk is told meanwhile. Wherever the power fails, the file system is whole, and has every record that was safe by
# then. Of a disk that ignores flushes, the same look says that it has not.
# bed: --kernel stock --timeout 600 --add build/tools/power_cuts --add build/guests/disk/tools.cpio --add build/guests/disk/host.cpio
# bed: --add build/guests/linux/initramfs --add build/guests/linux/vmlinuz-6.12 --add build/guests/disk/modules-6.12.cpio
# bed soak: --timeout 7200
. ./common.sh

if soak; then records=300 cuts=1000; else records=30 cuts=25; fi
unpacks tools.cpio host.cpio
mapper() { tool dmsetup --noudevsync --noudevrules "$@"; }

# The disk has 8 MiB, and the smallest journal, so that its end is soon reached. A disk that tears writes may tear the superblock, which is read before
# the journal is replayed: with checksums, ext4 would refuse that.
MKE2FS_CONFIG=tools/etc/mke2fs.conf tool mkfs.ext4 -q -b 1024 -J size=1 -O ^metadata_csum,^metadata_csum_seed -E lazy_itable_init=0,nodiscard base.img 8M
modprobe brd rd_nr=2 rd_size=131072
modprobe dm-log-writes
cat base.img >/dev/ram0
echo "0 $(($(wc -c <base.img) / 512)) log-writes /dev/ram0 /dev/ram1" | mapper create recorded

guest=cuts
cat >cuts.toml <<TOML
name = "cuts"
memory = "256M"
kernel = "vmlinuz-6.12"
initrd = ["initramfs", "modules-6.12.cpio", "tools.cpio"]
cmdline = "console=ttyS0 quiet v3.token=cuts"
TOML
v3 create -b cuts.toml >/dev/null
check "the disk whose writes are recorded is attached" [ "$(v3 attach cuts disk /dev/dm-0)" = disk ]
hears
v3 launch cuts
check "Linux comes up" soon guest_says "token cuts"
echo "$guest_run; . steps; mkdir /mnt" >&3
ask drivers drivers disk >/dev/null
check "it mounts the disk" does mounted mount -t ext4 /dev/vda /mnt

# A record is marked in the log before the guest goes on: no later flush makes it safe.
marks() {
	for n in $(seq $records); do
		soon guest_says "safe $n[^0-9]" && mapper message recorded 0 mark $n || return 1
		echo >&3
	done
}
echo "cd /mnt; records $records; cd /" >&3
check "$records records are safe, says the guest" marks
check "it unmounts the disk" does unmounted umount /mnt
check "its kernel complains of nothing" [ "$(ask worries worries)" = "" ]
powers_off "it powers off"
mapper remove recorded

seed=$(od -An -N4 -tu4 /dev/urandom | tr -d ' ')
check "wherever the power fails, every safe record is there" ./power_cuts base.img /dev/ram1 /dev/ram0 $cuts $seed flushing
check "a disk that ignores flushes is found out" ./power_cuts base.img /dev/ram1 /dev/ram0 25 $seed ignoring
rmmod dm-log-writes brd
check "nothing is held" nothing_held
check "rmmod" rmmod v3vee
