//! A body that is made while it is sent, a piece at a time.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use actix_web::HttpRequest;
use actix_web::body::{BodySize, MessageBody};
use actix_web::web::Bytes;

use super::lines::Line;

/// The pieces of an iterator, as the connection has room for them.
pub(super) struct Pieces<I> {
    pieces: I,
    line: Option<Arc<Line>>,
}

impl<I: Iterator<Item = Bytes> + Unpin> Pieces<I> {
    pub(super) fn new(pieces: I, request: &HttpRequest) -> Self {
        Self { pieces, line: Line::of(request) }
    }
}

impl<I: Iterator<Item = Bytes> + Unpin> MessageBody for Pieces<I> {
    type Error = Infallible;

    fn size(&self) -> BodySize {
        BodySize::Stream
    }

    fn poll_next(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Infallible>>> {
        let this = self.get_mut();
        if let Some(line) = &this.line {
            line.moved();
        }
        Poll::Ready(this.pieces.next().map(Ok))
    }
}
