# SPDX-License-Identifier: MIT OR Apache-2.0
# A guest goes from AMD's processors to Intel's and back, saved each time in the middle of a string instruction on a device's memory. It has two
# virtual CPUs, one interrupt in service and one that waits, an armed deadline, and values in registers that nobody else has.
. "$TOP/tests/lwk/common.sh"
image moved 256 2 "cpus=2 test=saved_in_the_middle"

# host MACHINE SCRIPT FILE…: runs a script on a host, which has the files; what it printed is in `log`, and a file between marks in `moved.v3`.
host() {
	machine=$1
	echo "$2" >script
	shift 2
	add=()
	for file; do add+=(--add "$file"); done
	testbed run --machine "$machine" --add script "${add[@]}" --timeout 300 -- sh ./script </dev/null 2>&1 | tr -d '\r' >log
	[ "${PIPESTATUS[0]}" = 0 ] || return 1
	! grep -q '^begin-of-file$' log || sed -n '/^begin-of-file$/,/^end-of-file$/p' log | sed '1d;$d' | base64 -d | gzip -d >moved.v3
}
# In the middle: a virtual CPU has some of a copy behind it, and some before it.
# shellcheck disable=SC2016 # for the host's shell
save='
listens() { v3 stream moved com1 </dev/null >>console 2>&1 & }
in_the_middle() {
	v3 pause moved || exit 1
	v3 debug moved --vcpu 0 >text
	grep -A1 "^  code:" text | grep -q "rep movsd" && grep -qE "rcx +0x000000000000(1[0-9a-f]|0[1-9a-f])00" text && return
	v3 continue moved
	return 1
}
saves() {
	until in_the_middle; do :; done
	grep -E "^vcpu 0|rep movsd|rcx|requested|in service|deadline" text
	v3 save moved moved.v3 && echo begin-of-file && gzip -9 <moved.v3 | base64 && echo end-of-file
	v3 free -f moved
}
'
# features: those that a guest has by what a host printed.
features() {
	python3 -c 'import json, sys
for line in sys.stdin:
    if line.startswith("[{"):
        print("\n".join(f["name"] for f in json.loads(line) if f["guest"]))' <log | sort -u
}
check "the features of Intel's guests" host vtx 'v3 info --cpuid --json'
features >intel
check "and of AMD's" host svm 'v3 info --cpuid --json'
features >amd
[ "$(wc -l <intel)" -gt 40 ] && [ "$(wc -l <amd)" -gt 40 ] || echo "not ok both hosts list features"
without=$(comm -23 amd intel | sed 's/^/-/' | paste -sd,)

check "from AMD's" host svm "$save
v3 create moved.img --cpu=$without >/dev/null; v3 launch moved; listens
until grep -q copying console; do :; done
saves" moved.img
check "in the middle of a copy" said '^ *0x[0-9a-f]+ .*rep movsd'
check "with an interrupt in service" said 'in service +0x81'
check "and one that waits" said 'requested +0x71'
cp moved.v3 amd.v3
check "another rate is refused" host vtx "v3 load moved.v3 2>refused || cat refused" moved.v3
check "with a hint" said '^hint: with --new-tsc-rate'
check "to Intel's" host vtx "$save
v3 load --new-tsc-rate --no-launch moved.v3; listens; v3 launch moved
parts() { v3 stats moved | awk '\$2 == \"emulated_instructions\" { print \$3; exit }'; }
until [ \"\$(parts)\" -gt 20 ]; do :; done
saves" moved.v3
check "in the middle of a copy, again" said '^ *0x[0-9a-f]+ .*rep movsd'
check "it is another file" sh -c '! cmp -s amd.v3 moved.v3'
check "and back, to its end" host svm 'v3 load --new-tsc-rate --no-launch moved.v3
v3 stream moved com1 </dev/null >console 2>&1 &
v3 launch moved
v3 wait moved --expect 1; status=$?; cat console; exit $status' moved.v3
check "it has lost nothing" said '^ok saved_in_the_middle'
