"""Runs a command in a fork of ``fork_server.py``: forked.py ADDRESS COMMAND ARGUMENTS..."""

import os
import socket
import sys

connection = socket.socket(socket.AF_UNIX)
connection.connect(sys.argv[1])
request = "\0".join([os.getcwd(), "0", *sys.argv[2:]]).encode()
socket.send_fds(connection, [request], [0, 1, 2])
# Nothing comes from a process that a signal has ended.
sys.exit((connection.recv(1) or b"\x86")[0])
