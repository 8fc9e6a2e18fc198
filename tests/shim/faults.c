/* A disk that misbehaves, for one process: preloaded, it spoils what is asked of the journal's
 * segment files as the file named by TEST_FAULTS says, a word: fine, slow, eio, sync, rofs.
 * io_uring is refused, so that every write passes here. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

typedef long (*syscall_fn)(long, long, long, long, long, long, long);
typedef int (*open_fn)(const char *, int, ...);
typedef ssize_t (*pwrite_fn)(int, const void *, size_t, off64_t);
typedef int (*sync_fn)(int);

static int is(const char *word)
{
	char now[16] = "";
	const char *path = getenv("TEST_FAULTS");
	open_fn real_open = (open_fn)dlsym(RTLD_NEXT, "open64");
	int fd = path ? real_open(path, O_RDONLY | O_CLOEXEC) : -1;
	if (fd < 0)
		return 0;
	ssize_t n = read(fd, now, sizeof now - 1);
	close(fd);
	return n >= (ssize_t)strlen(word) && !strncmp(now, word, strlen(word));
}

static int is_segment(const char *path)
{
	return path && strstr(path, "/pcap/seg-") != NULL;
}

static int is_segment_fd(int fd)
{
	char link[64], path[4096];
	snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
	ssize_t n = readlink(link, path, sizeof path - 1);
	if (n <= 0)
		return 0;
	path[n] = 0;
	return is_segment(path);
}

long syscall(long number, ...)
{
	va_list list;
	va_start(list, number);
	long a[6];
	for (int i = 0; i < 6; i++)
		a[i] = va_arg(list, long);
	va_end(list);
	if (number == SYS_io_uring_setup) {
		errno = ENOSYS;
		return -1;
	}
	syscall_fn real = (syscall_fn)dlsym(RTLD_NEXT, "syscall");
	return real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

int open64(const char *path, int flags, ...)
{
	va_list list;
	va_start(list, flags);
	mode_t mode = va_arg(list, mode_t);
	va_end(list);
	if (is_segment(path) && (flags & O_CREAT) && is("rofs")) {
		errno = EROFS;
		return -1;
	}
	open_fn real = (open_fn)dlsym(RTLD_NEXT, "open64");
	return real(path, flags, mode);
}

ssize_t pwrite64(int fd, const void *bytes, size_t n, off64_t at)
{
	if (is_segment_fd(fd)) {
		if (is("slow") && n > 65536)
			usleep(400000);
		if (is("eio") || is("rofs")) {
			errno = is("eio") ? EIO : EROFS;
			return -1;
		}
	}
	pwrite_fn real = (pwrite_fn)dlsym(RTLD_NEXT, "pwrite64");
	return real(fd, bytes, n, at);
}

int fdatasync(int fd)
{
	if (is_segment_fd(fd) && is("sync")) {
		errno = EIO;
		return -1;
	}
	sync_fn real = (sync_fn)dlsym(RTLD_NEXT, "fdatasync");
	return real(fd);
}
