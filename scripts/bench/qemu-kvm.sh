# SPDX-License-Identifier: MIT OR Apache-2.0
# For scripts that run guests under KVM on an emulated host, by `. ./qemu-kvm.sh`: QEMU of build/guests/disk/qemu.cpio.
modprobe kvm-amd
(cd / && cpio -i -d 2>/dev/null) <qemu.cpio
rm qemu.cpio
ln -sf ../seabios/bios-256k.bin /usr/share/qemu/

# A guest with the host's processor, and no more than a serial port unless further options say so.
qemu_kvm="qemu-system-x86_64 -nodefaults -no-user-config -display none -machine q35,accel=kvm -cpu host -no-reboot -serial stdio"
