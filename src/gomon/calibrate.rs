//! What thresholds a host's traffic would need, window by window.

use jiff::Timestamp;

use crate::detect::{Endpoint, Rules, Verdict};

/// What was seen so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Calibration {
    windows: u64,
    packet_rates: Rates,
    host_rates: Rates,
    top: Option<Endpoint>,
    window_s: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Rates {
    sum: f64,
    max: f64,
}

impl Rates {
    fn add(&mut self, rate: f64) {
        self.sum += rate;
        self.max = self.max.max(rate);
    }
}

impl Calibration {
    /// Takes a window in and logs it.
    pub(super) fn window(&mut self, rules: &Rules, verdict: &Verdict) {
        self.windows += 1;
        self.window_s = rules.window_s;
        self.packet_rates.add(verdict.packet_rate);
        self.host_rates.add(verdict.destination_rate);
        if let Some(top) = verdict.top
            && self.top.is_none_or(|t| top.packets > t.packets)
        {
            self.top = Some(top);
        }
        let average = |rates: Rates| rates.sum / self.windows as f64;
        let top = verdict.top;
        let top_packets = top.map_or(0, |t| t.packets);
        let top_rate = top_packets as f64 / rules.window_s as f64;
        let end = verdict.start_ns + rules.window_s * 1_000_000_000;
        let text = |get: &dyn Fn(&Endpoint) -> String| top.as_ref().map(get).unwrap_or_default();
        tracing::info!(
            windowStart = time(verdict.start_ns),
            windowEnd = time(end),
            windowSeconds = rules.window_s,
            packetCount = verdict.packets,
            destinationCount = verdict.endpoints,
            scanTargetCount = verdict.scan_hosts.len(),
            scanDetectionMode = rules.mode.name(),
            globalPacketRate = %verdict.packet_rate,
            globalPacketRateAvg = %average(self.packet_rates),
            globalPacketRateMax = %self.packet_rates.max,
            hostRate = %verdict.destination_rate,
            hostRateAvg = %average(self.host_rates),
            hostRateMax = %self.host_rates.max,
            requiredPacketThreshold = %top_rate,
            requiredDestinationThreshold = %verdict.destination_rate,
            maxDestination = text(&label),
            maxDestinationPackets = top_packets,
            maxDestinationRate = %top_rate,
            nullTestActivity = "active",
            maxDestinationIP = text(&|t| t.host.to_string()),
            maxDestinationPort = text(&|t| t.port.to_string()),
            maxDestinationProto = text(&|t| t.protocol.gomon_name(t.host.v6).to_owned()),
            "Calibration window"
        );
    }

    /// What is said at the end.
    pub(super) fn lines(&self) -> Vec<String> {
        let rate = |packets: u64| packets as f64 / self.window_s.max(1) as f64;
        let top_rate = self.top.map_or(0.0, |t| rate(t.packets));
        let mut lines = vec![
            "Calibration complete. Alerts suppressed; see logs for per-window metrics.".to_owned(),
            format!("Calibration summary: {} window(s) analyzed", self.windows),
            format!(
                "Recommended thresholds (based on max observed rates): packet-threshold >= \
                 {top_rate:.4}, destination-threshold >= {:.4}",
                self.host_rates.max
            ),
        ];
        if let Some(top) = &self.top {
            lines.push(format!(
                "Top destination: {} (rate {top_rate:.4} packets/s, {} packets)",
                label(top),
                top.packets
            ));
        }
        lines
    }
}

/// `192.0.2.1:80/tcp`, `[2001:db8::1]:80/tcp`.
fn label(e: &Endpoint) -> String {
    let proto = e.protocol.gomon_name(e.host.v6);
    if e.host.v6 {
        format!("[{}]:{}/{proto}", e.host, e.port)
    } else {
        format!("{}:{}/{proto}", e.host, e.port)
    }
}

fn time(ns: u64) -> String {
    format!("{:.3}", Timestamp::from_nanosecond(ns.into()).unwrap_or_default())
}
