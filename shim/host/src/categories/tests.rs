use super::*;

/// All pairs of this number of categories, from the first on.
fn all(count: u32) -> Categories {
    Categories::of(count, (0, pairs(count)), 0)
}

#[test]
fn every_pair_is_handed_out_once() {
    let four = Categories::of(4, (0, 6), 4_000_000_003);
    let holders: Vec<String> = (0..6).map(|number| format!("pod{number}")).collect();
    let levels: Vec<String> = holders.iter().map(|pod| four.lease(pod).unwrap()).collect();
    let distinct: BTreeSet<&String> = levels.iter().collect();
    assert_eq!(distinct.len(), 6);
    assert!(
        ["s0:c0,c1", "s0:c2,c3"]
            .iter()
            .all(|level| levels.iter().any(|got| got == level))
    );
    let refused = four.lease("more").unwrap_err();
    assert_eq!(refused.kind(), Kind::Exhausted);
    four.release(&holders[3]);
    assert_eq!(four.lease("more").unwrap(), levels[3]);
}

#[test]
fn shares_of_two_daemons_have_no_pair_in_common() {
    let size = pairs(CATEGORIES) / CATEGORY_SHARES;
    let mut seen = BTreeSet::new();
    for number in [0, 1, CATEGORY_SHARES - 1] {
        let share = Categories::new(Some(number));
        for pod in 0..size {
            assert!(seen.insert(share.lease(&pod.to_string()).unwrap()));
        }
        assert!(share.lease("more").is_err());
    }
    assert!(seen.contains("s0:c0,c1") && seen.contains("s0:c1022,c1023"));
    let none = Categories::new(None).lease("pod").unwrap_err();
    assert!(none.to_string().contains("other daemons"), "{none}");
}

#[test]
fn numbers_and_categories_agree_in_every_notation() {
    let all = all(CATEGORIES);
    for pair in [0, 1, 2, 3, 1000, pairs(CATEGORIES) - 1] {
        let (low, high) = categories(pair);
        assert!(low < high && high < CATEGORIES, "{low} {high}");
        for level in [
            format!("s0:c{low},c{high}"),
            format!("s0:c{high},c{low}"),
            format!("s0-s0:c{low},c{high}"),
            format!("s0:c{low},c{high},c{low}"),
        ] {
            assert_eq!(all.pair(&level), Some(pair), "{level}");
        }
    }
    assert_eq!(categories(pairs(CATEGORIES) - 1), (1022, 1023));
    assert_eq!(all.pair("s0:c4.c5"), all.pair("s0:c4,c5"));
    for other in [
        "",
        "s0",
        "s0:c1",
        "s0:c1,c1",
        "s0:c1,c1024",
        "s0:c1.c3",
        "s0:c0.c1023",
        "s0:c5.c2",
        "s1:c1,c2",
        "s0:c1,c2,c3",
        "s0:c1,c2-s0",
        "s0:1,2",
    ] {
        assert_eq!(all.pair(other), None, "{other:?}");
    }
}

#[test]
fn a_held_pair_is_not_leased_and_a_released_one_comes_last() {
    let three = all(3);
    // From a record, and given by the kubelet to two pods; reserved again after a pause.
    for holder in ["a", "b", "a"] {
        three.claim(holder, "s0:c0,c2");
    }
    let got = [three.lease("c").unwrap(), three.lease("d").unwrap()];
    assert_eq!(got, ["s0:c0,c1", "s0:c1,c2"]);
    assert!(three.lease("e").is_err());
    three.release("a");
    three.release("a");
    assert!(three.lease("e").is_err(), "one of two holders has left");
    three.release("c");
    three.release("b");
    three.release("unknown");
    assert_eq!(
        (0..3)
            .filter(|at| three.lease(&format!("f{at}")).is_ok())
            .count(),
        2
    );
}
