/* SPDX-License-Identifier: MIT OR Apache-2.0 */
#include "console.h"
#include "machine.h"
#include "multiboot.h"

/* The number behind `name` at the start of a word of `line`, or -1 if there is none from 0 to 255. */
static int option(const char *line, const char *name)
{
	for (const char *word = line; *word; word++) {
		const char *at = word, *rest = name;
		int number = 0, digits = 0;

		if (word != line && word[-1] != ' ')
			continue;
		while (*rest && *rest == *at)
			rest++, at++;
		while (!*rest && *at >= '0' && *at <= '9' && number <= 255)
			number = number * 10 + (*at++ - '0'), digits++;
		if (digits && number <= 255 && (!*at || *at == ' '))
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
