# SPDX-License-Identifier: MIT OR Apache-2.0
# On the other machines: Intel VT-x, and a second SVM. Their APICs have no registers in the processor, and are stricter. Linux as a
# guest takes minutes there: in `make soak` only.
. "$TOP/tests/lwk/common.sh"
token=$(guest-image guest.img 2>/dev/null)
for machine in vtx svm-bochs; do
	lwk_run --machine $machine --cpus 2 --mem 512 --append conformance
	check "the kernel switches off [$machine]" [ $? = 0 ]
	sed -nE "s/^lwk: ((not )?ok .*)/\1 [$machine]/p" log
	check "conformance came to its end [$machine]" said "^lwk: [0-9]+ checks passed, 0 failed, 0 were not run$"
done
# Guests run with one CPU there: with two, Bochs loses one's place.
if [ -n "${V3VEE_SOAK-}" ]; then
	lwk_run --machine vtx --mem 1024 --image guest.img --type "guest: token $token=" --type '# =poweroff -f\r' --timeout 600
	check "Linux on VT-x: power-off" [ $? = 0 ]
	check "its three lines" said "^guest: token $token$"
	check "nothing is allocated after the launch" said '^lwk: 0 allocations since the launch'
fi
image all 256 1 "test=all"
lwk_run --machine vtx --mem 1024 --image all.img --timeout 600
check "the backend is that of Intel" said '^lwk: vmx with '
# Bochs gives one of them a wrong DR6, and marks page tables in a ROM.
sed -nE 's/^not ok (general_detect_is_no_step|marks_in_a_rom_are_lost)\b.*/skip \1 [vtx]/p; t; s/^((not )?ok [a-z0-9_]+).*/\1 [vtx]/p' log
check "all others of the tiny test kernels on VT-x" said '^lwk: all: the guest ended its test with status 5$'

# Here a port sends no faster than a wire, so that what such a guest prints has no end.
image chatter 64 1 "test=chatter_for_ever"
lwk_run --machine vtx --mem 512 --image chatter.img --timeout 100 --type 'without end=\x1dq'
check "a guest that prints for ever is stopped by a key" [ $? = 0 ]
check "its end is told on a line of its own" said '^lwk: chatter: stopped on request'

# A processor without no-execute, or whose firmware switched that off: EFER has no bit for it.
lwk_run --machine vtx --mem 512 --cpu-model 'corei7_sandy_bridge_2600k, exclude_features="nx"' --append conformance
check "the kernel runs without no-execute" [ $? = 0 ]
