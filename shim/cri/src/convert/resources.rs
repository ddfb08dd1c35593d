//! Resource limits: converts CRI's into ours.
//!
//! Called by `container` and for updates. Invariant: a value that the kernel would refuse is refused here, by field.
//! Must not know: which limits a kind of container can have.

use coracle_lifecycle::Resources;
use coracle_proto::runtime::v1 as cri;

use super::BadRequest;
use super::check;

/// The kernel's bounds of a CPU period, in microseconds.
const CPU_PERIOD: (i64, i64) = (1_000, 1_000_000);

/// The shortest CPU quota that the kernel accepts, in microseconds.
const MIN_CPU_QUOTA: i64 = 1_000;

/// The kernel's maximum of CPU shares; the kubelet clamps to it, too.
const MAX_CPU_SHARES: i64 = 262_144;

/// The longest part of a file name that a huge page size becomes, in bytes.
const MAX_PAGE_SIZE_BYTES: usize = 8;

/// Most page sizes: more than any processor has.
const MAX_PAGE_SIZES: usize = 16;

/// Reads resource limits; absent means none.
pub(super) fn resources(
    field: &str,
    limits: Option<&cri::LinuxContainerResources>,
) -> Result<Resources, BadRequest> {
    let Some(limits) = limits else {
        return Ok(Resources::default());
    };
    cpu(field, limits)?;
    memory(field, limits)?;
    check::within(
        &format!("{field}.oom_score_adj"),
        limits.oom_score_adj,
        -1000,
        1000,
    )?;
    limits
        .unified
        .keys()
        .try_for_each(|key| unified(field, key))?;
    Ok(Resources {
        cpu_period: limits.cpu_period,
        cpu_quota: limits.cpu_quota,
        cpu_shares: limits.cpu_shares,
        memory_limit_bytes: limits.memory_limit_in_bytes,
        oom_score_adj: limits.oom_score_adj,
        cpuset_cpus: limits.cpuset_cpus.clone(),
        cpuset_mems: limits.cpuset_mems.clone(),
        unified: limits.unified.clone(),
        memory_swap_limit_bytes: limits.memory_swap_limit_in_bytes,
        hugepages: hugepages(field, &limits.hugepage_limits)?,
    })
}

/// Page sizes as the kernel names them in cgroup files: `64KB`, `2MB`, `1GB`.
fn hugepages(field: &str, limits: &[cri::HugepageLimit]) -> Result<Vec<(String, u64)>, BadRequest> {
    let field = format!("{field}.hugepage_limits");
    if limits.len() > MAX_PAGE_SIZES {
        let problem = format!(
            "has {} entries, the limit is {MAX_PAGE_SIZES}",
            limits.len()
        );
        return Err(BadRequest::invalid(field, problem));
    }
    let mut taken: Vec<(String, u64)> = Vec::new();
    for (index, limit) in limits.iter().enumerate() {
        let field = format!("{field}[{index}].page_size");
        let size = limit.page_size.as_str();
        let number = ["KB", "MB", "GB"]
            .iter()
            .find_map(|unit| size.strip_suffix(unit));
        let good = number.is_some_and(|n| {
            n.starts_with(|c: char| ('1'..='9').contains(&c))
                && n.bytes().all(|b| b.is_ascii_digit())
        });
        if !good || size.len() > MAX_PAGE_SIZE_BYTES {
            return Err(BadRequest::invalid(field, "is not a page size like 2MB"));
        }
        if taken.iter().any(|(known, _)| known == size) {
            return Err(BadRequest::invalid(
                field,
                format!("is {size} for the second time"),
            ));
        }
        taken.push((size.to_owned(), limit.limit));
    }
    Ok(taken)
}

fn cpu(field: &str, limits: &cri::LinuxContainerResources) -> Result<(), BadRequest> {
    if limits.cpu_period != 0 {
        check::within(
            &format!("{field}.cpu_period"),
            limits.cpu_period,
            CPU_PERIOD.0,
            CPU_PERIOD.1,
        )?;
    }
    if limits.cpu_quota != 0 && limits.cpu_quota != -1 {
        check::within(
            &format!("{field}.cpu_quota"),
            limits.cpu_quota,
            MIN_CPU_QUOTA,
            i64::MAX / 1_000,
        )?;
    }
    check::within(
        &format!("{field}.cpu_shares"),
        limits.cpu_shares,
        0,
        MAX_CPU_SHARES,
    )?;
    cpuset(&format!("{field}.cpuset_cpus"), &limits.cpuset_cpus)?;
    cpuset(&format!("{field}.cpuset_mems"), &limits.cpuset_mems)
}

fn memory(field: &str, limits: &cri::LinuxContainerResources) -> Result<(), BadRequest> {
    let (limit, with_swap) = (
        limits.memory_limit_in_bytes,
        limits.memory_swap_limit_in_bytes,
    );
    check::within(
        &format!("{field}.memory_limit_in_bytes"),
        limit,
        0,
        i64::MAX,
    )?;
    let field = format!("{field}.memory_swap_limit_in_bytes");
    check::within(&field, with_swap, -1, i64::MAX)?;
    if with_swap > 0 && with_swap < limit {
        return Err(BadRequest::invalid(
            field,
            format!("is {with_swap}, less than the memory limit {limit}"),
        ));
    }
    Ok(())
}

/// A kernel list of numbers: `0-3,7`.
fn cpuset(field: &str, list: &str) -> Result<(), BadRequest> {
    let number = |text: &str| {
        (text.len() <= 5)
            .then(|| text.parse::<u32>().ok())
            .flatten()
    };
    let good = |part: &str| match part.split_once('-') {
        Some((low, high)) => number(low)
            .zip(number(high))
            .is_some_and(|(low, high)| low <= high),
        None => number(part).is_some(),
    };
    if list.is_empty() || list.split(',').all(good) {
        return Ok(());
    }
    Err(BadRequest::invalid(field, "is not a list like 0-3,7"))
}

/// A key of `unified` is the name of a cgroup file: `memory.oom.group`.
fn unified(field: &str, key: &str) -> Result<(), BadRequest> {
    let is_file = key.contains('.')
        && key.bytes().next().is_some_and(|b| b.is_ascii_lowercase())
        && key
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_'));
    if is_file && !key.starts_with("cgroup.") {
        return Ok(());
    }
    Err(BadRequest::invalid(
        format!("{field}.unified"),
        "has a key that is not a controller's file",
    ))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    fn limits(
        change: impl FnOnce(&mut cri::LinuxContainerResources),
    ) -> Result<Resources, BadRequest> {
        let mut limits = cri::LinuxContainerResources::default();
        change(&mut limits);
        resources("linux.resources", Some(&limits))
    }

    #[test]
    fn impossible_resources_are_refused_by_field() {
        type Change = fn(&mut cri::LinuxContainerResources);
        let huge = |size: &str| cri::HugepageLimit {
            page_size: size.into(),
            limit: 1,
        };
        assert!(limits(|l| l.hugepage_limits = vec![huge("2MB"), huge("2MB")]).is_err());
        for odd in ["", "MB", "../2MB", "2mb", "02MB", "2MB\n", "99999999999MB"] {
            assert!(
                limits(|l| l.hugepage_limits.push(huge(odd))).is_err(),
                "{odd:?}"
            );
        }
        let cases: [(&str, Change); 12] = [
            ("cpu_period", |l| l.cpu_period = 999),
            ("cpu_period", |l| l.cpu_period = -1),
            ("cpu_quota", |l| l.cpu_quota = 1),
            ("cpu_quota", |l| l.cpu_quota = -2),
            ("cpu_shares", |l| l.cpu_shares = i64::MAX),
            ("cpuset_cpus", |l| l.cpuset_cpus = "3-1".into()),
            ("cpuset_cpus", |l| l.cpuset_cpus = "0\n".into()),
            ("cpuset_mems", |l| l.cpuset_mems = "all".into()),
            ("memory_limit_in_bytes", |l| l.memory_limit_in_bytes = -5),
            ("memory_swap_limit_in_bytes", |l| {
                (l.memory_limit_in_bytes, l.memory_swap_limit_in_bytes) = (10, 5)
            }),
            ("oom_score_adj", |l| l.oom_score_adj = 1001),
            ("unified", |l| {
                drop(l.unified.insert("../memory.max".into(), "1".into()))
            }),
        ];
        for (field, change) in cases {
            let refused = limits(change).unwrap_err();
            assert!(matches!(refused, BadRequest::Invalid { .. }), "{refused}");
            assert!(
                refused
                    .to_string()
                    .starts_with(&format!("linux.resources.{field}")),
                "{refused}"
            );
        }
    }

    #[test]
    fn resources_of_the_kubelet_are_converted_unchanged() {
        let taken = limits(|l| {
            (l.cpu_period, l.cpu_quota, l.cpu_shares) = (100_000, 50_000, 512);
            (l.memory_limit_in_bytes, l.oom_score_adj) = (64 << 20, 985);
            l.cpuset_cpus = "0-3,7".into();
            l.unified.insert("memory.oom.group".into(), "1".into());
            l.hugepage_limits.push(cri::HugepageLimit {
                page_size: "2MB".into(),
                limit: 0,
            });
        });
        let taken = taken.unwrap();
        assert_eq!(
            (taken.cpu_period, taken.cpu_quota, taken.cpu_shares),
            (100_000, 50_000, 512)
        );
        assert_eq!(
            (taken.memory_limit_bytes, taken.oom_score_adj),
            (64 << 20, 985)
        );
        assert_eq!(taken.unified["memory.oom.group"], "1");
        assert_eq!(taken.hugepages, [("2MB".to_owned(), 0)]);
    }
}
