"""Tools for testing servicers; `docs/testing.md` tells when to use which.

- `context`: contexts for calling a servicer's method directly.
- `server`, `testcases`, `pytest_plugin`: a server in the test's process, inside its transaction.
- `executor`: `manage.py grpcserver` in a process of its own.
"""
