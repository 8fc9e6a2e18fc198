//! `/extract` and a flow's packets: what the client sees of an extraction.

use std::error::Error;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use actix_web::body::{BodySize, MessageBody};
use actix_web::http::StatusCode;
use actix_web::http::header::{
    ACCEPT, CONTENT_DISPOSITION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue,
};
use actix_web::web::{Bytes, Data, Path, Payload};
use actix_web::{HttpRequest, HttpResponse, HttpResponseBuilder};
use serde_json::{Value, json};

use super::State;
use super::extraction::{Facts, Item, Order, Stream};
use super::flows;
use super::gate;
use super::lines::Line;
use super::problem::Problem;
use super::question::{self, Question};
use crate::filter::Filter;
use crate::journal::extract::Format;

/// A question is shorter than this.
const BODY: usize = 64 << 10;
/// And comes within this.
const BODY_TIME: Duration = Duration::from_secs(10);
/// So long an answer may take to be known whole before its header goes out without that.
const HEAD: Duration = Duration::from_secs(1);

const PCAP: &str = "application/vnd.tcpdump.pcap";
const PCAPNG: &str = "application/x-pcapng";

/// `POST /extract`
pub(super) async fn post(
    state: Data<State>,
    request: HttpRequest,
    payload: Payload,
) -> Result<HttpResponse, Problem> {
    let format = format(request.headers())?;
    let body = read(payload).await?;
    let question = question::parse(&body, state.idle_timeout)?;
    if let Some(text) = &question.query.filter {
        Filter::compile(text, 1).map_err(|e| Problem::field("filter", e))?;
    }
    let asked = serde_json::from_slice(&body).unwrap_or_default();
    answer(&state, &request, question, asked, format).await
}

/// `GET /flows/{flow_id}/pcap`
pub(super) async fn flow(
    state: Data<State>,
    request: HttpRequest,
    id: Path<String>,
) -> Result<HttpResponse, Problem> {
    let format = format(request.headers())?;
    flows::flow_id(&id)?;
    let asked = json!({"flow_id": *id});
    let question = question::parse(asked.to_string().as_bytes(), state.idle_timeout)?;
    answer(&state, &request, question, asked, format).await
}

/// `GET /extract/{request_id}`: how an extraction went, or goes.
pub(super) async fn facts(state: Data<State>, id: Path<String>) -> Result<HttpResponse, Problem> {
    let found = state.extractions.find(&id).ok_or_else(|| {
        Problem::not_found("no extraction of this request id; the last 1000 are remembered")
    })?;
    Ok(HttpResponse::Ok().json(found.json()))
}

async fn read(payload: Payload) -> Result<Bytes, Problem> {
    let too_large = || {
        let why = format!("the body is longer than {BODY} bytes");
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, why)
    };
    match tokio::time::timeout(BODY_TIME, payload.to_bytes_limited(BODY)).await {
        Ok(Ok(Ok(body))) => Ok(body),
        Ok(Ok(Err(e))) => Err(Problem::bad(format!("the body: {e}"))),
        Ok(Err(_)) => Err(too_large()),
        Err(_) => {
            Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "the body did not come within 10 s"))
        }
    }
}

/// The kind of file that is wanted most.
fn format(headers: &HeaderMap) -> Result<Format, Problem> {
    let mut best: Option<(f32, Format)> = None;
    let mut any = false;
    let given = headers.get_all(ACCEPT).filter_map(|v| v.to_str().ok());
    for part in given.flat_map(|v| v.split(',')) {
        any = true;
        let mut parameters = part.split(';').map(str::trim);
        let kind = parameters.next().unwrap_or_default().to_ascii_lowercase();
        let quality = parameters.find_map(|p| p.strip_prefix("q=")?.parse().ok()).unwrap_or(1.0);
        let format = match kind.as_str() {
            PCAP | "application/x-pcap" | "application/*" | "*/*" => Format::Pcap,
            PCAPNG => Format::Pcapng,
            _ => continue,
        };
        if quality > 0.0 && best.is_none_or(|(q, _)| quality > q) {
            best = Some((quality, format));
        }
    }
    match best {
        Some((_, format)) => Ok(format),
        None if !any => Ok(Format::Pcap),
        None => Err(Problem::new(
            StatusCode::NOT_ACCEPTABLE,
            format!("there is {PCAP} and {PCAPNG} to be accepted"),
        )),
    }
}

async fn answer(
    state: &State,
    request: &HttpRequest,
    question: Question,
    asked: Value,
    format: Format,
) -> Result<HttpResponse, Problem> {
    let door = state.journal()?;
    let order = Order {
        id: gate::request_id(request),
        caller: gate::caller(request).map(|c| c.to_string()).unwrap_or_default(),
        asked,
        question,
        format,
    };
    let mut stream = state.extractions.begin(door, order)?;
    let broken = || Problem::internal("an extraction ended without an answer");
    match stream.items.recv().await.ok_or_else(broken)? {
        Item::Head => {}
        Item::Estimate(estimate) => {
            stream.ended = true;
            return Ok(HttpResponse::Ok().json(estimate));
        }
        Item::Broken(problem) => return Err(problem),
        // Only behind a head.
        Item::Data(_) | Item::Last(_) => return Err(broken()),
    }
    let first = match tokio::time::timeout(HEAD, stream.items.recv()).await {
        Err(_) => None,
        Ok(Some(Item::Data(bytes))) => Some(bytes),
        Ok(Some(Item::Last(bytes))) => {
            stream.ended = true;
            let facts = stream.extraction.facts();
            let mut answer = begin(&stream.extraction.id, &facts, format);
            answer.insert_header((name("malakocut-packets"), facts.packets));
            answer.insert_header((name("malakocut-bytes"), facts.bytes));
            let complete = facts.complete.unwrap_or_default();
            answer.insert_header((name("malakocut-complete"), complete.to_string()));
            answer.insert_header((name("malakocut-gaps"), facts.gaps.len()));
            return Ok(answer.body(bytes));
        }
        Ok(Some(Item::Broken(problem))) => return Err(problem),
        Ok(Some(Item::Head | Item::Estimate(_)) | None) => return Err(broken()),
    };
    let mut answer = begin(&stream.extraction.id, &stream.extraction.facts(), format);
    Ok(answer.body(Body { first, stream, line: Line::of(request) }))
}

fn name(text: &'static str) -> HeaderName {
    HeaderName::from_static(text)
}

/// The header of an answer, with what is known before its first packet.
fn begin(id: &str, facts: &Facts, format: Format) -> HttpResponseBuilder {
    let mut answer = HttpResponse::Ok();
    let (kind, ending) = match format {
        Format::Pcap => (PCAP, "pcap"),
        Format::Pcapng => (PCAPNG, "pcapng"),
    };
    let file = format!("attachment; filename=\"malakocut-{id}.{ending}\"");
    answer.insert_header((CONTENT_TYPE, kind));
    answer.insert_header((CONTENT_DISPOSITION, file));
    answer.insert_header((name("malakocut-segments"), facts.segments));
    answer.insert_header((name("malakocut-lost"), facts.lost));
    answer.insert_header((name("malakocut-facts"), format!("/extract/{id}")));
    if let Some(watermark) = facts.watermark.as_deref().and_then(|w| HeaderValue::from_str(w).ok())
    {
        answer.insert_header((name("malakocut-watermark"), watermark));
    }
    answer
}

/// The file, as the connection has room for it. What breaks it breaks the transfer, visibly.
struct Body {
    first: Option<Bytes>,
    stream: Stream,
    line: Option<Arc<Line>>,
}

impl MessageBody for Body {
    type Error = Box<dyn Error>;

    fn size(&self) -> BodySize {
        BodySize::Stream
    }

    fn poll_next(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Self::Error>>> {
        let this = self.get_mut();
        if let Some(line) = &this.line {
            line.moved();
        }
        if let Some(bytes) = this.first.take() {
            return Poll::Ready(Some(Ok(bytes)));
        }
        if this.stream.ended {
            return Poll::Ready(None);
        }
        Poll::Ready(match ready!(this.stream.items.poll_recv(context)) {
            Some(Item::Data(bytes)) => Some(Ok(bytes)),
            Some(Item::Last(bytes)) => {
                this.stream.ended = true;
                (!bytes.is_empty()).then_some(Ok(bytes))
            }
            Some(Item::Broken(problem)) => Some(Err(problem.to_string().into())),
            Some(Item::Head | Item::Estimate(_)) | None => {
                Some(Err("the extraction ended without an end".into()))
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kind_of_file_by_accept() {
        let of = |accept: &[&str]| {
            let mut headers = HeaderMap::new();
            for a in accept {
                headers.append(ACCEPT, HeaderValue::from_str(a).unwrap());
            }
            format(&headers).ok()
        };
        let (pcap, pcapng) = (Some(Format::Pcap), Some(Format::Pcapng));
        assert_eq!(of(&[]), pcap);
        assert_eq!(of(&["*/*"]), pcap);
        assert_eq!(of(&["Application/X-PCAPNG"]), pcapng);
        assert_eq!(of(&["application/x-pcapng;q=0.5, */*;q=0.1"]), pcapng);
        assert_eq!(of(&["application/x-pcapng;q=0.5", PCAP]), pcap);
        assert_eq!(of(&["text/html, application/json"]), None);
        assert_eq!(of(&["application/x-pcapng;q=0"]), None);
    }
}
