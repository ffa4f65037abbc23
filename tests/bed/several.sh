# SPDX-License-Identifier: MIT OR Apache-2.0
# The tiny test kernels for several CPUs, with two and with four; in `make soak` also on the debug kernel and on the slowest machine.
# bed: --machines svm,svm-bochs,vtx --add build/guests/tmk/tmk --timeout 600
# bed test: --machines svm,vtx --kernel stock
run() { v3 run --kernel tmk --mem 256 --append "$1" --cpus "$2" --timeout 250 </dev/null | tr -d '\r'; }
run test=list 1 | sed -n 's/^test several //p' >list
[ "$(wc -l <list)" -gt 30 ] || echo "not ok tmk lists its tests"
for cpus in 2 4; do
	run "test=several cpus=$cpus" $cpus >log
	sed -nE "s/^((not )?ok [a-z0-9_]+)/\1 with $cpus CPUs/p" log
	while read -r name; do grep -qE "^(not )?ok $name(:|$)" log || echo "not ok $name with $cpus CPUs: no answer"; done <list
done
