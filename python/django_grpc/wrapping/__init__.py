"""What is put around servicers' methods, once, at registration: signals, spans, queries' counts."""
