/*
 * The yardstick of bench/tcp.ts: moves frames between two TAP devices, in one thread, and does nothing else. Both
 * have a virtio-net header and checksum and segmentation offload, so that a TCP segment of 64 KiB is one frame.
 * Looks for more for 50 microseconds before it sleeps.
 *
 * Usage: tapfwd PID PID   (each a process whose network namespace gets an eth0; as root)
 * Prints "ready"; ends with its input.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

enum { BURST = 64, SPIN_NS = 50000 };

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static int open_tap(const char *pid)
{
	struct ifreq ifr = { .ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR };
	char path[64];
	int ns, fd;

	snprintf(path, sizeof path, "/proc/%s/ns/net", pid);
	ns = open(path, O_RDONLY | O_CLOEXEC);
	if (ns < 0 || setns(ns, CLONE_NEWNET) < 0)
		fail(path);
	close(ns);
	fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
	if (fd < 0)
		fail("/dev/net/tun");
	strcpy(ifr.ifr_name, "eth0");
	if (ioctl(fd, TUNSETIFF, &ifr) < 0)
		fail("TUNSETIFF");
	if (ioctl(fd, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN) < 0)
		fail("TUNSETOFFLOAD");
	return fd;
}

static int64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ll + t.tv_nsec;
}

static int move(int from, int to)
{
	static uint8_t frame[10 + 65536 + 32];
	int moved = 0;

	while (moved < BURST) {
		ssize_t length = read(from, frame, sizeof frame);

		if (length <= 0)
			break;
		/* A device that is full or down loses the frame, as a switch would. */
		if (write(to, frame, length) < 0 && errno != EAGAIN && errno != EIO && errno != ENOBUFS)
			fail("write");
		moved++;
	}
	return moved;
}

int main(int argc, char **argv)
{
	int a, b;
	int64_t worked = 0;

	if (argc != 3) {
		fprintf(stderr, "usage: tapfwd PID PID\n");
		return 1;
	}
	a = open_tap(argv[1]);
	b = open_tap(argv[2]);
	puts("ready");
	fflush(stdout);
	for (;;) {
		int moved = move(a, b) + move(b, a);

		if (moved > 0) {
			worked = now_ns();
		} else if (now_ns() - worked > SPIN_NS) {
			struct pollfd fds[3] = { { a, POLLIN, 0 }, { b, POLLIN, 0 }, { 0, POLLIN, 0 } };

			if (poll(fds, 3, -1) < 0)
				fail("poll");
			if (fds[2].revents)
				return 0;
			worked = now_ns();
		}
	}
}
