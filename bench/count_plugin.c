/* QEMU plugin (API 1, qemu-user 7.2 on): how many guest instructions run within address ranges.
 *
 *   qemu-aarch64 -plugin libcount.so,ranges=0x4010-0x4080:0x5000-0x5100 -d plugin program
 *
 * prints one count per range, in order. Counts are exact and the
 * same in every run of a program that does the same. What QEMU offers is declared here, since its
 * header is not packaged.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t plugin_id;
struct tb;
struct insn;
struct info;
void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id id, void (*call)(plugin_id, struct tb*));
void qemu_plugin_register_atexit_cb(plugin_id id, void (*call)(plugin_id, void*), void* data);
void qemu_plugin_register_vcpu_insn_exec_inline(struct insn* insn, int add, void* to, uint64_t by);
size_t qemu_plugin_tb_n_insns(const struct tb* tb);
struct insn* qemu_plugin_tb_get_insn(const struct tb* tb, size_t index);
uint64_t qemu_plugin_insn_vaddr(const struct insn* insn);
void qemu_plugin_outs(const char* text);

__attribute__((visibility("default"))) int qemu_plugin_version = 1;

enum { kMost = 8192 };
static struct {
  uint64_t begin, end, count;
} range[kMost];
static int ranges;

static void translate(plugin_id id, struct tb* tb) {
  (void)id;
  for (size_t i = 0; i < qemu_plugin_tb_n_insns(tb); ++i) {
    struct insn* insn = qemu_plugin_tb_get_insn(tb, i);
    const uint64_t at = qemu_plugin_insn_vaddr(insn);
    for (int r = 0; r < ranges; ++r) {
      if (range[r].begin <= at && at < range[r].end) {
        qemu_plugin_register_vcpu_insn_exec_inline(insn, 0, &range[r].count, 1);
      }
    }
  }
}

static void finish(plugin_id id, void* data) {
  (void)id, (void)data;
  char line[32];
  for (int r = 0; r < ranges; ++r) {
    snprintf(line, sizeof line, "%" PRIu64 "\n", range[r].count);
    qemu_plugin_outs(line);
  }
}

__attribute__((visibility("default"))) int qemu_plugin_install(plugin_id id,
                                                               const struct info* info, int count,
                                                               char** argument) {
  (void)info;
  for (int i = 0; i < count; ++i) {
    if (strncmp(argument[i], "ranges=", 7) != 0) return -1;
    for (char* p = argument[i] + 7; *p && ranges < kMost; ++ranges) {
      range[ranges].begin = strtoull(p, &p, 16);
      if (*p++ != '-') return -1;
      range[ranges].end = strtoull(p, &p, 16);
      if (*p == ':') ++p;
    }
  }
  qemu_plugin_register_vcpu_tb_trans_cb(id, translate);
  qemu_plugin_register_atexit_cb(id, finish, NULL);
  return 0;
}
