"""The small process that owns an engine and ends everything it started once pytest ends, however that happens.

``python -I -S …/guardian guard STATE`` is run by pytest, ``… reap STATE`` by the next run for what nobody guards
any more. Standard library only and isolated, so that it starts fast and nothing the user installed breaks it.

Stdin is the lifeline. Its only writer is pytest: first one line of JSON, the launch order, then ``stock`` and
``stop SECONDS``; its end, or pytest's, means SIGKILL to everything at once. Stdout answers: ``started PID``,
``failed ERRNO``, ``exited CODE``, ``stocked``, ``lost`` (half of the guardian was killed), ``stopped SURVIVORS``.

After ``keep IDLE_SECONDS FILE`` (answer: ``kept``) the engine outlives pytest: it ends when it exits by itself, on
SIGTERM to the guardian, or once nobody has used it (held a lock on FILE, or set its time) for that long. Its GPU leases
are descriptors the guardian inherited, and end with it.

The process forks once: the child is the engine's parent and does the work, the parent is a witness that takes over
when the child is killed. Both are child subreapers, so no descendant can leave their tree by any means. Neither
starts a session: in one of its own the engine gets its own share of Linux's scheduler and starves the load client.
"""
