"""Imported by the fork server of `killed_runs` alone, last of all."""

from warm_parser import make_ready

make_ready()
