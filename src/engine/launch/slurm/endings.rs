//! What the end of a job means for a stage that did not say how it went.

use crate::engine::launch::Order;

/// Says how the cluster lost a job that ended in a state, if it did.
pub(super) fn lost_as(state: &str) -> Option<&str> {
    match state {
        "" => Some("the cluster does not know it any more"),
        "COMPLETED" => Some("its last words did not arrive"),
        "NODE_FAIL" | "BOOT_FAIL" | "PREEMPTED" | "REQUEUED" | "REVOKED" => Some(state),
        _ => None,
    }
}

/// Says why a job ended without a word of its own.
pub(super) fn words_for(
    number: &str,
    state: &str,
    code: &str,
    output: &str,
    order: &Order,
) -> (String, Option<String>) {
    let output = output.trim();
    let said = match output {
        "" => String::new(),
        output => format!(": {output}"),
    };
    match state {
        "TIMEOUT" | "DEADLINE" => (
            format!("its job{number} ran into its time limit"),
            Some("give the stage a `timeout`, or `cluster: { time: ... }`".to_owned()),
        ),
        "OUT_OF_MEMORY" => (
            format!("its job{number} ran out of memory"),
            Some(match order.resources.memory {
                0 => "`resources: { memory: ... }` says how much it needs".to_owned(),
                memory => format!("it asks for {} MB by `resources.memory`", memory / 1_000_000),
            }),
        ),
        "CANCELLED" => (
            format!("its job{number} was cancelled"),
            Some("somebody gave `scancel`, or the cluster's rules did".to_owned()),
        ),
        "" | "NODE_FAIL" | "BOOT_FAIL" | "COMPLETED" => (
            format!("its job{number} was lost again and again{said}"),
            Some("does the cluster keep jobs and nodes, and do its nodes see the store's folder?".to_owned()),
        ),
        state => (
            format!("its job{number} ended as {state}, exit code {code}{said}"),
            Some("can the nodes start this program? `program`, `before` and `through` of `cluster:` say how".to_owned()),
        ),
    }
}
