//! What `top` knows and what it shows of it.

use std::collections::{HashSet, VecDeque};
use std::net::IpAddr;
use std::path::PathBuf;

use crossbeam_channel::Sender;
use serde_json::Value;

use super::Message;
use super::details::Details;
use super::fetch::{Answers, Row, Wanted, id_of};
use super::keys::Next;
use super::look::Look;
use super::resolve::Resolver;
use super::rules::Rules;
use super::view::{Here, View};
use crate::cli::flows::string;
use crate::cli::names::{Services, Vendors};
use crate::config::Networks;
use crate::control::live::REACH;
use crate::control::{Alert, Status};

/// Seconds of the rates, and alerts, that are kept.
const RATES: usize = 512;
const ALERTS: usize = 1_000;
/// Addresses with a name that is left out, in one question.
const NAMED: usize = 200;

/// What lies over the table.
#[derive(Debug, Default)]
pub(super) enum Over {
    #[default]
    Nothing,
    Help,
    /// What is typed so far.
    Search(String),
    Details(Box<Details>),
}

pub(super) struct App {
    pub(super) view: View,
    pub(super) look: Look,
    pub(super) here: Here,
    pub(super) networks: Networks,
    pub(super) rules: Rules,
    pub(super) rules_from: PathBuf,
    pub(super) services: Services,
    pub(super) vendors: Vendors,
    pub(super) resolver: Option<Resolver>,
    to: Sender<Message>,

    pub(super) status: Status,
    pub(super) rows: Vec<Row>,
    pub(super) flows: u64,
    pub(super) matched: u64,
    /// Packets and bits a second.
    pub(super) rates: [VecDeque<u64>; 2],
    pub(super) alerts: VecDeque<Alert>,
    /// What they are about.
    alerted: HashSet<Subject>,
    /// Why there is nothing new.
    pub(super) problem: Option<String>,
    /// Said once, gone with the next key.
    pub(super) note: Option<String>,

    pub(super) over: Over,
    /// The chosen row, and the flow that it stays with.
    pub(super) chosen: usize,
    pub(super) follows: Option<u64>,
    /// Rows that there is room for; drawing says so.
    pub(super) room: usize,
}

impl App {
    pub(super) fn new(
        view: View,
        networks: Networks,
        rules: Rules,
        rules_from: PathBuf,
        look: Look,
        to: Sender<Message>,
    ) -> Self {
        let mut this = Self {
            here: Here::new(&networks),
            view,
            look,
            networks,
            rules,
            rules_from,
            services: Services::load(),
            vendors: Vendors::default(),
            resolver: None,
            to,
            status: Status::default(),
            rows: Vec::new(),
            flows: 0,
            matched: 0,
            rates: Default::default(),
            alerts: VecDeque::new(),
            alerted: HashSet::new(),
            problem: None,
            note: None,
            over: Over::Nothing,
            chosen: 0,
            follows: None,
            room: 20,
        };
        this.resolve();
        this
    }

    /// Starts to ask for names when they are wanted for the first time.
    pub(super) fn resolve(&mut self) {
        if self.view.names && self.resolver.is_none() {
            self.resolver = Some(Resolver::start(&self.to));
        }
    }

    /// What is to be asked for, with what is set now.
    pub(super) fn wanted(&self) -> Wanted {
        let mut named = match &self.resolver {
            Some(resolver) if self.view.names && self.view.ignores => {
                resolver.addresses(|name| self.rules.has_name(name))
            }
            _ => Vec::new(),
        };
        named.truncate(NAMED);
        let expression = self.view.expression(&self.here, &self.rules, &named);
        let flow = match &self.over {
            Over::Details(details) => Some(details.id),
            _ => None,
        };
        Wanted { rows: self.view.question(self.room, expression.as_deref()), flow }
    }

    pub(super) fn hear(&mut self, message: Message) -> Next {
        match message {
            Message::Key(key) => return self.key(key),
            Message::End => return Next::End,
            Message::Resize => {}
            Message::Answers(answers) => self.take(*answers),
            Message::Problem(why) => self.problem = Some(why.to_string()),
            Message::Name(ip, name) => {
                if let Some(resolver) = &mut self.resolver {
                    resolver.answer(ip, name);
                }
            }
            Message::Vendors(vendors) => self.vendors = vendors,
        }
        Next::Draw
    }

    fn take(&mut self, answers: Answers) {
        self.problem = None;
        if answers.status.now_ns != self.status.now_ns {
            let rates = &answers.status.rates;
            for (kept, new) in
                self.rates.iter_mut().zip([rates.packets_per_second, rates.bits_per_second])
            {
                kept.push_back(new as u64);
                if kept.len() > RATES {
                    kept.pop_front();
                }
            }
        }
        self.status = answers.status;
        if !answers.alerts.is_empty() {
            self.alerts.extend(answers.alerts);
            let surplus = self.alerts.len().saturating_sub(ALERTS);
            self.alerts.drain(..surplus);
            self.alerted = self.alerts.iter().flat_map(|a| Subject::of_alert(&a.event)).collect();
        }
        if let Over::Details(details) = &mut self.over
            && answers.wanted.flow == Some(details.id)
        {
            details.take(answers.flow, self.status.now_ns);
        }
        // An answer to what is not wanted any more would jump.
        if answers.wanted.rows != self.wanted().rows {
            return;
        }
        (self.flows, self.matched, self.rows) = (answers.flows, answers.matched, answers.rows);
        if let Some(at) =
            self.rows.iter().position(|r| self.follows.is_some() && id_of(r) == self.follows)
        {
            self.chosen = at;
        }
        self.stay_within();
    }

    /// The furthest that rows can begin.
    pub(super) fn last_offset(&self) -> usize {
        let all = usize::try_from(self.matched).unwrap_or(usize::MAX).min(REACH);
        all.saturating_sub(self.room)
    }

    fn stay_within(&mut self) {
        self.view.offset = self.view.offset.min(self.last_offset());
        self.chosen = self.chosen.min(self.rows.len().saturating_sub(1));
    }

    pub(super) fn has_alerts(&self, row: &Row) -> bool {
        !self.alerted.is_empty() && Subject::of_flow(row).iter().any(|s| self.alerted.contains(s))
    }

    /// Alerts about a flow, the latest first; then those about its hosts.
    pub(super) fn alerts_of(&self, row: &Row) -> (Vec<&Alert>, Vec<&Alert>) {
        let subjects = Subject::of_flow(row);
        let hosts = [string(row, "src_ip"), string(row, "dst_ip")];
        let (mut of_flow, mut of_hosts) = (Vec::new(), Vec::new());
        for alert in self.alerts.iter().rev() {
            if Subject::of_alert(&alert.event).any(|s| subjects.contains(&s)) {
                of_flow.push(alert);
            } else if hosts.iter().any(|h| alert.event["src_ip"] == **h) {
                of_hosts.push(alert);
            }
        }
        (of_flow, of_hosts)
    }

    /// The name of one end, if names are wanted: by passive DNS, or else by reverse DNS.
    pub(super) fn name_of(&mut self, ip: Option<IpAddr>, passive: &str) -> Option<String> {
        if !passive.is_empty() {
            return Some(self.look.text(passive).into_owned());
        }
        let name = self.resolver.as_mut()?.name(ip?)?;
        Some(self.look.text(name).into_owned())
    }
}

/// What an alert is about: a flow, or what a host sends to a port of another.
#[derive(Debug, PartialEq, Eq, Hash)]
enum Subject {
    /// Its id in an EVE log, the lower 53 bits.
    Flow(u64),
    Ends {
        src: String,
        dst: String,
        port: u64,
    },
}

impl Subject {
    /// Both, since windows' alerts have a flow id of their own.
    fn of_alert(event: &Value) -> impl Iterator<Item = Self> {
        let flow = event["flow_id"].as_u64().map(Self::Flow);
        let text = |field: &str| event[field].as_str().map(str::to_owned);
        let port = event["dest_port"].as_u64().unwrap_or(0);
        let ends = text("src_ip").zip(text("dest_ip"));
        let ends = ends.map(|(src, dst)| Self::Ends { src, dst, port });
        flow.into_iter().chain(ends)
    }

    fn of_flow(row: &Row) -> [Self; 2] {
        let text = |field: &str| string(row, field).into_owned();
        let port = row.get("dst_port").and_then(Value::as_u64).unwrap_or(0);
        let id = id_of(row).unwrap_or(0) & ((1 << 53) - 1);
        [Self::Flow(id), Self::Ends { src: text("src_ip"), dst: text("dst_ip"), port }]
    }
}
