# SPDX-License-Identifier: MIT OR Apache-2.0
# Debian's Xen on two CPUs, with a stock kernel and its initial file system as modules: the first process of the kernel speaks under it.
# The kernel is the host's own, as those for clouds cannot be Xen's first.
# bed: --kernel stock --with-kernel --timeout 900 --add build/guests/packaged/xen --add build/guests/linux/initramfs
. ./common.sh
cat >xen.toml <<-TOML
	memory = "640M"
	vcpus = 2
	kernel = "xen"
	cmdline = "console=com1 dom0_mem=320M"
	[[module]]
	file = "/boot/vmlinuz"
	cmdline = "console=hvc0 v3.token=under-xen v3.script=poweroff"
	[[module]]
	file = "initramfs"
TOML
v3 run -b xen.toml --timeout 600 </dev/null >log 2>&1
status=$?
sed "s/^/xen| /" log
check "Xen brings up both CPUs" grep -q "(XEN) Brought up 2 CPUs" log
check "a stock kernel's first process speaks under Xen" grep -q "guest: token under-xen" log
check "Xen switches the machine off" [ $status = 0 ]
