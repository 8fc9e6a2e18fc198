//! HTTP/1 heads (RFC 9112), by httparse.

/// Headers that are looked at.
const MAX_HEADERS: usize = 96;

/// A request's head.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Request<'a> {
    pub method: &'a str,
    /// The target as it was sent.
    pub uri: &'a str,
    /// 0 or 1: HTTP/1.0 or HTTP/1.1.
    pub version: u8,
    pub host: Option<&'a [u8]>,
    pub user_agent: Option<&'a [u8]>,
    pub referer: Option<&'a [u8]>,
}

/// A response's head.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Response<'a> {
    pub status: u16,
    pub version: u8,
    pub content_type: Option<&'a [u8]>,
    pub length: Option<u64>,
    pub location: Option<&'a [u8]>,
}

/// What bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Head<T> {
    Whole(T),
    /// The beginning of one; what is there already.
    Cut(T),
    Not,
}

const METHODS: [&[u8]; 16] = [
    b"GET ",
    b"POST ",
    b"HEAD ",
    b"PUT ",
    b"DELETE ",
    b"OPTIONS ",
    b"CONNECT ",
    b"PATCH ",
    b"TRACE ",
    b"PROPFIND ",
    b"REPORT ",
    b"MKCOL ",
    b"SEARCH ",
    b"LOCK ",
    b"SUBSCRIBE ",
    b"NOTIFY ",
];

/// Whether `stream` can be the beginning of a request, as far as it goes.
pub fn may_be_request(stream: &[u8]) -> bool {
    METHODS.iter().any(|m| m.starts_with(stream) || stream.starts_with(m))
}

/// Whether `stream` can be the beginning of a response, as far as it goes.
pub fn may_be_response(stream: &[u8]) -> bool {
    const START: &[u8] = b"HTTP/1.";
    START.starts_with(stream) || stream.starts_with(START)
}

fn header<'a>(headers: &[httparse::Header<'a>], name: &str) -> Option<&'a [u8]> {
    let found = headers.iter().find(|h| h.name.eq_ignore_ascii_case(name));
    found.map(|h| h.value.trim_ascii()).filter(|v| !v.is_empty())
}

/// Reads a request's head.
pub fn request(stream: &[u8]) -> Head<Request<'_>> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut parsed = httparse::Request::new(&mut headers);
    let outcome = parsed.parse(stream);
    let (Some(method), Some(uri), Some(version)) = (parsed.method, parsed.path, parsed.version)
    else {
        // So far the first line is not whole.
        let undecided = matches!(outcome, Ok(httparse::Status::Partial));
        return if undecided { Head::Cut(Request::default()) } else { Head::Not };
    };
    let found = Request {
        method,
        uri,
        version,
        host: header(parsed.headers, "host"),
        user_agent: header(parsed.headers, "user-agent"),
        referer: header(parsed.headers, "referer"),
    };
    match outcome {
        Ok(httparse::Status::Partial) => Head::Cut(found),
        // A damaged or endless list of headers behind a good first line is a request all the same.
        _ => Head::Whole(found),
    }
}

/// Reads a response's head.
pub fn response(stream: &[u8]) -> Head<Response<'_>> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut parsed = httparse::Response::new(&mut headers);
    let outcome = parsed.parse(stream);
    let (Some(version), Some(status)) = (parsed.version, parsed.code) else {
        let undecided = matches!(outcome, Ok(httparse::Status::Partial));
        return if undecided { Head::Cut(Response::default()) } else { Head::Not };
    };
    let length = header(parsed.headers, "content-length");
    let found = Response {
        status,
        version,
        content_type: header(parsed.headers, "content-type"),
        length: length.and_then(|v| std::str::from_utf8(v).ok()?.parse().ok()),
        location: header(parsed.headers, "location"),
    };
    match outcome {
        Ok(httparse::Status::Partial) => Head::Cut(found),
        _ => Head::Whole(found),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASK: &[u8] = b"GET /a?b=c HTTP/1.1\r\nHost: example.com\r\nUser-Agent: curl/8\r\n\r\n";

    #[test]
    fn requests_and_responses() {
        let Head::Whole(r) = request(ASK) else { panic!() };
        assert_eq!((r.method, r.uri, r.version), ("GET", "/a?b=c", 1));
        assert_eq!((r.host, r.user_agent), (Some(&b"example.com"[..]), Some(&b"curl/8"[..])));
        let answer =
            b"HTTP/1.0 404 Not Found\r\nContent-Length: 12\r\ncontent-type: text/html\r\n\r\n";
        let Head::Whole(r) = response(answer) else { panic!() };
        assert_eq!((r.status, r.version, r.length), (404, 0, Some(12)));
        assert_eq!(request(b"\x16\x03\x01"), Head::Not);
    }

    #[test]
    fn cut_anywhere_it_is_a_beginning() {
        for n in 0..ASK.len() {
            assert!(may_be_request(&ASK[..n]));
            let Head::Cut(r) = request(&ASK[..n]) else { panic!("{n}") };
            assert_eq!(r.host.is_some(), n >= 40, "{n}");
        }
        assert!(!may_be_request(b"GOT /") && !may_be_response(b"HTTP/2"));
    }

    #[test]
    fn endless_headers_are_still_a_request() {
        let mut long = b"POST / HTTP/1.1\r\nHost: a\r\n".to_vec();
        for _ in 0..200 {
            long.extend(b"X: y\r\n");
        }
        let Head::Whole(r) = request(&long) else { panic!() };
        assert_eq!(r.method, "POST");
    }
}
