/* A QEMU plugin that mends what makes COLO unsound under TCG. KVM has neither fault.
 *
 * 1. Loading a checkpoint overwrites the secondary's memory behind the translator's back. QEMU 11 drops translated
 *    code only in the run state restore-vm (accel/tcg, its handler of run state changes), not in COLO's: a promoted
 *    guest may go on with code that is no longer there. So the pages with translated code are kept when the secondary
 *    stops, and compared when it runs again: what was translated from one that changed is dropped. To drop all at each
 *    checkpoint would do as well, but costs the secondary most of its time to translate the same again.
 *
 * 2. The primary's dirty log loses writes: a vCPU goes on to write by TLB entries that the reading of the bitmap should
 *    have reset, and the secondary keeps an old page. So every TLB is flushed after the bitmap was read and before the
 *    pages are. docs/qemu.md, 2.7, has the measurements.
 *
 * All functions are QEMU's own, exported for its modules; prototypes and MemoryListener as in the headers of QEMU 11
 * (include/system/runstate.h, memory.h, ram_addr.h and ramblock.h, migration/colo.h, exec/cputlb.h, tb-flush.h and
 * translation-block.h, hw/core/cpu.h).
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { PAGE = 4096, CHUNK = 64 * PAGE, KEPT = 4096, DIRTY_MEMORY_CODE = 1 };

typedef struct CPUState CPUState;
typedef struct RAMBlock RAMBlock;
typedef union { void *pointer; uint64_t number; } RunOnCpuData;

typedef struct MemoryListener {
  void (*unused[12])(void);
  void (*log_global_after_sync)(struct MemoryListener *);
  void (*unused_too[4])(void);
  unsigned priority;
  const char *name;
  void *links[5];
} MemoryListener;

extern void *qemu_add_vm_change_state_handler(void (*changed)(void *, bool, int), void *opaque);
extern bool migration_incoming_in_colo_state(void);
extern void tb_flush__exclusive_or_serial(void);
extern void tlb_flush(CPUState *);
extern CPUState *qemu_get_cpu(int index);
extern void run_on_cpu(CPUState *, void (*work)(CPUState *, RunOnCpuData), RunOnCpuData);
extern void memory_listener_register(MemoryListener *, void *address_space);
extern char address_space_memory[];
extern int qemu_ram_foreach_block(int (*look)(RAMBlock *, void *), void *opaque);
extern void *qemu_ram_get_host_addr(RAMBlock *);
extern uint64_t qemu_ram_get_offset(RAMBlock *);
extern uint64_t qemu_ram_get_used_length(RAMBlock *);
extern uint8_t physical_memory_range_includes_clean(uint64_t start, uint64_t length, uint8_t mask);
extern void tb_invalidate_phys_range(CPUState *, uint64_t start, uint64_t last);

int qemu_plugin_version = 7;

static void flush(CPUState *cpu, RunOnCpuData data)
{
  (void)data;
  tlb_flush(cpu);
}

static void bitmap_was_read(MemoryListener *listener)
{
  (void)listener;
  CPUState *cpu;
  for (int index = 0; (cpu = qemu_get_cpu(index)); index++)
    run_on_cpu(cpu, flush, (RunOnCpuData){0});
}

static MemoryListener listener = {.log_global_after_sync = bitmap_was_read, .name = "coloha-lab"};

static struct {
  const char *host;
  uint64_t address;
} kept[KEPT];
static char copies[KEPT][PAGE];
static unsigned pages;

/* QEMU calls a page clean, to this client, while a write to it has to be noticed, since code was translated from it. */
static bool has_code(uint64_t start, uint64_t length)
{
  return physical_memory_range_includes_clean(start, length, 1 << DIRTY_MEMORY_CODE);
}

/* Nonzero ends the search: there is no room for more. */
static int keep_block(RAMBlock *block, void *opaque)
{
  const char *host = qemu_ram_get_host_addr(block);
  const uint64_t start = qemu_ram_get_offset(block), length = qemu_ram_get_used_length(block);
  (void)opaque;
  for (uint64_t offset = 0; offset < length; offset += PAGE) {
    if (offset % CHUNK == 0 && offset + CHUNK <= length && !has_code(start + offset, CHUNK)) {
      offset += CHUNK - PAGE;
    } else if (has_code(start + offset, PAGE)) {
      if (pages == KEPT)
        return 1;
      kept[pages].host = host + offset;
      kept[pages].address = start + offset;
      memcpy(copies[pages++], host + offset, PAGE);
    }
  }
  return 0;
}

static void keep_code(void)
{
  pages = 0;
  if (qemu_ram_foreach_block(keep_block, NULL)) {
    pages = 0;
    tb_flush__exclusive_or_serial();
  }
}

static void drop_what_changed(void)
{
  for (; pages; pages--) {
    const uint64_t address = kept[pages - 1].address;
    if (memcmp(copies[pages - 1], kept[pages - 1].host, PAGE))
      tb_invalidate_phys_range(NULL, address, address + PAGE - 1);
  }
}

static void changed(void *opaque, bool running, int state)
{
  static bool registered;
  (void)opaque;
  (void)state;
  if (!registered) { /* when the plugin was loaded, there was no memory yet */
    registered = true;
    memory_listener_register(&listener, address_space_memory);
  }
  /* The secondary stops before it loads; nothing is translated until it runs again, as whatever it is by then. */
  if (running)
    drop_what_changed();
  else if (migration_incoming_in_colo_state())
    keep_code();
}

int qemu_plugin_install(uint64_t id, const void *info, int argc, char **argv)
{
  (void)id;
  (void)info;
  (void)argc;
  (void)argv;
  qemu_add_vm_change_state_handler(changed, NULL);
  return 0;
}
