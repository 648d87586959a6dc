/* A QEMU plugin that makes COLO sound under TCG: it drops all translated code before a checkpoint is loaded.
 *
 * Loading a checkpoint overwrites the secondary's memory behind the translator's back. QEMU 11 drops the
 * translations only in the run state restore-vm (accel/tcg, its handler of run state changes), not in COLO's:
 * a promoted guest may go on with code that is no longer there. KVM translates nothing and needs none of this.
 *
 * The functions are QEMU's own, exported for its modules; their prototypes are in QEMU's include/system/runstate.h,
 * include/migration/colo.h and include/exec/tb-flush.h.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

extern void *qemu_add_vm_change_state_handler(void (*changed)(void *, bool, int), void *opaque);
extern bool migration_incoming_in_colo_state(void);
extern void tb_flush__exclusive_or_serial(void);

int qemu_plugin_version = 7;

static void changed(void *opaque, bool running, int state)
{
  (void)opaque;
  (void)state;
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
