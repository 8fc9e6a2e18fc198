//! The text of a filter: its words, its comments, and where it goes wrong.

use libpcap::Program;

use super::FilterError;

/// Takes the comments (`#` to the end of the line) out of a filter file and joins its lines.
pub fn strip_comments(text: &str) -> String {
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or("").trim());
    lines.filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ")
}

/// Says where in a filter's file an error is that was found in its text without comments.
pub fn in_file(text: &str, error: FilterError) -> FilterError {
    let FilterError::At { message, at, word } = error else { return error };
    // Its place among the characters that are neither blank nor in a comment.
    let all = strip_comments(text);
    let solid = |text: &str| text.chars().filter(|c| !c.is_whitespace()).count();
    let before: String = all.chars().take(at.saturating_sub(1)).collect();
    let mut left = solid(&before);
    let mut last = (1, 1);
    for (number, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or("");
        let solid = line.chars().enumerate().filter(|(_, c)| !c.is_whitespace());
        for (place, _) in solid {
            if left == 0 && !word.is_empty() {
                return FilterError::InFile { message, line: number + 1, at: place + 1, word };
            }
            left = left.saturating_sub(1);
            last = (number + 1, place + 1);
        }
    }
    FilterError::InFile { message, line: last.0, at: last.1 + 1, word }
}

/// A word of an expression and where it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Word<'a> {
    pub(crate) at: usize,
    pub(crate) text: &'a str,
}

/// The words of an expression: names, numbers and addresses, and marks of one or two characters.
pub(crate) fn words(text: &str) -> Vec<Word<'_>> {
    let plain = |c: char| c.is_alphanumeric() || matches!(c, '.' | ':' | '-' | '_' | '\\' | '/');
    let mut out = Vec::new();
    let mut rest = text.char_indices().peekable();
    let mut in_brackets = 0usize;
    while let Some((at, c)) = rest.next() {
        if c.is_whitespace() {
            continue;
        }
        // In brackets, : and - and / are operators.
        let joins = |c: char, depth: usize| {
            if depth > 0 { c.is_alphanumeric() || c == '_' || c == '-' } else { plain(c) }
        };
        let mut end = at + c.len_utf8();
        if joins(c, in_brackets) {
            while let Some((next, _)) = rest.next_if(|(_, c)| joins(*c, in_brackets)) {
                end = next + text[next..].chars().next().map_or(1, char::len_utf8);
            }
        } else {
            match c {
                '[' => in_brackets += 1,
                ']' => in_brackets = in_brackets.saturating_sub(1),
                _ => {}
            }
            let double = ["&&", "||", "!=", ">=", "<=", "==", ">>", "<<"];
            if text.get(at..at + 2).is_some_and(|two| double.contains(&two)) {
                rest.next();
                end = at + 2;
            }
        }
        out.push(Word { at, text: &text[at..end] });
    }
    out
}

/// Whether a word stands in an expression.
pub(super) fn speaks_of(text: &str, word: &str) -> bool {
    words(text).iter().any(|w| w.text == word)
}

/// What may follow where an expression is cut off in its middle.
const COMPLETIONS: [&str; 14] = [
    "",
    "ip",
    "80",
    "1.2.3.4",
    "port 80",
    "host 1.2.3.4",
    "= 0",
    "0 = 0",
    "] = 0",
    "0] = 0",
    "1-2",
    "00:00:00:00:00:01",
    "1.2.3.0/24",
    "broadcast",
];

/// Says where an expression that does not compile goes wrong.
///
/// libpcap names no place. The longest beginning that some completion makes right ends before the
/// first word that is wrong.
pub(super) fn locate(text: &str, link: u16, message: String) -> FilterError {
    let message = message.lines().next().unwrap_or_default().trim().to_owned();
    let message = message
        .strip_prefix("syntax error in filter expression: ")
        .or_else(|| message.strip_prefix("can't parse filter expression: "))
        .unwrap_or(&message)
        .to_owned();
    let all = words(text);
    // An expression as long as this is a file's, and each look compiles.
    if all.is_empty() || all.len() > 400 || text.contains('\0') {
        return FilterError::Whole(message);
    }
    let viable = |n: usize| {
        let Some(end) = all.get(n).map_or(Some(text.len()), |w| Some(w.at)) else { return false };
        let head = text.get(..end).unwrap_or_default();
        let open = |mark: &str| all.iter().take(n).filter(|w| w.text == mark).count();
        let close = ")".repeat(open("(").saturating_sub(open(")")));
        // Brackets are closed by the completion itself.
        COMPLETIONS.iter().any(|more| {
            let candidate = format!("{head} {more}{close}");
            Program::compile(&candidate, link).is_ok()
        })
    };
    // A beginning of a viable beginning is viable: search for where that ends.
    let (mut low, mut high) = (0, all.len() + 1);
    while low + 1 < high {
        let middle = low + (high - low) / 2;
        if viable(middle) {
            low = middle;
        } else {
            high = middle;
        }
    }
    let word = all.get(low);
    let characters = |bytes: usize| text.get(..bytes).unwrap_or(text).chars().count() + 1;
    FilterError::At {
        message,
        at: word.map_or_else(|| characters(text.len()), |w| characters(w.at)),
        word: word.map_or_else(String::new, |w| w.text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_their_places() {
        let of = |text| words(text).iter().map(|w| w.text).collect::<Vec<_>>();
        assert_eq!(
            of("tcp port 80&&!(host ::1)"),
            ["tcp", "port", "80", "&&", "!", "(", "host", "::1", ")"]
        );
        assert_eq!(of("tcp[2:2]!=0x50"), ["tcp", "[", "2", ":", "2", "]", "!=", "0x50"]);
        assert_eq!(of("tcp[tcpflags] & (tcp-syn|tcp-fin) != 0").len(), 12);
        assert_eq!(words("a  b")[1].at, 3);
    }

    #[test]
    fn a_filter_file_may_have_comments_and_lines() {
        assert_eq!(
            strip_comments("# all\nnot (port 80 # web\n  or port 443)\n\n"),
            "not (port 80 or port 443)"
        );
    }
}
