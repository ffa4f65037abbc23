/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* What the loader leaves in memory (Multiboot 0.6.96: 3.3): as far as we read it. */
#pragma once
#include <stdint.h>

enum { LOADER_MAGIC = 0x2badb002, HAS_COMMAND_LINE = 1 << 2 };

struct loader_info {
	uint32_t flags;
	uint32_t memory_below_1m_kib;
	uint32_t memory_above_1m_kib;
	uint32_t boot_device;
	uint32_t command_line;
};

static inline const char *command_line(const struct loader_info *info)
{
	return info->flags & HAS_COMMAND_LINE ? (const char *)info->command_line : "";
}
