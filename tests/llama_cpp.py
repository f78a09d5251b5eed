"""llama.cpp's own server (the C++ one, out of the xllamacpp package) with the flags of `llama-server` used here."""

from __future__ import annotations

import argparse
import os
import threading


def main() -> None:
    """Serve until a signal ends the process."""
    import xllamacpp

    parser = argparse.ArgumentParser()
    parser.add_argument("-m", "--model", required=True)
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--alias", required=True)
    parser.add_argument("--parallel", type=int, default=4)
    parser.add_argument("--ctx-size", type=int, default=8192)
    parser.add_argument("--metrics", action="store_true")
    flags = parser.parse_args()
    params = xllamacpp.CommonParams()
    params.model.path, params.model_alias = flags.model, {flags.alias}
    params.hostnames, params.port = [flags.host], flags.port
    params.n_parallel, params.n_ctx = flags.parallel, flags.ctx_size
    params.endpoint_metrics = flags.metrics
    if key := os.environ.get("LLAMA_API_KEY"):
        params.api_keys = [key]
    server = xllamacpp.Server(params)
    print(f"llama.cpp {xllamacpp.__version__} listens on {server.listening_address}", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
