//! A body that is made while it is sent, a piece at a time.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use actix_web::body::{BodySize, MessageBody};
use actix_web::web::Bytes;

/// The pieces of an iterator, as the connection has room for them.
pub(super) struct Pieces<I>(I);

impl<I: Iterator<Item = Bytes> + Unpin> Pieces<I> {
    pub(super) fn new(pieces: I) -> Self {
        Self(pieces)
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
        Poll::Ready(self.get_mut().0.next().map(Ok))
    }
}
