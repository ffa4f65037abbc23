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
by_name $(sed -nE 's/^test (always|ours|device|our-device) //p' list)

sed -n 's/^test several //p' list >several
for cpus in 2 4; do
	run $cpus "test=several cpus=$cpus" 600
	sed -nE "s/^((not )?ok [a-z0-9_]+)/\1 with $cpus CPUs/p" log
	while read -r name; do grep -qE "^(not )?ok $name(:|$)" log || echo "not ok $name with $cpus CPUs: no answer"; done <several
done

# What is where changes under four CPUs, all four write while writes are logged, and ring a doorbell; interrupts of a device come to each.
memory=a_region_moves_under_others,the_dirty_log_is_exact,dma_memory_moves_under_others,dma_doorbell_storm
msis=dma_msi_to_a_chosen_cpu,dma_msi_in_x2apic_mode,dma_msi_to_nowhere,dma_msi_of_an_illegal_vector
run 4 "cpus=4 test=$memory,$msis" 600
sed -nE 's/^((not )?ok [a-z0-9_]+)/\1 with 4 CPUs/p' log
said '^8 passed, 0 failed' || echo "not ok memory changes, and devices work, under 4 CPUs"

image short 64 1 test=cpuid_signature tmk.bzimage
lwk_run --image short.img
check "a 32-bit bzImage of an old protocol, whose last paragraph is short" said '^ok cpuid_signature$'

# ending CHECK VCPUS TEST WHO TEXT: a guest that ends in some way. The kernel says TEXT of it, or the guest does: WHO is `lwk` or `guest`.
# Three of them share a boot, each with a core and a serial port of its own.
checks=() images=()
ending() {
	port=$((${#checks[@]} + 1))
	name=end$port
	image "$name" 256 "$2" "test=$3"
	images+=(--image "$name.img:$port")
	# What guests print at other ports than the log's has their number before it.
	case $4-$port in lwk-*) who="lwk: $name: " ;; guest-1) who= ;; guest-*) who="\\[$port\\] " ;; esac
	checks+=("$1=^$who.*$5")
	[ ${#checks[@]} -lt 3 ] || endings
}
endings() {
	lwk_run "${images[@]}" --cpus 3 --timeout 300
	status=$?
	ended() { [ $status = 0 ] && said "$1"; }
	for each in "${checks[@]}"; do check "${each%%=*}" ended "${each#*=}"; done
	checks=() images=()
}
ending "a triple fault of another CPU" 2 triple_fault_elsewhere lwk "triple fault at rip"
ending "the exception that began a triple fault" 1 triple_fault lwk "vcpu 0: it began with Exception.*vector: 6"
ending "INIT of the first CPU by another" 2 reset_by_init guest "after the reset"
ending "a jump to nothing" 1 jump_to_nothing lwk "no memory to execute"
ending "an instruction that no emulator knows" 1 unknown_instruction lwk "no emulation for the instruction"
ending "a power-off" 1 power_off lwk "the guest powered off"
ending "no test of that name" 1 nonsense lwk "ended its test with status 197"
ending "all ports written" 1 write_every_port guest "passed, 0 failed"
ending "all ports read" 1 read_every_port guest "passed, 0 failed"
ending "all model-specific registers" 1 touch_every_msr guest "passed, 0 failed"
ending "a reset by the keyboard controller" 1 reset_by_keyboard guest "after the reset"
ending "resets while a device copies" 1 dma_reset guest "passed, 0 failed"
ending "a reset that a device does not come to rest for" 1 dma_never_rests lwk "the device test-dma did not come to rest"
ending "two hundred resets" 1 "reset_storm times=200" guest "passed, 0 failed"
ending "one CPU, halted for good, is a dead VM" 1 halt_without_interrupts lwk "dead:"
ending "all CPUs halted for good are a dead VM" 4 all_halted_without_interrupts lwk "dead:"
endings
