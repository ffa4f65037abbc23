/* SPDX-License-Identifier: MIT OR Apache-2.0 */
#pragma once

void console_init(void);
void print(const char *text);
void print_number(unsigned number);
