//! `extract`: packets of the journal as a capture file.

use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};

use super::{Outcome, Place, Refused, text};
use crate::journal::catalogue;
use crate::journal::extract::{Format, Output, OutputError};
use crate::journal::query::text::{community, flow_id, moment, protocol, show};
use crate::journal::query::{Answer, End, Identity, Journal, Net, Query, Report, Terms};

pub(super) const EXAMPLES: &str = "Examples:
  malakocut-cli extract --src 192.168.1.42 --sport 44431 --dst 203.0.113.66 --dport 443 \\
      --proto tcp -w flow.pcap                           one conversation, both directions
  malakocut-cli extract --ip 192.168.1.42 --start -15m -w - | tcpdump -nr -
  malakocut-cli extract --ip 10.0.0.0/8 --port 53 --start 2026-01-02T03:00:00Z --end 2026-01-02T04:00:00Z
  malakocut-cli extract --community-id 1:0obY5qdXvEqAjcWj+38nMbjXg2c= -w flow.pcap
  malakocut-cli extract --flow-id e94041171c4e9bba -w flow.pcap
  malakocut-cli extract --filter 'tcp[tcpflags] & tcp-syn != 0' --start -1h --dry-run

What is given must all hold. Addresses are single ones or networks (192.0.2.0/24); every term holds
in both directions. Fragments come with their first part, ICMP errors with the flow that they are
about. A filter is in the syntax of pcap-filter(7), and holds whatever VLAN tags a frame has unless it
speaks of vlan itself. Times without a zone are UTC.";

#[derive(Clone, Copy, Debug, ValueEnum)]
enum FileFormat {
    Pcap,
    Pcapng,
}

#[derive(Debug, Args)]
pub(super) struct Extract {
    /// One end of a conversation: address or network
    #[arg(long, value_name = "ADDR")]
    src: Option<Net>,
    /// Its port
    #[arg(long, value_name = "PORT")]
    sport: Option<u16>,
    /// The other end
    #[arg(long, value_name = "ADDR")]
    dst: Option<Net>,
    /// Its port
    #[arg(long, value_name = "PORT")]
    dport: Option<u16>,
    /// One of the two addresses, or the network of one; twice for both
    #[arg(long, value_name = "ADDR")]
    ip: Vec<Net>,
    /// One of the two ports; twice for both
    #[arg(long, value_name = "PORT")]
    port: Vec<u16>,
    /// IP protocol: tcp, udp, icmp, icmp6, sctp, gre, esp or its number
    #[arg(long, value_name = "PROTO", value_parser = protocol)]
    proto: Option<u8>,
    /// A VLAN id among the frame's two outermost
    #[arg(long, value_name = "ID", value_parser = clap::value_parser!(u16).range(..4096))]
    vlan: Option<u16>,
    /// The community_id of a flow event
    #[arg(long, value_name = "ID", conflicts_with = "flow_id", value_parser = community)]
    community_id: Option<Identity>,
    /// The flow_id of a flow event
    #[arg(long, value_name = "HEX", value_parser = flow_id)]
    flow_id: Option<Identity>,
    /// A filter in the syntax of pcap-filter(7)
    #[arg(long, value_name = "EXPR", allow_hyphen_values = true)]
    filter: Option<String>,
    /// The first moment: 2026-01-02T03:04:05Z, seconds since 1970, or -15m for so long before now
    #[arg(long, value_name = "TIME", value_parser = moment, allow_hyphen_values = true)]
    start: Option<u64>,
    /// The last moment
    #[arg(long, value_name = "TIME", value_parser = moment, allow_hyphen_values = true)]
    end: Option<u64>,
    /// Only packets of this link type (LINKTYPE_ number, 1 is Ethernet)
    #[arg(long, value_name = "NUMBER")]
    link: Option<u16>,
    /// Where the packets go; - is standard output [default: standard output, if no terminal]
    #[arg(short, long, value_name = "FILE")]
    write: Option<PathBuf>,
    /// Kind of file
    #[arg(long, value_enum, default_value = "pcap")]
    format: FileFormat,
    /// Only say what would be read
    #[arg(long, conflicts_with_all = ["write", "count"])]
    dry_run: bool,
    /// Only count the packets
    #[arg(long, conflicts_with = "write")]
    count: bool,
    /// No line about the answer on standard error
    #[arg(short, long)]
    quiet: bool,
    /// Seconds of silence that end a flow, for --flow-id [default: the configuration file's, or 60]
    #[arg(long, value_name = "S")]
    idle_timeout: Option<u64>,
    #[command(flatten)]
    place: Place,
}

impl Extract {
    fn query(&self, idle_timeout: Duration) -> Query {
        Query {
            terms: Terms {
                ends: [
                    End { net: self.src, port: self.sport },
                    End { net: self.dst, port: self.dport },
                ],
                hosts: self.ip.clone(),
                ports: self.port.clone(),
                protocol: self.proto,
                vlan: self.vlan,
            },
            identity: self.community_id.or(self.flow_id),
            filter: self.filter.clone(),
            from_ns: self.start.unwrap_or(0),
            to_ns: self.end.unwrap_or(u64::MAX),
            link: self.link,
            idle_timeout,
            ..Query::default()
        }
    }

    pub(super) fn run(&self) -> Result<Outcome, Refused> {
        let (directory, file) = self.place.find()?;
        let journal = Journal::open(&directory).map_err(Refused::because)?;
        let idle = self.idle_timeout.map(Duration::from_secs).or(file.idle_timeout);
        let query = self.query(idle.unwrap_or(Duration::from_secs(60)));
        if self.dry_run {
            return self.estimate(&journal, &query);
        }
        let mut output = None;
        if !self.count {
            output = Some(Output::new(self.format(), self.open(&directory)?));
        }
        let begun = Instant::now();
        let mut answer = journal.query(&query).map_err(Refused::because)?;
        let written = write_all(&mut answer, output.as_mut());
        let finished = match (written, output) {
            (Ok(()), Some(output)) => output.finish(self.link.unwrap_or(1)),
            (written, _) => written,
        };
        match finished {
            // Whoever read it has had enough.
            Err(OutputError::Io(e)) if e.kind() == io::ErrorKind::BrokenPipe => {
                return Ok(Outcome::Done);
            }
            Err(e) => return Err(Refused(format!("{}: {e}", self.target()))),
            Ok(()) => {}
        }
        if self.count {
            println!("{}", answer.report().packets);
        }
        let took = begun.elapsed();
        if !self.quiet {
            say_losses(&journal, &query);
        }
        Ok(self.report(answer.report(), took))
    }

    fn format(&self) -> Format {
        match self.format {
            FileFormat::Pcap => Format::Pcap,
            FileFormat::Pcapng => Format::Pcapng,
        }
    }

    fn target(&self) -> String {
        match &self.write {
            Some(path) if path.as_os_str() != "-" => path.display().to_string(),
            _ => "standard output".into(),
        }
    }

    fn open(&self, journal: &Path) -> Result<Box<dyn Write>, Refused> {
        let path = match &self.write {
            Some(path) if path.as_os_str() != "-" => path,
            _ if io::stdout().is_terminal() => {
                return Err(Refused(
                    "packets would go to the terminal; give -w FILE, pipe them into a program, or \
                     --count or --dry-run"
                        .into(),
                ));
            }
            _ => return Ok(Box::new(BufWriter::with_capacity(1 << 18, io::stdout()))),
        };
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        let parent =
            path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
        let same = |a: &Path, b: &Path| matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a.starts_with(&b));
        if catalogue::parse_name(name).is_some() && same(parent, journal) {
            return Err(Refused(format!("{}: a file of the journal itself", path.display())));
        }
        let file = File::create(path).map_err(|e| Refused(format!("{}: {e}", path.display())))?;
        Ok(Box::new(BufWriter::with_capacity(1 << 18, file)))
    }

    fn estimate(&self, journal: &Journal, query: &Query) -> Result<Outcome, Refused> {
        let e = journal.estimate(query).map_err(Refused::because)?;
        let packets = match e.packets {
            Some(n) => format!("{} posted", text::count(n, "packet")),
            None => "packets known by block only".into(),
        };
        println!(
            "{}; about {} to read from {}{}",
            packets,
            text::bytes(e.bytes),
            text::count(e.segments as u64, "segment"),
            match e.scanned {
                0 => String::new(),
                n => format!(", {n} of them to be scanned for want of an index"),
            }
        );
        Ok(Outcome::Done)
    }

    fn report(&self, report: &Report, took: Duration) -> Outcome {
        for damage in &report.damaged_indexes {
            eprintln!(
                "malakocut-cli: {}; scanned instead (journal repair makes it anew)",
                damage.what
            );
        }
        for gap in &report.gaps {
            eprintln!("malakocut-cli: missing: {}", gap.what);
        }
        if !self.quiet {
            let how = match report.scanned {
                0 => String::new(),
                n => format!(", {n} scanned for want of an index"),
            };
            eprintln!(
                "{}, {}, from {} of {}{how}; {} read in {:.3} s{}",
                text::count(report.packets, "packet"),
                text::bytes(report.bytes),
                report.indexed + report.live + report.scanned,
                text::count(report.segments as u64, "segment"),
                text::bytes(report.bytes_read),
                took.as_secs_f64(),
                if report.is_complete() { "" } else { "; INCOMPLETE" }
            );
        }
        if report.is_complete() { Outcome::Done } else { Outcome::Incomplete }
    }
}

/// Says what of the window was never journaled.
fn say_losses(journal: &Journal, query: &Query) {
    let losses = journal.losses(query.from_ns, query.to_ns).unwrap_or_default();
    let lost: u64 = losses.iter().map(|l| u64::from(l.packets)).sum();
    let (from, to) = (losses.iter().map(|l| l.from_ns).min(), losses.iter().map(|l| l.to_ns).max());
    if let (Some(from), Some(to)) = (from, to) {
        let mut reasons: Vec<&str> = losses.iter().map(|l| l.reason.name()).collect();
        reasons.sort_unstable();
        reasons.dedup();
        eprintln!(
            "malakocut-cli: {} of all traffic were received and not journaled between {} and {} ({})",
            text::count(lost, "packet"),
            show(from),
            show(to),
            reasons.join(", ")
        );
    }
}

fn write_all(
    answer: &mut Answer,
    mut output: Option<&mut Output<Box<dyn Write>>>,
) -> Result<(), OutputError> {
    for packet in answer {
        if let Some(output) = &mut output {
            output.write(&packet)?;
        }
    }
    Ok(())
}
