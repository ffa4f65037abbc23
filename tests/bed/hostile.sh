# SPDX-License-Identifier: MIT OR Apache-2.0
# Hostile guests and bad images: each a stopped VM with its reason, or a refusal; the host clean, all memory back.
# bed: --add build/guests/tmk/tmk --timeout 600
# bed test: --kernel debug
. ./common.sh

# ends STATUS TEXT TEST [OPTION]…: the guest ends the VM with that status, and the tool says why.
ends() {
	status=$1 text=$2 test=$3; shift 3
	v3 run --kernel tmk --mem 64 --append "test=$test" "${@:---timeout=200}" </dev/null >log 2>&1
	got=$?
	[ $got = "$status" ] && grep -q "$text" log || { echo "status $got"; tail -n 3 log; return 1; }
}
check "a triple fault" ends 127 "triple fault at rip" triple_fault
check "a triple fault of another CPU" ends 127 "triple fault at rip" triple_fault_elsewhere --cpus=2 --timeout=200
check "INIT of the first CPU by another" ends 1 "after the reset" reset_by_init --cpus=2 --timeout=200
check "a jump to nothing" ends 127 "no memory to execute" jump_to_nothing
check "an instruction that no emulator knows" ends 127 "no emulation for the instruction" unknown_instruction
check "a power-off" ends 0 "" power_off
check "no test of that name" ends 197 "no test is named" nonsense
check "another sleep state is no power-off" ends 3 "still here" "power_off slp=0"
check "all ports written" ends 1 "passed, 0 failed" write_every_port
check "all ports read" ends 1 "passed, 0 failed" read_every_port
check "all model-specific registers" ends 1 "passed, 0 failed" touch_every_msr
check "an interrupt storm" ends 124 "timeout" "interrupt_storm rounds=1000000000" --timeout=3
check "a reset by the keyboard controller" ends 1 "after the reset" reset_by_keyboard
check "a reset by the chipset" ends 1 "after the reset" reset_by_chipset
check "a reset by system control port A" ends 1 "after the reset" reset_by_port_a
check "a reset by a triple fault" ends 1 "after the reset" reset_by_triple_fault --on-triple-fault=reset --timeout=200
check "registers behind a reset" ends 1 "passed, 0 failed" reset_clears_registers
check "two hundred resets" ends 1 "passed, 0 failed" "reset_storm times=200"
check "resets while a device copies" ends 1 "passed, 0 failed" dma_reset --test-device --timeout=200
check "a reset that a device does not come to rest for" ends 125 "the device test-dma did not come to rest" dma_never_rests --test-device --timeout=200
check "interrupts off, and spinning" ends 124 "timeout" spin_without_interrupts --timeout=3

# dies VCPUS TEST: nothing can wake the guest any more. The VM says so, does nothing, and stops when it is told to.
state() { [ "$(v3 info dead | sed -n 's/^state: //p')" = "$1" ]; }
dies() {
	cat >dead.toml <<-TOML
		name = "dead"
		memory = "64M"
		vcpus = $1
		kernel = "tmk"
		cmdline = "test=$2"
	TOML
	v3 build dead.toml -o dead.img && v3 create dead.img >/dev/null && v3 launch dead || return 1
	tries=0
	until state "running (dead)"; do
		tries=$((tries + 1))
		[ $tries -lt 200 ] && state "running" || break
		sleep 1
	done
	state "running (dead)" && v3 stop dead && state "stopped" || { v3 info dead; false; }
	good=$?
	v3 free dead
	return $good
}
check "one CPU, halted for good, is a dead VM" dies 1 halt_without_interrupts
check "all CPUs halted for good are a dead VM" dies 4 all_halted_without_interrupts
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
head -c 20000 tmk >half-kernel
head -c $((size / 2)) guest.img >half.img
head -c $size /dev/urandom >random.img
: >empty.img
cp guest.img newer.img; printf '\377' | dd of=newer.img bs=1 seek=8 conv=notrunc 2>/dev/null
cp guest.img corrupt.img; printf 'corrupt' | dd of=corrupt.img bs=1 seek=$((size - 4096)) conv=notrunc 2>/dev/null
for bad in short half random empty; do check "an image that is $bad" refused "" $bad.img; done
check "an image of a newer version" refused "version" newer.img
check "an image that is corrupt" refused "checksum" corrupt.img
check "a kernel that is none" refused "" tmk

# unstartable TEXT OPTION…: no VM comes of it, and the tool says why.
unstartable() {
	text=$1; shift
	v3 run "$@" --timeout 20 </dev/null >log 2>&1
	got=$?
	[ $got = 126 ] && grep -q "$text" log || { echo "status $got"; tail -n 3 log; return 1; }
}
check "random bytes as a kernel" unstartable "" --kernel random.img
check "a kernel cut short" unstartable "" --kernel half-kernel
check "too little memory for the kernel" unstartable "memory" --kernel tmk --mem 1
check "more memory than there are addresses" unstartable "memory" --kernel tmk --mem 100000000
check "nothing is held after kernels that are none" nothing_held
v3 create guest.img one >/dev/null
check "two VMs of one name" refused "" guest.img one
v3 free one
check "nothing is held after refusals" nothing_held

check "rmmod" rmmod v3vee
