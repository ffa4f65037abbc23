# SPDX-License-Identifier: MIT OR Apache-2.0
# The lightweight kernel keeps the host contract: every check, on one core and on three.
. "$TOP/tests/lwk/common.sh"
for cpus in 1 2; do
	lwk_run --cpus $cpus --append conformance
	check "the kernel switches off, $cpus cores for guests" [ $? = 0 ]
	sed -nE "s/^lwk: ((not )?ok .*)/\1, $cpus cores for guests/p" log
	for last in "guest RAM" "kicks"; do said "^lwk: ok $last$" || echo "not ok $last, $cpus cores for guests: no answer"; done
done
