"""The live view of a run: a table in a terminal, plain log lines elsewhere."""

LOG_EVERY_S = 10.0
REFRESH_PER_S = 2.0
