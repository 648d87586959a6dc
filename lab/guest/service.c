/* The lab guest's service.
 *
 * TCP port 7, the counter: a line "TOKEN" is answered by the line "TOKEN VALUE", where VALUE is one
 * counter for all clients, grown by one per request. A client can match each answer to its request,
 * and tell a lost, a repeated and a reversed answer apart. The lines "poweroff" and "reboot" are
 * obeyed instead. With disks each answer is first written to all of them, and synced: a line
 * "VALUE TOKEN SUM", where SUM is the FNV-1a hash of "VALUE TOKEN" in hexadecimal digits.
 *
 * UDP port 7777, the beacon: the network's broadcast address receives "COLOHA" and three 64-bit
 * big-endian words: a number that grows by one per datagram, the mark of the datagram before, and
 * its own. Marks depend on the clock, so two machines that go on from the same state part at once,
 * and an observer sees which state each went on from.
 */
#include "guest.h"

#include <arpa/inet.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/reboot.h>
#include <time.h>
#include <unistd.h>

enum { COUNTER_PORT = 7, BEACON_PORT = 7777, CLIENTS = 64, LINE = 128, PAGE = 4096, PAGES = 8192 };

struct client {
    int fd;
    size_t in_length, out_length;
    char in[4096], out[8192];
};

int logs;
static int log_files[4];
static uint64_t counter;
static struct client clients[CLIENTS];
static struct in_addr broadcast;

static void sleep_us(long us)
{
    nanosleep(&(struct timespec){us / 1000000, us % 1000000 * 1000}, 0);
}

/* Writes to `pages_per_second` pages of a 32 MiB area in turn, in steps of 10 ms. */
static void *dirty_memory(void *pages_per_second)
{
    const long rate = (long)pages_per_second;
    volatile char *memory = calloc(PAGES, PAGE);
    long owed = 0, next = 0;
    if (!memory)
        die("no memory to dirty");
    for (;;) {
        sleep_us(10000);
        for (owed += rate; owed >= 100; owed -= 100)
            memory[next++ % PAGES * PAGE]++;
    }
    return 0;
}

/* A mark that no other course of events comes to. */
static uint64_t next_mark(uint64_t mark)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (mark ^ now.tv_nsec ^ (uint64_t)now.tv_sec << 32) * 0x9e3779b97f4a7c15u + 1;
}

static void *send_beacons(void *interval_us)
{
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(BEACON_PORT), .sin_addr = broadcast};
    int one = 1, fd = socket(AF_INET, SOCK_DGRAM, 0);
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_BROADCAST, &one, sizeof one) < 0)
        die("no beacon socket");
    for (uint64_t number = 1, before = 0;;) {
        uint64_t mark = next_mark(before);
        struct {
            char magic[6];
            uint64_t number, before, mark;
        } __attribute__((packed)) beacon = {"COLOHA", htobe64(number), htobe64(before), htobe64(mark)};
        if (sendto(fd, &beacon, sizeof beacon, 0, (struct sockaddr *)&to, sizeof to) == sizeof beacon) {
            number++; /* a number that was not sent must not look like a lost one */
            before = mark;
        }
        sleep_us((long)interval_us);
    }
    return 0;
}

static void drop(struct client *c)
{
    close(c->fd);
    c->fd = -1;
}

/* "poweroff" and "reboot" are orders, not tokens. */
static void obey(const char *line, const char *end)
{
    if (end - line == 8 && !memcmp(line, "poweroff", 8)) {
        sync();
        reboot(RB_POWER_OFF);
    }
    if (end - line == 6 && !memcmp(line, "reboot", 6))
        reboot(RB_AUTOBOOT);
}

static void open_logs(void)
{
    for (int k = 0; k < logs; k++) {
        char path[] = "/disk0/log";
        path[5] += k;
        log_files[k] = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
        if (log_files[k] < 0)
            die(path);
    }
}

static void remember(uint64_t value, const char *token, int length)
{
    char line[LINE + 64];
    int size = snprintf(line, sizeof line, "%llu %.*s", (unsigned long long)value, length, token);
    uint64_t sum = 0xcbf29ce484222325u;
    for (int k = 0; k < size; k++)
        sum = (sum ^ (unsigned char)line[k]) * 0x100000001b3u;
    size += snprintf(line + size, sizeof line - size, " %016llx\n", (unsigned long long)sum);
    for (int k = 0; k < logs; k++)
        if (write(log_files[k], line, size) != size || fdatasync(log_files[k]) < 0)
            die("the log");
}

/* Answers every whole line for whose answer there is room. */
static void answer(struct client *c)
{
    char *line = c->in, *end;
    while (c->out_length + LINE + 32 <= sizeof c->out &&
           (end = memchr(line, '\n', c->in + c->in_length - line))) {
        if (end - line > LINE) {
            drop(c);
            return;
        }
        obey(line, end);
        remember(++counter, line, end - line);
        c->out_length += snprintf(c->out + c->out_length, sizeof c->out - c->out_length, "%.*s %llu\n",
                                  (int)(end - line), line, (unsigned long long)counter);
        line = end + 1;
    }
    c->in_length -= line - c->in;
    memmove(c->in, line, c->in_length);
    if (c->in_length == sizeof c->in && !memchr(c->in, '\n', c->in_length))
        drop(c);
}

static void flush(struct client *c)
{
    ssize_t n = send(c->fd, c->out, c->out_length, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n < 0 && errno != EAGAIN && errno != EINTR) {
        drop(c);
        return;
    }
    if (n > 0) {
        c->out_length -= n;
        memmove(c->out, c->out + n, c->out_length);
    }
}

static void attend(struct client *c)
{
    size_t room = sizeof c->in - c->in_length;
    if (room) {
        ssize_t n = recv(c->fd, c->in + c->in_length, room, MSG_DONTWAIT);
        if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) {
            drop(c);
            return;
        }
        if (n > 0)
            c->in_length += n;
    }
    size_t before;
    do { /* lines that had no room for their answers may have it after a flush */
        before = c->in_length;
        answer(c);
        if (c->fd >= 0 && c->out_length)
            flush(c);
    } while (c->fd >= 0 && c->in_length != before);
}

static void welcome(int listener)
{
    int one = 1, fd = accept(listener, 0, 0);
    if (fd < 0)
        return;
    for (struct client *c = clients; c < clients + CLIENTS; c++) {
        if (c->fd < 0) {
            setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
            *c = (struct client){.fd = fd};
            return;
        }
    }
    close(fd);
}

static int listen_on(int port)
{
    struct sockaddr_in any = {.sin_family = AF_INET, .sin_port = htons(port)};
    int one = 1, fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) < 0 ||
        bind(fd, (struct sockaddr *)&any, sizeof any) < 0 || listen(fd, CLIENTS) < 0)
        die("the counter's port");
    return fd;
}

static void start(void *(*run)(void *), long argument)
{
    pthread_t thread;
    if (argument > 0 && (errno = pthread_create(&thread, 0, run, (void *)argument)))
        die("no thread");
}

void serve(struct in_addr to, long dirty, long beacon)
{
    broadcast = to;
    signal(SIGPIPE, SIG_IGN);
    for (struct client *c = clients; c < clients + CLIENTS; c++)
        c->fd = -1;
    open_logs();
    int listener = listen_on(COUNTER_PORT);
    start(dirty_memory, dirty);
    start(send_beacons, beacon);
    puts("lab guest: ready");
    fflush(stdout);
    for (;;) {
        struct pollfd polled[CLIENTS + 1] = {{.fd = listener, .events = POLLIN}};
        for (int k = 0; k < CLIENTS; k++) /* poll ignores the entries whose fd is -1 */
            polled[k + 1] = (struct pollfd){.fd = clients[k].fd,
                                            .events = clients[k].out_length ? POLLOUT : POLLIN};
        if (poll(polled, CLIENTS + 1, -1) < 0)
            continue;
        for (int k = 0; k < CLIENTS; k++)
            if (polled[k + 1].revents)
                attend(&clients[k]);
        if (polled[0].revents)
            welcome(listener);
    }
}
