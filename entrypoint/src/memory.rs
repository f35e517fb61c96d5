//! Whether the kernel has killed something in this container because its memory was used up.

use crate::sys::files;

/// Both layouts of control groups, as a container sees its own.
const COUNTERS: [&str; 2] = ["/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control"];

/// How many processes the kernel has killed for it since the container was made.
pub(crate) fn out_of_memory_kills() -> u64 {
    COUNTERS.iter().find_map(|path| kills(&files::text(path).ok()?)).unwrap_or(0)
}

fn kills(counters: &str) -> Option<u64> {
    counters.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kills_are_counted_in_both_layouts() {
        assert_eq!(kills("low 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 0\n"), Some(2));
        assert_eq!(kills("oom_kill_disable 0\nunder_oom 0\noom_kill 1\n"), Some(1));
        assert_eq!(kills("oom_kill_disable 0\n"), None);
    }
}
