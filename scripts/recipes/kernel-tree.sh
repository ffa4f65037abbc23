#!/bin/bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# Runs inside the host root: kernel-tree.sh RELEASE SOURCE_DIR OBJECT_DIR
#
# Debian's headers package has no Rust metadata. This makes a build tree that has it, from the same source, .config and
# compilers, and then holds it against the stock kernel: same configuration, same release, every Rust symbol exported.
set -euo pipefail
release=$1 source=$2 object=$3
headers=/usr/src/linux-headers-$release

# Crate hashes are part of symbol names: another compiler would make modules that find no symbol.
want=$(sed -n 's/^CONFIG_RUSTC_VERSION_TEXT="\(.*\)"/\1/p' "$headers/.config")
have=$(rustc --version)
[ "$want" = "$have" ] || { echo "The kernel was built by '$want', the root has '$have'." >&2; exit 1; }

gcc=$(sed -n 's/^CONFIG_CC_VERSION_TEXT="\([^ ]*\) .*/\1/p' "$headers/.config")
version=$(make -s -C "$source" kernelversion)
kmake() {
	make -C "$source" O="$object" ARCH=x86 CROSS_COMPILE=x86_64-linux-gnu- CC="$gcc" HOSTCC="$gcc" \
		LOCALVERSION="${release#"$version"}" -j"$(nproc)" "$@"
}
mkdir -p "$object"
cp "$headers/.config" "$object/.config"
kmake olddefconfig
# `modules_prepare`, not `prepare`: it makes module.lds too.
kmake modules_prepare
cp "$headers/Module.symvers" "$object/"

# A config line that moved can move a struct.
settings() { grep -E '^(CONFIG_|# CONFIG_)' "$1" | grep -vE 'CONFIG_(CC_VERSION_TEXT|BUILD_SALT|LOCALVERSION)' | sort; }
if ! diff <(settings "$headers/.config") <(settings "$object/.config"); then
	echo "The configuration above differs from the stock kernel's." >&2
	exit 1
fi
[ "$(cat "$object/include/config/kernel.release")" = "$release" ]
missing=$(comm -23 \
	<(cat "$object"/rust/exports_{core,helpers,bindings,kernel}_generated.h | sed -E 's/.*\((.*)\);/\1/' | sort) \
	<(awk '$3 == "vmlinux" { print $2 }' "$object/Module.symvers" | sort))
[ -z "$missing" ] || { echo "Rust symbols that the stock kernel lacks:" $missing >&2; exit 1; }
echo "$gcc" >"$object/v3vee.cc"
