//! Calls of the CRI whose request is any bytes at all.
//!
//! Called by: the tests of hostile requests. Every call is made as one whose replies are a stream, which is the same
//! on the wire. Not here: what is sent.

use std::error::Error as _;
use std::time::Duration;

use bytes::{Buf as _, BufMut as _};
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Request, Status};

use crate::protobuf::Rpc;

/// What the server made of a call.
#[derive(Debug)]
pub enum Answer {
    /// It replied; so many messages were read until the end or the limit.
    Replies(usize),
    /// It refused.
    Refused(Status),
    /// Nothing within the limit and a grace.
    Silence,
    /// The client gave up at the limit: the server's own answer at that time came too late.
    Late,
    /// The connection or stream broke.
    Broken(Status),
}

/// How long behind its limit a call may answer before it counts as hung.
const GRACE: Duration = Duration::from_secs(60);

/// Makes one call with the deadline `limit`. Reads of a stream end at the limit as well.
pub async fn call(channel: &Channel, rpc: &Rpc, request: Vec<u8>, limit: Duration) -> Answer {
    let mut replies = 0;
    let work = read(channel, rpc, request, limit, &mut replies);
    match tokio::time::timeout(limit + GRACE, work).await {
        Err(_) => Answer::Silence,
        Ok(Ok(())) => Answer::Replies(replies),
        Ok(Err(status)) if status.message() == "Timeout expired" => Answer::Late,
        // A status that came over the wire has no source.
        Ok(Err(status)) if status.source().is_some() => Answer::Broken(status),
        Ok(Err(status)) => Answer::Refused(status),
    }
}

async fn read(
    channel: &Channel,
    rpc: &Rpc,
    request: Vec<u8>,
    limit: Duration,
    replies: &mut usize,
) -> Result<(), Status> {
    let mut grpc = Grpc::new(channel.clone())
        .max_decoding_message_size(64 << 20)
        .max_encoding_message_size(64 << 20);
    let ready = grpc.ready().await;
    ready.map_err(|e| Status::from_error(Box::new(e)))?;
    let path = format!("/runtime.v1.{}/{}", rpc.service, rpc.name);
    let path = PathAndQuery::try_from(path).map_err(|e| Status::from_error(Box::new(e)))?;
    let mut request = Request::new(request);
    request.set_timeout(limit);
    let reply = grpc.server_streaming(request, path, Bytes).await?;
    let mut stream = reply.into_inner();
    // Some streams have no end; the deadline that the server was told is only that of their beginning.
    let end = tokio::time::Instant::now() + limit;
    while let Ok(next) = tokio::time::timeout_at(end, stream.message()).await {
        if next?.is_none() {
            break;
        }
        *replies += 1;
    }
    Ok(())
}

/// Messages that are left as they are.
#[derive(Clone, Copy, Debug)]
struct Bytes;

impl Codec for Bytes {
    type Encode = Vec<u8>;
    type Decode = ();
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Bytes {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Bytes {
    type Item = ();
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<()>, Status> {
        from.advance(from.remaining());
        Ok(Some(()))
    }
}
