"""
The minder: the process that supervises a payload. Standard library only, and quick to start.

::

    Airflow's task ──socket── minder (own session) ──fork── payload (own session) ── whatever it starts
          └────────────── payload's stdout and stderr, by pipes ──────┘

One minder per attempt, whether the payload is a new interpreter or a child of the warm server (:mod:`airloop.warm`).
It starts the payload with the asked environment, limits and descriptors, ends it *and everything that it started* when
its time or memory is over, when asked to, or when the asking process dies (its end of the socket closes, even by
SIGKILL); and reports how it ended. Nothing that the payload started outlives a minder that ends by itself: it adopts
orphans. If the minder is killed, the kernel kills the payload, and the asking process what shares the payload's group.

What it does not do: end what has left the payload's group (by ``setsid``) when the minder itself is killed, read logs
or receipts (the asking process does), or watch memory without Linux's ``/proc``.
"""
