"""Worker processes: one parent that accepts, supervises, and serves nothing itself.

The parent (`supervisor`) loads no engine and starts no thread. It listens (`listeners`, `systemd`),
starts its workers as fresh processes (`process`), and passes each connection that it accepts to the
one with the least to do (`balance`), which it knows from memory that they share (`board`). A worker
(`worker`) is the same command line once more, told by an environment variable what it inherits.
"""
