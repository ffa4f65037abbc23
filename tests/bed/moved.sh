# SPDX-License-Identifier: MIT OR Apache-2.0
# A guest's memory moves under it while it runs: data, code, stacks and tables. It loses nothing and notices nothing.
# bed: --machines svm,vtx --add build/guests/tmk/tmk --timeout 600
# bed test: --kernel stock
. ./common.sh

# moved TEST FIRST LENGTH: while a test with 192 MiB runs, moves that part of its memory 15 times; then types, which ends it.
moved() {
	cat >guest.toml <<-TOML
		name = "moved"
		memory = "192M"
		kernel = "tmk"
		cmdline = "test=$1"
	TOML
	v3 build guest.toml -o moved.img && v3 create moved.img >/dev/null && v3 launch moved || return 1
	rounds=0
	while [ $rounds -lt 15 ] && v3 relocate moved $2 $3 >/dev/null; do rounds=$((rounds + 1)); done
	echo | v3 console moved >/dev/null
	v3 wait moved
	[ $? = 1 ] && [ $rounds = 15 ] || { v3 info moved; v3 console moved </dev/null | tail -n 3; false; }
	good=$?
	v3 free moved
	return $good
}
check "data" moved memory_while_moved 0x1000000 0x8000000
check "code, stacks, tables, interrupts" moved events_while_moved 0x100000 0x800000
check "what real mode uses" moved modes_while_moved 0 0x100000
check "nothing is held" nothing_held
check "rmmod" rmmod v3vee
