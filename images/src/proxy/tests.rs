use super::*;

const PROXY: &str = "http://me:canary@proxy.example:3128";

fn through(no_proxy: &[&str], url: &str) -> bool {
    let no_proxy: Vec<String> = no_proxy.iter().map(|&entry| entry.to_owned()).collect();
    let proxies = Proxies::new(PROXY, &no_proxy).unwrap();
    proxies.of(&Url::parse(url).unwrap()).is_some()
}

#[test]
fn this_machine_is_never_reached_through_a_proxy() {
    for host in [
        "localhost",
        "LOCALHOST.",
        "registry.localhost",
        "127.0.0.1",
        "127.9.9.9:5000",
        "2130706433",
        "0.0.0.0",
        "[::1]:5000",
        "[::ffff:127.0.0.1]",
        "[::]",
    ] {
        for scheme in ["http", "https"] {
            assert!(!through(&[], &format!("{scheme}://{host}/v2/")), "{host}");
        }
    }
    for host in ["localhost.example", "10.0.0.1", "[::2]", "r.example"] {
        assert!(through(&[], &format!("https://{host}/v2/")), "{host}");
    }
}

#[test]
fn each_form_of_no_proxy_holds_what_it_means_and_nothing_else() {
    for (entry, direct, proxied) in [
        ("*", &["r.example", "10.0.0.1"][..], &[][..]),
        (
            "r.example",
            &[
                "r.example",
                "a.r.example",
                "R.EXAMPLE",
                "r.example.",
                "r.example:5000",
            ],
            &["ar.example", "r.example.org", "example"],
        ),
        (
            ".r.example",
            &["a.r.example", "a.b.r.example"],
            &["r.example", "ar.example"],
        ),
        ("*.r.example", &["a.r.example"], &["r.example"]),
        (
            "r.example:5000",
            &["r.example:5000", "a.r.example:5000"],
            &["r.example", "r.example:5001"],
        ),
        ("r.example:443", &["r.example"], &["r.example:444"]),
        ("10.0.0.1", &["10.0.0.1", "10.0.0.1:99"], &["10.0.0.2"]),
        ("10.0.0.1:99", &["10.0.0.1:99"], &["10.0.0.1"]),
        ("10.0.0.0/8", &["10.255.0.1"], &["11.0.0.1", "10.example"]),
        ("0.0.0.0/0", &["203.0.113.1"], &["[2001:db8::1]"]),
        ("2001:db8::/32", &["[2001:db8:1::1]"], &["[2001:db9::1]"]),
        ("2001:db8::1", &["[2001:db8::1]"], &["[2001:db8::2]"]),
        (
            "[2001:db8::1]:99",
            &["[2001:db8::1]:99"],
            &["[2001:db8::1]"],
        ),
        ("10.0.0.0/8", &["[::ffff:10.1.1.1]"], &[]),
    ] {
        for host in direct {
            assert!(
                !through(&[entry], &format!("https://{host}/")),
                "{entry} {host}"
            );
        }
        for host in proxied {
            assert!(
                through(&[entry], &format!("https://{host}/")),
                "{entry} {host}"
            );
        }
    }
}

#[test]
fn what_is_no_host_is_refused_by_name() {
    for entry in [
        "",
        " ",
        "10.0.0.0/33",
        "10.0.0.0/x",
        "a b",
        "http://r.example",
        "a*b",
        "r:port",
        ".",
    ] {
        let refused = Proxies::new(PROXY, &[entry.to_owned()])
            .unwrap_err()
            .to_string();
        let named = format!("images.no_proxy: {entry:?}");
        assert!(refused.starts_with(&named), "{refused}");
    }
}

#[test]
fn a_proxy_is_a_url_of_http_and_shows_no_password() {
    for (text, shown) in [
        (PROXY, "http://proxy.example:3128"),
        ("https://proxy.example/", "https://proxy.example"),
        ("proxy.example:3128", "http://proxy.example:3128"),
        ("http://[2001:db8::1]:8080", "http://[2001:db8::1]:8080"),
    ] {
        let proxy = ProxyUrl::parse(text).unwrap();
        assert_eq!(proxy.to_string(), shown);
        assert!(!format!("{proxy:?}").contains("canary"), "{proxy:?}");
    }
    for text in [
        "",
        "socks5://me:canary@proxy.example",
        "http://me:canary@proxy.example/path",
        "http://me:canary@proxy.example/?x=1",
        "http://me:canary@",
        "http://me:canary@proxy.example:99999",
    ] {
        let refused = Proxies::new(text, &[]).unwrap_err().to_string();
        assert!(refused.starts_with("images.proxy: "), "{refused}");
        assert!(!refused.contains("canary"), "{refused}");
    }
}

#[test]
fn the_environment_has_a_proxy_for_each_scheme_and_a_list_with_commas() {
    let of = |set: &[(&str, &str)], no_proxy: &[String]| {
        let variable = |name: &str| {
            let found = set.iter().find(|(set, _)| *set == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        Proxies::of_environment(variable, no_proxy)
    };
    let set = [
        ("HTTPS_PROXY", "http://one.example:1"),
        ("http_proxy", "two.example:2"),
        ("NO_PROXY", "near.example, 10.0.0.0/8,,odd entry"),
    ];
    let proxies = of(&set, &["mine.example".to_owned()]).unwrap();
    let proxy = |url: &str| {
        let proxy = proxies.of(&Url::parse(url).unwrap());
        proxy.map(ToString::to_string).unwrap_or_default()
    };
    assert_eq!(proxy("https://r.example/"), "http://one.example:1");
    assert_eq!(proxy("http://r.example/"), "http://two.example:2");
    for direct in ["near.example", "10.1.1.1", "mine.example"] {
        assert_eq!(proxy(&format!("https://{direct}/")), "", "{direct}");
    }
    assert!(proxies.is_proxy("ONE.example") && !proxies.is_proxy("r.example"));
    let refused = of(&[("HTTP_PROXY", "ftp://x")], &[])
        .unwrap_err()
        .to_string();
    assert!(
        refused.starts_with("HTTP_PROXY of the environment: "),
        "{refused}"
    );
    assert!(of(&[("HTTP_PROXY", " ")], &[]).unwrap().is_empty());
}
