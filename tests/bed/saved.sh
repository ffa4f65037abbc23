# SPDX-License-Identifier: MIT OR Apache-2.0
# VMs are saved, and go on from that: Linux under load again and again, whose clocks never step back and whose work goes on; with devices that were
# attached; and what is damaged, or of another machine, is refused and leaves nothing.
# On the slowest machine it takes six minutes.
# bed soak: --machines svm,vtx
# bed: --timeout 1500 --add build/guests/tmk/tmk
# bed: --add build/guests/linux/initramfs --add build/guests/linux/vmlinuz-6.12
# bed test: --kernel stock
# bed soak: --timeout 7200
. ./common.sh
# refused STATUS TEXT COMMAND…: it ends so, and says that.
refused() {
	want=$1 text=$2
	shift 2
	"$@" >refusal 2>&1
	status=$?
	[ $status = $want ] && grep -qE -e "$text" refusal || { echo "status $status: $(cat refusal)"; return 1; }
}
state() { v3 info $1 | sed -n 's/^state: //p'; }

if v3 info | grep -q 'backend: svm'; then cpus=4 rounds=3 longest=20; else cpus=2 rounds=1 longest=3; fi
soak && rounds=$longest

# listens NAME: its console is in NAME.log from now on, and keys are written to descriptor 3.
listens() { v3 stream $1 com1 <keys >>$1.log 2>&1 & exec 3>keys; }
mkfifo keys
cat >linux.toml <<TOML
name = "linux"
memory = "192M"
vcpus = $cpus
kernel = "vmlinuz-6.12"
initrd = "initramfs"
cmdline = "console=ttyS0 quiet v3.token=saved v3.script=load"
TOML
v3 create -b linux.toml >/dev/null
: >linux.log
listens linux
check "one that was never launched is not saved" refused 125 'cannot save linux: it was never launched' v3 save linux early.v3
check "and leaves no file" [ "$(ls early* 2>/dev/null)" = "" ]
v3 launch linux
check "Linux comes up" soon grep -q '^guest: token saved' linux.log
entries() { v3 stats linux | awk '$2 == "entries" { sum += $3 } END { print sum + 0 }'; }
goes_on() { before=$(entries); soon more; }
more() { [ "$(entries)" -gt $((before + 200)) ]; }
round() {
	v3 save --pause linux linux.v3 || return 1
	[ "$(state linux)" = paused ] || return 1
	exec 3>&-
	v3 free -f linux || return 1
	wait
	v3 load linux.v3 >/dev/null || return 1
	listens linux
	goes_on
}
for n in $(seq $rounds); do
	check "saved and loaded, $n" round
done
v3 save linux linux.v3
check "saved without a pause, it goes on" goes_on
echo >&3
check "no clock stepped back, and all CPUs worked" soon grep -q "^guest: ok load $cpus CPUs" linux.log
echo 'dmesg | grep -iE "warn|bug:|stall|unstable|oops|backwards|lockup|call trace"; echo looked-at-the-log' >&3
check "Linux looked at its log" soon grep -q '^looked-at-the-log' linux.log
sed -n '/^guest: ok load/,$p' linux.log | tr -d '\r' | grep -iE 'warn|bug:|stall|unstable|oops|backwards|lockup|call trace' | grep -v 'grep -iE' >faults
clean() { [ ! -s faults ] || { sed 's/^/saw: /' faults; return 1; }; }
check "and it is clean" clean
echo 'poweroff -f' >&3
check "it comes to its end" timeout 200 v3 wait linux
exec 3>&-
v3 free linux

v3 inspect linux.v3 >text
check "what was saved is described" says text '^name: linux' "^vcpus: $cpus" '^memory: 192 MiB, of which ' '^vcpu 0: ' '^  image +guest.img ' '^  device/com1 +serial '
v3 inspect linux.v3 --json >json
check "for programs" says json "\"machine\":\{\"vcpus\":$cpus,\"memory_bytes\":201326592" '"path":"interrupts","kind":"chipset"'
size=$(wc -c <linux.v3)
check "it has no pages of zeroes" [ $size -lt 150000000 ]

# What is damaged is refused, and no VM is left.
no_vm() { [ "$(v3 list | wc -l)" -le 1 ]; }
head -c $((size / 2)) linux.v3 >cut.v3
check "one that is cut off" refused 126 'cut off behind section ram/' v3 load cut.v3
cp linux.v3 flipped.v3
printf 'X' | dd of=flipped.v3 bs=1 seek=$((size - 100000)) conv=notrunc 2>/dev/null
check "one with a flipped bit" refused 126 'section.* is damaged: section' v3 load flipped.v3
check "none at all" refused 126 'it is no saved machine' v3 load linux.toml
check "no file" refused 125 'no such file' v3 load absent.v3
check "a pipe" refused 125 'this is no file' v3 load keys
rm linux.v3 cut.v3 flipped.v3
check "no VM is left" no_vm

# A device that was attached comes back, with the far end that it is given.
printf 'name = "spin"\nmemory = "32M"\nkernel = "tmk"\ncmdline = "test=spin_without_interrupts"\n' >spin.toml
v3 create -b spin.toml >/dev/null
v3 launch spin
v3 attach spin serial --id extra --port 0x2e8 --file extra.out >/dev/null
check "to a pipe" sh -c 'v3 save spin - | cat >spin.v3'
check "the first runs on" [ "$(state spin)" = running ]
check "a name that is taken" refused 126 'spin' v3 load spin.v3
check "a device without a far end" refused 125 'device extra, of the kind serial, which needs a far end' v3 load spin.v3 again
check "is told what to do" says refusal '^hint: give it one: --end extra=pty'
check "a far end of no device" refused 125 'has no such device' v3 load spin.v3 again --end moon=pty
check "a far end that is none" refused 125 'is not like com3=pty' v3 load spin.v3 again --end extra=moon
check "nothing is left of these" [ "$(v3 list | grep -c again)" = 0 ]
check "with one" v3 load spin.v3 again --no-launch --end extra=file:again.out
check "it waits to be launched" [ "$(state again)" = created ]
check "and has the device" sh -c "v3 devices again | grep -qE '^extra +serial .*0x2e8'"
check "it goes on" v3 launch again
check "it runs" [ "$(state again)" = running ]
check "it is saved again" v3 save again again.v3
check "and is paused if one wants that" sh -c 'v3 save -p again again.v3 && v3 info again | grep -q "state: paused"'
# Whoever stops a VM that is being saved spoils what is written, and no file is left of it.
v3 free -f again
mkfifo slow
v3 save spin slow 2>spoiled & saver=$!
exec 4<slow
check "it stands still while it is saved" soon sh -c 'v3 info spin | grep -q "state: paused"'
v3 stop spin
cat <&4 >/dev/null
exec 4<&-
wait $saver
check "stopped, the save fails" says spoiled 'spin was stopped while it was saved'
v3 free spin
check "nothing is held" nothing_held
check "rmmod" rmmod v3vee
