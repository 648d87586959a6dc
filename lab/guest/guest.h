/* What the lab guest's two halves know of each other. */
#pragma once
#include <netinet/in.h>

/* Says on the console what failed and why (errno), and powers the machine off. */
_Noreturn void die(const char *what);

/* The service writes each answer to the file `log` in the root of so many disks before it gives it. */
extern int logs;

/* The service: `dirty` pages written per second, `beacon` microseconds between datagrams, 0 turns either off. */
_Noreturn void serve(struct in_addr broadcast, long dirty, long beacon);
