"""
Queues in front of the scheduler: what a pod says so that Kueue or Volcano admits it, all ranks of a step or none.

Neither was run by us; what they want is from their documents:

- Kueue, "Run Plain Pods" (https://kueue.sigs.k8s.io/docs/tasks/run/plain_pods/): the label
  ``kueue.x-k8s.io/queue-name`` names a LocalQueue of the pod's namespace. The integration ``pod`` has to be switched on
  in Kueue's configuration. Its webhook puts the gate ``kueue.x-k8s.io/admission`` on the pod, and no scheduler looks at
  the pod before it is taken off. A pod that is preempted gets the condition ``TerminationTarget`` (so its source,
  ``pkg/controller/jobs/pod``) and is deleted; nobody makes it again but us. Pods of one group bear its name as a label
  and their number as an annotation, and are admitted together.
- Volcano, "Queue" and "PodGroup" (https://volcano.sh/en/docs/queue/, https://volcano.sh/en/docs/podgroup/) and Huawei
  Cloud, "Scheduling Workloads" (https://support.huaweicloud.com/intl/en-us/usermanual-cce/cce_10_0722.html): the pod
  names the scheduler ``volcano`` and, by the annotation ``scheduling.volcano.sh/queue-name``, a Queue, which belongs to
  the whole cluster; default: the queue ``default``. A pod alone gets a PodGroup of its own. Several pods name theirs by
  the annotation ``scheduling.k8s.io/group-name``; whoever makes them makes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from airloop.errors import BadConfiguration

KUEUE, VOLCANO = "kueue", "volcano"
GANGS = (KUEUE, VOLCANO)
KUEUE_QUEUE = "kueue.x-k8s.io/queue-name"
KUEUE_GROUP = "kueue.x-k8s.io/pod-group-name"
KUEUE_RANKS = "kueue.x-k8s.io/pod-group-total-count"
VOLCANO_QUEUE = "scheduling.volcano.sh/queue-name"
VOLCANO_GROUP = "scheduling.k8s.io/group-name"


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """What a pod says to be admitted."""

    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    scheduler: str = ""


def check_queue(gang: str, queue: str, scheduler: str, where: str) -> None:
    """:raises BadConfiguration: what a pool says of its queue cannot be."""
    if gang and gang not in GANGS:
        raise BadConfiguration(f"{where}: gang is {gang!r}", f"possible: {', '.join(GANGS)}")
    if queue and not gang:
        raise BadConfiguration(f"{where}: queue {queue!r} is nobody's", f"say whose: gang: {' or '.join(GANGS)}")
    if gang == KUEUE and not queue:
        raise BadConfiguration(
            f"{where}: gang is {KUEUE}, and there is no queue", "give queue: NAME, a LocalQueue of the pods' namespace"
        )
    if gang == VOLCANO and scheduler not in ("", VOLCANO):
        raise BadConfiguration(
            f"{where}: gang is {VOLCANO}, and the scheduler is {scheduler!r}", "leave out scheduler, or gang"
        )


def admission(gang: str, queue: str, *, group: str, ranks: int) -> Admission:
    """
    What each pod of a step says.

    :param group: name that the step's pods share.
    :param ranks: how many they are.
    """
    several = ranks > 1
    if gang == KUEUE:
        return Admission(
            labels={KUEUE_QUEUE: queue, **({KUEUE_GROUP: group} if several else {})},
            annotations={KUEUE_RANKS: str(ranks)} if several else {},
        )
    if gang == VOLCANO:
        named = {VOLCANO_QUEUE: queue} if queue else {}
        return Admission(annotations={**named, **({VOLCANO_GROUP: group} if several else {})}, scheduler=VOLCANO)
    return Admission()
