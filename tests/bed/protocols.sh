# SPDX-License-Identifier: MIT OR Apache-2.0
# One kernel by each boot protocol, with a module; and what firmware left for it.
# bed: --machines svm,svm-bochs,vtx --kernel stock --add build/guests/tmk/tmk --add build/guests/tmk/tmk.bzimage
. ./common.sh
passes() { v3 run --timeout 100 --expect 1 "$@" </dev/null >log 2>&1 || { tail -n 5 log; return 1; }; }
echo "words of a module" >words

# definition PROTOCOL HOW: a guest.toml of a kernel that gets the file as a module, or as an initial file system.
definition() {
	cat >"$1-$2.toml" <<-TOML
		memory = "64M"
		kernel = "tmk"
		boot = "$1"
		cmdline = "test=boot_protocol protocol=$1 module=words mib=64"
		$([ $2 = module ] && printf '[[module]]\nfile = "words"' || echo 'initrd = "words"')
	TOML
}
for protocol in multiboot multiboot2 pvh; do
	for how in module initrd; do
		definition $protocol $how
		check "$protocol, with a file as its $how" passes -b $protocol-$how.toml
	done
done
linux="--kernel tmk.bzimage --initrd words --mem 64 --append test=boot_protocol"
check "a 32-bit bzImage of an old protocol, whose last paragraph is short" passes $linux --cmdline "protocol=linux module=words mib=64"
check "what firmware leaves" passes --kernel tmk --append test=as_firmware_leaves_it
