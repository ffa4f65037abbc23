# SPDX-License-Identifier: MIT OR Apache-2.0
# Debian's memtest86+ on a serial console: it begins, by its 64-bit and its 32-bit entry point. In `make soak` it makes a pass over
# 64 MiB without an error.
# bed soak: --timeout 7200
# bed: --kernel stock --add build/guests/packaged/memtest-64 --add build/guests/packaged/memtest-32
. ./common.sh
if soak; then wanted="Pass:  1 " what="a pass"; else wanted="#4  .Moving inversions" what="the fourth test"; fi

# passes KERNEL: it comes as far as is wanted, and counts no error.
passes() {
	: >log
	v3 run --name "$1" --kernel "$1" --mem 64 --append "console=ttyS0,115200 nosmp" </dev/null >log 2>&1 &
	run=$!
	until grep -q "$wanted" log; do
		kill -0 $run 2>/dev/null || { tail -n 3 log; return 1; }
		sleep 1
	done
	v3 stop "$1"
	wait $run
	grep -q "Errors: 0 " log && ! grep -qE "Errors: +[1-9]" log
}
check "memtest86+ comes to $what" passes memtest-64
check "memtest86+ of 32 bits comes to $what" passes memtest-32
