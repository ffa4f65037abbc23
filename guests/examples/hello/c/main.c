/* SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "console.h"
#include "machine.h"
#include "multiboot.h"

/* The number behind `name` in `line`, or -1 if the name is not there. */
static int option(const char *line, const char *name)
{
	for (; *line; line++) {
		const char *at = line, *rest = name;
		int number = 0;

		while (*rest && *rest == *at)
			rest++, at++;
		if (*rest)
			continue;
		while (*at >= '0' && *at <= '9')
			number = number * 10 + (*at++ - '0');
		return number;
	}
	return -1;
}

void kernel_main(uint32_t magic, const struct loader_info *info)
{
	int status;

	console_init();
	if (magic != LOADER_MAGIC) {
		print("no Multiboot loader started me\n");
		return;
	}
	print("Hello from C!\nmy command line: ");
	print(command_line(info));
	print("\n");
	status = option(command_line(info), "exit=");
	if (status >= 0)
		test_exit(status);
	power_off();
}
