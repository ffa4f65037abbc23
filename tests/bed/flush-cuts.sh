# SPDX-License-Identifier: MIT OR Apache-2.0
# A flush means flushed: a Linux guest appends records to a file and replaces files, each with fsync (`sync FILE`), and says so when that returned. The kernel's own
# recorder (log-writes, of the device mapper) keeps what its disk was told meanwhile. Wherever the power fails, the file system is whole, and has all
# records that the guest had acknowledged. Of a disk that ignores flushes the same look says that it loses records.
# bed: --kernel stock --timeout 600 --add build/tools/power_cuts --add build/guests/disk/tools.cpio --add build/guests/disk/host.cpio
# bed: --add build/guests/linux/initramfs --add build/guests/linux/vmlinuz-6.12 --add build/guests/disk/modules-6.12.cpio
# bed soak: --timeout 7200
. ./common.sh
if soak; then records=300 cuts=1000; else records=30 cuts=25; fi

mkdir tools
for archive in tools host; do (cd tools && cpio -id <../$archive.cpio 2>/dev/null); done
tool() { program=$1; shift; tools/lib64/ld-linux-x86-64.so.2 --library-path tools/lib/x86_64-linux-gnu tools/bin/$program "$@"; }
dmsetup() { tool dmsetup --noudevsync --noudevrules "$@"; }

# The disk is of 8 MiB, with the smallest journal, which is soon written again from its begin. A disk that tears writes may tear that of the
# superblock, which the journal does not cover: its checksum would be wrong then, so there are none.
MKE2FS_CONFIG=tools/etc/mke2fs.conf tool mkfs.ext4 -q -b 1024 -J size=1 -O ^metadata_csum,^metadata_csum_seed -E lazy_itable_init=0,nodiscard base.img 8M
modprobe brd rd_nr=2 rd_size=131072
modprobe dm-log-writes
cat base.img >/dev/ram0
echo "0 $(($(wc -c <base.img) / 512)) log-writes /dev/ram0 /dev/ram1" | dmsetup create recorded

# In the guest. A round is one record: a line of a file that grows, and a file of its own that takes an older one's place. Beside it, other files come
# and go, and nobody waits for them to be on the disk.
rounds() {
	cat <<'SH'
text() { printf '%0600d\n' $1; }
others() { mkdir d.$1; for n in 1 2 3; do text $n >d.$1/$n; done; mv d.$1/1 d.$1/4; rm -rf d.$(($1 - 2)); dd if=/dev/urandom of=noise bs=5k count=4 2>/dev/null; }
safe() { text $1 >>records && sync records && text $1 >new && sync new && mv new slot.$(($1 % 8)) && sync .; }
round() { others $1 & safe $1 && echo "guest: ack $1"; wait; read go; }
rounds() { n=0; while [ $n -lt $1 ]; do n=$((n + 1)); round $n; done; cd /; umount /mnt && echo "guest: the end"; }
SH
}
cat >linux.toml <<TOML
name = "linux"
memory = "192M"
kernel = "vmlinuz-6.12"
initrd = ["initramfs", "modules-6.12.cpio"]
cmdline = "console=ttyS0 quiet v3.token=cuts"
TOML
v3 create -b linux.toml >/dev/null
check "the recorded disk is attached" [ "$(v3 attach linux disk /dev/dm-0)" = disk ]
mkfifo keys
v3 stream linux com1 <keys >log 2>&1 &
stream=$!
exec 3>keys
v3 launch linux
check "the guest comes up" soon guest_says "token cuts"
rounds >&3
echo "modprobe virtio_pci; modprobe virtio_blk; mkdir /mnt; mount -t ext4 /dev/vda /mnt && cd /mnt && rounds $records" >&3

# A record is marked in the log before the guest goes on: it was safe without anything that comes later.
acknowledged() {
	for n in $(seq $records); do
		soon guest_says "ack $n[^0-9]" && dmsetup message recorded 0 mark $n || { cat log; return 1; }
		echo >&3
	done
}
check "the guest has $records records" acknowledged
check "and comes to its end" soon guest_says "the end"
echo 'poweroff -f' >&3
v3 wait linux --timeout 240 >/dev/null 2>&1
check "it powers off" [ $? = 0 ]
exec 3>&-
wait $stream
v3 free linux
dmsetup remove recorded

seed=$(od -An -N4 -tu4 /dev/urandom | tr -d ' ')
check "wherever the power fails, all that was acknowledged is there" ./power_cuts base.img /dev/ram1 /dev/ram0 $cuts $seed flushing
check "a disk that ignores flushes is found out" ./power_cuts base.img /dev/ram1 /dev/ram0 25 $seed ignoring
rmmod dm-log-writes brd
check "nothing is held" nothing_held
check "rmmod" rmmod v3vee
