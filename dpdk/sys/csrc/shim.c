#define _GNU_SOURCE
#include "shim.h"

#include <stdio.h>

int shim_errno(void) { return rte_errno; }

uint16_t shim_rx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **pkts, uint16_t n)
{
	return rte_eth_rx_burst(port, queue, pkts, n);
}

struct rte_mbuf *shim_pktmbuf_alloc(struct rte_mempool *pool) { return rte_pktmbuf_alloc(pool); }
int shim_pktmbuf_alloc_bulk(struct rte_mempool *pool, struct rte_mbuf **mbufs, unsigned int n) {
	return rte_pktmbuf_alloc_bulk(pool, mbufs, n);
}

void shim_pktmbuf_free(struct rte_mbuf *m) { rte_pktmbuf_free(m); }

int shim_link(uint16_t port, uint32_t *mbit, int *up)
{
	struct rte_eth_link link = { 0 };
	int rc = rte_eth_link_get_nowait(port, &link);

	*mbit = link.link_speed;
	*up = link.link_status;
	return rc;
}

static shim_log_cb log_cb;

static ssize_t log_write(void *cookie, const char *buf, size_t size)
{
	(void)cookie;
	log_cb((uint32_t)rte_log_cur_msg_loglevel(), buf, size);
	return (ssize_t)size;
}

int shim_log_to(shim_log_cb cb)
{
	cookie_io_functions_t io = { .write = log_write };
	FILE *f;

	log_cb = cb;
	f = fopencookie(NULL, "w", io);
	if (f == NULL)
		return -1;
	setvbuf(f, NULL, _IOLBF, 0);
	return rte_openlog_stream(f);
}

/*
 * The AF_PACKET driver of 22.11 joins its sockets to a fanout group with the
 * DEFRAG flag, also a single one: the kernel then merges IP fragments and the
 * driver cuts the result to a ring frame, without a word. A sensor must see
 * what was on the wire. The driver has no option for it, so this definition,
 * which the dynamic linker prefers to the C library's, takes the flag out of
 * that one request and passes everything else on as it is.
 */
#include <linux/if_packet.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

int setsockopt(int fd, int level, int name, const void *value, socklen_t len)
{
	int fanout;

	if (level == SOL_PACKET && name == PACKET_FANOUT && len == sizeof(fanout)) {
		memcpy(&fanout, value, sizeof(fanout));
		fanout &= ~(PACKET_FANOUT_FLAG_DEFRAG << 16);
		value = &fanout;
	}
	return (int)syscall(SYS_setsockopt, fd, level, name, value, len);
}
