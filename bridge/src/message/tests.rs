use proptest::prelude::*;
use remoteprocess_api::trigger::MessageSpec;

use super::*;

fn spec(message: MessageSpec) -> ProcessTriggerSpec {
    ProcessTriggerSpec {
        message: Some(message),
        ..ProcessTriggerSpec::default()
    }
}

fn message(payload: &'static [u8]) -> Message {
    Message {
        payload: Bytes::from_static(payload),
        ..Message::default()
    }
}

fn with_headers(headers: &[(&str, &str)]) -> Message {
    let mut message = message(b"body");
    for (name, value) in headers {
        assert!(message.insert(name, value), "{name}");
    }
    message
}

fn work(message: &Message) -> Work {
    read(message, "orders", &ProcessTriggerSpec::default()).unwrap()
}

fn variable<'a>(work: &'a Work, name: &str) -> Option<&'a str> {
    let found = work.variables.iter().find(|(other, _)| other == name);
    found.map(|(_, value)| value.as_str())
}

#[test]
fn without_any_id_the_payload_is_the_id() {
    let one = work(&message(b"body"));
    assert_eq!(one.id, format!("sha256:{}", hex::encode(Sha256::digest(b"body"))));
    assert_eq!(one.id, work(&with_headers(&[("x", "y")])).id);
    assert_ne!(one.id, work(&message(b"other")).id);
}

#[test]
fn the_id_of_the_broker_comes_before_the_payload() {
    let mut message = message(b"body");
    message.id = Some("42".into());
    assert_eq!(work(&message).id, "42");
    let by_body = spec(MessageSpec {
        id: Some(MessageId::Body),
        ..MessageSpec::default()
    });
    assert!(read(&message, "orders", &by_body).unwrap().id.starts_with("sha256:"));
}

#[test]
fn a_header_that_is_the_id_must_be_there() {
    let by_header = spec(MessageSpec {
        id: Some(MessageId::Header),
        id_header: Some("X-Order".into()),
        ..MessageSpec::default()
    });
    assert_eq!(
        read(&with_headers(&[("X-ORDER", "7")]), "orders", &by_header)
            .unwrap()
            .id,
        "7"
    );
    let refused = read(&message(b"body"), "orders", &by_header).unwrap_err();
    assert_eq!(refused.0, "the message has no header X-Order (spec.message.idHeader)");
    assert!(
        read(&with_headers(&[("x-order", "")]), "orders", &by_header).is_err(),
        "empty"
    );
    let long = "x".repeat(MAX_ID + 1);
    assert!(
        read(&with_headers(&[("x-order", &long)]), "orders", &by_header).is_err(),
        "too long"
    );
}

#[test]
fn cloud_events_in_binary_mode() {
    for prefix in ["ce-", "CE-", "cloudEvents:", "cloudEvents_"] {
        let named = |name: &str| format!("{prefix}{name}");
        let mut message = with_headers(&[
            (&named("specversion"), "1.0"),
            (&named("id"), "a1"),
            (&named("source"), "/shop"),
            (&named("type"), "order"),
            (&named("subject"), "no 7"),
            ("other", "header"),
        ]);
        message.id = Some("42".into());
        message.content_type = Some("text/plain".into());
        let work = work(&message);
        assert_eq!(work.id, "/shop a1", "before the broker's id");
        assert_eq!(work.message.payload, message.payload);
        assert_eq!(variable(&work, "CE_ID"), Some("a1"));
        assert_eq!(variable(&work, "CE_SOURCE"), Some("/shop"));
        assert_eq!(variable(&work, "CE_TYPE"), Some("order"));
        assert_eq!(variable(&work, "CE_SUBJECT"), Some("no 7"));
        assert_eq!(variable(&work, "CE_DATACONTENTTYPE"), Some("text/plain"));
        assert_eq!(variable(&work, "RPROC_TRIGGER"), Some("orders"));
        assert_eq!(variable(&work, "RPROC_MESSAGE_ID"), Some("/shop a1"));
        assert_eq!(variable(&work, "CE_SPECVERSION"), None);
    }
}

#[test]
fn what_lacks_an_attribute_is_an_ordinary_message() {
    let all = [
        ("ce-specversion", "1.0"),
        ("ce-id", "a"),
        ("ce-source", "s"),
        ("ce-type", "t"),
    ];
    for left_out in 0..all.len() {
        let mut headers = all.to_vec();
        headers.remove(left_out);
        assert!(work(&with_headers(&headers)).id.starts_with("sha256:"), "{headers:?}");
    }
    let ambiguous = [
        ("ce-specversion", "1.0"),
        ("ce-id", "b"),
        ("ce-source", "s a"),
        ("ce-type", "t"),
    ];
    assert!(work(&with_headers(&ambiguous)).id.starts_with("sha256:"));
}

fn structured(body: &'static str) -> Result<Work, Poison> {
    let mut message = message(body.as_bytes());
    message.content_type = Some("application/cloudevents+json; charset=utf-8".into());
    read(&message, "orders", &ProcessTriggerSpec::default())
}

#[test]
fn cloud_events_in_structured_mode() {
    let json = structured(
        r#"{"specversion":"1.0","id":"a","source":"s","type":"t","time":"2026-01-01T00:00:00Z","n":7,"data":{"x":[1]}}"#,
    )
    .unwrap();
    assert_eq!(
        (json.id.as_str(), &json.message.payload[..]),
        ("s a", &br#"{"x":[1]}"#[..])
    );
    assert_eq!(variable(&json, "CE_TIME"), Some("2026-01-01T00:00:00Z"));
    assert_eq!(variable(&json, "CE_N"), Some("7"), "integers are text");
    assert_eq!(variable(&json, "CE_DATA"), None);
    let text =
        r#"{"specversion":"1.0","id":"a","source":"s","type":"t","datacontenttype":"text/plain","data":"hi \u00e4"}"#;
    assert_eq!(structured(text).unwrap().message.payload, "hi \u{e4}".as_bytes());
    let string = r#"{"specversion":"1.0","id":"a","source":"s","type":"t","data":"hi"}"#;
    assert_eq!(
        &structured(string).unwrap().message.payload[..],
        br#""hi""#,
        "JSON is the default"
    );
    let binary = r#"{"specversion":"1.0","id":"a","source":"s","type":"t","data_base64":"AP8="}"#;
    assert_eq!(&structured(binary).unwrap().message.payload[..], b"\x00\xff");
    let none = r#"{"specversion":"1.0","id":"a","source":"s","type":"t"}"#;
    assert!(structured(none).unwrap().message.payload.is_empty());
}

#[test]
fn a_structured_event_is_kept_in_binary_mode() {
    let event = r#"{"specversion":"1.0","id":"a","source":"s","type":"t","subject":"x","data":{"n":1}}"#;
    let work = structured(event).unwrap();
    assert_eq!(work.message.content_type.as_deref(), Some("application/json"));
    let again = read(&work.message, "orders", &ProcessTriggerSpec::default()).unwrap();
    assert_eq!(
        (&again.id, &again.message.payload),
        (&work.id, &work.message.payload),
        "a dead letter taken back"
    );
    assert_eq!(variable(&again, "CE_SUBJECT"), Some("x"));
}

#[test]
fn headers_that_a_signature_does_not_cover_make_no_new_message() {
    let mut message = with_headers(&[("webhook-id", "w1"), ("x-order", "7")]);
    for (name, value) in [
        ("ce-specversion", "1.0"),
        ("ce-id", "other"),
        ("ce-source", "s"),
        ("ce-type", "t"),
    ] {
        message.insert(name, value);
    }
    (message.id, message.is_signed) = (Some("w1".into()), true);
    assert_eq!(work(&message).id, "w1");
    message.content_type = Some("application/cloudevents+json".into());
    message.payload = Bytes::from_static(br#"{"specversion":"1.0","id":"a","source":"s","type":"t"}"#);
    assert_eq!(work(&message).id, "w1");
    let by = |header: &str| {
        spec(MessageSpec {
            id: Some(MessageId::Header),
            id_header: Some(header.into()),
            ..MessageSpec::default()
        })
    };
    assert!(
        read(&message, "orders", &by("X-Order"))
            .unwrap_err()
            .0
            .contains("not covered")
    );
    assert_eq!(read(&message, "orders", &by("Webhook-Id")).unwrap().id, "w1");
}

#[test]
fn what_says_that_it_is_a_cloud_event_and_is_none_is_poison() {
    for body in [
        "",
        "nonsense",
        "[]",
        r#"{"specversion":"1.0","id":"a","source":"s"}"#,
        r#"{"specversion":"0.3","id":"a","source":"s","type":"t"}"#,
        r#"{"specversion":"1.0","id":"a","source":"s","type":"t","data_base64":"%"}"#,
    ] {
        let poison = structured(body).unwrap_err();
        assert!(poison.0.contains("CloudEvent"), "{body}: {poison}");
    }
    let deep = Box::leak(format!(r#"{{"data":{}"#, "[".repeat(100_000)).into_boxed_str());
    assert!(structured(deep).is_err(), "no stack is exhausted");
}

#[test]
fn a_payload_has_a_largest_size() {
    let small = spec(MessageSpec {
        max_bytes: Some(3),
        ..MessageSpec::default()
    });
    assert!(read(&message(b"abc"), "orders", &small).is_ok());
    let poison = read(&message(b"abcd"), "orders", &small).unwrap_err();
    assert!(poison.0.contains("4 bytes; at most 3"), "{poison}");
}

#[test]
fn an_environment_variable_holds_text() {
    let env = spec(MessageSpec {
        payload: Some(Payload::Env),
        ..MessageSpec::default()
    });
    assert!(read(&message("\u{e4}".as_bytes()), "orders", &env).is_ok());
    for (payload, word) in [(&b"a\0b"[..], "NUL"), (&b"\xff"[..], "UTF-8")] {
        let poison = read(&message(payload), "orders", &env).unwrap_err();
        assert!(poison.0.contains(word), "{poison}");
        assert!(
            read(&message(payload), "orders", &ProcessTriggerSpec::default()).is_ok(),
            "a file holds bytes"
        );
    }
    let large = Message {
        payload: vec![b'x'; 32 * 1024 + 1].into(),
        ..Message::default()
    };
    assert!(read(&large, "orders", &env).is_err());
}

#[test]
fn headers_are_bounded() {
    let mut message = Message::default();
    assert!(!message.insert("", "x"));
    assert!(!message.insert(&"n".repeat(MAX_HEADER_NAME + 1), "x"));
    assert!(!message.insert("n", &"x".repeat(MAX_HEADER_VALUE + 1)));
    assert!(!message.insert("n", "line\nbreak"));
    assert!(!message.insert("n\0", "x"));
    for number in 0..MAX_HEADERS {
        assert!(message.insert(&format!("h{number}"), "x"));
    }
    assert!(!message.insert("one-more", "x"));
    assert!(message.insert("H1", "again"), "this one is there already");
    assert_eq!(message.header("h1"), Some("again"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn whatever_the_headers_are_what_follows_is_bounded(
        headers in proptest::collection::vec((".{0,20}", ".{0,30}", 0_usize..200), 0..80),
        events in proptest::collection::vec(("[a-z0-9]{1,70}", ".{0,30}", 0_usize..200), 0..50),
        payload in proptest::collection::vec(any::<u8>(), 0..100),
        content_type in proptest::option::of(".{0,60}"),
        id in proptest::option::of(".{0,1200}"),
    ) {
        let mut message = Message { id, payload: payload.into(), content_type, ..Message::default() };
        for (name, value) in [("ce-specversion", "1.0"), ("ce-id", "a"), ("ce-source", "s"), ("ce-type", "t")] {
            message.insert(name, value);
        }
        for (name, value, times) in &headers {
            message.insert(name, &value.repeat(*times));
        }
        for (name, value, times) in &events {
            message.insert(&format!("ce-{name}"), &value.repeat(*times));
        }
        let bytes: usize = message.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
        prop_assert!(message.headers.len() <= MAX_HEADERS && bytes <= MAX_HEADER_BYTES);
        let Ok(work) = read(&message, "orders", &ProcessTriggerSpec::default()) else { return Ok(()) };
        prop_assert_eq!(&work, &read(&message, "orders", &ProcessTriggerSpec::default()).unwrap(), "no chance in it");
        prop_assert!((1..=MAX_ID).contains(&work.id.len()) && !work.id.contains(char::is_control));
        prop_assert!(work.variables.len() <= MAX_VARIABLES);
        for (name, value) in &work.variables {
            prop_assert!(value.len() <= MAX_VARIABLE && !value.contains('\0'));
            let is_ours = name == "RPROC_TRIGGER" || name == "RPROC_MESSAGE_ID" || name.starts_with("CE_");
            prop_assert!(is_ours, "{name}: a message cannot choose PATH or LD_PRELOAD");
            prop_assert!(name.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_'));
        }
    }

    #[test]
    fn different_events_have_different_ids(
        one in ("[!-~]{1,8}", "[ -~]{1,8}"), other in ("[!-~]{1,8}", "[ -~]{1,8}"),
    ) {
        let id = |(source, id): &(String, String)| {
            work(&with_headers(&[("ce-specversion", "1.0"), ("ce-type", "t"), ("ce-source", source), ("ce-id", id)])).id
        };
        prop_assert_eq!(one == other, id(&one) == id(&other));
    }
}

proptest! {
    #[test]
    fn what_is_encoded_can_be_decoded(text in ".{0,50}") {
        let encoded = percent_encoded(&text);
        prop_assert!(encoded.bytes().all(|byte| (0x21..0x7f).contains(&byte)));
        prop_assert_eq!(percent_decoded(&encoded), text);
    }

    #[test]
    fn nothing_makes_decoding_panic(text in "[%a-fA-F0-9+\u{e4}]{0,12}") {
        percent_decoded(&text);
    }
}

#[test]
fn what_is_no_encoding_stays() {
    for text in ["%", "%4", "%+f", "100%", "%ff", "%zz"] {
        assert_eq!(percent_decoded(text), text);
    }
    assert_eq!(percent_decoded("%41%c3%a4"), "A\u{e4}");
}

#[test]
fn a_replay_is_another_message_with_the_same_id() {
    let mut message = with_headers(&[("x", "y")]);
    message.id = Some("order-7".into());
    let first = work(&message);
    assert_eq!((first.id.as_str(), first.replay_of), ("order-7", None));
    let letter = message.clone().into_dead_letter("shop/orders", Some("uid-1"));
    assert!(letter.is_of("shop/orders") && !letter.is_of("shop/others") && message.is_of("shop/others"));
    let mut letter = letter.clone();
    letter.insert(DEAD_LETTER_REASON, "it failed");
    let again = letter.into_replay();
    assert_eq!(again.headers.len(), 2, "{:?}", again.headers);
    let again = work(&again);
    assert_eq!(
        (again.id.as_str(), again.replay_of.as_deref()),
        ("order-7", Some("uid-1"))
    );
    for odd in ["", "a b", "\u{e4}", &"x".repeat(65)] {
        let mut message = message.clone();
        message.insert(REPLAY_OF, odd);
        assert_eq!(work(&message).replay_of, None, "{odd}");
    }
}

#[test]
fn our_headers_are_kept_beside_all_others() {
    let mut message = Message::default();
    for number in 0..MAX_HEADERS {
        assert!(message.insert(&format!("x-{number}"), "y"));
    }
    assert!(!message.insert("one-more", "y"));
    let letter = message.into_dead_letter("shop/orders", Some("uid-1"));
    assert_eq!(
        (letter.replay_of(), letter.headers.len()),
        (Some("uid-1"), MAX_HEADERS + 2)
    );
    let mut copy = Message::default();
    for (name, value) in &letter.headers {
        assert!(copy.insert(name, value), "{name}");
    }
}
