# SPDX-License-Identifier: MIT OR Apache-2.0
# For the tests beside it, which run on this machine, in a folder of their own: TOP is the checkout.
set -u
PATH=$TOP/build/tools:$TOP/scripts:$PATH
check() { name=$1; shift; if "$@"; then echo "ok $name"; else echo "not ok $name"; fi; }

# image NAME MIB VCPUS COMMAND-LINE [FILE]: NAME.img, with the tiny test kernel in it, as an ELF file or as FILE.
image() {
	cat >"$1.toml" <<-TOML
		name = "$1"
		memory = "$2M"
		test_device = true
		vcpus = $3
		kernel = "$TOP/build/guests/tmk/${5-tmk}"
		cmdline = "$4"
	TOML
	v3 build "$1.toml" -o "$1.img"
}

# lwk_run [OPTION]…: what the serial ports said is in `log`.
lwk_run() { lwk run "$@" </dev/null 2>&1 | tr -d '\r' >log; return "${PIPESTATUS[0]}"; }
said() { grep -qE -- "$1" log || { echo "did not say: $1"; tail -n 5 log; return 1; }; }
silent() { ! grep -E -- "$1" log; }
# before A B: both were said, A first.
before() {
	a=$(grep -nE -m1 -- "$1" log | cut -d: -f1) b=$(grep -nE -- "$2" log | tail -n 1 | cut -d: -f1)
	[ -n "$a" ] && [ -n "$b" ] && [ "$a" -lt "$b" ] || { echo "not in this order: $1 (line $a), $2 (line $b)"; return 1; }
}
