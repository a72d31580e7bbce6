"""
The cases that have to come out right, and the tests that show each: on a cluster, and against scripted states.

``cluster`` are tests of this folder, which run on a real cluster and on the small one; ``double`` are tests of
``tests/unit/operators/runners/pod``, where the API server says exactly what a script makes it say.
"""

from __future__ import annotations

from dataclasses import dataclass

ENDINGS, NODES, WAITING = "test_endings.py", "test_nodes.py", "test_waiting.py"
WORKERS, CONNECTIONS, SAFETY, LOOP = "test_workers.py", "test_connections.py", "test_safety.py", "test_loop.py"
DEFERRED = "test_deferred.py"
RUNNER, SPEC, ENDING, DEFERRAL = "test_runner.py", "test_spec.py", "test_ending.py", "test_deferral.py"
ORPHANS, TRIGGER = "test_orphans.py", "test_trigger.py"


@dataclass(frozen=True, slots=True)
class Case:
    """One of them."""

    name: str
    cluster: tuple[str, ...]
    """``file::test`` below ``tests/cluster``."""
    double: tuple[str, ...]
    """The same below ``tests/unit/operators/runners/pod``."""


CASES = (
    Case("a done step", (f"{ENDINGS}::test_a_done_step",), (f"{RUNNER}::test_a_done_step",)),
    Case(
        "arguments with dollars",
        (f"{ENDINGS}::test_dollars_reach_the_step",),
        (f"{RUNNER}::test_dollars_reach_the_payload_as_they_are",),
    ),
    Case(
        "green only with its manifest",
        (f"{ENDINGS}::test_an_own_exit_code",),
        (f"{RUNNER}::TestGreenOnlyWithItsManifest::test_exit_0_and_nothing",),
    ),
    Case(
        "SIGTERM in the middle",
        (f"{ENDINGS}::test_sigterm_in_the_middle",),
        (f"{RUNNER}::TestGreenOnlyWithItsManifest::test_sigterm_in_the_middle",),
    ),
    Case("pod deleted", (f"{ENDINGS}::test_its_pod_is_deleted",), (f"{RUNNER}::test_deleted",)),
    Case("evicted", (f"{ENDINGS}::test_it_is_evicted",), (f"{RUNNER}::test_evicted",)),
    Case(
        "node lost",
        (f"{NODES}::test_its_node_is_lost", f"{NODES}::test_its_node_is_really_lost"),
        (f"{RUNNER}::test_a_node_that_is_lost",),
    ),
    Case(
        "out of memory",
        (f"{ENDINGS}::test_it_runs_out_of_memory",),
        (f"{RUNNER}::test_each_exit_is_what_it_says", f"{ENDING}::test_oom_says_what_to_raise"),
    ),
    Case("own exit codes", (f"{ENDINGS}::test_an_own_exit_code",), (f"{RUNNER}::test_each_exit_is_what_it_says",)),
    Case(
        "over its time",
        (f"{ENDINGS}::test_it_runs_over_its_time",),
        (f"{RUNNER}::test_a_step_that_runs_over_its_time",),
    ),
    Case(
        "image that cannot be pulled",
        (
            f"{WAITING}::test_an_image_that_cannot_be_pulled",
            f"{WAITING}::test_an_image_that_is_not_there_and_must_not_be_pulled",
        ),
        (
            f"{RUNNER}::test_an_image_that_cannot_be_pulled",
            f"{RUNNER}::test_an_image_name_that_is_none_is_not_waited_for",
        ),
    ),
    Case(
        "unschedulable until a deadline",
        (f"{WAITING}::test_no_node_for_it",),
        (f"{RUNNER}::test_unschedulable_until_its_deadline",),
    ),
    Case(
        "quota used up",
        (f"{WAITING}::test_a_quota_that_is_used_up", f"{WAITING}::test_a_quota_that_becomes_free"),
        (f"{RUNNER}::test_a_quota_is_waited_for",),
    ),
    Case(
        "preempted before it began",
        (f"{WAITING}::test_preempted_before_it_began",),
        (f"{RUNNER}::test_preempted_before_it_began_it_is_made_again",),
    ),
    Case(
        "API server away",
        (f"{CONNECTIONS}::test_the_api_server_is_away_for_a_while",),
        (
            f"{RUNNER}::test_an_api_server_that_is_away_for_a_while",
            f"{RUNNER}::TestAwayForTooLong::test_with_its_manifest",
        ),
    ),
    Case(
        "log stream cut",
        (f"{CONNECTIONS}::test_streams_are_cut_again_and_again",),
        (f"{RUNNER}::test_a_log_whose_stream_is_cut_loses_and_doubles_nothing",),
    ),
    Case(
        "worker killed, same attempt",
        (f"{WORKERS}::test_the_same_attempt_adopts_its_pod",),
        (f"{RUNNER}::TestItsOwnPod::test_is_adopted_after_its_worker_was_killed",),
    ),
    Case(
        "worker killed, next try",
        (f"{WORKERS}::test_another_try_ends_the_pod_of_the_one_before",),
        (f"{RUNNER}::TestItsOwnPod::test_of_an_earlier_try_is_ended_and_not_adopted",),
    ),
    Case(
        "a pod that nobody follows",
        (f"{WORKERS}::test_a_pod_that_nobody_follows",),
        (
            f"{ORPHANS}::TestTheCommand::test_removes_those_of_tasks_that_are_over",
            f"{RUNNER}::test_a_deadline_that_its_task_did_not_ask_for_is_named",
        ),
    ),
    Case(
        "task stopped",
        (f"{WORKERS}::test_a_task_that_is_stopped_leaves_no_pod",),
        (f"{RUNNER}::TestStopped::test_while_it_runs",),
    ),
    Case(
        "done while its task was deferred",
        (f"{DEFERRED}::test_a_step_is_done_while_nobody_looks",),
        (f"{DEFERRAL}::TestAStepThatIsDone::test_while_its_task_was_deferred",),
    ),
    Case(
        "pod deleted while its task was deferred",
        (f"{DEFERRED}::test_its_pod_is_deleted_meanwhile",),
        (f"{DEFERRAL}::TestAPodThatIsLost::test_deleted",),
    ),
    Case(
        "task marked failed or cleared while deferred",
        (f"{DEFERRED}::test_its_task_is_marked_or_cleared",),
        (f"{TRIGGER}::TestKilledWhileDeferred::test_marked_or_cleared_its_pod_is_gone",),
    ),
    Case(
        "trigger's errors",
        (
            f"{DEFERRED}::test_its_trigger_cannot_watch",
            f"{DEFERRED}::test_a_kubeconfig_of_the_environment_changes_nothing",
        ),
        (
            f"{TRIGGER}::TestATriggerThatFails::test_is_replaced_a_few_times_and_then_the_worker_waits",
            f"{TRIGGER}::TestATriggerThatFails::test_a_kubeconfig_of_the_environment_is_no_trouble",
        ),
    ),
    Case(
        "names over 63 characters",
        (f"{WORKERS}::test_names_of_over_63_characters",),
        (f"{SPEC}::TestNames::test_two_long_tasks_and_two_runs_have_two_names",),
    ),
    Case(
        "two runs of one DAG at once",
        (f"{WORKERS}::test_two_of_one_task_at_once",),
        (f"{RUNNER}::test_two_runs_of_one_task_at_once",),
    ),
    Case(
        "secrets nowhere",
        (f"{SAFETY}::test_no_secret_is_anywhere", f"{SAFETY}::test_the_attempts_secret_goes_with_its_pod"),
        (f"{RUNNER}::test_no_secret_is_anywhere", f"{SPEC}::test_secrets_are_only_named"),
    ),
    Case("what a pod may do", (f"{SAFETY}::test_a_pod_may_do_little",), (f"{SPEC}::test_a_pod_is_safe_by_default",)),
    Case(
        "accelerator pool",
        (
            f"{NODES}::test_an_accelerator_pool",
            f"{NODES}::test_more_accelerators_than_there_are",
            f"{NODES}::test_a_pool_without_its_toleration",
        ),
        (f"{SPEC}::test_a_pool_brings_the_pod_to_its_nodes",),
    ),
    Case(
        "a whole loop",
        (f"{LOOP}::test_a_month_of_flights",),
        (f"{RUNNER}::test_an_operator_starts_what_was_lost_again_and_renders_no_secret",),
    ),
)
"""All of them."""
