use super::*;

fn parse(text: &str) -> BrokerUrl {
    text.parse().expect("the URL is well formed")
}

fn refusal(text: &str) -> String {
    let error = text.parse::<BrokerUrl>().expect_err(text);
    assert_eq!(error.kind(), ErrorKind::Config);
    error.to_string()
}

#[test]
fn a_url_is_taken_apart() {
    let mut url = parse("AMQPS://app:s%2Fe%40c:r%3Fe,t@a.local:5671,b.local/%2Fprod?x=1%262");
    assert_eq!((url.scheme(), url.path()), ("amqps", "/prod"));
    assert_eq!((url.user(), url.password()), (Some("app"), Some("s/e@c:r?e,t")));
    let hosts = url.hosts(5672).expect("there are hosts");
    assert_eq!(hosts, [("a.local".to_owned(), 5671), ("b.local".to_owned(), 5672)]);
    assert_eq!(url.option("x", "").expect("a text"), Some("1&2".to_owned()));
    assert_eq!(url.option::<String>("x", "").expect("no error"), None);
    url.finish().expect("nothing is left over");

    assert_eq!(parse("redis://:secret@h").password(), Some("secret"));
    assert_eq!(parse("redis://:secret@h").user(), None);
    assert_eq!(parse("amqp://a:p@ss@h").password(), Some("p@ss"));
    assert_eq!(parse("memory://").hosts.len(), 0);
    let error = parse("amqp://").hosts(5672).expect_err("there is no host").to_string();
    assert!(error.ends_with("the URL names no host: write amqp://host:5672"), "{error}");
}

#[test]
fn an_ipv6_address_stands_in_brackets() {
    let url = parse("kafka://[::1]:9092,[fe80::1%25eth0],h");
    let hosts = url.hosts(1).expect("there are hosts");
    assert_eq!(hosts, [("::1", 9092), ("fe80::1%eth0", 1), ("h", 1)].map(|(h, p)| (h.into(), p)));
    assert_eq!(url.to_string(), "kafka://[::1]:9092,[fe80::1%eth0],h");
    for text in ["amqp://::1", "amqp://::1:5672", "amqp://[::1]5672", "amqp://[::1", "amqp://[]:1"]
    {
        refusal(text);
    }
}

#[test]
fn a_port_is_a_number_from_1_to_65535() {
    for text in ["amqp://h:", "amqp://h:0", "amqp://h:65536", "amqp://h:x", "amqp://:5672"] {
        refusal(text);
    }
    assert_eq!(parse("amqp://h:65535").hosts(1).expect("a host"), [("h".to_owned(), 65535)]);
}

#[test]
fn a_password_shows_in_no_output() {
    // What stands for a secret below consists of these, so that a part of it shows too.
    let leaks = |text: &str| text.contains("hush") || text.contains("4711");
    for password in [
        "hush",
        "hu/hush",
        "4711/hush",
        "4711/4711",
        "hush?",
        "4711?a=hush",
        "4711?hush=4711",
        "hush@4711",
        "@4711/hush",
        "hush%00",
        "%ffhush",
        "://hush",
        "hush://4711",
        "#hush",
        "[hush",
        "hush]:4711",
        "4711,hush",
        "hush:4711",
        "4711&hush",
    ] {
        for url in [
            format!("amqp://app:{password}@mq.local/%2F?prefix=dev"),
            format!("amqp://:{password}@mq.local:5672"),
            format!("amqp:app:{password}@mq.local"),
            format!("app:{password}@mq.local"),
            format!("amqp://{password}@mq.local"),
        ] {
            match url.parse::<BrokerUrl>() {
                Ok(url) => {
                    assert!(!leaks(&format!("{url} {url:?}")), "{url} {url:?}");
                    assert_eq!(url.hosts(1).expect("a host")[0].0, "mq.local");
                    assert!(!url.finish().is_err_and(|e| leaks(&format!("{e} {e:?}"))));
                }
                Err(error) => assert!(!leaks(&format!("{error} {error:?}")), "{error:?}"),
            }
        }
    }
}

#[test]
fn a_url_without_a_scheme_is_refused() {
    for text in ["", "localhost", "localhost:5672", "://h", "a b://h", "1a://h"] {
        assert!(refusal(text).contains("no scheme"), "{text}");
    }
    assert_eq!(parse("redis+tls://h").scheme(), "redis+tls");
}

#[test]
fn percent_encoding_must_be_utf_8() {
    assert!(refusal("amqp://h/%ff").ends_with("not UTF-8"));
    assert_eq!(parse("amqp://h/100%/%zz").path(), "100%/%zz");
}

#[test]
fn an_unknown_option_names_the_nearest_known_one() {
    let known = ["prefix", "declare", "publish_timeout", "tls_ca"];
    for (given, hint) in [
        ("prefx", "did you mean \"prefix\"?"),
        ("perfix", "did you mean \"prefix\"?"),
        ("Declare", "did you mean \"declare\"?"),
        ("publishTimeout", "did you mean \"publish_timeout\"?"),
        ("publish-timeout", "did you mean \"publish_timeout\"?"),
        ("tls", "did you mean \"tls_ca\"?"),
        ("heartbeat", "known are prefix, declare, publish_timeout, tls_ca"),
    ] {
        let mut url = parse(&format!("amqp://h?{given}=1"));
        for name in known {
            assert_eq!(url.option::<String>(name, "").expect("no error"), None);
        }
        let error = url.finish().expect_err(given).to_string();
        let expected = format!("connect: unknown option {given:?} for amqp://: {hint}");
        assert_eq!(error, expected);
    }
    let error = parse("memory://?a=1").finish().expect_err("unknown").to_string();
    assert!(error.ends_with("there are none"), "{error}");
    assert!(refusal("amqp://h?prefix").ends_with("write prefix=value"));

    let mut url = parse("amqp://h?prefix=a&prefix=b");
    url.option::<String>("prefix", "").expect("the first");
    let error = url.finish().expect_err("there is another").to_string();
    assert_eq!(error, "connect: option \"prefix\" is given twice");
}

#[test]
fn a_duration_has_a_unit() {
    let duration = |text: &str| parse(&format!("amqp://h?t={text}")).duration("t");
    for (text, expected) in [
        ("500ms", Duration::from_millis(500)),
        ("30s", Duration::from_secs(30)),
        ("5m", Duration::from_mins(5)),
        ("2h", Duration::from_hours(2)),
        ("0s", Duration::ZERO),
    ] {
        assert_eq!(duration(text).expect(text), Some(expected));
    }
    for text in
        ["", "5", "s", "-5s", "1.5s", "5 s", "5d", "99999999999999999999s", "9999999999999999999h"]
    {
        let error = duration(text).expect_err(text).to_string();
        assert!(error.ends_with("write a time such as 500ms, 30s, 5m or 2h"), "{error}");
    }
    assert_eq!(parse("amqp://h").duration("t").expect("no error"), None);
}

#[test]
fn a_choice_is_one_of_a_few_words() {
    let declare = |text: &str| parse(text).declare();
    assert_eq!(declare("amqp://h").expect("unset"), None);
    assert_eq!(declare("amqp://h?declare=verify").expect("known"), Some(Declare::Verify));
    assert_eq!(declare("amqp://h?declare=off").expect("known"), Some(Declare::Off));
    let error = declare("amqp://h?declare=no").expect_err("unknown").to_string();
    assert_eq!(error, "connect: option declare=no is not understood: write create, verify or off");
}
