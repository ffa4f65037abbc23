# SPDX-License-Identifier: MIT OR Apache-2.0
# The lightweight kernel keeps the host contract: every check, on one core and on three.
. "$TOP/tests/lwk/common.sh"
for cpus in 1 2; do
	lwk_run --cpus $cpus --append conformance
	check "the kernel switches off, $cpus cores for guests" [ $? = 0 ]
	sed -nE "s/^lwk: ((not )?ok .*)/\1, $cpus cores for guests/p" log
	check "conformance came to its end, $cpus cores for guests" said "^lwk: [0-9]+ checks passed, 0 failed, 0 were not run$"
done
