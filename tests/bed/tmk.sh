# SPDX-License-Identifier: MIT OR Apache-2.0
# The tiny test kernels, each test by its name; those for several processors with two and with four. What gives no answer
# has failed, and the rest goes on in another VM.
# Not on the debug kernel yet: all pass there but rtc_periodic, which waits there for an interrupt that does not come.
# bed: --kernel stock --add build/guests/tmk/tmk --timeout 900
run() { timeout=$1 append=$2; shift 2; v3 run --kernel tmk --mem 256 --timeout "$timeout" --append "$append" "$@" </dev/null | tr -d '\r'; }

# by_name SUFFIX CPUS NAME…: runs the tests; what they say gets the suffix.
by_name() {
	suffix=$1 cpus=$2; shift 2
	while [ $# != 0 ]; do
		run 300 "cpus=$cpus test=$(echo "$@" | tr ' ' ,)" --cpus "$cpus" >log
		grep -v ' passed, ' log | sed -E "s/^((not )?ok [a-z0-9_]+)/\1$suffix/"
		left=
		for name; do grep -qE "^(ok $name|not ok $name: .*)$" log || left="$left $name"; done
		set -- $left
		[ $# = 0 ] || { echo "not ok $1$suffix: no answer"; shift; }
	done
}
run 60 test=list >list
[ "$(wc -l <list)" -gt 100 ] || echo "not ok tmk lists its tests"
by_name "" 1 $(sed -nE 's/^test (always|here) //p' list)
for cpus in 2 4; do by_name " with $cpus CPUs" $cpus $(sed -n 's/^test several //p' list); done

# A Multiboot kernel with a module and a command line; its exit status comes back as 2 × value + 1.
check() { name=$1; shift; if "$@"; then echo "ok $name"; else echo "not ok $name"; fi; }
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
