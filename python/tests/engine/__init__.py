"""The behaviour of the engine's server, checked by real clients over real sockets.

The suite says what `grpc.server` does and holds `django_grpc.engine.server` to it. Run it with
`ENGINE_UNDER_TEST=grpcio` to see that grpcio's own server meets the same expectations; what is
promised of ours alone is marked with `ours_only` and its reason.
"""
