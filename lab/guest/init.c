/* The lab guest's init: drivers, network interfaces, disks, then the service; nothing else runs.
 *
 * Words on the kernel's command line: ip4=ADDRESS/PREFIX (10.77.0.10/24), second=ADDRESS/PREFIX (of eth1; none),
 * logs=DISKS (0: how many have an ext4 file system, for the service to write to), dirty=PAGES_PER_SECOND (0),
 * beacon=MICROSECONDS (0: none). What goes wrong is said on the console, and the machine powers off.
 */
#include "guest.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/input.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/syscall.h>
#include <unistd.h>

void die(const char *what)
{
    dprintf(STDERR_FILENO, "lab guest: FAILED: %s: %s\n", what, strerror(errno));
    reboot(RB_POWER_OFF);
    exit(1); /* without power management: the kernel panics, init being gone */
}

/* Loads the modules listed in /modules/order; what is built into the kernel is not listed. */
static void load_modules(void)
{
    char name[64], path[96];
    FILE *order = fopen("/modules/order", "re");
    if (!order)
        die("/modules/order");
    while (fscanf(order, "%63s", name) == 1) {
        snprintf(path, sizeof path, "/modules/%s.ko", name);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) < 0 && errno != EEXIST))
            dprintf(STDERR_FILENO, "lab guest: %s: %s\n", path, strerror(errno));
        close(fd);
    }
    fclose(order);
}

/* Copies the value of the last `key=value` word, if there is one. */
static void option(const char *words, const char *key, char *value, size_t size)
{
    for (const char *at = words; (at = strstr(at, key)); at++)
        if ((at == words || at[-1] == ' ') && at[strlen(key)] == '=')
            snprintf(value, size, "%.*s", (int)strcspn(at + strlen(key) + 1, " \n"), at + strlen(key) + 1);
}

/* IPv6 would speak unasked, in the middle of what is measured. A kernel without it has no such files. */
static void silence_ipv6(void)
{
    static const char *const switches[] = {"/proc/sys/net/ipv6/conf/all/disable_ipv6",
                                           "/proc/sys/net/ipv6/conf/default/disable_ipv6"};
    for (int k = 0; k < 2; k++) {
        int fd = open(switches[k], O_WRONLY | O_CLOEXEC);
        if (fd >= 0 && write(fd, "1", 1) < 0)
            die(switches[k]);
        close(fd);
    }
}

static void set_address(const char *name, int fd, unsigned long request, in_addr_t address)
{
    struct ifreq interface = {0};
    struct sockaddr_in value = {.sin_family = AF_INET, .sin_addr = {address}};
    strncpy(interface.ifr_name, name, IFNAMSIZ - 1);
    memcpy(&interface.ifr_addr, &value, sizeof value);
    if (ioctl(fd, request, &interface) < 0)
        die(name);
}

static void bring_up(const char *name)
{
    struct ifreq interface = {.ifr_flags = IFF_UP};
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    strncpy(interface.ifr_name, name, IFNAMSIZ - 1);
    if (ioctl(fd, SIOCSIFFLAGS, &interface) < 0)
        die(name);
    close(fd);
}

/* Gives an interface the address of a word, whose key is `key`; returns the network's broadcast address. */
static struct in_addr configure(const char *name, const char *key, char *cidr)
{
    struct in_addr address, broadcast;
    char *slash = strchr(cidr, '/');
    int prefix = slash ? atoi(slash + 1) : 0, fd = socket(AF_INET, SOCK_DGRAM, 0);
    if (slash)
        *slash = 0;
    char what[96];
    snprintf(what, sizeof what, "%s= must be ADDRESS/PREFIX", key);
    errno = EINVAL;
    if (prefix < 1 || prefix > 30 || inet_pton(AF_INET, cidr, &address) != 1)
        die(what);
    in_addr_t mask = htonl(~0u << (32 - prefix));
    broadcast.s_addr = address.s_addr | ~mask;
    snprintf(what, sizeof what, "no %s within 3 s (is there a virtio-net-pci device, and a driver for it?)", name);
    for (int tries = 0; if_nametoindex(name) == 0; tries++) {
        if (tries == 300)
            die(what);
        usleep(10000);
    }
    set_address(name, fd, SIOCSIFADDR, address.s_addr);
    set_address(name, fd, SIOCSIFNETMASK, mask);
    set_address(name, fd, SIOCSIFBRDADDR, broadcast.s_addr);
    close(fd);
    bring_up(name);
    return broadcast;
}

/* Switches the machine off when its power button is pressed: a process that waits for that. */
static void heed_power_button(void)
{
    struct input_event event;
    char path[32], name[64] = "";
    int fd = -1;
    for (int k = 0; k < 8 && strcmp(name, "Power Button"); k++) {
        close(fd);
        snprintf(path, sizeof path, "/dev/input/event%d", k);
        fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0 || ioctl(fd, EVIOCGNAME(sizeof name), name) < 0)
            *name = 0;
    }
    if (strcmp(name, "Power Button"))
        dprintf(STDERR_FILENO, "lab guest: there is no power button\n");
    else if (fork() == 0)
        while (read(fd, &event, sizeof event) == sizeof event)
            if (event.type == EV_KEY && event.code == KEY_POWER) {
                sync();
                reboot(RB_POWER_OFF);
            }
    close(fd);
}

/* Mounts the first disks: /dev/vda at /disk0, and so on. */
static void mount_disks(int disks)
{
    for (int k = 0; k < disks; k++) {
        char device[] = "/dev/vda", place[] = "/disk0";
        device[sizeof device - 2] += k;
        place[sizeof place - 2] += k;
        for (int tries = 0; access(device, F_OK) < 0; tries++) {
            if (tries == 300)
                die(device);
            usleep(10000);
        }
        if (mount(device, place, "ext4", 0, "errors=remount-ro") < 0)
            die(place);
    }
}

int main(void)
{
    char words[4096] = "", ip4[32] = "10.77.0.10/24", dirty[16] = "0", beacon[16] = "0";
    char second[32] = "", disks[4] = "0";
    if (mount("proc", "/proc", "proc", 0, 0) < 0)
        die("/proc");
    int fd = open("/proc/cmdline", O_RDONLY | O_CLOEXEC);
    if (fd < 0 || read(fd, words, sizeof words - 1) < 0)
        die("/proc/cmdline");
    close(fd);
    option(words, "ip4", ip4, sizeof ip4);
    option(words, "dirty", dirty, sizeof dirty);
    option(words, "beacon", beacon, sizeof beacon);
    option(words, "second", second, sizeof second);
    option(words, "logs", disks, sizeof disks);
    silence_ipv6();
    load_modules();
    if (mount("devtmpfs", "/dev", "devtmpfs", 0, 0) < 0)
        die("/dev");
    heed_power_button();
    logs = atoi(disks);
    mount_disks(logs);
    bring_up("lo");
    if (*second)
        configure("eth1", "second", second);
    serve(configure("eth0", "ip4", ip4), atol(dirty), atol(beacon));
}
