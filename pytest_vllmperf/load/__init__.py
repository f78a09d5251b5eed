"""The load generator: plans, schedules and drives requests from a process of its own."""
