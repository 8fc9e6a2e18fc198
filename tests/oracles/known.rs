//! The differences from the oracles that have a reason.
//!
//! `known.txt` has one difference a line: test, file, row and what differs, reason; separated by
//! tabs, `#` begins a comment line.

use std::collections::BTreeMap;

const KNOWN: &str = include_str!("known.txt");

/// At least so many of a hundred plain rows must match.
const FLOOR_PERCENT: f64 = 90.0;

/// An expected row and how we differ from it.
#[derive(Debug)]
pub(crate) struct Row {
    /// The capture's name.
    pub(crate) file: String,
    /// What tells the row from the file's others.
    pub(crate) key: String,
    /// TCP, UDP or ICMP, and not inside a tunnel.
    pub(crate) plain: bool,
    pub(crate) difference: Option<String>,
}

impl Row {
    /// The row's name in the list.
    fn name(&self) -> Option<(String, String)> {
        let difference = self.difference.as_ref()?;
        Some((self.file.clone(), format!("{}: {difference}", self.key)))
    }
}

/// Prints the counts, and fails unless the list is exact.
pub(crate) fn judge(test: &str, rows: Vec<Row>) {
    let listed = listed(test);
    let different: Vec<(String, String)> = rows.iter().filter_map(Row::name).collect();
    let plain = rows.iter().filter(|row| row.plain).count();
    let plain_matched = rows.iter().filter(|row| row.plain && row.difference.is_none()).count();
    let percent = 100.0 * plain_matched as f64 / plain.max(1) as f64;
    println!(
        "{test}: matched {} of {} rows ({} known), plain tcp/udp/icmp: {plain_matched} of {plain} \
         = {percent:.1} %",
        rows.len() - different.len(),
        rows.len(),
        different.iter().filter(|name| listed.contains_key(*name)).count(),
    );
    if std::env::var_os("MALAKOCUT_BLESS").is_some() {
        for name @ (file, row) in &different {
            println!("{test}\t{file}\t{row}\t{}", listed.get(name).copied().unwrap_or_default());
        }
        return;
    }
    let mut faults = Vec::new();
    for name @ (file, row) in &different {
        if !listed.contains_key(name) {
            faults.push(format!("not listed: {file}: {row}"));
        }
    }
    for (name @ (file, row), reason) in &listed {
        if !different.contains(name) {
            faults.push(format!("listed, but not so: {file}: {row}"));
        }
        if reason.is_empty() {
            faults.push(format!("listed without a reason: {file}: {row}"));
        }
    }
    assert!(!rows.is_empty(), "{test}: no rows");
    assert!(faults.is_empty(), "{test}: {} differences\n{}", faults.len(), faults.join("\n"));
    assert!(percent >= FLOOR_PERCENT, "{test}: {percent:.1} % of the plain rows match");
}

/// File and row of each listed difference of a test, with its reason.
fn listed(test: &str) -> BTreeMap<(String, String), &'static str> {
    KNOWN
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| {
            let fields: Vec<&str> = line.split('\t').collect();
            let [test, file, row, reason] = fields[..] else {
                panic!("known.txt: not four fields: {line}")
            };
            (test, (file.to_owned(), row.to_owned()), reason.trim())
        })
        .filter(|(of, ..)| *of == test)
        .map(|(_, name, reason)| (name, reason))
        .collect()
}
