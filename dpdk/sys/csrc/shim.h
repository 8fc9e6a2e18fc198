/*
 * What Rust sees of DPDK: the headers that bindgen reads, and functions for
 * what DPDK offers only as static inlines, macros or thread-locals.
 */
#ifndef MALAKOCUT_SHIM_H
#define MALAKOCUT_SHIM_H

#include <stddef.h>
#include <stdint.h>

#include <rte_config.h>
#include <rte_dev.h>
#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_ethdev.h>
#include <rte_lcore.h>
#include <rte_log.h>
#include <rte_mbuf.h>
#include <rte_mbuf_dyn.h>
#include <rte_mempool.h>

/* RTE_BIT64() macros, which bindgen does not evaluate. */
static const uint64_t SHIM_RSS_IP = RTE_ETH_RSS_IP;
static const uint64_t SHIM_RSS_TCP = RTE_ETH_RSS_TCP;
static const uint64_t SHIM_RSS_UDP = RTE_ETH_RSS_UDP;
static const uint64_t SHIM_RX_OFFLOAD_SCATTER = RTE_ETH_RX_OFFLOAD_SCATTER;
static const uint64_t SHIM_RSS_FRAG = RTE_ETH_RSS_FRAG_IPV4 | RTE_ETH_RSS_FRAG_IPV6;

/* Bitfields of a structure that is passed as a whole. */
int shim_link(uint16_t port, uint32_t *mbit, int *up);

/* A thread-local: bindgen would emit a plain static, which crashes when read. */
int shim_errno(void);

/* Inlines. */
uint16_t shim_rx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **pkts, uint16_t n);
struct rte_mbuf *shim_pktmbuf_alloc(struct rte_mempool *pool);
int shim_pktmbuf_alloc_bulk(struct rte_mempool *pool, struct rte_mbuf **mbufs, unsigned int n);
void shim_pktmbuf_free(struct rte_mbuf *m);

/* Sends every DPDK log line to cb(level, text, length). Call before rte_eal_init. */
typedef void (*shim_log_cb)(uint32_t level, const char *text, size_t len);
int shim_log_to(shim_log_cb cb);

#endif
