# SPDX-License-Identifier: MIT OR Apache-2.0
# What the most telling exits cost a guest, in instructions of guest and host together: no more than exit-costs says, and a twentieth of that. If an
# exit has become cheaper, or is worth more than before, write its new figure there. `make bench` measures all of them, beside KVM.
# bed: --kernel stock --icount --add build/guests/tmk/tmk --add tests/bed/exit-costs
. ./common.sh

names=$(sed -n 's/^\([a-z0-9_]*\) .*/\1/p' exit-costs)
wanted=$(echo empty $names | tr ' ' ,)
for run in 1 2; do
	v3 run --kernel tmk --mem 64 --append "bench=$wanted" </dev/null >said.$run
	# bench NAME ROUNDS TICKS; the empty loop's ticks are no round's.
	awk '$1 == "bench" { if ($2 == "empty") empty = $4 / $3; else printf "%s %d\n", $2, $4 / $3 - empty + 0.5 }' said.$run >costs.$run
done
check "the figures repeat exactly" cmp costs.1 costs.2
cheap() { [ -n "$2" ] && [ $2 -le $(($1 + $1 / 20)) ]; }
while read name most; do
	case $name in \#*) continue ;; esac
	cost=$(sed -n "s/^$name //p" costs.1)
	echo "$name: $cost, at most $most and a twentieth"
	check "$name costs no more than it did" cheap $most "$cost"
done <exit-costs
