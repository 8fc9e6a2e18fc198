//! Sorted maps of an index file: numbers to lists of offsets or blocks, or to single values.
//!
//! Entries are in groups of at most 64, each group with its first key in a table in front, so that
//! one is found by a search in the table and a walk through one group. In a group, keys are the
//! distances between neighbours, and a list its length, its first value and the distances; all of
//! them LEB128 numbers. A single value is of four bytes, little-endian.

use super::file::{Cursor, Damage, IndexFile, Section};

/// Entries of a group at most, and bytes after which it ends earlier.
const GROUP: u32 = 64;
const GROUP_BYTES: usize = 4096;

/// What an entry holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Values {
    Lists,
    Singles,
}

/// Writes a map; keys come in ascending order.
pub(super) struct MapWriter {
    wide: bool,
    table: Vec<u8>,
    body: Vec<u8>,
    start: usize,
    in_group: u32,
    last: u128,
    pub(super) entries: u64,
    pub(super) groups: u32,
}

impl MapWriter {
    /// `wide`: the keys need more than 64 bits.
    pub(super) fn new(wide: bool) -> Self {
        Self {
            wide,
            table: Vec::new(),
            body: Vec::new(),
            start: 0,
            in_group: 0,
            last: 0,
            entries: 0,
            groups: 0,
        }
    }

    fn begin(&mut self, key: u128) {
        if self.in_group == 0
            || self.in_group == GROUP
            || self.body.len() - self.start >= GROUP_BYTES
        {
            self.start = self.body.len();
            let bytes = key.to_le_bytes();
            self.table.extend_from_slice(if self.wide { &bytes } else { &bytes[..8] });
            self.table.extend_from_slice(&(self.start as u32).to_le_bytes());
            self.groups += 1;
            self.in_group = 0;
            self.last = key;
        }
        varint(&mut self.body, key - self.last);
        self.last = key;
        self.in_group += 1;
        self.entries += 1;
    }

    /// Adds a key with its values in ascending order, each once.
    pub(super) fn list(&mut self, key: u128, values: &[u32]) {
        self.begin(key);
        varint(&mut self.body, values.len() as u128);
        let mut last = 0;
        for value in values {
            varint(&mut self.body, u128::from(value - last));
            last = *value;
        }
    }

    /// Adds a key with one value; keys may come more than once.
    pub(super) fn single(&mut self, key: u128, value: u32) {
        self.begin(key);
        self.body.extend_from_slice(&value.to_le_bytes());
    }

    /// Length of what [`MapWriter::finish`] will give.
    pub(super) fn len(&self) -> usize {
        self.table.len() + self.body.len()
    }

    pub(super) fn finish(mut self) -> Vec<u8> {
        self.table.extend_from_slice(&self.body);
        self.table
    }
}

fn varint(out: &mut Vec<u8>, mut value: u128) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// A map in an index file.
pub(super) struct MapReader<'a> {
    file: &'a IndexFile,
    section: Section,
    wide: bool,
    values: Values,
}

impl<'a> MapReader<'a> {
    pub(super) fn new(file: &'a IndexFile, section: Section, wide: bool, values: Values) -> Self {
        Self { file, section, wide, values }
    }

    fn row(&self) -> u64 {
        if self.wide { 20 } else { 12 }
    }

    /// A group's first key and where its entries start, by the map's own count.
    fn group(&self, cursor: &mut Cursor<'_>, n: u32) -> Result<(u128, u64), Damage> {
        cursor.seek(self.section.offset + u64::from(n) * self.row());
        let key = if self.wide { cursor.number::<16>()? } else { cursor.number::<8>()? };
        let at = cursor.number::<4>()? as u64;
        Ok((key, self.body() + at))
    }

    fn body(&self) -> u64 {
        self.section.offset + u64::from(self.section.groups) * self.row()
    }

    /// Gives the values of every entry whose key is in the range to `take`, by ascending key.
    pub(super) fn range(
        &self,
        low: u128,
        high: u128,
        take: &mut dyn FnMut(Vec<u32>),
    ) -> Result<(), Damage> {
        let end = self.section.offset + self.section.len;
        let table_end = self.body();
        if table_end > end {
            return Err(Damage::Nonsense("a map larger than its section"));
        }
        let mut table = self.file.cursor(self.section.offset, table_end);
        // The last group that starts below `low`: equal keys may begin in its tail.
        let (mut from, mut to) = (0, self.section.groups);
        while from < to {
            let middle = from + (to - from) / 2;
            if self.group(&mut table, middle)?.0 < low {
                from = middle + 1;
            } else {
                to = middle;
            }
        }
        for n in from.saturating_sub(1)..self.section.groups {
            let (first, at) = self.group(&mut table, n)?;
            if first > high {
                return Ok(());
            }
            let stop =
                if n + 1 < self.section.groups { self.group(&mut table, n + 1)?.1 } else { end };
            if at > stop || stop > end {
                return Err(Damage::Nonsense("groups out of order"));
            }
            if !self.walk(first, at, stop, (low, high), take)? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Walks one group; false when the range is past.
    fn walk(
        &self,
        first: u128,
        at: u64,
        stop: u64,
        (low, high): (u128, u128),
        take: &mut dyn FnMut(Vec<u32>),
    ) -> Result<bool, Damage> {
        let mut cursor = self.file.cursor(at, stop);
        let mut key = first;
        while cursor.position() < stop {
            key = key.checked_add(cursor.varint()?).ok_or(Damage::Nonsense("a key too large"))?;
            if key > high {
                return Ok(false);
            }
            let values = match self.values {
                Values::Singles => vec![cursor.number::<4>()? as u32],
                Values::Lists => {
                    let count = cursor.varint()?;
                    if key < low {
                        cursor.skip_varints(count)?;
                        continue;
                    }
                    // No more values than bytes.
                    if count > u128::from(stop - cursor.position()) {
                        return Err(Damage::Nonsense("a list longer than its group"));
                    }
                    let mut values = Vec::with_capacity(count as usize);
                    let mut last = 0u32;
                    for _ in 0..count {
                        let step = u32::try_from(cursor.varint()?).ok();
                        last = step
                            .and_then(|s| last.checked_add(s))
                            .ok_or(Damage::Nonsense("a value too large"))?;
                        values.push(last);
                    }
                    values
                }
            };
            if key >= low {
                take(values);
            }
        }
        Ok(true)
    }

    /// The values of one key.
    pub(super) fn find(&self, key: u128) -> Result<Vec<u32>, Damage> {
        let mut out = Vec::new();
        self.range(key, key, &mut |values| match out.is_empty() {
            true => out = values,
            false => out.extend(values),
        })?;
        Ok(out)
    }
}
