//! Links the system's libpcap (Debian: libpcap0.8-dev).

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-link-lib=pcap");
}
