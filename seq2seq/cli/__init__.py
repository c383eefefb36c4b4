"""The commands."""

import os

# Before torch is imported: its OpenMP threads wait for each other by spinning, and where another process occupies one
# of the CPUs, millions of spins at each small operation made training up to eighteen times slower (docs/log.md).
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
