//! A session over a socket pair; the other end is played by bytes.

use std::sync::Arc;

use futures_util::FutureExt as _;

use super::super::wire::Reader;
use super::*;
use tokio::net::unix::OwnedReadHalf;

const LIMIT: Duration = Duration::from_millis(200);
/// Longer than any answer takes here, on however slow a machine.
const LONG: Duration = Duration::from_secs(60);

fn session(limit: Duration) -> (Arc<Session>, Received, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (session, reading, received) = Session::new(ours, limit);
    tokio::spawn(reading);
    (session, received, theirs)
}

fn request(stream: u32, method: &str, payload: Vec<u8>) -> Message {
    let request = nri::TtrpcRequest {
        service: RUNTIME_SERVICE.to_owned(),
        method: method.to_owned(),
        payload,
        timeout_nano: 0,
    };
    Message {
        connection: RUNTIME,
        stream,
        kind: REQUEST,
        payload: request.encode_to_vec(),
    }
}

fn registration(index: &str, name: &str) -> Vec<u8> {
    let request = nri::RegisterPluginRequest {
        plugin_name: name.to_owned(),
        plugin_idx: index.to_owned(),
        nri_version: "v0.12.0".to_owned(),
    };
    request.encode_to_vec()
}

async fn answer(reader: &mut Reader<OwnedReadHalf>) -> nri::TtrpcResponse {
    let message = reader.next().await.unwrap();
    assert_eq!((message.connection, message.kind), (RUNTIME, RESPONSE));
    nri::TtrpcResponse::decode(message.payload.as_slice()).unwrap()
}

#[tokio::test]
async fn a_plugin_registers_once_under_a_name_of_the_right_form() {
    let (session, received, theirs) = session(LONG);
    let (read, mut write) = theirs.into_split();
    let mut reader = Reader::new(read);
    for (stream, (index, name)) in [
        ("1", "a"),
        ("aa", "a"),
        ("10", ""),
        ("10", "a/b"),
        ("10", "good.1"),
    ]
    .into_iter()
    .enumerate()
    {
        let stream = stream as u32 * 2 + 1;
        let message = request(stream, "RegisterPlugin", registration(index, name));
        write.write_all(&wire::encode(&message)).await.unwrap();
        let code = answer(&mut reader)
            .await
            .status
            .map_or(0, |status| status.code);
        let expected = if name == "good.1" {
            0
        } else {
            INVALID_ARGUMENT
        };
        assert_eq!(code, expected, "{index} {name}");
    }
    let registered = received.registered.await.unwrap();
    assert_eq!(registered, ("10".to_owned(), "good.1".to_owned()));
    let again = request(11, "RegisterPlugin", registration("10", "good.1"));
    write.write_all(&wire::encode(&again)).await.unwrap();
    assert_eq!(session.ended().await, "it registered twice");
}

#[tokio::test]
async fn a_plugin_that_does_not_answer_is_closed_and_nobody_waits_longer() {
    let (session, _received, _theirs) = session(LIMIT);
    let began = Instant::now();
    let called = session.call("Configure", &nri::Empty {}).await;
    assert_eq!(called, Err(CallError::Closed));
    assert!(began.elapsed() >= LIMIT);
    let again = session.call("Configure", &nri::Empty {}).now_or_never();
    assert_eq!(again, Some(Err(CallError::Closed)), "nobody waits longer");
    assert!(session.ended().await.contains("Configure"));
}

#[tokio::test]
async fn answers_go_to_their_calls_and_lies_close_the_session() {
    let respond = |stream: u32, response: nri::TtrpcResponse| {
        wire::encode(&Message {
            connection: PLUGIN,
            stream,
            kind: RESPONSE,
            payload: response.encode_to_vec(),
        })
    };
    let (session, _received, theirs) = session(LONG);
    let (read, mut write) = theirs.into_split();
    let mut reader = Reader::new(read);
    for (stream, code) in [(1, 0), (3, 2), (5, UNIMPLEMENTED)] {
        let own = Arc::clone(&session);
        let called = tokio::spawn(async move { own.call("Shutdown", &nri::Empty {}).await });
        assert_eq!(reader.next().await.unwrap().stream, stream);
        let response = nri::TtrpcResponse {
            status: Some(nri::TtrpcStatus {
                code,
                message: "no".to_owned(),
            }),
            payload: vec![7],
        };
        write.write_all(&respond(stream, response)).await.unwrap();
        let expected = match code {
            0 => Ok(vec![7]),
            2 => Err(CallError::Answered("no".to_owned())),
            _ => Err(CallError::Unimplemented),
        };
        assert_eq!(called.await.unwrap(), expected);
    }
    let unasked = respond(1, nri::TtrpcResponse::default());
    write.write_all(&unasked).await.unwrap();
    assert!(session.ended().await.contains("does not wait"));
}

#[tokio::test]
async fn a_flood_of_requests_is_refused_beyond_a_short_queue_and_one_that_is_not_read_ends() {
    // Enough for a slow machine to write an answer.
    let (session, mut received, theirs) = session(LIMIT * 10);
    let (read, mut write) = theirs.into_split();
    let mut reader = Reader::new(read);
    for stream in 0..=QUEUE as u32 {
        let message = request(stream * 2 + 1, "UpdateContainers", Vec::new());
        write.write_all(&wire::encode(&message)).await.unwrap();
    }
    let refused = answer(&mut reader).await.status.unwrap();
    assert_eq!(refused.code, RESOURCE_EXHAUSTED);
    let first = received.requests.recv().await.unwrap();
    session.answer(first, Vec::new()).await;
    assert_eq!(answer(&mut reader).await.status, None);
    // It goes on, and reads no more of the refusals.
    let message = wire::encode(&request(1, "Unknown", Vec::new()));
    let flood = async { while write.write_all(&message).await.is_ok() {} };
    tokio::select! {
        () = flood => {}
        why = session.ended() => assert!(why.contains("reads nothing"), "{why}"),
    }
    assert!(session.is_closed());
}

#[tokio::test]
async fn a_plugin_of_before_0_12_is_told_by_a_change_of_state() {
    let (session, _received, theirs) = session(LONG);
    let (read, mut write) = theirs.into_split();
    let mut reader = Reader::new(read);
    let own = Arc::clone(&session);
    let told = tokio::spawn(async move {
        let subject = nri::EventRequest::default();
        for event in [
            Event::StartContainer,
            Event::StartContainer,
            Event::CreateContainer,
        ] {
            let _ = own.event(event, &subject, &subject).await;
        }
    });
    let mut methods = Vec::new();
    for _ in 0..4 {
        let message = reader.next().await.unwrap();
        let request = nri::TtrpcRequest::decode(message.payload.as_slice()).unwrap();
        let known = ["StateChange", "CreateContainer"].contains(&request.method.as_str());
        let code = if known { 0 } else { UNIMPLEMENTED };
        if request.method == "StateChange" {
            let change = nri::StateChangeEvent::decode(request.payload.as_slice()).unwrap();
            assert_eq!(change.event, 6);
        }
        methods.push(request.method);
        let response = nri::TtrpcResponse {
            status: Some(nri::TtrpcStatus {
                code,
                message: String::new(),
            }),
            payload: Vec::new(),
        };
        let response = wire::encode(&Message {
            connection: PLUGIN,
            stream: message.stream,
            kind: RESPONSE,
            payload: response.encode_to_vec(),
        });
        write.write_all(&response).await.unwrap();
    }
    told.await.unwrap();
    let expected = [
        "StartContainer",
        "StateChange",
        "StateChange",
        "CreateContainer",
    ];
    assert_eq!(methods, expected);
}

#[tokio::test]
async fn a_long_queue_closes_no_plugin_that_goes_on_answering() {
    let (session, _received, theirs) = session(LONG);
    let (read, mut write) = theirs.into_split();
    let mut reader = Reader::new(read);
    // The pauses are far shorter, and all of them together longer.
    let limit = Duration::from_secs(2);
    let own = &session;
    let calls = (0..15).map(|_| async move {
        let turn = own.turn(limit).await;
        assert!(turn.is_some());
        own.call("Shutdown", &nri::Empty {}).await.unwrap();
    });
    let calls = futures_util::future::join_all(calls);
    let plugin = async {
        while let Ok(message) = reader.next().await {
            tokio::time::sleep(Duration::from_millis(160)).await;
            let response = wire::encode(&Message {
                connection: PLUGIN,
                stream: message.stream,
                kind: RESPONSE,
                payload: nri::TtrpcResponse::default().encode_to_vec(),
            });
            write.write_all(&response).await.unwrap();
        }
    };
    tokio::select! {
        _ = calls => {}
        () = plugin => {}
    }
    assert_eq!(session.answered.load(Ordering::Acquire), 15);
    assert!(!session.is_closed());
    // One that answers nothing is closed.
    let _held = session.turn(LIMIT).await.unwrap();
    assert!(session.turn(LIMIT).await.is_none());
    assert!(session.ended().await.contains("waited for it"));
}
