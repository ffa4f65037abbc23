// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * A plugin of QEMU's (-plugin file=tracer.so,out=FILE,first=N,count=N) that writes down each instruction of `count` rounds of each bench, behind the
 * `first`, the host's as well as the guest's. Rounds are marked by the benches: guests/tmk/src/bench, disk_cost.rs. A line of the file is one of
 *
 *   round                 a round begins that is written down
 *   end                   a bench has ended
 *   ADDRESS CLASS COUNT   an instruction: its address; what it is if that costs more than others (class_of), or -; how often in a row, as those
 *                         that repeat count each time
 */
#include <inttypes.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

/* What QEMU calls these in qemu-plugin.h, which distributions do not pack. */
#define PLUGIN_API 7
enum condition { NEVER, ALWAYS, EQUAL, NOT_EQUAL };
typedef uint64_t plugin_id;
struct plugin_info;
struct plugin_block;
struct plugin_instruction;
struct plugin_scoreboard;
struct plugin_u64 {
	struct plugin_scoreboard *board;
	size_t offset;
};
typedef void (*on_instruction)(unsigned int cpu, void *data);

extern void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id, void (*)(struct plugin_block *, void *), void *);
extern void qemu_plugin_register_vcpu_insn_exec_cb(struct plugin_instruction *, on_instruction, int flags, void *data);
extern void qemu_plugin_register_vcpu_insn_exec_cond_cb(struct plugin_instruction *, on_instruction, int flags, enum condition, struct plugin_u64,
							uint64_t, void *data);
extern size_t qemu_plugin_tb_n_insns(const struct plugin_block *);
extern struct plugin_instruction *qemu_plugin_tb_get_insn(const struct plugin_block *, size_t);
extern size_t qemu_plugin_insn_data(const struct plugin_instruction *, void *, size_t);
extern uint64_t qemu_plugin_insn_vaddr(const struct plugin_instruction *);
extern void qemu_plugin_register_atexit_cb(plugin_id, void (*)(plugin_id, void *), void *);
extern struct plugin_scoreboard *qemu_plugin_scoreboard_new(size_t);
extern void qemu_plugin_u64_set(struct plugin_u64, unsigned int cpu, uint64_t);

#define EXPORT __attribute__((visibility("default")))
EXPORT int qemu_plugin_version = PLUGIN_API;

static FILE *out;
static unsigned long first, count, round_number;
/* Not zero: instructions are written down. */
static struct plugin_u64 writes;

static bool is_reg(unsigned char modrm)
{
	return modrm >> 6 == 3;
}

static char class_of_0f(const unsigned char *code)
{
	unsigned char modrm = code[1], group = modrm >> 3 & 7;

	switch (code[0]) {
	case 0x01:
		switch (modrm) {
		case 0xd0: return 'g';			/* XGETBV */
		case 0xd1: return 'b';			/* XSETBV */
		case 0xd8: case 0xda: case 0xdb: return 'v';	/* VMRUN, VMLOAD, VMSAVE */
		case 0xc2: case 0xc3: return 'v';	/* VMLAUNCH, VMRESUME */
		case 0xef: return 'k';			/* WRPKRU */
		case 0xf9: return 't';			/* RDTSCP */
		}
		return '-';
	case 0x22: return 'c';				/* MOV to CR */
	case 0x30: return 'w';
	case 0x31: return 't';
	case 0x32: return 'r';
	case 0x78: case 0x79: return 'f';		/* VMREAD, VMWRITE */
	case 0xae:
		return !is_reg(modrm) && (group == 4 || group == 5 || group == 6 || group == 0 || group == 1) ? 'x' : '-';
	case 0xc7:
		return !is_reg(modrm) && (group == 3 || group == 4 || group == 5) ? 'x' : '-';
	}
	return '-';
}

/* w WRMSR, r RDMSR, x saving or loading extended state, b XSETBV, g XGETBV, k WRPKRU, v entry and VMLOAD or VMSAVE, f a VMCS field, c a control
 * register, l locked, t RDTSC. */
static char class_of(const unsigned char *code)
{
	bool locked = false;

	for (;; code++) {
		switch (*code) {
		case 0xf0: locked = true; continue;
		case 0x26: case 0x2e: case 0x36: case 0x3e: case 0x64: case 0x65: case 0x66: case 0xf2: case 0xf3: continue;
		}
		break;
	}
	if ((*code & 0xf0) == 0x40)
		code++;
	if (locked || ((*code == 0x86 || *code == 0x87) && !is_reg(code[1])))
		return 'l';
	return *code == 0x0f ? class_of_0f(code + 1) : '-';
}

/* The instruction that was executed last, and how often in a row. */
static intptr_t last;
static unsigned long times;

static void write_last(void)
{
	if (times)
		fprintf(out, "%" PRIx64 " %c %lu\n", (uint64_t)(last >> 8), (char)(last & 0xff), times);
	times = 0;
}

static void instruction(unsigned int cpu, void *data)
{
	if (last != (intptr_t)data)
		write_last();
	last = (intptr_t)data;
	times++;
}

static void begin_round(unsigned int cpu, void *data)
{
	bool is_written = round_number >= first && round_number < first + count;

	round_number++;
	write_last();
	if (is_written)
		fputs("round\n", out);
	qemu_plugin_u64_set(writes, cpu, is_written);
}

static void end_bench(unsigned int cpu, void *data)
{
	round_number = 0;
	write_last();
	qemu_plugin_u64_set(writes, cpu, 0);
	fputs("end\n", out);
	fflush(out);
}

static void translated(struct plugin_block *block, void *data)
{
	static const unsigned char mark[] = { 0x0f, 0x1f, 0x80, 'v', '3', 'v' };
	size_t n;

	for (n = 0; n < qemu_plugin_tb_n_insns(block); n++) {
		struct plugin_instruction *one = qemu_plugin_tb_get_insn(block, n);
		unsigned char code[16] = { 0 };
		intptr_t packed;

		qemu_plugin_insn_data(one, code, sizeof(code) - 1);
		if (!memcmp(code, mark, sizeof(mark))) {
			qemu_plugin_register_vcpu_insn_exec_cb(one, code[6] == 'e' ? end_bench : begin_round, 0, NULL);
			continue;
		}
		/* Addresses are of 48 bits, with a sign. */
		packed = (intptr_t)(qemu_plugin_insn_vaddr(one) << 8) | class_of(code);
		qemu_plugin_register_vcpu_insn_exec_cond_cb(one, instruction, 0, NOT_EQUAL, writes, 0, (void *)packed);
	}
}

static void at_exit(plugin_id id, void *data)
{
	fflush(out);
}

EXPORT int qemu_plugin_install(plugin_id id, const struct plugin_info *info, int word_count, char **words)
{
	int n;

	for (n = 0; n < word_count; n++) {
		if (!strncmp(words[n], "out=", 4))
			out = fopen(words[n] + 4, "w");
		sscanf(words[n], "first=%lu", &first);
		sscanf(words[n], "count=%lu", &count);
	}
	if (!out)
		return 1;
	writes.board = qemu_plugin_scoreboard_new(sizeof(uint64_t));
	qemu_plugin_register_vcpu_tb_trans_cb(id, translated, NULL);
	qemu_plugin_register_atexit_cb(id, at_exit, NULL);
	return 0;
}
