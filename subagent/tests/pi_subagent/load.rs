//! Much of everything. What takes long is ignored; `cargo test -- --ignored` runs it, with PI_SUBAGENT_BIN on what is shipped.

use crate::lab::{Lab, finish, peak_memory};

/// Prints so many megabytes of events, a quarter of them in lines of 8 MB.
fn noisy(megabytes: usize) -> String {
    format!(
        r#"
        text=$(head -c 65000 /dev/zero | tr '\0' x)
        delta='{{"type":"message_update","usage":{{}},"assistantMessageEvent":{{"type":"text_delta","delta":"'$text'"}}}}'
        result='{{"type":"tool_execution_end","toolCallId":"t","toolName":"bash","result":{{"content":[{{"type":"text","text":"'$text'"}}]}}}}'
        for ((i = 0; i < {megabytes} * 6; i++)); do printf '%s\n%s\n' "$delta" "$result"; done
        for ((i = 0; i < {megabytes} / 32; i++)); do
          printf '{{"type":"agent_end","messages":["'; for ((j = 0; j < 64; j++)); do printf '%s' "$text"; done; printf '"]}}\n'
          printf '{{"type":"message_end","message":{{"role":"toolResult","content":"'; for ((j = 0; j < 64; j++)); do printf '%s' "$text"; done; printf '"}}}}\n'
        done
        commit a a a; say done; settle"#
    )
}

fn memory_while_noisy(megabytes: usize) -> (u64, u64) {
    let lab = Lab::new();
    lab.script("x", &noisy(megabytes));
    let child = lab.start_spawn("x", &[]);
    let peak = peak_memory(child.id());
    let ran = finish(child);
    assert_eq!(ran.code, 0, "{ran:?}");
    let log = std::fs::metadata(lab.workspace.join(".git/pi-subagent/tasks/x/pi.ndjson")).unwrap().len();
    assert!(log < 30 << 20, "{log}");
    peak
}

#[test]
fn a_noisy_pi_does_not_make_the_runner_grow() {
    let (_, anonymous) = memory_while_noisy(64);
    assert!(anonymous < 8 << 10, "{anonymous} KiB");
}

#[test]
#[ignore = "prints a gigabyte"]
fn a_pi_that_prints_a_gigabyte_leaves_the_runner_below_12_mib() {
    let (resident, anonymous) = memory_while_noisy(1024);
    println!("resident {resident} KiB, anonymous {anonymous} KiB");
    assert!(anonymous < 8 << 10, "{anonymous} KiB");
    if std::env::var_os("PI_SUBAGENT_BIN").is_some() {
        assert!(resident < 12 << 10, "{resident} KiB");
    }
}

#[test]
#[ignore = "pushes a gigabyte"]
fn a_gigabyte_is_pushed_in_constant_memory() {
    let lab = Lab::new();
    lab.script("x", "for i in $(seq 64); do head -c 16M /dev/urandom >big$i; done; git add . && git -c core.compression=0 commit -qm big; say done; settle");
    let child = lab.start_spawn("x", &["--pr", "none"]);
    let (resident, anonymous) = peak_memory(child.id());
    let ran = finish(child);
    println!("resident {resident} KiB, anonymous {anonymous} KiB, {}", ran.stdout.lines().last().unwrap_or_default());
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(anonymous < 64 << 10, "{anonymous} KiB");
}
