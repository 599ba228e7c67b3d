"""The HTTP server: one module a protocol, over an engine."""

from fourfold.server.app import create_app
from fourfold.server.backend import Backend, Server
from fourfold.server.hosts import Process, Thread
from fourfold.server.settings import ServerConfig

__all__ = ["Backend", "Process", "Server", "ServerConfig", "Thread", "create_app"]
