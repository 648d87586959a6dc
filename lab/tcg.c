/* A QEMU plugin that mends what makes COLO unsound under TCG. KVM has neither fault.
 *
 * 1. Loading a checkpoint overwrites the secondary's memory behind the translator's back. QEMU 11 drops translated
 *    code only in the run state restore-vm (accel/tcg, its handler of run state changes), not in COLO's: a promoted
 *    guest may go on with code that is no longer there. So it is dropped when the secondary stops.
 *
 * 2. The primary's dirty log loses writes: a vCPU goes on to write by TLB entries that the reading of the bitmap should
 *    have reset, and the secondary keeps an old page. So every TLB is flushed after the bitmap was read and before the
 *    pages are. docs/qemu.md, 2.7, has the measurements.
 *
 * All functions are QEMU's own, exported for its modules; prototypes and MemoryListener as in the headers of QEMU 11
 * (include/system/runstate.h and memory.h, migration/colo.h, exec/tb-flush.h, exec/cputlb.h, hw/core/cpu.h).
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct CPUState CPUState;
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

static void changed(void *opaque, bool running, int state)
{
  static bool registered;
  (void)opaque;
  (void)state;
  if (!registered) { /* when the plugin was loaded, there was no memory yet */
    registered = true;
    memory_listener_register(&listener, address_space_memory);
  }
  /* The secondary stops before it loads; nothing is translated until it runs again. */
  if (!running && migration_incoming_in_colo_state())
    tb_flush__exclusive_or_serial();
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
