"""What the process ends with, where something else than an error ends it. Imports nothing that takes long."""

import signal

TERMINATED = 128 + signal.SIGTERM
"""It was asked to end, as schedulers and `docker stop` do."""
