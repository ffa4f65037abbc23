# SPDX-License-Identifier: MIT OR Apache-2.0
# One image, byte for byte, on both hosts, and on Linux on every machine, the slowest one in `make soak` only.
. "$TOP/tests/lwk/common.sh"
token=$(guest-image --append v3.script=poweroff guest.img 2>/dev/null)
bytes=$(sha256sum <guest.img)
three_lines() { said '^guest: Linux .* 7\.' && said '^guest: hypervisor V3VEEV3VEE$' && said "^guest: token $token$"; }

lwk_run --image guest.img:1
check "Linux on the lightweight kernel: power-off" [ $? = 0 ]
check "its three lines" three_lines
check "it powers off itself" said '^lwk: guest: the guest powered off'
check "nothing is allocated after the launch" said '^lwk: 0 allocations since the launch'

if [ -n "${V3VEE_SOAK-}" ]; then machines="svm vtx svm-bochs"; else machines="svm vtx"; fi
for machine in $machines; do
	run --image guest.img --machine $machine </dev/null 2>&1 | tr -d '\r' >log
	check "the same image on Linux [$machine]" [ "${PIPESTATUS[0]}" = 0 ]
	check "its three lines there [$machine]" three_lines
done
check "the image is what it was" [ "$bytes" = "$(sha256sum <guest.img)" ]

# The kernel's own end.
lwk_run --append panic
check "a panic is seen" [ $? = 200 ]
check "with its reason" said '^the command line asks for it$'
check "and a backtrace with names" said '^lwk:   0x[0-9a-f]+ lwk::shim::main \+ 0x'
lwk_run --append panic=stack
check "a stack that is too small" said '^lwk: panic on CPU 0: #DF, double fault \(stack overflow\)'
check "whose functions are told" said '^lwk:   0x[0-9a-f]+ lwk::shim::overflow \+ 0x'
lwk iso --image guest.img:1 lwk.iso
check "an ISO image to start from" sh -c 'head -c 32774 lwk.iso | tail -c 5 | grep -q CD001'
