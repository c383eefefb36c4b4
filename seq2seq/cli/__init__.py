"""The commands."""

import os

# Before torch is imported: its OpenMP threads wait for each other by spinning, and where another process has one of the
# processors, millions of turns at each small operation made training up to eighteen times slower (docs/log.md).
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
