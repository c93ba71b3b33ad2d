"""Reading settings.GRPCSERVER."""

import concurrent.futures
import sys

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings
from django.utils.functional import SimpleLazyObject, lazy

from django_grpc import conf, tls
from django_grpc.conf.values import CENTURY, MOST, MOST_WORKERS

KEY_PAIR = {"private_key": "key.pem", "certificate_chain": "chain.pem"}


def load(**keys):
    with override_settings(GRPCSERVER=keys):
        return conf.load()


@pytest.mark.parametrize("setting", [{}, None])
def test_every_key_has_a_default(setting):
    with override_settings(GRPCSERVER=setting):
        config = conf.load()
    assert config == conf.ServerConfig(
        servicers=(),
        interceptors=(),
        maximum_concurrent_rpcs=None,
        options=(),
        credentials=None,
        is_async=False,
        reflection=False,
        max_workers=conf.default_max_workers(),
        grace=30.0,
        host="[::]",
    )


def test_setting_may_be_absent(settings):
    del settings.GRPCSERVER
    assert conf.load().servicers == ()


def test_timeout_may_be_the_longest():
    config, problems = conf.parse({"methods": {"*": {"timeout": 5, "max_timeout": 5}}}, {})
    assert not problems
    assert config.methods["*"].timeout == 5


def test_default_number_of_workers_is_that_of_a_thread_pool():
    with concurrent.futures.ThreadPoolExecutor() as pool:
        assert conf.default_max_workers() == pool._max_workers


def test_every_key_is_read():
    config = load(
        servicers=["a.b"],
        interceptors=("c.d",),
        maximum_concurrent_rpcs=3,
        options=[("grpc.max_receive_message_length", 1), ["grpc.so_reuseport", 0]],
        credentials=[KEY_PAIR],
        **{"async": True},
        reflection=True,
        max_workers=7,
        grace=1,
        host="127.0.0.1",
    )
    assert config == conf.ServerConfig(
        servicers=("a.b",),
        interceptors=("c.d",),
        maximum_concurrent_rpcs=3,
        options=(("grpc.max_receive_message_length", 1), ("grpc.so_reuseport", 0)),
        credentials=conf.Credentials(key_pairs=(conf.KeyPair(**KEY_PAIR),)),
        is_async=True,
        reflection=True,
        max_workers=7,
        grace=1.0,
        host="127.0.0.1",
    )


def test_tls_version_and_cipher_suites():
    """By either of their names."""
    names = ["ECDHE-RSA-AES256-GCM-SHA384", "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"]
    config = load(
        credentials=[
            {**KEY_PAIR, "minimum_tls_version": "TLSv1.3"},
            {**KEY_PAIR, "cipher_suites": names},
        ]
    )
    assert config.credentials.minimum_tls_version == "TLSv1.3"
    assert config.credentials.cipher_suites == tuple(names)


def test_credentials_with_client_certificates(tmp_path):
    config = load(
        credentials=[
            {**KEY_PAIR, "root_certificates": tmp_path / "ca.pem", "require_client_auth": True},
            {"private_key": "key2.pem", "certificate_chain": "chain2.pem"},
        ]
    )
    assert config.credentials.root_certificates == str(tmp_path / "ca.pem")
    assert config.credentials.require_client_auth is True
    assert config.credentials.minimum_tls_version == "TLSv1.2"
    assert config.credentials.cipher_suites == tuple(tls.CIPHER_SUITES)
    assert list(config.credentials.paths()) == [
        "key.pem",
        "chain.pem",
        "key2.pem",
        "chain2.pem",
        str(tmp_path / "ca.pem"),
    ]


@pytest.mark.parametrize(
    ("setting", "code", "text"),
    [
        (["a.b"], "E001", "GRPCSERVER must be a dictionary, not list."),
        ({"servicer": []}, "E002", "GRPCSERVER has no key 'servicer'. Did you mean 'servicers'?"),
        ({"Async": True}, "E002", "GRPCSERVER has no key 'Async'. Did you mean 'async'?"),
        ({"zzz": 1}, "E002", "GRPCSERVER has no key 'zzz'. It has: servicers, interceptors,"),
        ({"servicers": "a.b"}, "E003", "must be a list of dotted paths, not 'a.b'."),
        ({"servicers": [print]}, "E003", "which is not a dotted path"),
        ({"servicers": None}, "E003", "must be a list of dotted paths, not None."),
        ({"interceptors": ["nodots"]}, "E004", "holds 'nodots', which is not a dotted path."),
        ({"servicers": [".servicers.hook"]}, "E003", "holds '.servicers.hook', which is not a"),
        ({"servicers": ["a..b"]}, "E003", "holds 'a..b', which is not a dotted path."),
        (
            {"health": {"checks": ["a.b "]}},
            "E022",
            "['checks'] holds 'a.b ', which is not a dotted",
        ),
        ({"host": "a\ud800"}, "E012", "['host'] must be an address, not 'a\\ud800'."),
        ({"host": "unix:/a\0b"}, "E012", "['host'] must be an address, not 'unix:/a\\x00b'."),
        ({"maximum_concurrent_rpcs": 0}, "E005", "must be a whole number above 0 or None, not 0."),
        ({"maximum_concurrent_rpcs": True}, "E005", "or None, not True."),
        ({"options": {"a": 1}}, "E006", "must be a list of (name, value) pairs, not {'a': 1}."),
        ({"options": [("a",)]}, "E006", "holds ('a',), which is not a (name, value) pair."),
        ({"credentials": []}, "E007", "must be a list with at least one dictionary, or None"),
        ({"credentials": KEY_PAIR}, "E007", "must be a list with at least one dictionary"),
        ({"credentials": ["key.pem"]}, "E007", "['credentials'][0] must be a dictionary"),
        (
            {"credentials": [{"private_key": "key.pem"}]},
            "E007",
            "['credentials'][0]['certificate_chain'] must be the path of a PEM file, not None.",
        ),
        (
            {"credentials": [{**KEY_PAIR, "private_keys": "x"}]},
            "E007",
            "['credentials'][0] has no key 'private_keys'. Did you mean 'private_key'?",
        ),
        (
            {"credentials": [{**KEY_PAIR, "require_client_auth": "yes"}]},
            "E007",
            "['credentials'][0]['require_client_auth'] must be True or False, not 'yes'.",
        ),
        (
            {"credentials": [{**KEY_PAIR, "minimum_tls_version": "TLSv1.1"}]},
            "E007",
            "['minimum_tls_version'] must be 'TLSv1.2' or 'TLSv1.3', not 'TLSv1.1'.",
        ),
        (
            {"credentials": [{**KEY_PAIR, "cipher_suites": "AES128-SHA"}]},
            "E007",
            "['cipher_suites'] must be a list of cipher suites, not 'AES128-SHA'.",
        ),
        (
            {"credentials": [{**KEY_PAIR, "cipher_suites": ["AES128-SHA"]}]},
            "E007",
            "['cipher_suites'] holds 'AES128-SHA', which is no cipher suite of TLS 1.2",
        ),
        (
            {"credentials": [{**KEY_PAIR, "cipher_suites": [["x"]]}]},
            "E007",
            "['cipher_suites'] holds ['x'], which is no cipher suite of TLS 1.2",
        ),
        (
            {"credentials": [{**KEY_PAIR, "cipher_suites": [{}]}]},
            "E007",
            "['cipher_suites'] holds {}, which is no cipher suite of TLS 1.2",
        ),
        (
            {
                "credentials": [
                    {**KEY_PAIR, "minimum_tls_version": "TLSv1.2"},
                    {**KEY_PAIR, "minimum_tls_version": "TLSv1.3"},
                ]
            },
            "E007",
            "['credentials'] has entries that disagree about 'minimum_tls_version'.",
        ),
        (
            {"credentials": [{**KEY_PAIR, "require_client_auth": True}]},
            "E007",
            "['credentials'] has 'require_client_auth' without 'root_certificates'.",
        ),
        (
            {
                "credentials": [
                    {**KEY_PAIR, "root_certificates": "one.pem"},
                    {**KEY_PAIR, "root_certificates": "other.pem"},
                ]
            },
            "E007",
            "['credentials'] has entries that disagree about 'root_certificates'.",
        ),
        ({"async": 1}, "E008", "['async'] must be True or False, not 1."),
        ({"reflection": "on"}, "E009", "['reflection'] must be True or False, not 'on'."),
        ({"max_workers": 0}, "E010", "['max_workers'] must be a whole number above 0, not 0."),
        ({"max_workers": 1.5}, "E010", "must be a whole number above 0, not 1.5."),
        ({"grace": -1}, "E011", "['grace'] must be a number of seconds, 0 or more, not -1."),
        ({"grace": float("inf")}, "E011", "must be a number of seconds, 0 or more, not inf."),
        ({"grace": None}, "E011", "must be a number of seconds, 0 or more, not None."),
        ({"host": ""}, "E012", "['host'] must be an address, not ''."),
        ({"host": "http://[::]"}, "E012", "['host'] must be an address, not 'http://[::]'. Write"),
        (
            {"port": 65536},
            "E030",
            "['port'] must be a port number, 0 to 65535, not 65536. Write 50051.",
        ),
        ({"port": -1}, "E030", "['port'] must be a port number, 0 to 65535, not -1."),
        ({"port": True}, "E030", "['port'] must be a port number, 0 to 65535, not True."),
        ({"port": "http"}, "E030", "['port'] must be a port number, 0 to 65535, not 'http'."),
        ({"pidfile": 1}, "E031", "['pidfile'] must be the path of a file, not 1. Write"),
        ({"pidfile": ""}, "E031", "['pidfile'] must be the path of a file, not ''."),
        ({"drain_delay": "5"}, "E015", "['drain_delay'] must be a number of seconds"),
        ({"max_connections": 0}, "E016", "must be a whole number above 0 or None, not 0."),
        ({"workers": -1}, "E017", "['workers'] must be a whole number, 0 or more, not -1."),
        ({"worker_max_calls": 0}, "E018", "must be a whole number above 0 or None, not 0."),
        (
            {"worker_max_calls_jitter": -1},
            "E019",
            "must be a whole number, 0 or more, not -1. Write 0 for none, or None for a tenth",
        ),
        ({"worker_max_age": 0}, "E020", "must be a number of seconds above 0 or None, not 0."),
        ({"worker_max_memory": "1G"}, "E021", "must be a whole number above 0 or None, not '1G'."),
        ({"health": "on"}, "E022", "['health'] must be True, False or a dictionary, not 'on'."),
        ({"health": {"intervall": 1}}, "E022", "['health'] has no key 'intervall'. Did you mean"),
        ({"health": {"interval": 0}}, "E022", "['health']['interval'] must be a number of seconds"),
        ({"health": {"checks": ["nodots"]}}, "E022", "['health']['checks'] holds 'nodots', which"),
        ({"metrics": 9090}, "E023", "['metrics'] must be an address with a port, not 9090."),
        ({"metrics": "localhost"}, "E023", "must be an address with a port, not 'localhost'."),
        ({"metrics": "::1:9090"}, "E023", "must be an address with a port, not '::1:9090'."),
        ({"access_log": "xml"}, "E024", "['access_log'] must be 'text' or 'json', not 'xml'."),
        ({"access_log": {"sample": 2}}, "E024", "['sample'] must be a number from 0 to 1, not 2."),
        ({"watchdog": 0}, "E025", "must be a number of seconds above 0 or None, not 0."),
        ({"methods": []}, "E026", "['methods'] must be a dictionary, not []."),
        ({"methods": {"Get": {}}}, "E026", "has the key 'Get', which is no path of a method."),
        (
            {"methods": {"/a.B/C": {"concurrency": 0}}},
            "E026",
            "['methods']['/a.B/C']['concurrency'] must be a whole number above 0 or None, not 0.",
        ),
        ({"methods": {"*": {"queue": 3}}}, "E026", "['*'] has 'queue' without 'concurrency'."),
        (
            {"methods": {"*": {"timeout": 60, "max_timeout": 5}}},
            "E026",
            "['*'] has a 'timeout' longer than its 'max_timeout'.",
        ),
        ({"opentelemetry": 1}, "E027", "['opentelemetry'] must be True, False or None, not 1."),
    ],
)
def test_mistake_is_one_sentence_that_names_it_and_a_hint(setting, code, text):
    with (
        override_settings(GRPCSERVER=setting),
        pytest.raises(ImproperlyConfigured) as caught,
    ):
        conf.load()
    assert text in str(caught.value)
    assert caught.value.problem.code == code
    assert str(caught.value).startswith("GRPCSERVER")
    assert str(caught.value).endswith((".", "?"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["private_key", "certificate_chain", "root_certificates"])
@pytest.mark.parametrize("make", [str, str.encode, str.splitlines])
def test_key_in_the_place_of_its_path_is_not_told(make, name):
    content = "MIIEvQIBADANBgkqhkiG9w0BAQEFAASC"
    value = make(f"-----BEGIN PRIVATE KEY-----\n{content}\n-----END PRIVATE KEY-----\n")
    _, problems = conf.parse({"credentials": [{**KEY_PAIR, name: value}]})
    assert [it.code for it in problems] == ["E007"]
    assert f"['credentials'][0]['{name}'] must be the path of a PEM file, not" in str(problems[0])
    assert content not in str(problems[0])


DURATIONS = [
    lambda value: {"grace": value},
    lambda value: {"drain_delay": value},
    lambda value: {"watchdog": value},
    lambda value: {"worker_max_age": value},
    lambda value: {"worker_timeout": value},
    lambda value: {"worker_start_timeout": value},
    lambda value: {"health": {"interval": value}},
    lambda value: {"health": {"timeout": value}},
    lambda value: {"health": {"max_queue_wait": value}},
    lambda value: {"access_log": {"slow": value}},
    lambda value: {"methods": {"*": {"timeout": value}}},
    lambda value: {"methods": {"*": {"max_timeout": value}}},
    lambda value: {"methods": {"*": {"retry_after": value}}},
]


@pytest.mark.parametrize("setting", DURATIONS, ids=lambda it: str(it("seconds")))
def test_duration_is_a_century_at_most(setting):
    load(**setting(CENTURY))
    for longer in (CENTURY + 1, 1e300, 10**20, 10**400, 10**5000):
        with pytest.raises(ImproperlyConfigured) as caught:
            load(**setting(longer))
        assert f" must be at most {CENTURY} seconds, which is a century. " in str(caught.value)


COUNTS = [
    lambda value: {"maximum_concurrent_rpcs": value},
    lambda value: {"max_workers": value},
    lambda value: {"max_connections": value},
    lambda value: {"worker_max_calls": value},
    lambda value: {"worker_max_calls_jitter": value},
    lambda value: {"worker_max_memory": value},
    lambda value: {"methods": {"*": {"concurrency": value}}},
    lambda value: {"methods": {"*": {"concurrency": 1, "queue": value}}},
    lambda value: {"methods": {"*": {"max_message": value}}},
]


@pytest.mark.parametrize("setting", COUNTS, ids=lambda it: str(it("count")))
def test_count_is_an_int_of_c_at_most(setting):
    load(**setting(MOST))
    for greater in (MOST + 1, 2**63, 10**20, 10**5000):
        with pytest.raises(ImproperlyConfigured) as caught:
            load(**setting(greater))
        assert f" must be at most {MOST}. " in str(caught.value)


def test_number_of_worker_processes_has_a_limit():
    assert load(workers=MOST_WORKERS).workers == MOST_WORKERS
    for more in (MOST_WORKERS + 1, 10**20):
        with pytest.raises(ImproperlyConfigured, match=f"must be at most {MOST_WORKERS}. "):
            load(workers=more)


def test_calls_of_worker_processes_may_have_no_jitter():
    assert load(worker_max_calls_jitter=0).worker_max_calls_jitter == 0
    assert load(worker_max_calls_jitter=None).worker_max_calls_jitter is None


@pytest.mark.parametrize(
    "make_lazy",
    [
        lambda value: SimpleLazyObject(lambda: value),
        lambda value: lazy(lambda: value, type(value))(),
    ],
    ids=["SimpleLazyObject", "lazy"],
)
def test_lazy_values_are_what_they_stand_for(make_lazy):
    config = load(
        servicers=[make_lazy("a.b")],
        max_workers=make_lazy(7),
        grace=make_lazy(1.5),
        host=make_lazy("127.0.0.1"),
        credentials=[{name: make_lazy(path) for name, path in KEY_PAIR.items()}],
        methods={"*": {"timeout": make_lazy(2), "concurrency": make_lazy(3)}},
        options=[(make_lazy("grpc.so_reuseport"), make_lazy(0))],
    )
    assert (config.max_workers, config.grace, config.host) == (7, 1.5, "127.0.0.1")
    assert config.credentials == conf.Credentials(key_pairs=(conf.KeyPair(**KEY_PAIR),))
    assert config.methods == {"*": conf.MethodLimits(timeout=2.0, concurrency=3)}
    assert config.servicers == ("a.b",)
    assert config.options == (("grpc.so_reuseport", 0),)
    assert type(config.max_workers) is int
    assert type(config.options[0][1]) is int


def test_lazy_value_that_is_wrong_is_refused_as_what_it_stands_for():
    for value in (SimpleLazyObject(lambda: -1), lazy(lambda: -1, int)()):
        for name in ("max_workers", "grace"):
            with pytest.raises(ImproperlyConfigured, match=rf"'{name}'\] must be .*, not -1\."):
                load(**{name: value})


def test_all_mistakes_are_found_at_once():
    config, problems = conf.parse({"servicer": [], "grace": -1, "async": 1})
    assert config is None
    assert [problem.code for problem in problems] == ["E002", "E008", "E011"]


def test_configured_path_is_imported():
    from sampleapp.servicer import grpc_hook

    assert conf.import_configured("servicers", "sampleapp.servicer.grpc_hook") is grpc_hook


@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        ("sampleapp.nowhere.grpc_hook", "No module named 'sampleapp.nowhere'"),
        ("sampleapp.servicer.nothing", "has no 'nothing'"),
        ("sampleapp.servicer.not_callable", "is of type str, which can't be called"),
        ("sampleapp.servicer.Greeter", "can't be called as it has to be"),
        ("nowhere_pb2.Greeter", "If its code was never generated: python -m grpc_tools.protoc"),
    ],
)
def test_configured_path_that_fails_is_named(path, complaint):
    with pytest.raises(ImproperlyConfigured) as caught:
        conf.import_configured("servicers", path)
    assert f"GRPCSERVER['servicers']: '{path}'" in str(caught.value)
    assert complaint in str(caught.value)


def test_decorated_function_counts_as_what_the_decorator_takes(tmp_path, monkeypatch):
    (tmp_path / "decorated.py").write_text(
        "import functools\n"
        "def inner(server, given): return server, given\n"
        "@functools.wraps(inner)\n"
        "def hook(server): return inner(server, 5)\n"
        "@functools.wraps(inner)\n"
        "def check(): inner(1, 2)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert conf.call_configured("servicers", "decorated.hook", "server") == ("server", 5)
    assert conf.import_configured("health.checks", "decorated.check")() is None


def test_fault_in_the_code_of_a_configured_module_propagates(tmp_path, monkeypatch):
    (tmp_path / "faulty_servicer.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ZeroDivisionError):
        conf.import_configured("servicers", "faulty_servicer.grpc_hook")


def test_keys_of_production():
    config = load(
        workers=0,
        worker_max_calls=1000,
        health={"interval": 2, "checks": []},
        metrics="unix:/run/metrics.sock",
        access_log={"format": "json", "slow": 0.5},
        methods={"/a.B/*": {"concurrency": 4, "queue": 8, "timeout": 3}},
    )
    assert config.workers == 0
    assert config.health == conf.Health(checks=(), interval=2.0)
    assert config.access_log == conf.AccessLog(format="json", slow=0.5)
    assert config.methods["/a.B/*"] == conf.MethodLimits(concurrency=4, queue=8, timeout=3.0)
    assert load().health == conf.Health()
    assert load(health=False).health is None
    assert load(access_log=True).access_log == conf.AccessLog()
    assert load(metrics="[::1]:9090").metrics == "[::1]:9090"


def test_the_later_place_wins():
    setting = {
        "workers": 2,
        "access_log": False,
        "health": True,
        "metrics": "127.0.0.1:9090",
        "opentelemetry": False,
        "watchdog": 3,
    }
    environment = {
        "WEB_CONCURRENCY": "5",
        "GRPCSERVER_ACCESS_LOG": "json",
        "GRPCSERVER_HEALTH": "off",
        "GRPCSERVER_GRACE": "2.5",
        "GRPCSERVER_HOST": "127.0.0.1",
        "GRPCSERVER_METRICS": "none",
        "GRPCSERVER_OPENTELEMETRY": "None",
        "GRPCSERVER_WATCHDOG": "",
    }
    config, problems = conf.parse(setting, environment, {"host": "::1", "grace": None})
    assert problems == []
    assert config.workers == 2
    assert config.access_log == conf.AccessLog(format="json")
    assert config.health is None
    assert config.grace == 2.5
    assert config.host == "::1"
    assert config.metrics is None
    assert config.opentelemetry is None
    assert config.watchdog == 3
    assert conf.parse({}, environment)[0].workers == 5
    assert conf.parse(setting, {**environment, "GRPCSERVER_WORKERS": "3"})[0].workers == 3


@pytest.mark.parametrize("word", ["on", "true"])
def test_what_says_yes_keeps_what_the_setting_says(word):
    setting = {
        "access_log": {"format": "json", "sample": 0.5, "sql": True},
        "health": {"interval": 5},
    }
    expected = conf.parse(setting)[0]
    environment = {"GRPCSERVER_ACCESS_LOG": word, "GRPCSERVER_HEALTH": word}
    assert conf.parse(setting, environment)[0] == expected
    assert conf.parse(setting, {}, {"health": True})[0] == expected


def test_a_format_changes_nothing_else():
    setting = {"access_log": {"format": "json", "sample": 0.5, "sql": True}}
    expected = conf.AccessLog(format="text", sample=0.5, sql=True)
    assert conf.parse(setting, {}, {"access_log": "text"})[0].access_log == expected
    assert conf.parse(setting, {"GRPCSERVER_ACCESS_LOG": "text"})[0].access_log == expected
    assert conf.parse(setting, {"GRPCSERVER_ACCESS_LOG": "off"})[0].access_log is None
    assert conf.parse(setting, {"GRPCSERVER_ACCESS_LOG": "xml"})[1]


@pytest.mark.parametrize(
    ("environment", "flags", "text"),
    [
        ({"WEB_CONCURRENCY": "many"}, {}, "WEB_CONCURRENCY must be a whole number, 0 or more"),
        ({"GRPCSERVER_GRACE": "soon"}, {}, "GRPCSERVER_GRACE must be a number of seconds"),
        ({"GRPCSERVER_REFLECTION": "2"}, {}, "GRPCSERVER_REFLECTION must be True or False"),
        ({}, {"worker_max_age": -1.0}, "--worker-max-age must be a number of seconds above 0"),
        ({}, {"max_workers": 0}, "--max_workers must be a whole number above 0"),
    ],
)
def test_mistake_names_the_place_that_has_it(environment, flags, text):
    config, problems = conf.parse({}, environment, flags)
    assert config is None
    assert problems[0].message.startswith(text)


@pytest.mark.parametrize(
    ("code", "kind", "note"),
    [
        ("1 / 0", ZeroDivisionError, "'notes_of_errors.hook' can't be imported."),
        ("def hook(", SyntaxError, "'notes_of_errors.hook' can't be imported."),
        (
            "def hook(server): 1 / 0",
            ZeroDivisionError,
            "'notes_of_errors.hook' has raised this as it was called.",
        ),
    ],
)
def test_errors_of_the_projects_own_code_say_where_it_is_named(
    code, kind, note, tmp_path, monkeypatch
):
    (tmp_path / "notes_of_errors.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "notes_of_errors", raising=False)
    with pytest.raises(kind) as caught:
        conf.call_configured("servicers", "notes_of_errors.hook", None)
    assert caught.value.__notes__ == [f"GRPCSERVER['servicers']: {note}"]
