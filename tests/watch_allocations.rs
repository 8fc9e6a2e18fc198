//! Counting what a host sends allocates nothing: neither per packet nor at a window's end.

#![allow(clippy::unwrap_used, reason = "a test that cannot run fails")]

use malakocut::detect::watch::{Watched, Watches, connect};
use malakocut::detect::{Eve, EveStyle, Host, Protocol, Rules, ScanMode, Scope, Sighting, Subject};

const SECOND: u64 = 1_000_000_000;

#[test]
fn no_allocation_per_packet_nor_per_window() {
    let host = |text: &str| text.parse::<Host>().unwrap();
    let rules = Rules {
        window_s: 1,
        packet_threshold: 5.0,
        destination_threshold: 10.0,
        port_threshold: None,
        mode: ScanMode::FilteredHostRate,
        c2_known: true,
    };
    let eve = Eve { style: EveStyle::Suricata, subject: Subject::default(), rules };
    let watched: Vec<Watched> = ["10.0.0.5", "2001:db8::5"]
        .map(|address| Watched {
            scope: Scope::new(host(address), ["192.0.2.0/28".parse().unwrap()]),
            eve: eve.clone(),
            limit: 1024,
            show_idle: false,
        })
        .into();
    let (mut watcher, link) = connect(&watched, true, 1);
    let mut watches = Watches::new(watched, vec![link], 2);
    let protocol = Protocol { number: 6, has_port: true };
    let (mut allocations, mut packets, mut verdicts) = (0, 0u64, 0);
    for window in 0..20u64 {
        let counted = allocation_counter::measure(|| {
            for n in 0..5000u64 {
                let mut dst = host("192.0.2.0");
                // More endpoints than are kept, some of them left out, and hosts nobody watches.
                dst.addr.0 += (n % 2000) << 32;
                for src in ["10.0.0.5", "2001:db8::5", "10.0.0.6"] {
                    let src = host(src);
                    let s = Sighting { src, dst, src_port: 1, dst_port: 80, protocol };
                    watcher.packet(window * SECOND + n, &s);
                    packets += 1;
                }
            }
            watcher.let_time_pass((window + 1) * SECOND);
        });
        watches.attend(|_, _| verdicts += 1);
        // Until the first tallies have come back.
        if window >= 2 {
            allocations += counted.count_total;
        }
    }
    println!("{allocations} allocations in {packets} packets and {verdicts} windows");
    assert_eq!((allocations, verdicts), (0, 40));
    assert!(watches.untracked() > 0);
}
