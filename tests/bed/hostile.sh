# SPDX-License-Identifier: MIT OR Apache-2.0
# Hostile guests and bad images: each a stopped VM with its reason, or a refusal; the host clean, all memory back.
# bed: --add build/guests/tmk/tmk --timeout 600
check() { name=$1; shift; if "$@"; then echo "ok $name"; else echo "not ok $name"; fi; }
held() { cat /sys/kernel/debug/v3vee/$1; }
nothing_held() { for of in pages large_pages vms threads objects; do [ "$(held $of)" = 0 ] || { echo "$of: $(held $of)"; return 1; }; done; }

# ends STATUS TEXT TEST [OPTION]…: the guest ends the VM with that status, and the tool says why.
ends() {
	status=$1 text=$2 test=$3; shift 3
	v3 run --kernel tmk --mem 64 --append "test=$test" "${@:---timeout=200}" </dev/null >log 2>&1
	got=$?
	[ $got = "$status" ] && grep -q "$text" log || { echo "status $got"; tail -n 3 log; return 1; }
}
check "a triple fault" ends 127 "triple fault at rip" triple_fault
check "a jump to nothing" ends 127 "no memory to execute" jump_to_nothing
check "an instruction that no emulator knows" ends 127 "no emulation for the instruction" unknown_instruction
check "a power-off" ends 0 "" power_off
check "no test of that name" ends 197 "no test is named" nonsense
check "all ports written" ends 1 "passed, 0 failed" write_every_port
check "interrupts off, and spinning" ends 124 "timeout" spin_without_interrupts --timeout=3
check "interrupts off, and halted" ends 124 "timeout" halt_without_interrupts --timeout=3
check "nothing is held" nothing_held

# refused TEXT FILE [OPTION]…: the image makes no VM.
refused() {
	text=$1; shift
	v3 create "$@" >log 2>&1 && return 1
	grep -q "$text" log || { cat log; return 1; }
}
cat >guest.toml <<TOML
name = "guest"
memory = "64M"
kernel = "tmk"
cmdline = "test=halt_for_ever"
TOML
v3 build guest.toml -o guest.img
size=$(wc -c <guest.img)
head -c 100 guest.img >short.img
head -c $((size / 2)) guest.img >half.img
head -c $size /dev/urandom >random.img
: >empty.img
cp guest.img newer.img; printf '\377' | dd of=newer.img bs=1 seek=8 conv=notrunc 2>/dev/null
cp guest.img corrupt.img; printf 'corrupt' | dd of=corrupt.img bs=1 seek=$((size - 4096)) conv=notrunc 2>/dev/null
for bad in short half random empty; do check "an image that is $bad" refused "" $bad.img; done
check "an image of a newer version" refused "version" newer.img
check "an image that is corrupt" refused "checksum" corrupt.img
check "a kernel that is none" refused "" tmk
v3 create guest.img one >/dev/null
check "two VMs of one name" refused "" guest.img one
v3 free one
check "nothing is held after refusals" nothing_held

# The guest's memory moves under it, and loses nothing.
v3 build guest.toml -o moved.img
sed -i 's/test=.*"/test=memory_while_moved rounds=3"/; s/64M/192M/' guest.toml
v3 build guest.toml -o moved.img
v3 create moved.img moved >/dev/null
v3 launch moved
rounds=0
while v3 info moved | grep -q "state: running"; do
	v3 relocate moved 0x1000000 0x8000000 >/dev/null 2>&1 && rounds=$((rounds + 1))
done
v3 info moved
check "memory that was moved $rounds times is whole" sh -c 'v3 info moved | grep -q "status 1$"'
check "it was moved at all" [ $rounds -gt 3 ]
v3 free moved
check "nothing is held after moves" nothing_held
check "rmmod" rmmod v3vee
