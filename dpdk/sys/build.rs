//! Finds the system's DPDK by pkg-config, compiles the C shim and generates the bindings.

use std::env;
use std::path::PathBuf;

/// Debian builds its DPDK for this baseline; the inline functions need its SSE4.2.
const MARCH: &str = "-march=corei7";

fn main() {
    println!("cargo:rerun-if-changed=csrc/shim.h");
    println!("cargo:rerun-if-changed=csrc/shim.c");

    let dpdk = pkg_config::Config::new()
        .range_version("22.11".."23")
        .probe("libdpdk")
        .unwrap_or_else(|e| {
            panic!(
                "DPDK 22.11 was not found ({e}); on Debian 12: apt install libdpdk-dev libclang-dev"
            )
        });

    // The pkg-config crate hands on include paths and libraries, not these two flags.
    cc::Build::new()
        .file("csrc/shim.c")
        .includes(&dpdk.include_paths)
        .flag(MARCH)
        .flag("-include")
        .flag("rte_config.h")
        .opt_level(3)
        .compile("dpdk_shim");

    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    bindgen::Builder::default()
        .header("csrc/shim.h")
        .clang_args(dpdk.include_paths.iter().map(|p| format!("-I{}", p.display())))
        .clang_args([MARCH, "-include", "rte_config.h"])
        .allowlist_function("shim_.*")
        .allowlist_function("rte_eal_(init|hotplug_add)")
        .allowlist_function("rte_eth_dev_(configure|start|stop|close|info_get|get_port_by_name)")
        .allowlist_function("rte_eth_dev_adjust_nb_rx_tx_desc")
        .allowlist_function("rte_eth_([rt]x_queue_setup|stats_get|promiscuous_enable)")
        .allowlist_function("rte_eth_(macaddr_get|dev_is_removed)")
        .allowlist_function("rte_eth_dev_(rss_hash_conf_get|rss_reta_query|get_vlan_offload)")
        .allowlist_function("rte_eth_dev_rx_intr_(enable|disable|ctl_q_get_fd)")
        .allowlist_function("rte_(strerror|thread_register|thread_unregister)")
        .allowlist_function("rte_pktmbuf_(pool_create|free_bulk)")
        .allowlist_function("rte_mbuf_dyn(field_register|_rx_timestamp_register)")
        .allowlist_type("rte_mbuf|rte_eth_.*|rte_mempool|rte_mbuf_dynfield")
        .allowlist_var("RTE_(MBUF|PKTMBUF|MAX|ETHER|LOG|ETH)_.*|SHIM_.*")
        .blocklist_item("per_lcore_.*|__rte_.*trace.*")
        .derive_debug(false)
        .derive_default(true)
        .layout_tests(true)
        .default_enum_style(bindgen::EnumVariation::Consts)
        .prepend_enum_name(false)
        .generate_comments(false)
        .rust_edition(bindgen::RustEdition::Edition2024)
        .generate()
        .expect("bindgen could not read the DPDK headers")
        .write_to_file(out.join("bindings.rs"))
        .expect("the bindings could not be written");
}
