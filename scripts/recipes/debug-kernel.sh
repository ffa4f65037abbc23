#!/bin/bash
# SPDX-License-Identifier: MIT OR Apache-2.0
# Runs inside the host root: debug-kernel.sh SOURCE_DIR OBJECT_DIR
#
# Builds the kernel of debug-kernel.config from the stock kernel's source, with its compilers. Leaves the image, the
# modules in OBJECT_DIR/modules, and the build tree for modules of our own.
set -euo pipefail
source=$1 object=$2
gcc=$(sed -n 's/^CONFIG_CC_VERSION_TEXT="\([^ ]*\) .*/\1/p' /build/obj/.config)
kmake() {
	make -C "$source" O="$object" ARCH=x86 CROSS_COMPILE=x86_64-linux-gnu- CC="$gcc" HOSTCC="$gcc" LOCALVERSION=-v3 \
		-j"$(nproc)" "$@"
}
kmake tinyconfig
(cd "$object" && "$source/scripts/kconfig/merge_config.sh" -m -O "$object" .config debug-kernel.config)
kmake olddefconfig
# An option whose dependency is missing is dropped in silence: it must not be.
dropped=$(grep -E '^CONFIG_' "$object/debug-kernel.config" | while read -r line; do
	case $line in
	*=n) ! grep -q "^${line%=n}=" "$object/.config" ;;
	*) grep -qx "$line" "$object/.config" ;;
	esac || echo "$line"
done)
[ -z "$dropped" ] || { echo "The configuration lost: $dropped" >&2; exit 1; }
kmake bzImage modules
kmake modules_install INSTALL_MOD_PATH="$object/modules"

# Objects are most of the tree, and no module is built from them.
find "$object" -path "$object/scripts" -prune -o -path "$object/tools" -prune -o -path "$object/modules" -prune -o \
	\( -name '*.o' -o -name '*.a' -o -name '.*.cmd' \) -type f -exec rm {} +
