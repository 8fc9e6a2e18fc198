//! Live flows: what is asked by a query string, and the answer a piece at a time.

use actix_web::http::header;
use actix_web::web::{Bytes, Data, Path, Query};
use actix_web::{HttpRequest, HttpResponse};

use super::State;
use super::pieces::Pieces;
use super::problem::Problem;
use crate::control::live::QueryError;
use crate::control::{FlowAnswer, FlowQuery, Sort};
use crate::event::Expression;
use crate::journal::query::text::rfc3339;

/// Bytes handed to the connection at once.
const PIECE: usize = 64 << 10;

/// A query string's names and values, in order.
pub(super) type Pairs = Query<Vec<(String, String)>>;

/// `GET /flows`
pub(super) async fn list(
    state: Data<State>,
    pairs: Pairs,
    request: HttpRequest,
) -> Result<HttpResponse, Problem> {
    let query = parse(&pairs)?;
    let answer = ask(&state, query).await?;
    let at_ns = match answer.at_ns {
        // There was no flow to tell the time.
        0 => state.house.status().now_ns,
        ns => ns,
    };
    let head = format!(
        "{{\"at\":\"{}\",\"took_ms\":{:.3},\"flows\":{},\"matched\":{},\"rows\":[",
        rfc3339(at_ns),
        answer.took.as_secs_f64() * 1e3,
        answer.flows,
        answer.matched
    );
    Ok(HttpResponse::Ok()
        .insert_header(header::ContentType::json())
        .body(Pieces::new(pieces(head, answer.rows), &request)))
}

/// `GET /flows/{flow_id}`
pub(super) async fn one(state: Data<State>, id: Path<String>) -> Result<HttpResponse, Problem> {
    let id = flow_id(&id)?;
    let filter: Expression =
        format!("flow_id == \"{id:016x}\"").parse().map_err(Problem::internal)?;
    let query = FlowQuery { filter: Some(filter), limit: 1, ..FlowQuery::default() };
    let row = ask(&state, query).await?.rows.pop().ok_or_else(|| {
        Problem::not_found("no live flow has this id; POST /extract looks into the journal")
    })?;
    Ok(HttpResponse::Ok().insert_header(header::ContentType::json()).body(row))
}

/// A flow's id from a path.
pub(super) fn flow_id(text: &str) -> Result<u64, Problem> {
    let hex = text.len() == 16 && text.bytes().all(|b| b.is_ascii_hexdigit());
    let id = hex.then(|| u64::from_str_radix(text, 16).ok()).flatten();
    id.ok_or_else(|| Problem::field("flow_id", "16 hexadecimal digits"))
}

async fn ask(state: &State, query: FlowQuery) -> Result<FlowAnswer, Problem> {
    State::answered(state.house.flows(query)).await
}

fn parse(pairs: &[(String, String)]) -> Result<FlowQuery, Problem> {
    let mut query = FlowQuery::default();
    for (name, value) in pairs {
        match name.as_str() {
            "filter" if value.is_empty() => {}
            "filter" => query = query.with_filter(value).map_err(refuse)?,
            "sort" => {
                query.sort = Sort::from_name(value).ok_or_else(|| {
                    let names: Vec<&str> = Sort::ALL.iter().map(|(name, _)| *name).collect();
                    Problem::field(name, format!("one of {}", names.join(", ")))
                })?;
            }
            "order" => {
                query.ascending = match value.as_str() {
                    "asc" => true,
                    "desc" => false,
                    _ => return Err(Problem::field(name, "asc or desc")),
                }
            }
            "limit" => query.limit = number(name, value)?,
            "offset" => query.offset = number(name, value)?,
            "after" => {
                let id = u64::from_str_radix(value, 16).ok().filter(|_| value.len() <= 16);
                let id = id.ok_or_else(|| Problem::field(name, "a flow_id, hexadecimal digits"))?;
                query.after = Some(id);
            }
            other => return Err(Problem::field(other, "there is no such parameter")),
        }
    }
    query.check().map_err(refuse)?;
    Ok(query)
}

/// A parameter that is a number.
pub(super) fn number<T: std::str::FromStr>(name: &str, value: &str) -> Result<T, Problem> {
    value.parse().map_err(|_| Problem::field(name, "a whole number"))
}

/// The control room's messages begin with the parameter's name.
fn refuse(e: QueryError) -> Problem {
    let text = e.to_string();
    match text.split_once(": ") {
        Some((name, why)) => Problem::field(name, why),
        None => Problem::bad(text),
    }
}

fn pieces(head: String, rows: Vec<Vec<u8>>) -> impl Iterator<Item = Bytes> {
    let mut rows = rows.into_iter();
    let mut next = Some(head.into_bytes());
    let mut first = true;
    std::iter::from_fn(move || {
        let mut piece = next.take()?;
        while piece.len() < PIECE {
            let Some(row) = rows.next() else {
                piece.extend_from_slice(b"]}\n");
                return Some(piece.into());
            };
            if !std::mem::take(&mut first) {
                piece.push(b',');
            }
            piece.extend_from_slice(&row);
        }
        next = Some(Vec::with_capacity(PIECE + 2048));
        Some(piece.into())
    })
}
