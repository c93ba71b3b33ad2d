"""What to say of an address that can't be listened on."""

import errno

from django_grpc import conf

_REASONS = {
    errno.EACCES: "this user has no permission for it",
    errno.EADDRINUSE: "it is already in use",
    errno.EADDRNOTAVAIL: "it is not an address of this machine",
}


def about_address(address: str, error: OSError | RuntimeError) -> str:
    """Say why calls can't be served on an address."""
    return f"The server can't listen on {address}: {_reason(error)}."


def about_metrics(address: str | None, error: OSError | RuntimeError) -> str:
    """Say why metrics can't be served on an address, and what to do."""
    return (
        f"Metrics can't be served on {address}: {_reason(error)}. Change --metrics or "
        f"{conf.SETTING}['metrics']."
    )


def _reason(error: OSError | RuntimeError) -> str:
    # The engine raises grpcio's RuntimeError, caused by the system's own error.
    cause = error if isinstance(error, OSError) else error.__cause__
    if isinstance(cause, OSError):
        return _REASONS.get(cause.errno or 0, cause.strerror or str(cause))
    return str(cause or error)
