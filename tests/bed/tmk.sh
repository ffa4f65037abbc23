# SPDX-License-Identifier: MIT OR Apache-2.0
# The tiny test kernels on one CPU, each test by its name. What gives no answer has failed, and the rest goes on in another VM.
# bed: --machines svm,svm-bochs,vtx --add build/guests/tmk/tmk --timeout 900
. ./common.sh
run() { timeout=$1 append=$2; shift 2; v3 run --kernel tmk --test-device --mem 256 --timeout "$timeout" --append "$append" "$@" </dev/null | tr -d '\r'; }

by_name() {
	while [ $# != 0 ]; do
		run 300 "test=$(echo "$@" | tr ' ' ,)" >log
		grep -v ' passed, ' log
		left=
		for name; do grep -qE "^(ok $name|not ok $name: .*)$" log || left="$left $name"; done
		set -- $left
		[ $# = 0 ] || { echo "not ok $1: no answer"; shift; }
	done
}
run 60 test=list >list
[ "$(wc -l <list)" -gt 100 ] || echo "not ok tmk lists its tests"
# A kind that nobody knows would be left out.
grep '^test ' list | grep -qvE '^test (always|ours|device|our-device|several|named) ' && echo "not ok tmk's kinds of tests are known"
# What this machine cannot do stands in scripts/skips.
names=
for name in $(sed -nE 's/^test (always|ours|device|our-device) //p' list); do
	if grep -qx "$name" skips 2>/dev/null; then echo "skip $name"; else names="$names $name"; fi
done
by_name $names

# What is where changes under four CPUs, all four write while writes are logged, and ring a doorbell; interrupts of a device come to each.
memory=a_region_moves_under_others,the_dirty_log_is_exact,dma_memory_moves_under_others,dma_doorbell_storm
msis=dma_msi_to_a_chosen_cpu,dma_msi_in_x2apic_mode,dma_msi_to_nowhere,dma_msi_of_an_illegal_vector
run 300 "cpus=4 test=$memory,$msis" --cpus 4 >log
sed -nE 's/^((not )?ok [a-z0-9_]+)/\1 with 4 CPUs/p' log
grep -q '^8 passed, 0 failed' log || echo "not ok memory changes, and devices work, under 4 CPUs"

# A Multiboot kernel with a module and a command line; its exit status comes back as 2 × value + 1.
echo "a module's words" >words
v3 run --kernel tmk --module "words=words of a module" --append "test=multiboot_info module=words x=1" --timeout 60 </dev/null >log
check "the exit status of success" [ $? = 1 ]
check "the module arrives" grep -q "^module 17 bytes: a module's words" log
check "the command line arrives" grep -q "^command line: .*x=1" log
v3 run --kernel tmk --append "test=multiboot_info module=words" --timeout 60 </dev/null >log
check "the exit status of a failure" [ $? = 3 ]
v3 run --kernel tmk --append test=nonsense --timeout 60 </dev/null >log
check "the exit status 98 × 2 + 1" [ $? = 197 ]

# The memory map says what was asked for, also below the hole of a PC and above 4 GiB.
for mib in 2 64 1000; do
	v3 run --kernel tmk --mem $mib --append "test=multiboot_memory_map mib=$mib" --timeout 60 </dev/null >log
	check "$mib MiB of memory" [ $? = 1 ]
done
