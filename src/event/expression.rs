//! Expressions over an event's fields: `protocol == "TCP" and (dst_port in [80, 443] or bytes > 1e6)`.
//!
//! A comparison is `FIELD OP VALUE` with `==`, `!=`, `<`, `<=`, `>`, `>=`, `contains`, `ends_with`, or
//! `FIELD in [VALUE, ...]` or `FIELD in NETWORK` (`10.0.0.0/8`, or a list of them); a field alone asks whether it is
//! there. `and`, `or`, `not` and parentheses combine. An absent field equals nothing and compares
//! with nothing; `!=` holds for it.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

/// Deeper nesting is refused.
const DEEPEST: usize = 64;

/// A parsed expression.
#[derive(Clone, Debug, PartialEq)]
pub struct Expression(Node);

#[derive(Clone, Debug, PartialEq)]
enum Node {
    All(Vec<Self>),
    Any(Vec<Self>),
    Not(Box<Self>),
    There(String),
    Test(String, Op, Value),
    OneOf(String, Vec<Value>),
    Within(String, Vec<IpNet>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Op {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    Contains,
    EndsWith,
}

/// The fields of an event, by their names in its JSON line.
pub trait Fields {
    /// `None`: the event has no such field.
    fn field(&self, name: &str) -> Option<Cow<'_, Value>>;

    /// A field's text, where it can be had without a copy.
    fn text(&self, _name: &str) -> Option<&str> {
        None
    }

    /// A field that is an address.
    fn address(&self, name: &str) -> Option<IpAddr> {
        self.field(name)?.as_str()?.parse().ok()
    }
}

impl Fields for Map<String, Value> {
    fn field(&self, name: &str) -> Option<Cow<'_, Value>> {
        self.get(name).map(Cow::Borrowed)
    }
}

impl Expression {
    /// Whether it holds for an event.
    pub fn holds(&self, event: &impl Fields) -> bool {
        self.0.holds(event)
    }

    /// The fields that it asks for.
    pub fn fields(&self) -> Vec<&str> {
        let mut out = Vec::new();
        self.0.fields(&mut out);
        out
    }
}

impl Node {
    fn fields<'a>(&'a self, out: &mut Vec<&'a str>) {
        match self {
            Self::All(parts) | Self::Any(parts) => parts.iter().for_each(|p| p.fields(out)),
            Self::Not(part) => part.fields(out),
            Self::There(field)
            | Self::Test(field, ..)
            | Self::OneOf(field, _)
            | Self::Within(field, _) => out.push(field),
        }
    }

    fn holds(&self, e: &impl Fields) -> bool {
        match self {
            Self::All(parts) => parts.iter().all(|p| p.holds(e)),
            Self::Any(parts) => parts.iter().any(|p| p.holds(e)),
            Self::Not(part) => !part.holds(e),
            Self::There(field) => e.field(field).is_some(),
            Self::Test(field, op, value) => {
                if let (Value::String(value), Some(found)) = (value, e.text(field)) {
                    return op.holds_of_text(found, value);
                }
                match e.field(field) {
                    Some(found) => op.holds(&found, value),
                    None => *op == Op::Ne,
                }
            }
            Self::OneOf(field, values) => {
                e.field(field).is_some_and(|found| values.iter().any(|v| Op::Eq.holds(&found, v)))
            }
            Self::Within(field, networks) => {
                e.address(field).is_some_and(|ip| networks.iter().any(|net| net.contains(&ip)))
            }
        }
    }
}

impl Op {
    fn holds(self, found: &Value, value: &Value) -> bool {
        // A field with several values has one that fits.
        if let Value::Array(several) = found {
            return match self {
                Self::Ne => several.iter().all(|v| self.holds(v, value)),
                _ => several.iter().any(|v| self.holds(v, value)),
            };
        }
        let order = match (found, value) {
            (Value::String(a), Value::String(b)) => return self.holds_of_text(a, b),
            (Value::Number(a), Value::Number(b)) => {
                a.as_f64().zip(b.as_f64()).and_then(|(a, b)| a.partial_cmp(&b))
            }
            (Value::Bool(a), Value::Bool(b)) => Some(a.cmp(b)),
            _ => None,
        };
        order.map_or(self == Self::Ne, |order| self.holds_of_order(order))
    }

    fn holds_of_text(self, found: &str, value: &str) -> bool {
        match self {
            Self::Contains => found.contains(value),
            Self::EndsWith => found.ends_with(value),
            _ => self.holds_of_order(found.cmp(value)),
        }
    }

    fn holds_of_order(self, order: Ordering) -> bool {
        match self {
            Self::Eq => order.is_eq(),
            Self::Ne => order.is_ne(),
            Self::Lt => order.is_lt(),
            Self::Le => order.is_le(),
            Self::Gt => order.is_gt(),
            Self::Ge => order.is_ge(),
            Self::Contains | Self::EndsWith => false,
        }
    }
}

impl<'de> Deserialize<'de> for Expression {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

impl FromStr for Expression {
    type Err = String;

    /// # Errors
    /// Says where it goes wrong and what was expected.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut parser = Parser { text, at: 0, depth: 0 };
        let node = parser.any()?;
        match parser.rest() {
            "" => Ok(Self(node)),
            _ => Err(parser.expected("`and`, `or` or the end")),
        }
    }
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
}

impl<'a> Parser<'a> {
    fn rest(&mut self) -> &'a str {
        let rest = self.text.get(self.at..).unwrap_or_default();
        let trimmed = rest.trim_start();
        self.at += rest.len() - trimmed.len();
        trimmed
    }

    fn expected(&mut self, what: &str) -> String {
        let found: String = self.rest().chars().take(20).collect();
        let found = if found.is_empty() { "the end".to_owned() } else { format!("`{found}`") };
        format!("filter `{}`: expected {what} at {found}", self.text)
    }

    /// Takes a symbol.
    fn symbol(&mut self, symbol: &str) -> bool {
        let there = self.rest().starts_with(symbol);
        self.at += if there { symbol.len() } else { 0 };
        there
    }

    /// Takes a word that is not the beginning of a longer one.
    fn word(&mut self, word: &str) -> bool {
        let there = self.peek_name() == Some(word);
        self.at += if there { word.len() } else { 0 };
        there
    }

    fn peek_name(&mut self) -> Option<&'a str> {
        let rest = self.rest();
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
        let name = rest.get(..end)?;
        name.starts_with(|c: char| c.is_ascii_alphabetic()).then_some(name)
    }

    fn any(&mut self) -> Result<Node, String> {
        let mut parts = vec![self.all()?];
        while self.word("or") || self.symbol("||") {
            parts.push(self.all()?);
        }
        Ok(if parts.len() > 1 { Node::Any(parts) } else { parts.remove(0) })
    }

    fn all(&mut self) -> Result<Node, String> {
        let mut parts = vec![self.one()?];
        while self.word("and") || self.symbol("&&") {
            parts.push(self.one()?);
        }
        Ok(if parts.len() > 1 { Node::All(parts) } else { parts.remove(0) })
    }

    fn one(&mut self) -> Result<Node, String> {
        self.depth += 1;
        if self.depth > DEEPEST {
            return Err(self.expected("less nesting"));
        }
        let node = if self.word("not") || (!self.rest().starts_with("!=") && self.symbol("!")) {
            Node::Not(Box::new(self.one()?))
        } else if self.symbol("(") {
            let inner = self.any()?;
            if !self.symbol(")") {
                return Err(self.expected("`)`"));
            }
            inner
        } else {
            self.comparison()?
        };
        self.depth -= 1;
        Ok(node)
    }

    fn comparison(&mut self) -> Result<Node, String> {
        let Some(field) = self.peek_name() else {
            return Err(self.expected("a field, `not` or `(`"));
        };
        self.at += field.len();
        let field = field.to_owned();
        if self.word("in") {
            return self.list(field);
        }
        let operators = [
            ("==", Op::Eq),
            ("!=", Op::Ne),
            ("<=", Op::Le),
            (">=", Op::Ge),
            ("<", Op::Lt),
            (">", Op::Gt),
        ];
        for (symbol, op) in operators {
            if self.symbol(symbol) {
                return Ok(Node::Test(field, op, self.value()?));
            }
        }
        for (word, op) in [("contains", Op::Contains), ("ends_with", Op::EndsWith)] {
            if self.word(word) {
                return Ok(Node::Test(field, op, self.value()?));
            }
        }
        Ok(Node::There(field))
    }

    fn list(&mut self, field: String) -> Result<Node, String> {
        if !self.symbol("[") {
            return match self.network() {
                Some(network) => Ok(Node::Within(field, vec![network])),
                None => Err(self.expected("`[` or a network like 10.0.0.0/8")),
            };
        }
        let (mut values, mut networks) = (Vec::new(), Vec::new());
        while !self.symbol("]") {
            match self.network() {
                Some(network) if values.is_empty() => networks.push(network),
                None if networks.is_empty() => values.push(self.value()?),
                _ => return Err(self.expected("networks alone or values alone before")),
            }
            if !self.symbol(",") && !self.rest().starts_with(']') {
                return Err(self.expected("`,` or `]`"));
            }
        }
        match networks.is_empty() {
            true => Ok(Node::OneOf(field, values)),
            false => Ok(Node::Within(field, networks)),
        }
    }

    /// Takes a network or an address.
    fn network(&mut self) -> Option<IpNet> {
        let rest = self.rest();
        let ends = |c: char| c.is_whitespace() || matches!(c, ')' | ',' | ']');
        let text = rest.get(..rest.find(ends).unwrap_or(rest.len()))?;
        let network = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)).ok()?;
        self.at += text.len();
        Some(network)
    }

    fn value(&mut self) -> Result<Value, String> {
        for (word, value) in [("true", true), ("false", false)] {
            if self.word(word) {
                return Ok(value.into());
            }
        }
        let rest = self.rest();
        let numeric = |c: char| c.is_ascii_digit() || "+-.eE".contains(c);
        let end = match rest.starts_with('"') {
            true => text_end(rest),
            false => rest.find(|c| !numeric(c)).unwrap_or(rest.len()),
        };
        match serde_json::from_str(rest.get(..end).unwrap_or_default()) {
            Ok(value @ (Value::String(_) | Value::Number(_))) => {
                self.at += end;
                Ok(value)
            }
            _ => Err(self.expected("a number, true, false or a \"text\"")),
        }
    }
}

/// Where the JSON string that begins `text` ends.
fn text_end(text: &str) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            '"' if !escaped => return at + 1,
            _ => escaped = c == '\\' && !escaped,
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_hold_as_they_read() {
        let event = serde_json::json!({
            "protocol": "TCP", "dst_port": 443, "bytes": 5000, "src_ip": "10.1.2.3",
            "dst_ip": "2001:db8::7", "vlan": [3, 4], "final": true, "sni": "a.example"
        });
        let event = event.as_object().unwrap();
        for (text, expected) in [
            ("protocol == \"TCP\"", true),
            ("protocol == \"TCP\" and dst_port == 80 or bytes>=5000", true),
            ("protocol == \"TCP\" and (dst_port == 80 or bytes > 5000)", false),
            ("not (dst_port in [80, 443])", false),
            ("dst_port in [80,443] && !dns_query", true),
            ("src_ip in 10.0.0.0/8 and dst_ip in 2001:db8::/32", true),
            ("(src_ip in 192.168.0.0/16)", false),
            ("src_ip in 10.1.2.3", true),
            ("dst_ip in [10.0.0.0/8, 2001:db8::7,fe80::/10]", true),
            ("(src_ip in [192.168.0.0/16,10.2.0.0/16])", false),
            ("sni contains \"example\"", true),
            ("dns_query contains \"x\"", false),
            ("sni ends_with \".example\" and not sni ends_with \"a.exampl\"", true),
            ("bytes ends_with \"0\"", false),
            ("dns_query == 1 or dns_query < 1", false),
            ("dns_query != \"x\" and protocol != \"UDP\"", true),
            ("final == true and vlan == 4", true),
            ("vlan != 4", false),
            ("notafield or protocol < 3", false),
            ("bytes < 5e3", false),
        ] {
            let e: Expression = text.parse().unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(e.holds(event), expected, "{text}");
        }
    }

    #[test]
    fn what_does_not_parse_says_where() {
        for (text, needle) in [
            ("", "a field"),
            ("protocol ==", "a number"),
            ("protocol == TCP", "`TCP`"),
            ("(protocol", "`)`"),
            ("a == 1 b", "the end at `b`"),
            ("a in [1 2]", "`,` or `]`"),
            ("a in 10.0.0.0/99", "a network"),
            ("a in [10.0.0.0/8, 3]", "networks alone"),
            ("a in [3, 10.0.0.1]", "networks alone"),
            ("a == [1]", "a number"),
            ("a in [", "a number"),
        ] {
            let error = text.parse::<Expression>().unwrap_err();
            assert!(error.contains(needle), "{text}: {error}");
        }
        assert!("(".repeat(100_000).parse::<Expression>().unwrap_err().contains("nesting"));
        assert!("not ".repeat(100_000).parse::<Expression>().is_err());
    }
}
