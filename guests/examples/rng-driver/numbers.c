/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* numbers FILE COUNT: prints so many numbers of the example device, at most 512, from one read. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	static unsigned long long numbers[512];
	size_t count = argc == 3 ? strtoul(argv[2], NULL, 10) % 513 : 0;
	int file = open(argc == 3 ? argv[1] : "", O_RDONLY);
	ssize_t bytes = file < 0 ? -1 : read(file, numbers, count * sizeof(*numbers));

	if (bytes < 0)
		perror("numbers FILE COUNT");
	for (ssize_t i = 0; i < bytes / 8; i++)
		printf("%016llx\n", numbers[i]);
	return bytes < 0;
}
