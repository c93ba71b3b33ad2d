"""The keys of `settings.GRPCSERVER`, in the order in which mistakes are reported."""

from collections.abc import Callable
from typing import Any, NamedTuple

from django_grpc.conf import values


class Flag(NamedTuple):
    """The flag of ``grpcserver`` that stands above a key.

    Attributes:
        type: int, float, str, or bool, which has a form with ``--no-`` too.
        help: What ``--help`` says of it.
        choices: What it takes; None: whatever its type allows.
    """

    type: type
    help: str
    choices: tuple[str, ...] | None = None


class Key(NamedTuple):
    """A key of the setting.

    Attributes:
        code: The id of the system check that reports a mistake, without the application's label.
        attribute: The attribute of `ServerConfig` that it sets.
        parse: Takes the setting's value; see `django_grpc.conf.values`.
        read: Takes the text of the environment variable ``GRPCSERVER_KEY``; None: there is none.
        flag: None: there is none.
        adjust: Changes what the setting's dictionary has come to by what stands above it, which
            can't say as much; None: the value of that takes its place.
    """

    code: str
    attribute: str
    parse: Callable[[Any], Any]
    read: Callable[[str], Any] | None = None
    flag: Flag | None = None
    adjust: Callable[[Any, Any], Any] | None = None

    @property
    def flag_name(self) -> str:
        """The name of the flag."""
        # django-grpc's own flag has an underscore.
        name = self.attribute
        return f"--{name}" if name == "max_workers" else f"--{name.replace('_', '-')}"


KEYS: dict[str, Key] = {
    "servicers": Key("E003", "servicers", values.parse_paths("myproject.servicers.grpc_hook")),
    "interceptors": Key(
        "E004", "interceptors", values.parse_paths("myproject.grpc.AuthInterceptor")
    ),
    "maximum_concurrent_rpcs": Key(
        "E005", "maximum_concurrent_rpcs", values.parse_limit, values.read_number
    ),
    "options": Key("E006", "options", values.parse_options),
    "credentials": Key("E007", "credentials", values.parse_credentials),
    "async": Key("E008", "is_async", values.parse_bool, values.read_bool),
    "reflection": Key("E009", "reflection", values.parse_bool, values.read_bool),
    "max_workers": Key(
        "E010",
        "max_workers",
        values.parse_count,
        values.read_number,
        Flag(int, "Threads that run servicers."),
    ),
    "grace": Key(
        "E011",
        "grace",
        values.parse_seconds,
        values.read_number,
        Flag(float, "Seconds that calls in flight get to end in at shutdown. Default: 30."),
    ),
    "host": Key(
        "E012",
        "host",
        values.parse_host,
        values.read_text,
        Flag(str, "Address to listen on, or unix:PATH. Default: every address."),
    ),
    "port": Key(
        "E030",
        "port",
        values.parse_port,
        values.read_number,
        Flag(int, "Port number to listen on. Default: 50051."),
    ),
    "pidfile": Key(
        "E031",
        "pidfile",
        values.parse_pidfile,
        values.read_text_or_none,
        Flag(str, "Write the id of the process to this file, while the server listens."),
    ),
    "drain_delay": Key(
        "E015",
        "drain_delay",
        values.parse_seconds,
        values.read_number,
        Flag(
            float,
            "Seconds between the signal to stop and the drain, for load balancers to notice.",
        ),
    ),
    "max_connections": Key(
        "E016",
        "max_connections",
        values.parse_limit,
        values.read_number,
        Flag(int, "Connections at once, over all worker processes."),
    ),
    "workers": Key(
        "E017",
        "workers",
        values.parse_workers,
        values.read_number,
        Flag(int, "Worker processes; 0 is one for each processor. Default: 1."),
    ),
    "worker_max_calls": Key(
        "E018",
        "worker_max_calls",
        values.parse_limit,
        values.read_number,
        Flag(int, "Calls after which a worker process is replaced."),
    ),
    "worker_max_calls_jitter": Key(
        "E019",
        "worker_max_calls_jitter",
        values.parse_jitter,
        values.read_number,
        Flag(int, "How many calls more, at random, it may take. Default: a tenth of them."),
    ),
    "worker_max_age": Key(
        "E020",
        "worker_max_age",
        values.parse_duration,
        values.read_number,
        Flag(float, "Seconds after which a worker process is replaced."),
    ),
    "worker_max_memory": Key(
        "E021",
        "worker_max_memory",
        values.parse_limit,
        values.read_number,
        Flag(int, "MiB of resident memory at which a worker process is replaced."),
    ),
    "health": Key(
        "E022",
        "health",
        values.parse_health,
        values.read_bool,
        Flag(bool, "Answer the standard health service. Default: yes."),
        values.adjust_health,
    ),
    "metrics": Key(
        "E023",
        "metrics",
        values.parse_metrics,
        values.read_text_or_none,
        Flag(str, "Where to serve Prometheus metrics: address:port or unix:PATH."),
    ),
    "access_log": Key(
        "E024",
        "access_log",
        values.parse_access_log,
        values.read_bool,
        Flag(str, "Log calls to the logger django_grpc.access, in this format.", ("text", "json")),
        values.adjust_access_log,
    ),
    "watchdog": Key(
        "E025",
        "watchdog",
        values.parse_duration,
        values.read_number,
        Flag(float, "Seconds after which a call that still runs is logged with its stack."),
    ),
    "methods": Key("E026", "methods", values.parse_methods),
    "opentelemetry": Key("E027", "opentelemetry", values.parse_opentelemetry, values.read_bool),
    "worker_timeout": Key(
        "E028",
        "worker_timeout",
        values.parse_duration,
        values.read_number,
        Flag(
            float,
            "Seconds for which Python may not run in a worker process, before it is ended and "
            "replaced. Default: 60.",
        ),
    ),
    "worker_start_timeout": Key(
        "E029",
        "worker_start_timeout",
        values.parse_duration,
        values.read_number,
        Flag(float, "Seconds that a worker process may take until it can serve. Default: 120."),
    ),
}
