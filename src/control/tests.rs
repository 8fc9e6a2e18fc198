use std::cell::RefCell;

use super::*;
use crate::event::{
    About, Content, Dns, EventWriter, FIELDS, Fields, FlowEvent, FlowFields, Http, Tls,
};
use crate::flow::{Arrival, FlowTable, NoHint, Timeouts};
use crate::packet::{Addr, Decoded, Tuple, proto};

struct Nobody;

impl live::Names for Nobody {
    fn about(&mut self, _event: &FlowEvent) -> About<'_> {
        About::default()
    }
}

/// A table of UDP flows from port 1001 on; the flow of port 1000 + n has n packets of 100 bytes.
fn table(flows: u16) -> FlowTable<NoHint> {
    let timeouts = Timeouts { idle_ns: 60_000_000_000, active_ns: 0 };
    let mut table = FlowTable::new(1 << 16, timeouts, 7, NoHint);
    let mut events: Vec<FlowEvent> = Vec::new();
    for port in 1..=flows {
        let tuple = Tuple {
            src: Addr::v4([10, 0, 0, 1]),
            dst: Addr::v4([10, 0, 0, 2]),
            sport: 1000 + port,
            dport: 53,
            proto: proto::UDP,
            v6: false,
            one_way: false,
        };
        let decoded = Decoded { tuple, wire_len: 100, ip_len: 86, ..Decoded::default() };
        let arrival = Arrival::new(decoded, 1_000_000_000, 1_000_000_000);
        for _ in 0..port {
            table.burst(&mut [arrival], &mut events);
        }
    }
    table
}

/// Runs passes until all questions are answered.
fn answer(tables: &[FlowTable<NoHint>], queries: Vec<FlowQuery>) -> Vec<FlowAnswer> {
    let mut live = live::Live::new("attic");
    let mut peeks: Vec<live::Peek> = tables.iter().map(|_| live.join()).collect();
    let mut waiting: Vec<_> = queries
        .into_iter()
        .map(|query| {
            let (to, answer) = oneshot::channel();
            live.ask(query, to);
            answer
        })
        .collect();
    for _ in 0..10_000 {
        live.attend(&mut Nobody);
        for (peek, table) in peeks.iter_mut().zip(tables) {
            if peek.is_wanted() {
                peek.copy(table, 7, 3_000_000_000);
            }
        }
    }
    waiting.iter_mut().map(|a| a.try_recv().expect("an answer")).collect()
}

fn packets(answer: &FlowAnswer) -> Vec<u64> {
    let row = |row: &Vec<u8>| {
        let row: serde_json::Value = serde_json::from_slice(row).unwrap();
        assert_eq!((&row["sensor"], &row["idle_sec"]), (&"attic".into(), &2.0.into()));
        let packets = row["packets"].as_u64().unwrap();
        assert_eq!(row["src_port"], 1000 + packets);
        packets
    };
    answer.rows.iter().map(row).collect()
}

#[test]
fn one_pass_answers_every_question_in_its_order() {
    let tables = [table(500), table(0), table(30)];
    let all = FlowQuery { limit: 3, ..FlowQuery::default() };
    let filtered = FlowQuery { limit: 2, offset: 1, ascending: true, ..FlowQuery::default() }
        .with_filter("src_port > 1400 and protocol == \"UDP\" and dst_ip in 10.0.0.0/8")
        .unwrap();
    let none = FlowQuery::default().with_filter("sni contains \"x\"").unwrap();
    let answers = answer(&tables, vec![all, filtered, none]);
    let counts: Vec<_> = answers.iter().map(|a| (a.flows, a.matched)).collect();
    assert_eq!(counts, [(530, 530), (530, 100), (530, 0)]);
    assert_eq!(packets(&answers[0]), [500, 499, 498]);
    assert_eq!(packets(&answers[1]), [402, 403]);
    assert!(answers[2].rows.is_empty());
}

#[test]
fn going_on_behind_the_last_id_gives_every_flow_once() {
    let tables = [table(300), table(200)];
    let mut seen = Vec::new();
    let mut after = None;
    loop {
        let query = FlowQuery {
            sort: Sort::FlowId,
            ascending: true,
            after,
            limit: 70,
            ..FlowQuery::default()
        };
        let page = answer(&tables, vec![query]).remove(0);
        let Some(last) = page.rows.last() else { break };
        let last: serde_json::Value = serde_json::from_slice(last).unwrap();
        after = Some(u64::from_str_radix(last["flow_id"].as_str().unwrap(), 16).unwrap());
        seen.extend(packets(&page));
    }
    seen.sort_unstable();
    // The two tables have flows of the same addresses, and so of the same ids.
    seen.dedup();
    assert_eq!(seen, (1..=300).collect::<Vec<u64>>());
}

#[test]
fn what_asks_for_too_much_or_unknown_fields_is_refused() {
    let with = |limit, offset| FlowQuery { limit, offset, ..FlowQuery::default() };
    assert!(with(live::ROWS_MOST, 0).check().is_ok());
    assert_eq!(with(live::ROWS_MOST + 1, 0).check(), Err(live::QueryError::Limit));
    assert_eq!(with(0, 0).check(), Err(live::QueryError::Limit));
    assert_eq!(with(1, live::REACH).check(), Err(live::QueryError::Offset));
    let error = FlowQuery::default().with_filter("src_prot == 1").unwrap_err();
    assert!(error.to_string().contains("src_prot"), "{error}");
}

#[test]
fn alerts_are_numbered_and_the_earliest_go() {
    let (house, reception) = open(Status::default());
    for n in 0..alerts::KEPT + 5 {
        reception.alert(n as u64, br#"{"event_type":"alert"}"#);
    }
    let all = house.alerts(0, usize::MAX);
    assert_eq!((all.len(), all[0].number, all[0].timestamp_ns), (alerts::KEPT, 6, 5));
    assert_eq!(house.alerts(alerts::KEPT as u64 + 3, 10).len(), 2);
    let latest: Vec<u64> = house.alerts(0, 2).iter().map(|a| a.number).collect();
    assert_eq!(latest, [alerts::KEPT as u64 + 4, alerts::KEPT as u64 + 5]);
}

#[test]
fn metrics_are_one_block_a_name_and_the_reasons_are_labels() {
    let mut counters = crate::status::Counters::default();
    counters.add(crate::status::Counter::Packets, 10);
    counters.add(crate::status::Counter::Arp, 3);
    let mut all = counters;
    all.add(crate::status::Counter::KernelDrops, 2);
    let lcore = LcoreStatus { id: 4, alive: true, counters, ..LcoreStatus::default() };
    let mut status = Status { lcores: vec![lcore], ..Status::default() };
    status.count(&all);
    let text = metrics::text(&status);
    for line in [
        "malakocut_packets_total{lcore=\"4\"} 10",
        "malakocut_not_ip_packets_total{kind=\"arp\",lcore=\"4\"} 3",
        "malakocut_drops_total{reason=\"kernel\"} 2",
        "malakocut_active_flows 0",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} in {text}");
    }
    let mut names: Vec<&str> = text.lines().filter(|l| l.starts_with("# TYPE")).collect();
    let before = names.len();
    names.dedup();
    assert_eq!(names.len(), before);
}

#[test]
fn a_field_asked_alone_is_that_of_the_line() {
    let name = || Some("a.example".to_owned());
    let content = Content {
        dns: Some(Box::new(Dns { query: "q.example".into(), ..Dns::default() })),
        tls: Some(Box::new(Tls { sni: name(), ..Tls::default() })),
        http: Some(Box::new(Http { host: name(), ..Http::default() })),
        ..Content::default()
    };
    let full = About {
        content: Some(&content),
        src_name: Some("s.example".into()),
        dst_name: None,
        journal: None,
    };
    let writer = RefCell::new(EventWriter::new("attic"));
    table(2).copy(0, 1 << 17, 3_000_000_000, |event| {
        for about in [&full, &About::default()] {
            let mut line = Vec::new();
            EventWriter::new("attic").write_about(&event, about, &mut line);
            let whole: serde_json::Map<String, serde_json::Value> =
                serde_json::from_slice(&line).unwrap();
            let fields = FlowFields::new(&event, about, &writer);
            for name in FIELDS {
                assert_eq!(fields.field(name).as_deref(), whole.get(*name), "{name}");
                assert_eq!(fields.address(name), whole.address(name), "{name}");
            }
        }
    });
}
