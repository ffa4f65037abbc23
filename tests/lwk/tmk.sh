# SPDX-License-Identifier: MIT OR Apache-2.0
# The tiny test kernels, on a core of its own each. What gives no answer has failed, and the rest goes on in another boot.
. "$TOP/tests/lwk/common.sh"
run() { image tmk 256 "$1" "$2" && lwk_run --image tmk.img --cpus "$1" --timeout "$3"; }

run 1 test=list 120
grep '^test ' log >list
[ "$(wc -l <list)" -gt 100 ] || echo "not ok tmk lists its tests"
by_name() {
	while [ $# != 0 ]; do
		run 1 "test=$(echo "$@" | tr ' ' ,)" 600
		grep -E '^(not )?ok ' log
		left=
		for name; do grep -qE "^(ok $name|not ok $name: .*)$" log || left="$left $name"; done
		# shellcheck disable=SC2086 # a list
		set -- $left
		[ $# = 0 ] || { echo "not ok $1: no answer"; tail -n 3 log; shift; }
	done
}
# shellcheck disable=SC2046 # a list
by_name $(sed -nE 's/^test (always|here) //p' list)

sed -n 's/^test several //p' list >several
for cpus in 2 4; do
	run $cpus "test=several cpus=$cpus" 600
	sed -nE "s/^((not )?ok [a-z0-9_]+)/\1 with $cpus CPUs/p" log
	while read -r name; do grep -qE "^(not )?ok $name(:|$)" log || echo "not ok $name with $cpus CPUs: no answer"; done <several
done

# ends TEXT TEST [VCPUS]: how the guest ends, as the kernel tells it.
ends() { run "${3:-1}" "test=$2" 200 && said "$1"; }
check "a triple fault of another CPU" ends "^lwk: tmk: triple fault at rip" triple_fault_elsewhere 2
check "INIT of the first CPU by another" ends "after the reset" reset_by_init 2
check "a jump to nothing" ends "no memory to execute" jump_to_nothing
check "an instruction that no emulator knows" ends "no emulation for the instruction" unknown_instruction
check "a power-off" ends "the guest powered off" power_off
check "no test of that name" ends "ended its test with status 197" nonsense
check "all ports written" ends "passed, 0 failed" write_every_port
check "all ports read" ends "passed, 0 failed" read_every_port
check "all model-specific registers" ends "passed, 0 failed" touch_every_msr
check "a reset by the keyboard controller" ends "after the reset" reset_by_keyboard
check "two hundred resets" ends "passed, 0 failed" "reset_storm times=200"
check "one CPU, halted for good, is a dead VM" ends "^lwk: tmk: dead:" halt_without_interrupts
check "all CPUs halted for good are a dead VM" ends "^lwk: tmk: dead:" all_halted_without_interrupts 4
