# SPDX-License-Identifier: MIT OR Apache-2.0
# On the emulated host, for `make bed`: says where one is, and gives a shell.
cat <<TEXT

This is an emulated host: Linux $(uname -r) with v3vee.ko and the command v3. All that is on it is gone when you leave.

  v3 run guest.img                                      a Linux guest and its console; poweroff ends it
  v3 run --kernel tmk --append test=cpuid_signature     one of the tiny test kernels; test=list names all
  v3 --help                                             all else

Files here: $(ls -p | grep -v / | tr '\n' ' ')
To leave: exit, poweroff, or at any time Ctrl-A x.

TEXT
PS1='host:\w# ' sh
# What the last command said is not about this session.
exit 0
